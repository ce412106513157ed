"""The tables of localization, for the terminal.

The pictures of localization."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from journey.attribution.targets import PAIRED_STEPS, STEP
from journey.evaluation.plots import COLOURS, GREY, method_colour
from journey.evaluation.rows import Row, error_bars, format_interval, method_names, select

TITLES = {"lds": "LDS × 100", "own": "the same, less what regions share"}


def localization_tables(result: dict) -> list[Table]:
    """How much more scores of a region predict of it, and how much more of a change lies in it."""
    paired = ", ".join(map(str, result["paired_steps"]))
    predicted = Table("scores of", *TITLES.values(), title_justify="left")
    predicted.title = Text(f"own region less others, mean of t={paired} (× 100 [95%])")
    for method in method_names(result["rows"], "lds_locality"):
        of = [
            select(result["rows"], quantity=f"{q}_locality", method=method, target=PAIRED_STEPS)[0]
            for q in TITLES
        ]
        predicted.add_row(method, *map(_more, of))
    removed = Table(
        "left out",
        "against",
        "share of change inside",
        "rise of the output inside",
        title_justify="left",
    )
    removed.title = Text(
        f"{result['removed']['method']}, t={result['removed']['step']} (× 100 [95%])"
    )
    for row in select(result["rows"], quantity="share_more"):
        (rise,) = select(
            result["rows"], quantity="rise_more", against=row["against"], outputs=row["outputs"]
        )
        removed.add_row(str(row["outputs"]), str(row["against"]), _more(row), _more(rise))
    return [predicted, removed]


def _more(row: Row) -> str:
    return format_interval(row, 1, times=100, sign="+")


matplotlib.use("Agg")


MOST = 60  # LDS × 100 at the ends of the colours


def lds_matrices(result: dict) -> Figure:
    """LDS of every region's scores against every region's outputs: a column for each method."""
    methods = method_names(result["rows"], "lds")
    size = (2.9 * len(methods) + 1.0, 6.0)
    figure, panels = plt.subplots(
        2, len(methods), figsize=size, squeeze=False, layout="constrained"
    )
    for line, (quantity, title) in zip(panels, TITLES.items(), strict=True):
        for axes, method in zip(line, methods, strict=True):
            found = select(result["rows"], quantity=quantity, method=method)
            regions = list(dict.fromkeys(str(row["outputs"]) for row in found))
            values = 100 * np.reshape([row["value"] for row in found], (len(regions), -1))
            _map(axes, values, regions, "RdBu_r", (-MOST, MOST))
            axes.set_title(f"{method}\n{title}", fontsize=8)
        line[0].set_ylabel("scores of", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("outputs of", fontsize=8)
    paired = ", ".join(map(str, result["paired_steps"]))
    subsets = f"{result['num_subsets']} subsets × {result['num_seeds']} seeds"
    figure.suptitle(
        f"{result['experiment']}: mean of t = {paired}; {subsets}, {result['num_queries']} queries",
        fontsize=9,
    )
    return figure


def locality_by_step(result: dict) -> Figure:
    """How much more a region's scores predict of that region than of another, at every step."""
    figure, panels = plt.subplots(1, 2, figsize=(9.0, 3.8), sharey=True, layout="constrained")
    spread = 0.012 * (max(result["steps"]) - min(result["steps"]))
    for axes, (quantity, title) in zip(panels, TITLES.items(), strict=True):
        for i, method in enumerate(method_names(result["rows"], "lds")):
            found = select(
                result["rows"], quantity=f"{quantity}_locality", method=method, target=STEP
            )
            at = np.array([row["step"] for row in found]) - spread * i
            style = {
                "fmt": "o-",
                "color": method_colour(method),
                "capsize": 2,
                "markersize": 4,
                "elinewidth": 1,
            }
            axes.errorbar(
                at, _percent_values(found), 100 * error_bars(found), label=method, **style
            )
        axes.axhline(0, color="black", linewidth=0.6)
        axes.invert_xaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("step t  (noise → image)")
        axes.set_title(title, fontsize=9)
    panels[0].set_ylabel("own region less others (LDS × 100)")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"{result['experiment']}: do scores of a region predict that region? 95% intervals",
        fontsize=10,
    )
    return figure


def removal_figure(result: dict) -> Figure:
    """Where the change lies when a region's proponents are left out, and how much more of it than otherwise."""
    figure, panels = plt.subplots(
        1, 3, figsize=(12.0, 3.9), width_ratios=(1.2, 1.2, 1.6), layout="constrained"
    )
    for axes, (quantity, title) in zip(
        panels,
        {"share": "share of the squared change, %", "rise": "rise of the output, %"}.items(),
        strict=False,
    ):
        found = select(result["rows"], quantity=quantity)
        regions = list(dict.fromkeys(str(row["outputs"]) for row in found))
        left_out = list(dict.fromkeys(str(row["removed"]) for row in found))
        values = 100 * np.reshape([row["value"] for row in found], (len(left_out), len(regions)))
        _map(axes, values, regions, "viridis", (values.min(), values.max()), left_out)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("in", fontsize=8)
    panels[0].set_ylabel("proponents left out of", fontsize=8)
    _more_figures(panels[2], result)
    of = result["removed"]
    sizes = f"{of['num_removals']} queries, {of['num_continuations']} continuations each"
    figure.suptitle(
        f"{result['experiment']}: without the {of['count']} first of {of['method']} at t={of['step']}; {sizes}",
        fontsize=10,
    )
    return figure


def _more_figures(axes: plt.Axes, result: dict) -> None:
    """Inside the region whose proponents were left out, less the same under other removals; the two share an axis."""
    style = {"capsize": 2, "markersize": 4, "elinewidth": 1}
    found = select(result["rows"], quantity="share_more")
    regions = list(dict.fromkeys(str(row["outputs"]) for row in found))
    for i, (quantity, marker) in enumerate({"share": "o", "rise": "s"}.items()):
        for j, against in enumerate(dict.fromkeys(str(row["against"]) for row in found)):
            of = select(result["rows"], quantity=f"{quantity}_more", against=against)
            at = np.arange(len(of)) + 0.14 * (2 * i + j - 1.5)
            style |= {
                "fmt": marker,
                "color": COLOURS[2 * i + j],
                "label": f"{quantity}, less {against}",
            }
            axes.errorbar(at, _percent_values(of), 100 * error_bars(of), **style)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(
        range(len(regions)), [region.replace(" ", "\n") for region in regions], fontsize=8
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("× 100, 95% intervals over queries", fontsize=8)
    axes.set_title("in the region itself, less otherwise", fontsize=9)
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _map(
    axes: plt.Axes,
    values: np.ndarray,
    columns: list[str],
    colours: str,
    ends: tuple[float, float],
    lines: list[str] | None = None,
) -> None:
    """Numbers on colours. [lines, columns]"""
    axes.imshow(values, cmap=colours, vmin=ends[0], vmax=ends[1], aspect="auto")
    middle = (ends[0] + ends[1]) / 2
    for (i, j), value in np.ndenumerate(values):
        dark = (
            abs(value - middle) > 0.35 * (ends[1] - ends[0])
            if colours == "RdBu_r"
            else value < middle
        )
        axes.text(
            j,
            i,
            f"{value:.0f}".replace("-0", "0"),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    axes.set_xticks(range(len(columns)), [name.replace(" ", "\n") for name in columns], fontsize=7)
    axes.set_yticks(range(len(values)), lines or columns, fontsize=7)
    axes.tick_params(length=0)


def _percent_values(found: list[Row]) -> np.ndarray:
    return 100 * np.array([row["value"] for row in found])
