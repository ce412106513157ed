"""The tables of counterfactual evaluations.

The pictures of counterfactual evaluations."""

from collections.abc import Callable, Iterable

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from journey.evaluation.counterfactual import CONTROLS, OPPONENTS, PROPONENTS, RANDOM, SAME, SEED
from journey.evaluation.counterfactual.changes import unpack_pictures
from journey.evaluation.plots import GREY, method_colour, method_marker
from journey.evaluation.rows import Row, error_bars, format_interval, select

COLUMNS = {
    "rise": ("rise of f_t, %", 100, 1),
    "own rise": ("less other queries', %", 100, 1),
    "destination rise": ("of the destination, %", 100, 1),
    "l2": ("L2", 1, 2),
    "ssim": ("SSIM", 1, 3),
    "cosine": ("cosine", 1, 3),
    "frechet": ("Fréchet", 1, 2),
    "class": ("class share, points", 100, 1),
}
"""What each quantity is called, by what it is multiplied, and its digits."""


NOTES = """Means over queries [95%]. Rises: of the query's output, by the retrained model. L2, SSIM, cosine: of the images that
the same noise leads to, before and after, in pixels and in an encoder's features. Fréchet: of continuations of one x_t, in
{dimensions} principal axes of the features (no FID). Class share: of continuations that show the class which most of them showed
before. By {num_random} random removals and {num_seeds} other seeds that all queries share, intervals are over models and
queries."""


def counterfactual_tables(result: dict) -> list[Table]:
    """For the terminal: of every step, side and count, the whole rest of the journey."""
    shown = []
    for title, headings, lines in _all(result):
        table = Table(
            *headings, title=Text(f"{result['experiment']}: {title}"), title_justify="left"
        )
        for line in lines:
            table.add_row(*map(Text, line))
        shown.append(table)
    return shown


def counterfactual_markdown(result: dict) -> str:
    """Every number with its interval, and what is different from the first method and from random removal."""
    lines = [f"# {result['experiment']}: counterfactuals", "", NOTES.format(**result), ""]
    for title, headings, cells in [
        *_all(result),
        *_differences(result),
        _windows(result),
        *_taus(result),
    ]:
        lines += [
            f"## {title}",
            "",
            _line(headings),
            _line(["---"] * len(headings)),
            *map(_line, cells),
            "",
        ]
    return "\n".join(lines)


Titled = tuple[str, list[str], list[list[str]]]
"""title, headings, lines of cells"""


def _all(result: dict) -> Iterable[Titled]:
    for step, side, count in _removals(result):
        whole = select(result["rows"], step=step, window=step)
        found = [row for row in whole if "against" not in row and row["quantity"] in COLUMNS]
        found = [
            row
            for row in found
            if (row["side"] == side and row["count"] == count) or _is_floor_of(row, count)
        ]
        yield f"t = {step}, {count} {side} left out", *_pivot(found, _cell)


def _differences(result: dict) -> Iterable[Titled]:
    first = next(iter(result["candidates"]))
    for step, side, count in _removals(result):
        whole = select(result["rows"], step=step, window=step, side=side, count=count)
        paired = [row for row in whole if "against" in row]
        for title, of in (
            (
                f"{first} − another",
                [
                    {**row, "method": row["against"]}
                    for row in paired
                    if row["against"] not in CONTROLS
                ],
            ),
            ("less random removal", [row for row in paired if row["against"] in CONTROLS]),
        ):
            yield (
                f"t = {step}, {count} {side}: {title} (Wilcoxon's p)",
                *_pivot(of, lambda row: f"{_cell(row)} {row['p']:.3f}"),
            )


def _windows(result: dict) -> Titled:
    lines = []
    for step, side, count in _removals(result):
        for window in result["windows"][str(step)]:
            found = select(result["rows"], step=step, side=side, count=count, window=window)
            for row in found:
                if row["quantity"] in ("l2", "frechet") and "against" not in row:
                    lines.append(
                        [
                            str(step),
                            f"{count} {side}",
                            str(window),
                            str(row["method"]),
                            str(row["quantity"]),
                            _cell(row),
                        ]
                    )
    return "By window Δ", ["t", "left out", "Δ", "method", "quantity", "value"], lines


def _taus(result: dict) -> Iterable[Titled]:
    taus = select(result["rows"], quantity="tau")
    lines = [
        [str(r["step"]), str(r["count"]), str(r["method"]), format_interval(r, 2, sign="+")]
        for r in taus
    ]
    if lines:
        yield (
            "LDS against removal: Kendall's τ over methods",
            ["t", "left out", "effect", "τ"],
            lines,
        )


def _removals(result: dict) -> list[tuple[int, str, int]]:
    sides = [(PROPONENTS, k) for k in result["counts"]] + [
        (OPPONENTS, k) for k in result["opponents"]
    ]
    return [(step, side, count) for step in result["steps"] for side, count in sides]


def _is_floor_of(row: Row, count: int) -> bool:
    return row["method"] in CONTROLS and row["count"] in (0, count)


def _pivot(found: list[Row], write: Callable[[Row], str]) -> tuple[list[str], list[list[str]]]:
    """A line for each method, a column for each quantity."""
    methods, quantities = (
        list(dict.fromkeys(str(row[key]) for row in found)) for key in ("method", "quantity")
    )
    cells = {(row["method"], row["quantity"]): write(row) for row in found}
    headings = ["", *(COLUMNS[quantity][0] for quantity in quantities)]
    return headings, [
        [name, *(cells.get((name, quantity), "") for quantity in quantities)] for name in methods
    ]


def _cell(row: Row) -> str:
    _, times, digits = COLUMNS[str(row["quantity"])]
    return format_interval(row, digits, times)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


matplotlib.use("Agg")


FLOOR_STYLES = {RANDOM: "--", SEED: ":", SAME: "-."}


MARGIN = 1.15  # around the counts, on their logarithmic axis


SIX = ("rise", "own rise", "l2", "cosine", "frechet", "class")


def by_count(result: dict, step: int) -> Figure:
    """What was done by how many images are left out, beside the floors; opponents as open circles."""
    shown = [quantity for quantity in SIX if select(result["rows"], quantity=quantity)]
    figure, panels = plt.subplots(
        2, -(-len(shown) // 2), figsize=(11, 6.4), squeeze=False, layout="constrained"
    )
    for axes, quantity in zip(panels.flat, shown, strict=False):
        whole = [
            row
            for row in select(result["rows"], quantity=quantity, step=step, window=step)
            if "against" not in row
        ]
        for i, name in enumerate(result["candidates"]):
            place = 1.03 ** (i - (len(result["candidates"]) - 1) / 2)  # side by side
            of = select(whole, method=name)
            _points(
                axes,
                select(of, side=PROPONENTS),
                "count",
                place,
                fmt=f"{method_marker(name)}-",
                color=method_colour(name),
                label=name,
            )
            _points(
                axes,
                select(of, side=OPPONENTS),
                "count",
                place,
                fmt=method_marker(name),
                color=method_colour(name),
                mfc="white",
            )
        _floors(axes, whole, result["counts"])
        axes.set_xscale("log")
        axes.set_xlim(min(result["counts"]) / MARGIN, max(result["counts"]) * MARGIN)
        axes.set_xticks(result["counts"], [str(k) for k in result["counts"]])
        axes.minorticks_off()
        axes.set_xlabel("images left out")
        _finish(axes, quantity)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    _title(figure, result, f"entered at t = {step}")
    return figure


def by_window(result: dict, step: int) -> Figure:
    """What was done by for how long the retrained model drives; the most images left out."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
    for axes, quantity in zip(panels, ("l2", "cosine", "frechet"), strict=True):
        of_step = select(result["rows"], quantity=quantity, step=step)
        for i, name in enumerate(result["candidates"]):
            place = 1.03 ** (i - (len(result["candidates"]) - 1) / 2)
            of = select(of_step, method=name, side=PROPONENTS, count=max(result["counts"]))
            of = [row for row in of if "against" not in row]
            _points(
                axes,
                of,
                "window",
                place,
                fmt=f"{method_marker(name)}-",
                color=method_colour(name),
                label=name,
            )
        for name, count in ((RANDOM, max(result["counts"])), (SEED, 0)):
            of = select(of_step, method=name, count=count)
            axes.plot(
                [row["window"] for row in of],
                [row["value"] for row in of],
                FLOOR_STYLES[name],
                color=GREY,
                label=name,
            )
        axes.set_xscale("log")
        axes.set_xticks(
            result["windows"][str(step)], [str(w) for w in result["windows"][str(step)]]
        )
        axes.minorticks_off()
        axes.set_xlabel("Δ: timesteps driven by the retrained model")
        _finish(axes, quantity)
    _title(figure, result, f"entered at t = {step}, {max(result['counts'])} images left out")
    return figure


def before_after(result: dict, step: int) -> Figure:
    """What one noise led to: before, and after each of the largest removals."""
    packed = result["pictures"][str(step)]
    pictures = {name: unpack_pictures(of) for name, of in packed.items()}  # [Q, C, H, W]
    num_queries = len(pictures["before"])
    size = (0.95 * len(pictures) + 0.3, 0.95 * num_queries + 0.8)
    figure, grid = plt.subplots(
        num_queries, len(pictures), figsize=size, squeeze=False, layout="constrained"
    )
    for column, (name, of) in enumerate(pictures.items()):
        grid[0, column].set_title(name.replace(" ", "\n"), fontsize=7)
        for query, picture in enumerate(of):
            image = np.clip(picture.transpose(1, 2, 0) / 2 + 0.5, 0, 1)
            grid[query, column].imshow(
                image[..., 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=1
            )
            grid[query, column].set_xticks([])
            grid[query, column].set_yticks([])
    count = max(result["counts"])
    figure.suptitle(
        f"{result['experiment']}: one noise from t = {step}, {count} images left out", fontsize=8
    )
    return figure


def lds_against_removal(result: dict) -> Figure:
    """A point for each method: its LDS at the step, and what its largest removal does."""
    shown = ("rise", "own rise", "l2", "frechet")
    size = (3.1 * len(shown), 3.2 * len(result["steps"]) + 0.4)
    figure, panels = plt.subplots(
        len(result["steps"]), len(shown), figsize=size, squeeze=False, layout="constrained"
    )
    count = max(result["counts"])
    for line, step in zip(panels, result["steps"], strict=True):
        for axes, quantity in zip(line, shown, strict=True):
            whole = select(
                result["rows"],
                quantity=quantity,
                step=step,
                window=step,
                side=PROPONENTS,
                count=count,
            )
            for name in result["candidates"]:
                (lds,) = select(result["rows"], quantity="lds", method=name, step=step)
                (effect,) = [row for row in select(whole, method=name) if "against" not in row]
                style = {
                    "fmt": method_marker(name),
                    "color": method_colour(name),
                    "elinewidth": 1,
                    "label": name,
                }
                axes.errorbar(
                    100 * lds["value"],
                    _shown(effect)[0],
                    _times(effect) * error_bars([effect]),
                    100 * error_bars([lds]),
                    **style,
                )
            (tau,) = select(result["rows"], quantity="tau", method=quantity, step=step, count=count)
            axes.set_title(
                f"t = {step}: τ = {tau['value']:.2f} [{tau['low']:.2f}, {tau['high']:.2f}]",
                fontsize=8,
            )
            axes.set_xlabel("LDS × 100")
            axes.set_ylabel(COLUMNS[quantity][0], fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    _title(figure, result, f"{count} images left out")
    return figure


def _points(axes: plt.Axes, rows: list[Row], along: str, place: float, **style: str) -> None:
    if rows:
        at = [place * row[along] for row in rows]
        values = [_shown(row)[0] for row in rows]
        axes.errorbar(
            at,
            values,
            _times(rows[0]) * error_bars(rows),
            capsize=2,
            markersize=4,
            elinewidth=1,
            **style,
        )


def _floors(axes: plt.Axes, whole: list[Row], counts: list[int]) -> None:
    """Along the counts; what leaves nothing out is the same at all of them."""
    for name, line in FLOOR_STYLES.items():
        of = select(whole, method=name)
        if not of:
            continue
        at = [row["count"] for row in of] if of[0]["count"] else counts
        ends = np.array([_shown(row) for row in of] * (1 if of[0]["count"] else len(counts)))
        if len(at) == 1:  # a line, not a point that nobody sees
            at, ends = [at[0] / MARGIN, at[0] * MARGIN], ends.repeat(2, 0)
        axes.plot(at, ends[:, 0], line, color=GREY, label=name)
        axes.fill_between(at, ends[:, 1], ends[:, 2], color=GREY, alpha=0.15, linewidth=0)


def _shown(row: Row) -> list[float]:
    """Value, low and high in the units that are shown."""
    return [_times(row) * row[end] for end in ("value", "low", "high")]


def _times(row: Row) -> float:
    return COLUMNS[str(row["quantity"])][1]


def _finish(axes: plt.Axes, quantity: str) -> None:
    axes.set_ylabel(COLUMNS[quantity][0])
    if quantity not in ("ssim", "cosine"):  # which are 1 where nothing has changed
        axes.axhline(0, color="black", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _title(figure: Figure, result: dict, what: str) -> None:
    named = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(
        named.values(), named, loc="outside lower center", ncols=9, frameon=False, fontsize=8
    )
    sizes = f"{result['num_train']} training images, {result['num_queries']} queries, 95% intervals"
    figure.suptitle(f"{result['experiment']}: {what}; {sizes}", fontsize=9)
