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
    figure, grid = plots.new_figure(2, len(methods), (plots.PAGE_WIDTH, 4.6))
    for panels, (quantity, title) in zip(grid, TITLES.items(), strict=True):
        for axes, method in zip(panels, methods, strict=True):
            rows = select(result["rows"], quantity=quantity, method=method)
            values, regions, _ = _matrix(rows, "score_region")
            plots.heatmap(axes, values, regions, regions, (-LIMIT, LIMIT), fontsize=7)
            axes.tick_params(axis="x", labelrotation=90)
            axes.set_title(f"{method}\n{title}", fontsize=7)
        for axes in panels[1:]:
            axes.tick_params(labelleft=False)
        panels[0].set_ylabel("scores of")
    for axes in grid[-1]:
        axes.set_xlabel("outputs of", fontsize=8)
    sizes = f"{result['num_subsets']} subsets × {result['num_seeds']} seeds"
    sizes += f", {result['num_queries']} queries"
    title = f"{result['experiment']}: mean of t = {_paired_steps(result)}; {sizes}"
    figure.suptitle(title, fontsize=8)
    return figure


def locality_figure(result: dict) -> Figure:
    """Return how much better scores of a region predict that region than others, at every step."""
    figure, grid = plots.new_figure(1, 2, (plots.PAGE_WIDTH, 2.8), sharey=True)
    for axes, (name, title) in zip(grid[0], TITLES.items(), strict=True):
        for method in method_names(result["rows"], "lds"):
            conditions = {"method": method, "target": STEP}
            rows = select(result["rows"], quantity=f"{name}_locality", **conditions)
            line = f"{plots.method_marker(method)}-"
            plots.plot_curve(axes, rows, plots.method_colour(method), method, line, times=100)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_title(title, fontsize=8)
        plots.format_step_axis(axes)
    grid[0, 0].set_ylabel("own region minus others (LDS × 100)")
    grid[0, 0].legend(frameon=False, fontsize=7)
    figure.suptitle(f"{result['experiment']}: locality of scores, 95% intervals", fontsize=8)
    return figure


def removal_figure(result: dict) -> Figure:
    """Return where removing a region's proponents changes samples, and the contrast to controls."""
    figure, grid = plots.new_figure(2, 2, (plots.PAGE_WIDTH, 5.4))
    for (above, axes), (quantity, title) in zip(grid.T, CHANGES.items(), strict=True):
        values, removed, regions = _matrix(select(result["rows"], quantity=quantity), "removed")
        limits = (float(values.min()), float(values.max()))
        plots.heatmap(above, values, removed, regions, limits, "viridis", fontsize=8)
        above.set_title(f"{title}, %", fontsize=8)
        above.set_xlabel("measured in")

        rows = select(result["rows"], quantity=f"{quantity}_difference")
        for i, against in enumerate(dict.fromkeys(str(row["against"]) for row in rows)):
            points = select(rows, against=against)
            positions = np.arange(len(points)) + 0.2 * (i - 0.5)
            label, marker = f"minus {against}", plots.MARKERS[i]
            plots.plot_points(axes, positions, points, plots.COLOURS[i], label, marker, times=100)
        names = [_break(row["output_region"]) for row in points]
        axes.set_xticks(range(len(names)), names)
        axes.axhline(0, color=plots.GREY, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("in the region itself, points")
    grid[0, 0].set_ylabel("removed: proponents of")
    plots.legend_below(figure, 2)
    removal = result["removal"]
    images = f"without the first {removal['count']} of {removal['method']} at t={removal['step']}"
    sizes = f"{removal['num_removals']} queries × {removal['num_continuations']} continuations"
    figure.suptitle(f"{result['experiment']}: {images}; {sizes}", fontsize=8)
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
