"""The tables of linear datamodeling scores, for the terminal and as Markdown.

The pictures of linear datamodeling scores."""

from collections.abc import Callable
from statistics import fmean

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from journey.attribution.targets import FINAL_SAMPLE, PAIRED_STEPS, STEP, TRAJECTORY
from journey.evaluation.plots import COLOURS, GREY, LIGHT, method_colour, method_marker
from journey.evaluation.rows import Row, error_bars, format_interval, method_names, select

KERNEL = (
    "condition_number",
    "effective_parameters",
)  # what a method says of every kernel it solved, [checkpoint][damping]


COLUMNS = (PAIRED_STEPS, TRAJECTORY, FINAL_SAMPLE)


def lds_table(result: dict) -> Table:
    """LDS × 100 with half the width of its 95% interval: a row for every method, a column for every target."""
    sizes = f"M={result['num_subsets']} subsets × R={result['num_seeds']}, {result['num_queries']} queries"
    table = Table(
        title=f"{result['experiment']}: LDS × 100 ± half of the 95% interval ({sizes})",
        title_justify="left",
    )
    for heading in ("method", *_headings(result)):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for name in method_names(result["rows"], "lds"):
        table.add_row(
            name, *_cells(result, _short, quantity="lds", method=name, score_transform="best")
        )
    table.add_section()
    for noise, title in ceiling_titles(result).items():
        table.add_row(title, *_cells(result, _short, quantity="ceiling", method=noise))
    return table


def paired_table(result: dict) -> Table | None:
    """The first method minus each other; None where there is no other."""
    others = list(
        dict.fromkeys(
            (row["method"], row["against"]) for row in select(result["rows"], quantity="difference")
        )
    )
    if not others:
        return None
    steps = ", ".join(map(str, result["paired_steps"]))
    title = f"paired differences of LDS × 100; steps: mean of t={steps}"
    table = Table("a − b", "steps", "trajectory", "destination", title=title, title_justify="left")
    for a, b in others:
        found = {
            row["target"]: row
            for row in select(result["rows"], quantity="difference", method=a, against=b)
        }
        table.add_row(f"{a} − {b}", *(_difference(found[target]) for target in COLUMNS))
    return table


def lds_markdown(result: dict) -> str:
    """Everything with its interval, and, of the best read-out, its share of the ceiling; what was chosen for the steps; cost."""
    headings = [
        "method",
        "read-out",
        *_headings(result),
        "chosen for the steps",
        "seconds",
        "gradients",
        "MB",
    ]
    lines = [_markdown_row(headings), _markdown_row(["---"] * len(headings))]
    for name in method_names(result["rows"], "lds"):
        cost = result["cost"][name]
        costs = [f"{cost['seconds']:.0f}", f"{cost['gradients']:,}", f"{cost['bytes'] / 1e6:.1f}"]
        chosen = {
            score_transform: _chosen(cells, result["candidates"][name])
            for score_transform, cells in result["chosen"][name].items()
        }
        best = _cells(
            result,
            _of_ceiling(result, "ceiling"),
            quantity="lds",
            method=name,
            score_transform="best",
        )
        linear = _cells(result, _long, quantity="lds", method=name, score_transform="linear")
        specific = _cells(
            result, _of_ceiling(result, "specific_ceiling"), quantity="specific", method=name
        )
        lines.append(_markdown_row([name, "best", *best, chosen["best"], *costs]))
        lines.append(_markdown_row(["", "linear", *linear, chosen["linear"], "", "", ""]))
        lines.append(_markdown_row(["", "query-specific", *specific, "", "", "", ""]))
    for quantity, score_transform in (("ceiling", ""), ("specific_ceiling", "query-specific")):
        for noise, title in ceiling_titles(result).items():
            lines.append(
                _markdown_row(
                    [
                        title,
                        score_transform,
                        *_cells(result, _long, quantity=quantity, method=noise),
                        "",
                        "",
                        "",
                        "",
                    ]
                )
            )
    return "\n".join([*lines, "", NOTES, "", *_kernels(result)]) + "\n"


NOTES = """LDS × 100 [95%], and LDS / ceiling, by the ceiling of these models. Ceilings: what the best predictor's rank
correlation is expected to be, where only the draws are noise, and where other trainings are asked. Query-specific: without what
all queries have in common. A choice at an end of its grid is marked ⊣."""


def ceiling_titles(result: dict) -> dict[str, str]:
    """What ceilings there are, with their titles."""
    titles = {"draws": "ceiling, these models", "seeds": "ceiling, over seeds"}
    return {noise: titles[noise] for noise in method_names(result["rows"], "ceiling")}


def _kernels(result: dict) -> list[str]:
    """A row for every kernel that was solved: what its λ leaves. Means over checkpoints."""
    lines = []
    for name, how in result["how"].items():
        solved = zip(
            result["candidates"][name],
            *(zip(*how.get(of, []), strict=True) for of in KERNEL),
            strict=False,
        )
        for candidate, conditions, parameters in solved:
            numbers = (
                f"{candidate['damping']:g}",
                f"{fmean(parameters):.0f}",
                f"{fmean(conditions):.2g}",
            )
            lines.append(_markdown_row([name, *numbers]))
    headings = ["kernel of", "λ, relative", "effective parameters", "condition number"]
    return (
        [_markdown_row(headings), _markdown_row(["---"] * len(headings)), *lines] if lines else []
    )


def _headings(result: dict) -> list[str]:
    steps = result["paired_steps"]
    return [
        *(f"t={t}" for t in result["steps"]),
        f"mean of {len(steps)} steps",
        "trajectory",
        "destination",
    ]


def _cells(result: dict, write: Callable[[Row], str], **what: str) -> list[str]:
    """The steps in their order, then the other targets."""
    found = select(result["rows"], **what)
    steps = [row for t in result["steps"] for row in select(found, step=t)]
    return [
        write(row)
        for row in steps + [row for target in COLUMNS for row in select(found, target=target)]
    ]


def _short(row: Row) -> str:
    return f"{100 * row['value']:.0f} ± {50 * (row['high'] - row['low']):.0f}"


def _long(row: Row) -> str:
    return format_interval(row, 0, times=100)


def _of_ceiling(result: dict, quantity: str) -> Callable[[Row], str]:
    """With the share of the ceiling of these models at the same target."""
    limits = {
        (row["target"], row.get("step")): row["value"]
        for row in select(result["rows"], quantity=quantity, method="draws")
    }

    def write(row: Row) -> str:
        limit = limits[row["target"], row.get("step")]
        return f"{_long(row)} {row['value'] / limit:.2f}" if limit > 0 else f"{_long(row)} –"

    return write


def _difference(row: Row) -> str:
    return format_interval(row, 1, times=100, sign="+")


def _chosen(of_targets: dict, candidates: list[dict[str, float]]) -> str:
    """Of the four cells, each choice once."""
    choices = [
        " ".join(_value(key, value, candidates) for key, value in cell.items())
        for cell in of_targets[STEP]
    ]
    return ", ".join(dict.fromkeys(choices))


def _value(key: str, value: float | str, candidates: list[dict[str, float]]) -> str:
    """A chosen value, marked where it is the first or last of several: others beyond it may be better."""
    if isinstance(value, str):
        return value
    grid = sorted({candidate[key] for candidate in candidates})
    return f"{value:g}⊣" if len(grid) > 1 and value in (grid[0], grid[-1]) else f"{value:g}"


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


matplotlib.use("Agg")


MOST_NAMED = 6


MARKED = {"fmt": "o-", "capsize": 2, "markersize": 4, "elinewidth": 1}


def lds_by_step(result: dict) -> Figure:
    """LDS against the step that is judged, for every method with its 95% interval, under the ceilings.

    Of many methods only the first and the best few are named; the others are grey, and without their intervals.
    """
    figure, (by_step, whole) = plt.subplots(
        1, 2, figsize=(9.5, 4.6), sharey=True, width_ratios=(3, 1), layout="constrained"
    )
    every, shown = plain_methods(result), named_methods(result)
    for (noise, title), dashes in zip(ceiling_titles(result).items(), ("--", ":"), strict=False):
        of_steps = select(result["rows"], quantity="ceiling", method=noise, target=STEP)
        by_step.plot(
            result["steps"], [row["value"] for row in of_steps], dashes, color=GREY, label=title
        )
    for i, name in enumerate(name for name in every if name not in shown):
        label = f"{len(every) - len(shown)} other methods" if i == 0 else None
        by_step.plot(
            result["steps"],
            _values(_chosen_rows(result, name))[:-2],
            color=LIGHT,
            linewidth=0.9,
            label=label,
            zorder=0,
        )
    for i, name in enumerate(shown):
        _method(by_step, whole, result, name, i - len(shown) / 2)
    _wholes(
        whole,
        select(result["rows"], quantity="ceiling", method="draws"),
        {**MARKED, "color": GREY},
        len(shown) / 2,
    )
    by_step.invert_xaxis()
    by_step.set(
        xlabel="step t that is judged  (noise → image)", ylabel="LDS (Spearman, mean over queries)"
    )
    whole.set_xticks([0, 1], ["trajectory", "destination"])
    whole.set_xlim(-0.6, 1.6)
    for axes in (by_step, whole):
        axes.axhline(0, color="black", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *by_step.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=8,
    )
    figure.suptitle(f"{result['experiment']}: {_sizes(result)}", fontsize=10)
    return figure


def named_methods(result: dict) -> list[str]:
    """The methods that a picture tells apart: all, or of many the first and those with the highest LDS over the paired steps."""
    every = plain_methods(result)
    if len(every) <= MOST_NAMED:
        return every
    paired = [select(_chosen_rows(result, name), target=PAIRED_STEPS)[0] for name in every]
    best = sorted(paired, key=lambda row: -row["value"])[: MOST_NAMED - 1]
    return [name for name in every if name == every[0] or name in {row["method"] for row in best}]


def _method(by_step: plt.Axes, whole: plt.Axes, result: dict, name: str, place: float) -> None:
    """One method, beside the others by its place, so that intervals can be told apart."""
    of_steps = select(_chosen_rows(result, name), target=STEP)
    spread = 0.012 * (max(result["steps"]) - min(result["steps"]))
    at = np.array([row["step"] for row in of_steps]) - spread * place
    look = {**MARKED, "fmt": f"{method_marker(name)}-", "color": method_colour(name)}
    by_step.errorbar(
        at, [row["value"] for row in of_steps], error_bars(of_steps), label=name, **look
    )
    _wholes(whole, _chosen_rows(result, name), look, place)


def _wholes(axes: plt.Axes, rows: list[Row], look: dict, place: float) -> None:
    """The trajectory and the destination."""
    for x, target in enumerate((TRAJECTORY, FINAL_SAMPLE)):
        (row,) = select(rows, target=target)
        axes.errorbar(x + 0.1 * place, row["value"], error_bars([row]), **look)


def _chosen_rows(result: dict, name: str) -> list[Row]:
    return select(result["rows"], quantity="lds", method=name, score_transform="best")


def plain_methods(result: dict) -> list[str]:
    """The methods that were asked for, without variants of them."""
    return [name for name in method_names(result["rows"], "lds") if name not in result["variants"]]


def lds_by_method(result: dict) -> Figure:
    """LDS of many methods as two maps, best and linear read-out: a row for each, highest mean over the paired steps first."""
    rows = result["rows"]
    paired = {
        name: select(_chosen_rows(result, name), target=PAIRED_STEPS)[0]["value"]
        for name in method_names(rows, "lds")
    }
    order = sorted(paired, key=lambda name: -paired[name])
    columns = [f"{t}" for t in result["steps"]] + ["traj.", "dest."]
    limits = {
        title: _values(select(rows, quantity="ceiling", method=noise))
        for noise, title in ceiling_titles(result).items()
    }
    size = (4.2 + 2 * 0.5 * len(columns), 1.6 + 0.24 * (len(order) + len(limits)))
    figure, panels = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    for axes, score_transform in zip(panels, ("best", "linear"), strict=True):
        judged = [
            _values(select(rows, quantity="lds", method=name, score_transform=score_transform))
            for name in order
        ]
        values = 100 * np.array([*judged, *limits.values()])
        axes.imshow(values, cmap="RdBu_r", vmin=-60, vmax=60, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            axes.text(
                j,
                i,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if abs(value) > 42 else "black",
            )
        axes.axhline(len(order) - 0.5, color="black", linewidth=0.8)
        axes.axvline(len(result["steps"]) - 0.5, color="black", linewidth=0.8)
        axes.set_xticks(range(len(columns)), columns, fontsize=7)
        axes.set_yticks(range(len(order) + len(limits)), [*order, *limits], fontsize=7)
        axes.tick_params(length=0)
        axes.set_xlabel("judged at step t", fontsize=8)
        axes.set_title(f"{score_transform} read-out", fontsize=8)
    sizes = _sizes(result).removesuffix(", 95% intervals")
    figure.suptitle(f"{result['experiment']}: LDS × 100; {sizes}", fontsize=9)
    return figure


def _values(rows: list[Row]) -> list[float]:
    """Of the steps, the trajectory and the destination."""
    return [
        row["value"]
        for target in (STEP, TRAJECTORY, FINAL_SAMPLE)
        for row in select(rows, target=target)
    ]


def ablation_figure(
    result: dict, base: str, axes_values: dict[str, list[tuple[str, str]]]
) -> Figure:
    """LDS along every axis that was varied: axes_values[axis] is (value as text, name of the method), base included."""
    columns = min(5, len(axes_values))
    rows = -(-len(axes_values) // columns)
    size = (max(6.0, 2.3 * columns + 0.6), 2.7 * rows + 0.7)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    panels = grid.flatten()
    for axes, (axis, points) in zip(panels, axes_values.items(), strict=False):
        _along(axes, axis, points, result)
    for axes in panels[len(axes_values) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("LDS", fontsize=8)
    grid[0, 0].legend(frameon=False, fontsize=6)
    figure.suptitle(
        f"{result['experiment']}: {base}, one setting changed at a time\n{_sizes(result)}",
        fontsize=9,
    )
    return figure


def _along(axes: plt.Axes, axis: str, points: list[tuple[str, str]], result: dict) -> None:
    """One setting. Values that are no numbers are not joined by a line."""
    targets = {
        PAIRED_STEPS: "steps " + ", ".join(map(str, result["paired_steps"])),
        TRAJECTORY: "trajectory",
    }
    line = "o-" if all(value[0].isdigit() for value, _ in points) else "o"
    for i, (target, label) in enumerate(targets.items()):
        best = select(result["rows"], quantity="lds", score_transform="best", target=target)
        judged = [select(best, method=name)[0] for _, name in points]
        style = {**MARKED, "fmt": line, "color": COLOURS[i]}
        at = np.arange(len(points)) + 0.1 * i  # beside each other
        axes.errorbar(
            at, [row["value"] for row in judged], error_bars(judged), label=label, **style
        )
    axes.set_xticks(range(len(points)), [v for v, _ in points], fontsize=7)
    axes.set_xlim(-0.5, len(points) - 0.4)
    axes.set_xlabel(axis, fontsize=8)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _sizes(result: dict) -> str:
    subsets = f"{result['num_subsets']} subsets × {result['num_seeds']} seeds"
    return f"{result['num_train']} training images, {subsets}, {result['num_queries']} queries, 95% intervals"
