"""Tables and figures of the LDS of final images, from the result alone."""

from matplotlib.figure import Figure
from pandas import DataFrame
from rich.table import Table

from journey.attribution.targets import PAIRED_STEPS, STEP, TRAJECTORY
from journey.evaluation import plots
from journey.evaluation.image_lds import PRIMARY, QUANTITIES, REST, TITLES
from journey.evaluation.lds.reliability import CEILINGS, ceiling_of
from journey.evaluation.rows import (
    Row,
    difference_of,
    format_half_width,
    format_interval,
    markdown_table,
    method_names,
    pivot,
    rich_table,
    select,
    verdict,
)

AGGREGATES = {PAIRED_STEPS: "mean of these steps", TRAJECTORY: "whole generation"}

NOTES = """LDS × 100 [95% interval] of linear scores, with hyper-parameters chosen on held-out
queries and subsets. Retrained models continue each query from its x_t, with the noise of its
trajectory, to the end, or to the next step (window); and from the first noise (whole generation; of
a loss, the trajectory). Query-centred: minus the mean over queries. Ceiling: the expected LDS of
the best predictor, where training is noise. τ: Kendall's, of the methods' query-centred LDS for the
loss and for the images. Supported: the interval of a − b is above 0; opposite supported: below 0;
equivalent: the 90% interval is within ±5; undecided: none of these."""


def axes_of(result: dict) -> list[tuple[str, str]]:
    """Return what was measured, and for how long retrained models drive, in the order of rows."""
    rows = [row for row in result["rows"] if row["quantity"] == PRIMARY]
    return list(dict.fromkeys((str(row["image"]), str(row["window"])) for row in rows))


def title_of(axis: tuple[str, str]) -> str:
    """Return the title of a target.

    >>> title_of(("distance", "window"))
    'distance from the original image, window'
    """
    image, window = axis
    return TITLES[image] + (f", {window}" if window != REST else "")


def column_of(row: Row) -> str:
    """Return the heading of a row's column."""
    return f"t={row['step']}" if row["target"] == STEP else AGGREGATES[str(row["target"])]


def tables(result: dict) -> list[Table]:
    """Return a table of the query-centred LDS for each target, and one of Kendall's τ."""
    shown = []
    for axis in axes_of(result):
        rows = select(result["rows"], image=axis[0], window=axis[1])
        frame = pivot(select(rows, quantity=PRIMARY), "method", column_of, format_half_width)
        limits = [
            row | {"method": CEILINGS[str(row["method"])]}
            for row in select(rows, quantity=ceiling_of(PRIMARY))
        ]
        ceiling = pivot(limits, "method", column_of, format_half_width)
        title = f"{result['experiment']}: {title_of(axis)}, query-centred LDS × 100 ± half of 95%"
        shown.append(rich_table(frame, title, ceiling.reindex(columns=frame.columns)))
    frame = _tau_frame(result)
    if len(frame):
        shown.append(rich_table(frame, "Kendall's τ of methods, by loss and by images"))
    return shown


def _tau_frame(result: dict) -> DataFrame:
    """Return Kendall's τ, a line for each target but the loss."""
    rows = select(result["rows"], quantity="tau")
    return pivot(rows, _axis_of, column_of, lambda row: format_interval(row, 2), heading="images")


def _axis_of(row: Row) -> str:
    return title_of((str(row["image"]), str(row["window"])))


def texts(result: dict) -> dict[str, str]:
    """Return all LDS, ceilings, differences and τ with intervals, and how far images move."""
    rows, parts = result["rows"], [NOTES]
    for axis in axes_of(result):
        of_axis = select(rows, image=axis[0], window=axis[1])
        parts.append(f"## {title_of(axis)}")
        for quantity, name in ((PRIMARY, "query-centred"), (QUANTITIES["lds"], "plain")):
            lines = list(select(of_axis, quantity=quantity))
            for row in select(of_axis, quantity=ceiling_of(quantity)):
                lines.append(row | {"method": CEILINGS[str(row["method"])]})
            parts.append(markdown_table(pivot(lines, "method", column_of, _percent, heading=name)))
        compared = select(of_axis, quantity=difference_of(PRIMARY))
        if compared:
            heading = "a − b, query-centred"
            parts.append(markdown_table(pivot(compared, _pair, column_of, _difference, heading)))
    moved = select(rows, quantity="moved")
    frame = pivot(moved, "method", column_of, lambda row: format_interval(row, 4))
    parts += ["## squared distance of images per element", markdown_table(frame)]
    frame = _tau_frame(result)
    if len(frame):
        parts += ["## Kendall's τ", markdown_table(frame)]
    return {"image_lds.md": "\n\n".join(parts) + "\n"}


def _percent(row: Row) -> str:
    return format_interval(row, 0, times=100)


def _pair(row: Row) -> str:
    return f"{row['method']} − {row['against']}"


def _difference(row: Row) -> str:
    return f"{format_interval(row, 1, times=100, sign='+')} {verdict(row).value}"


def figures(result: dict) -> dict[str, Figure]:
    """Return the query-centred LDS by step and of the whole generation, a panel for each target."""
    drawn = axes_of(result)
    columns = min(3, len(drawn))
    num_rows = -(-len(drawn) // columns)
    figure, grid = plots.new_figure(
        num_rows, columns, (plots.PAGE_WIDTH, 2.2 * num_rows + 0.5), sharey=True
    )
    steps = result["steps"]
    methods = method_names(result["rows"], PRIMARY)
    places = range(len(steps))
    for axes, axis in zip(grid.flat, drawn, strict=False):
        rows = select(result["rows"], image=axis[0], window=axis[1])
        ceilings = select(rows, quantity=ceiling_of(PRIMARY), target=STEP)
        if ceilings:
            values = [float(row["value"]) for row in ceilings]
            axes.plot(places, values, ":", color=plots.GREY, label=CEILINGS["training_seeds"])
        for i, name in enumerate(methods):
            of_method = select(rows, quantity=PRIMARY, method=name)
            shift = 0.5 * (i - (len(methods) - 1) / 2) / len(methods)
            points = select(of_method, target=STEP) + select(of_method, target=TRAJECTORY)
            positions = [place + shift for place in range(len(points))]
            colour, line = plots.method_colour(name), plots.method_marker(name)
            plots.plot_points(axes, positions, points, colour, name, line)
        names = [str(t) for t in steps] + ["whole"] * (axis[1] == REST)
        axes.set_xticks(range(len(names)), names, fontsize=7)
        axes.set_xlabel("step t", fontsize=7)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_title(title_of(axis), fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(drawn) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("query-centred LDS", fontsize=8)
    plots.legend_below(figure, 5)
    sizes = f"{result['num_subsets']} subsets × {result['num_seeds']} seeds"
    sizes += f", {result['num_queries']} queries, 95% intervals"
    figure.suptitle(f"{result['experiment']}: losses and final images; {sizes}", fontsize=8)
    return {"image_lds.png": figure}
