"""Table and figure of `planted`."""

import textwrap

from matplotlib.figure import Figure
from rich.table import Table

from journey.attribution.targets import STEP
from journey.evaluation import plots
from journey.evaluation.rows import (
    Row,
    format_half_width,
    method_names,
    pivot,
    rich_table,
    select,
    target_name,
)

PANELS = {
    "recall": "recall among as many first images as duplicates",
    "other_duplicates_50": "duplicates of other queries among the first 50",
    "median_rank": "median rank of a duplicate",
}


def tables(result: dict) -> list[Table]:
    """Return a table of the recall and the median rank of each method at every step."""
    ranks = select(result["rows"], quantity="median_rank")

    def cell(row: Row) -> str:
        (rank,) = select(ranks, method=str(row["method"]), step=int(row["step"]))
        return f"{format_half_width(row)}; {rank['value']:.0f}"

    rows = select(result["rows"], quantity="recall", target=STEP)
    title = "recall of duplicates, % ± half of the 95% interval; median rank"
    frame = pivot(rows, "method", target_name, cell)
    return [rich_table(frame, f"{result['experiment']}: {title}")]


def figures(result: dict) -> dict[str, Figure]:
    """Return the recall and the median rank of every method at every step, beside chance."""
    figure, grid = plots.new_figure(1, len(PANELS), (plots.PAGE_WIDTH, 2.7))
    for axes, (quantity, title) in zip(grid[0], PANELS.items(), strict=True):
        for method in method_names(result["rows"], quantity):
            rows = select(result["rows"], quantity=quantity, method=method, target=STEP)
            if method == "chance":
                axes.axhline(rows[0]["value"], linestyle="--", color=plots.GREY, label=method)
            else:
                line = f"{plots.method_marker(method)}-"
                plots.plot_curve(axes, rows, plots.method_colour(method), method, line)
        axes.set_title(textwrap.fill(title, 28), fontsize=8)
        plots.format_step_axis(axes)
    grid[0, 0].set_ylim(-0.04, 1.04)
    grid[0, 1].set_ylim(bottom=0)
    grid[0, 2].set_yscale("log")
    plots.legend_below(figure, 7)
    noise = f" with noise of {result['jitter']:g}" if result["jitter"] else ""
    images = f"{result['num_queries']} images × {result['num_copies']} duplicates{noise}"
    title = f"{images} among {result['num_train']}; 95% intervals over queries"
    figure.suptitle(f"{result['experiment']}: {title}", fontsize=8)
    return {"recall_by_step.png": figure}
