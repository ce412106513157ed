"""Tables and figures of counterfactual evaluations, from the result alone."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame
from rich.table import Table

from journey.evaluation import plots
from journey.evaluation.counterfactual.changes import unpack_pictures
from journey.evaluation.counterfactual.removals import (
    CONTROLS,
    OPPONENTS,
    PROPONENTS,
    RANDOM,
    SAME,
    SEED,
)
from journey.evaluation.rows import (
    Row,
    error_bars,
    format_interval,
    markdown_table,
    markdown_text,
    pivot,
    rich_table,
    select,
)
from journey.evaluation.statistics import MIN_OBSERVATIONS

COLUMNS = {
    "rise": ("rise of f_t, %", 100, 1),
    "centred_rise": ("minus other queries', %", 100, 1),
    "final_sample_rise": ("rise for the final sample, %", 100, 1),
    "l2": ("L2", 1, 2),
    "ssim": ("SSIM", 1, 3),
    "cosine": ("cosine", 1, 3),
    "frechet": ("Fréchet", 1, 2),
    "class_change": ("class share, points", 100, 1),
}
"""Heading of each quantity, its factor and its digits."""

NOTES = """Means over queries [95% interval]. Rises: of the query's output under the retrained
model. L2, SSIM, cosine: of the images that the same noise leads to, before and after; in pixels
and, the cosine, in an encoder's features. Fréchet: of continuations of one x_t, along {dimensions}
principal axes of the features (no FID). Class share: change of the share of continuations in the
class that was most frequent before. Controls: {num_random} random removals and {num_seeds} other
training seeds that all queries share, with intervals over models and queries, at least
{MIN_OBSERVATIONS} of each; two samples of the same model."""

LINES = {RANDOM: "--", SEED: ":", SAME: "-."}

MARGIN = 1.15  # factor around the counts on their logarithmic axis


def tables(result: dict) -> list[Table]:
    """Return a table of the effects of each removal, of all timesteps to the end."""
    shown = []
    for title, frame in _effect_tables(result):
        shown.append(rich_table(frame, f"{result['experiment']}: {title}"))
    return shown


def texts(result: dict) -> dict[str, str]:
    """Return all effects with intervals, and the paired differences."""
    tables = [*_effect_tables(result), *_difference_tables(result), _window_table(result)]
    taus = []
    for row in select(result["rows"], quantity="tau"):
        line = {"t": row["step"], "images removed": row["count"], "effect": row["method"]}
        taus.append({**line, "τ": format_interval(row, 2, sign="+")})
    if taus:
        tables.append(("LDS against removal: Kendall's τ over methods", DataFrame(taus)))
    parts = [
        f"# {markdown_text(result['experiment'])}: counterfactuals",
        NOTES.format(**result, MIN_OBSERVATIONS=MIN_OBSERVATIONS),
    ]
    for title, frame in tables:
        parts += [f"## {markdown_text(title)}", markdown_table(frame)]
    return {"counterfactual.md": "\n\n".join(parts) + "\n"}


def _removals(result: dict) -> list[tuple[int, str, int]]:
    """Return step, side and count of the removals of every method."""
    removals = []
    for step in result["steps"]:
        removals += [(step, PROPONENTS, count) for count in result["counts"]]
        removals += [(step, OPPONENTS, count) for count in result["opponents"]]
    return removals


def _effects(result: dict, **conditions: str | int) -> list[Row]:
    """Return the rows of effects, no differences among them."""
    return [row for row in select(result["rows"], **conditions) if "against" not in row]


def _cell(row: Row) -> str:
    """Return an effect with its interval, and Wilcoxon's p where there is one."""
    _, times, digits = COLUMNS[str(row["quantity"])]
    p = f" {row['p']:.3f}" if "p" in row else ""
    return format_interval(row, digits, times) + p


def _table(rows: list[Row]) -> DataFrame:
    """Return a table with a line for each method and a column for each quantity."""
    return pivot(rows, "method", lambda row: COLUMNS[str(row["quantity"])][0], _cell)


def _effect_tables(result: dict) -> list[tuple[str, DataFrame]]:
    """Return the title and table of every removal."""
    tables = []
    for step, side, count in _removals(result):
        rows = []
        for row in _effects(result, step=step, window=step):
            is_control = row["method"] in CONTROLS and row["count"] in (0, count)
            is_removal = row["side"] == side and row["count"] == count
            if row["quantity"] in COLUMNS and (is_removal or is_control):
                rows.append(row)
        tables.append((f"t = {step}, {count} {side} removed", _table(rows)))
    return tables


def _difference_tables(result: dict) -> list[tuple[str, DataFrame]]:
    """Return the differences between methods, and those from the control, of every removal."""
    first, tables = next(iter(result["candidates"])), []
    for step, side, count in _removals(result):
        rows = select(result["rows"], step=step, window=step, side=side, count=count)
        of_first = [row for row in select(rows, method=first) if "against" in row]
        between = [row | {"method": row["against"]} for row in of_first]
        between = [row for row in between if row["method"] not in CONTROLS]
        minus_random = select(rows, against=RANDOM)
        title = f"t = {step}, {count} {side}"
        tables.append((f"{title}: {first} − another (Wilcoxon's p)", _table(between)))
        tables.append((f"{title}: minus random removal (Wilcoxon's p)", _table(minus_random)))
    return tables


def _window_table(result: dict) -> tuple[str, DataFrame]:
    """Return the title and the table of effects by window."""
    lines = []
    for step, side, count in _removals(result):
        for window in result["windows"][str(step)]:
            for row in _effects(result, step=step, side=side, count=count, window=window):
                if row["quantity"] in ("l2", "frechet"):
                    line = {"t": step, "images removed": f"{count} {side}", "Δ": window}
                    line |= {"method": row["method"], "quantity": row["quantity"]}
                    lines.append({**line, "value": _cell(row)})
    return "By window Δ", DataFrame(lines)


def figures(result: dict) -> dict[str, Figure]:
    """Return the figures of a result by file name."""
    drawn = {f"effect_by_count_t{t}.png": effect_by_count(result, t) for t in result["steps"]}
    for t in result["steps"]:
        if len(result["windows"][str(t)]) > 2:
            drawn[f"effect_by_window_t{t}.png"] = effect_by_window(result, t)
        drawn[f"before_after_t{t}.png"] = before_after(result, t)
    if "lds" in result:
        drawn["lds_against_removal.png"] = lds_against_removal(result)
    return drawn


def effect_by_count(result: dict, step: int) -> Figure:
    """Return plots of effects against the number of removed images; opponents have open markers."""
    quantities = ["rise", "centred_rise", "l2", "cosine", "frechet", "class_change"]
    quantities = [name for name in quantities if select(result["rows"], quantity=name)]
    counts = result["counts"]
    if len(counts) == 1:
        return _effects_of_one_count(result, step, quantities)
    figure, panels = plots.new_figure(2, -(-len(quantities) // 2), (plots.PAGE_WIDTH, 4.6))
    for axes, quantity in zip(panels.flat, quantities, strict=False):
        effects = _effects(result, quantity=quantity, step=step, window=step)
        for i, name in enumerate(result["candidates"]):
            rows = select(effects, method=name)
            proponents, opponents = (select(rows, side=side) for side in (PROPONENTS, OPPONENTS))
            _plot_method(axes, proponents, "count", _shift(result, i), name)
            _plot_method(axes, opponents, "count", _shift(result, i), name, hollow=True)
        _plot_controls(axes, effects, counts)
        if result["opponents"]:
            axes.plot([], [], "o", color=plots.GREY, mfc="white", ms=3.5, label="opponents removed")
        axes.set_xlim(min(counts) / MARGIN, max(counts) * MARGIN)
        _format_axes(axes, quantity, counts, "images removed")
    for axes in panels.flat[len(quantities) :]:
        axes.set_axis_off()
    _add_title(figure, result, f"continued from t = {step}")
    return figure


def _effects_of_one_count(result: dict, step: int, quantities: list[str]) -> Figure:
    """Return plots of the effects of one removal, a line for each method and control."""
    columns = -(-len(quantities) // 2)
    figure, panels = plots.new_figure(2, columns, (plots.PAGE_WIDTH, 3.6), sharey=True)
    for axes, quantity in zip(panels.flat, quantities, strict=False):
        effects = _effects(result, quantity=quantity, step=step, window=step)
        names = [*result["candidates"], *LINES]
        for place, name in enumerate(names):
            rows = [row for row in select(effects, method=name) if row["side"] != OPPONENTS]
            colour = plots.GREY if name in LINES else plots.method_colour(name)
            times = COLUMNS[quantity][1]
            plots.plot_points(axes, [place] * len(rows), rows, colour, times=times, horizontal=True)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        if quantity not in ("ssim", "cosine"):
            axes.axvline(0, color="black", linewidth=0.6)
        axes.set_xlabel(COLUMNS[quantity][0])
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels.flat[len(quantities) :]:
        axes.set_axis_off()
    images = f"{result['counts'][0]} images removed, continued from t = {step}"
    sizes = f"{result['num_train']} training images, {result['num_queries']} queries, 95% intervals"
    figure.suptitle(f"{result['experiment']}: {images}; {sizes}", fontsize=8)
    return figure


def effect_by_window(result: dict, step: int) -> Figure:
    """Return plots of the largest removal against the timesteps of the retrained model."""
    figure, (panels,) = plots.new_figure(1, 3, (plots.PAGE_WIDTH, 2.6))
    windows, count = result["windows"][str(step)], max(result["counts"])
    for axes, quantity in zip(panels, ("l2", "cosine", "frechet"), strict=True):
        effects = _effects(result, quantity=quantity, step=step)
        for i, name in enumerate(result["candidates"]):
            rows = select(effects, method=name, side=PROPONENTS, count=count)
            _plot_method(axes, rows, "window", _shift(result, i), name)
        for name, removed in ((RANDOM, count), (SEED, 0)):
            rows = select(effects, method=name, count=removed)
            x, y = ([row[key] for row in rows] for key in ("window", "value"))
            axes.plot(x, y, LINES[name], color=plots.GREY, label=name)
        _format_axes(axes, quantity, windows, "Δ (timesteps)")
    _add_title(figure, result, f"continued from t = {step}, {count} images removed")
    return figure


def before_after(result: dict, step: int) -> Figure:
    """Return the images that one noise leads to, before and after each of the largest removals.

    Below each, in red and blue, is what was added and taken away, with its L2 norm.
    """
    pictures = result["pictures"][str(step)]
    images = {name: unpack_pictures(packed) for name, packed in pictures.items()}
    before = images["before"]
    largest = max(np.abs(after - before).max() for after in images.values())
    num_queries, width = len(before), plots.PAGE_WIDTH
    size = (width, width / len(images) * 2.2 * num_queries + 0.3)
    figure, grid = plots.new_figure(2 * num_queries, len(images), size)
    for column, (name, after) in enumerate(images.items()):
        grid[0, column].set_title(name.replace(" ", "\n"), fontsize=7)
        for query, (above, below) in enumerate(grid[:, column].reshape(-1, 2)):
            image = np.clip(after[query].transpose(1, 2, 0) / 2 + 0.5, 0, 1)
            image = image[..., 0] if image.shape[2] == 1 else image
            above.imshow(image, cmap="gray", vmin=0, vmax=1)
            for axes in (above, below):
                axes.set_xticks([])
                axes.set_yticks([])
            difference = after[query] - before[query]
            if name == "before":
                below.set_axis_off()
                continue
            limits = {"vmin": -largest, "vmax": largest}
            below.imshow(difference.mean(0), cmap="RdBu_r", **limits)
            below.set_xlabel(f"L2 {np.linalg.norm(difference):.2f}", fontsize=6.5, labelpad=1)
    figure.set_gid(plots.PICTURES)
    title = f"one noise from t = {step}, {max(result['counts'])} images removed"
    figure.suptitle(f"{result['experiment']}: {title}", fontsize=8)
    return figure


def lds_against_removal(result: dict) -> Figure:
    """Return plots of the effect of the largest removal against the LDS, a point per method."""
    quantities = ("rise", "centred_rise", "l2", "frechet")
    steps, count = result["steps"], max(result["counts"])
    size = (plots.PAGE_WIDTH, 2.2 * len(steps) + 0.4)
    figure, panels = plots.new_figure(len(steps), len(quantities), size)
    for line, step in zip(panels, steps, strict=True):
        for axes, quantity in zip(line, quantities, strict=True):
            title, times, _ = COLUMNS[quantity]
            removal = {"step": step, "window": step, "side": PROPONENTS, "count": count}
            effects = _effects(result, quantity=quantity, **removal)
            for name in result["candidates"]:
                (lds,) = select(result["rows"], quantity="lds", method=name, step=step)
                (effect,) = select(effects, method=name)
                bars = times * error_bars([effect]), 100 * error_bars([lds])
                colour, marker = plots.method_colour(name), plots.method_marker(name)
                x, y = 100 * float(lds["value"]), times * float(effect["value"])
                axes.errorbar(x, y, *bars, marker, color=colour, elinewidth=1, label=name)
            (tau,) = select(result["rows"], quantity="tau", method=quantity, step=step, count=count)
            axes.set_title(f"t = {step}\nτ = {format_interval(tau, 2)}", fontsize=7)
            axes.set_xlabel("LDS × 100")
            axes.set_ylabel(title)
            axes.spines[["top", "right"]].set_visible(False)
    _add_title(figure, result, f"{count} images removed")
    return figure


def _shift(result: dict, i: int) -> float:
    """Return the factor of the positions of the i-th method, so that error bars do not overlap."""
    return 1.03 ** (i - (len(result["candidates"]) - 1) / 2)


def _plot_method(
    axes: Axes, rows: list[Row], key: str, shift: float, name: str, hollow: bool = False
) -> None:
    """Draw the effects of a method against a key of the rows."""
    if rows:
        positions = [shift * float(row[key]) for row in rows]
        line = plots.method_marker(name) if hollow else f"{plots.method_marker(name)}-"
        label, times = None if hollow else name, COLUMNS[str(rows[0]["quantity"])][1]
        plots.plot_points(
            axes, positions, rows, plots.method_colour(name), label, line, times, hollow
        )


def _plot_controls(axes: Axes, effects: list[Row], counts: list[int]) -> None:
    """Draw the controls against the number of removed images; without removal, at all numbers."""
    for name, line in LINES.items():
        rows = select(effects, method=name)
        if not rows:
            continue
        times = COLUMNS[str(rows[0]["quantity"])][1]
        positions = [float(row["count"]) for row in rows]
        if len(rows) == 1:  # a line over the whole axis
            positions, rows = [min(counts) / MARGIN, max(counts) * MARGIN], rows * 2
        values = times * np.array([row["value"] for row in rows])
        below, above = times * error_bars(rows)
        axes.plot(positions, values, line, color=plots.GREY, label=name)
        low, high = values - below, values + above
        axes.fill_between(positions, low, high, color=plots.GREY, alpha=0.15, linewidth=0)


def _format_axes(axes: Axes, quantity: str, ticks: list[int], label: str) -> None:
    """Make the horizontal axis logarithmic with these ticks, and name both axes."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel(COLUMNS[quantity][0])
    if quantity not in ("ssim", "cosine"):  # which are 1 where nothing has changed
        axes.axhline(0, color="black", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _add_title(figure: Figure, result: dict, text: str) -> None:
    """Add a title with the sizes of the experiment, and one legend below."""
    plots.legend_below(figure, 5)
    sizes = f"{result['num_train']} training images, {result['num_queries']} queries, 95% intervals"
    figure.suptitle(f"{result['experiment']}: {text}; {sizes}", fontsize=8)
