"""Tables and figures of `localization`."""

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame
from rich.table import Table

from journey.attribution.targets import PAIRED_STEPS, STEP
from journey.evaluation import plots
from journey.evaluation.rows import Row, format_interval, method_names, rich_table, select

TITLES = {"lds": "LDS × 100", "region_centred": "region-centred LDS × 100"}
CHANGES = {"change_share": "share of the squared change", "output_rise": "rise of the output"}
LIMIT = 60  # LDS × 100 at the ends of the colours


def tables(result: dict) -> list[Table]:
    """Return tables of the locality of scores, and of what removals change."""
    return [locality_table(result), removal_table(result)]


def figures(result: dict) -> dict[str, Figure]:
    """Return the figures of a result by file name."""
    return {
        "localization.png": lds_figure(result),
        "locality_by_step.png": locality_figure(result),
        "removal.png": removal_figure(result),
    }


def locality_table(result: dict) -> Table:
    """Return how much better the scores of a region predict that region than others, by method."""
    lines = []
    for method in method_names(result["rows"], "lds_locality"):
        line = {"scores of": method}
        for name, title in TITLES.items():
            conditions = {"method": method, "target": PAIRED_STEPS}
            (row,) = select(result["rows"], quantity=f"{name}_locality", **conditions)
            line[title] = format_interval(row, 1, times=100, sign="+")
        lines.append(line)
    title = f"own region minus others, mean of t={_paired_steps(result)} [95%]"
    return rich_table(DataFrame(lines), title)


def removal_table(result: dict) -> Table:
    """Return how much more a removal changes its own region than other removals do."""
    lines = []
    for row in select(result["rows"], quantity="change_share_difference"):
        region, against = str(row["output_region"]), str(row["against"])
        line = {"removed": region, "minus": against}
        for name, title in CHANGES.items():
            conditions = {"against": against, "output_region": region}
            (row,) = select(result["rows"], quantity=f"{name}_difference", **conditions)
            line[f"{title} inside"] = format_interval(row, 1, times=100, sign="+")
        lines.append(line)
    removal = result["removal"]
    title = f"proponents by {removal['method']} at t={removal['step']}, × 100 [95%]"
    return rich_table(DataFrame(lines), title)


def lds_figure(result: dict) -> Figure:
    """Return LDS of the scores of every region against the outputs of every region, by method."""
    methods = method_names(result["rows"], "lds")
    figure, grid = plots.new_figure(2, len(methods), (2.9 * len(methods) + 1.0, 6.0))
    for panels, (quantity, title) in zip(grid, TITLES.items(), strict=True):
        for axes, method in zip(panels, methods, strict=True):
            rows = select(result["rows"], quantity=quantity, method=method)
            values, regions, _ = _matrix(rows, "score_region")
            plots.heatmap(axes, values, regions, regions, (-LIMIT, LIMIT), fontsize=8)
            axes.set_title(f"{method}\n{title}", fontsize=8)
        panels[0].set_ylabel("scores of", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("outputs of", fontsize=8)
    sizes = f"{result['num_subsets']} subsets × {result['num_seeds']} seeds"
    sizes += f", {result['num_queries']} queries"
    title = f"{result['experiment']}: mean of t = {_paired_steps(result)}; {sizes}"
    figure.suptitle(title, fontsize=9)
    return figure


def locality_figure(result: dict) -> Figure:
    """Return how much better scores of a region predict that region than others, at every step."""
    figure, grid = plots.new_figure(1, 2, (9.0, 3.8), sharey=True)
    for axes, (name, title) in zip(grid[0], TITLES.items(), strict=True):
        for i, method in enumerate(method_names(result["rows"], "lds")):
            conditions = {"method": method, "target": STEP}
            rows = select(result["rows"], quantity=f"{name}_locality", **conditions)
            plots.plot_curve(axes, rows, plots.method_colour(method), method, place=i, times=100)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_title(title, fontsize=9)
        plots.format_step_axis(axes)
    grid[0, 0].set_ylabel("own region minus others (LDS × 100)")
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{result['experiment']}: locality of scores, 95% intervals", fontsize=10)
    return figure


def removal_figure(result: dict) -> Figure:
    """Return where removing a region's proponents changes samples, and the contrast to controls."""
    figure, grid = plots.new_figure(1, 3, (12.0, 3.9), width_ratios=(1.2, 1.2, 1.6))
    for axes, (quantity, title) in zip(grid[0], CHANGES.items(), strict=False):
        values, removed, regions = _matrix(select(result["rows"], quantity=quantity), "removed")
        limits = (float(values.min()), float(values.max()))
        plots.heatmap(axes, values, removed, regions, limits, "viridis", fontsize=8)
        axes.set_title(f"{title}, %", fontsize=9)
        axes.set_xlabel("in", fontsize=8)
    grid[0, 0].set_ylabel("removed: proponents of", fontsize=8)

    axes, i = grid[0, 2], 0
    for quantity, marker in {"change_share": "o", "output_rise": "s"}.items():
        rows = select(result["rows"], quantity=f"{quantity}_difference")
        for against in dict.fromkeys(str(row["against"]) for row in rows):
            points = select(rows, against=against)
            positions = np.arange(len(points)) + 0.14 * (i - 1.5)
            label = f"{quantity.replace('_', ' ')} minus {against}"
            plots.plot_points(axes, positions, points, plots.COLOURS[i], label, marker, times=100)
            i += 1
    names = [_break(row["output_region"]) for row in points]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.axhline(0, color=plots.GREY, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("× 100, 95% intervals over queries", fontsize=8)
    axes.set_title("in the region itself, minus other removals", fontsize=9)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
    axes.legend(frameon=False, fontsize=7, ncols=2, **below)
    removal = result["removal"]
    images = f"without the first {removal['count']} of {removal['method']} at t={removal['step']}"
    sizes = f"{removal['num_removals']} queries × {removal['num_continuations']} continuations"
    figure.suptitle(f"{result['experiment']}: {images}; {sizes}", fontsize=10)
    return figure


def _matrix(rows: list[Row], index: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Return values × 100 as a matrix, with the names of its rows and columns for a heat map."""
    lines = list(dict.fromkeys(_break(row[index]) for row in rows))
    columns = list(dict.fromkeys(_break(row["output_region"]) for row in rows))
    values = np.array([row["value"] for row in rows], float)
    return 100 * values.reshape(len(lines), len(columns)), lines, columns


def _break(name: str | int | float) -> str:
    """Return a name with each word on a line."""
    return str(name).replace(" ", "\n")


def _paired_steps(result: dict) -> str:
    return ", ".join(map(str, result["paired_steps"]))
