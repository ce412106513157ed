"""Tables and figures of `path`."""

from itertools import pairwise
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame
from rich.table import Table

from journey.attribution.targets import PAIRED_STEPS, STEP, TRAJECTORY
from journey.evaluation import plots
from journey.evaluation.lds.datamodeling import primary
from journey.evaluation.lds.show import differences, primary_name
from journey.evaluation.lds.show import tables as lds_tables
from journey.evaluation.lds.show import texts as texts  # there are no others
from journey.evaluation.rows import (
    format_interval,
    method_names,
    negated,
    pivot,
    rich_table,
    select,
)

DISTANCES = {  # label, colour and line of each
    "estimate_to_final": ("‖x̂0_t − x_0‖²", plots.COLOURS[1], "o-"),
    "mean_to_final": ("‖E[x_0|x_t] − x_0‖²", plots.COLOURS[2], "o-"),
    "spread": ("Var(x_0|x_t)", plots.GREY, "o:"),
    "estimate_to_mean": ("‖x̂0_t − E[x_0|x_t]‖²", plots.COLOURS[0], "o-"),
    "monte_carlo": ("error of the mean, subtracted", plots.GREY, "o--"),
}


def tables(result: dict) -> list[Table]:
    """Return tables of scores along the trajectory and of distances, then those of the LDS."""
    return [correlation_table(result), distance_table(result), *lds_tables(result)]


def figures(result: dict) -> dict[str, Figure]:
    """Return the figures of a result by file name."""
    drawn = {"distances.png": distance_figure(result)}
    if method_names(result["rows"], "rank_correlation"):
        drawn["path.png"] = correlation_figure(result)
        drawn["proponents.png"] = top_figure(result)
    if len(query_example_variants(result)) > 1:
        drawn["query_example.png"] = query_example_figure(result)
    return drawn


def correlation_table(result: dict) -> Table:
    """Return how much the scores of each method differ between steps, a line each."""
    rows, steps, k = result["rows"], result["steps"], result["top_k"]
    first, last = steps[0], steps[-1]
    neighbours, ends = "ρ of adjacent steps", f"ρ of t={first} and {last}"
    overlap, start, end = f"top {k} overlap", f"class share t={first}", f"class share t={last}"
    lines = []
    for name in method_names(rows, "rank_correlation"):
        correlations = select(rows, quantity="rank_correlation", method=name)
        adjacent = []
        for t, u in pairwise(steps):
            adjacent.append(float(select(correlations, step=t, other_step=u)[0]["value"]))
        overlaps = select(rows, quantity="top_overlap", method=name)
        shares = select(rows, quantity="class_share", method=name)
        lines.append(
            {
                "method": name,
                neighbours: f"{fmean(adjacent):.2f}",
                ends: format_interval(select(correlations, step=first, other_step=last)[0], 2),
                overlap: f"{fmean(float(row['value']) for row in overlaps):.2f}",
                start: format_interval(select(shares, step=first)[0], 2),
                end: format_interval(select(shares, step=last)[0], 2),
            }
        )
    chance = f"{k / result['num_train']:.2f}"
    base = format_interval(select(rows, quantity="base_rate")[0], 2)
    lines.append({"method": "base rate", overlap: chance, start: base, end: base})
    frame = DataFrame(lines, columns=["method", neighbours, ends, overlap, start, end]).fillna("")
    title = f"attributions along the trajectory, {result['num_queries']} queries"
    return rich_table(frame, f"{result['experiment']}: {title}")


def distance_table(result: dict) -> Table:
    """Return mean squared distances, a line for each step."""
    rows = select(result["rows"], quantity="distance")
    frame = pivot(rows, "step", "method", lambda row: f"{row['value']:.4f}", heading="t")
    return rich_table(frame, "squared distance per element, mean over queries")


def _plain_methods(result: dict) -> list[str]:
    """Return the methods that score steps, without their variants."""
    names = method_names(result["rows"], "rank_correlation")
    return [name for name in names if name not in result["variants"]]


def correlation_figure(result: dict) -> Figure:
    """Return rank correlations between every two steps, a heat map for each method.

    Below and on the diagonal: one query at two steps. Above: two queries.
    """
    methods, steps = _plain_methods(result), result["steps"]
    figure, grid = plots.new_figure(
        1, len(methods), (plots.PAGE_WIDTH, 0.8 + plots.PAGE_WIDTH / len(methods))
    )
    for axes, method in zip(grid[0], methods, strict=True):
        values = np.zeros((len(steps), len(steps)))
        for row in select(result["rows"], quantity="rank_correlation", method=method):
            values[steps.index(row["other_step"]), steps.index(row["step"])] = row["value"]
        for row in select(result["rows"], quantity="rank_correlation_others", method=method):
            if row["step"] != row["other_step"]:
                values[steps.index(row["step"]), steps.index(row["other_step"])] = row["value"]
        plots.heatmap(axes, 100 * values, steps, steps, (-100, 100), fontsize=6)
        axes.tick_params(axis="x", labelrotation=90)
        axes.set_title(method, fontsize=8)
    grid[0, 0].set_ylabel("step t")
    title = f"rank correlation of attributions × 100, means over {result['num_queries']} queries"
    regions = "below the diagonal: one query at two steps; above: two queries"
    figure.suptitle(f"{result['experiment']}: {title}\n{regions}", fontsize=8)
    return figure


def top_figure(result: dict) -> Figure:
    """Return the overlap of the top with that of the step before, and its share of the class."""
    figure, grid = plots.new_figure(1, 2, (plots.PAGE_WIDTH, 3.0), sharey=True)
    (base,) = select(result["rows"], quantity="base_rate")
    k, chance = result["top_k"], result["top_k"] / result["num_train"]
    panels = {
        "top_overlap": (f"share of the top {k} that was in it at the step before", chance),
        "class_share": (f"share of the query's class in the top {k}", base["value"]),
    }
    for axes, (quantity, (title, level)) in zip(grid[0], panels.items(), strict=True):
        for method in _plain_methods(result):
            rows = select(result["rows"], quantity=quantity, method=method)
            line = f"{plots.method_marker(method)}-"
            plots.plot_curve(axes, rows, plots.method_colour(method), method, line)
        axes.axhline(level, color=plots.GREY, linestyle="--", label="chance")
        axes.set_title(title, fontsize=7)
        axes.legend(frameon=False, fontsize=7)
        plots.format_step_axis(axes)
    grid[0, 0].set_ylim(0, 1.02)
    figure.suptitle(f"{result['experiment']}: {_sizes(result)}", fontsize=8)
    return figure


def distance_figure(result: dict) -> Figure:
    """Return how far x̂0_t is from E[x_0 | x_t], and either from the final sample."""
    figure, grid = plots.new_figure(1, 1, (plots.COLUMN_WIDTH, 2.8))
    axes = grid[0, 0]
    for name, (label, colour, line) in DISTANCES.items():
        rows = select(result["rows"], quantity="distance", method=name)
        plots.plot_curve(axes, rows, colour, label, line)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_ylabel("squared distance per element")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.legend(frameon=False, fontsize=6.5)
    plots.format_step_axis(axes)
    sizes = f"{_sizes(result)}, {result['num_continuations']} continuations"
    figure.suptitle(f"{result['experiment']}: what x̂0_t estimates; {sizes}", fontsize=8)
    return figure


def query_example_variants(result: dict) -> dict[str, str]:
    """Return the first method and its variants by query example; `estimate` is x̂0_t."""
    first = method_names(result["rows"], "lds")[0]
    prefix, variants = f"{first}-query_example-", {"estimate": first}
    for name in result["variants"]:
        if name.startswith(prefix):
            variants[name.removeprefix(prefix)] = name
    return variants


def query_example_figure(result: dict) -> Figure:
    """Return the LDS of the first method by query example, and paired differences to x̂0_t."""
    variants = query_example_variants(result)
    first = variants["estimate"]
    figure, grid = plots.new_figure(1, 2, (plots.PAGE_WIDTH, 3.0), width_ratios=(3, 2))
    by_step, paired = grid[0]
    for i, (query_example, method) in enumerate(variants.items()):
        lds = select(result["rows"], **primary(result), method=method, target=STEP)
        plots.plot_curve(by_step, lds, plots.COLOURS[i], query_example)
        if method == first:
            continue
        compared = []
        for target in (PAIRED_STEPS, TRAJECTORY):
            quantity = primary(result)["quantity"]
            (row,) = select(differences(result, quantity, [first, method]), target=target)
            compared.append(negated(row))
        positions = np.arange(2) + 0.12 * (i - 2)
        plots.plot_points(paired, positions, compared, plots.COLOURS[i], query_example)
    for axes in (by_step, paired):
        axes.axhline(0, color="black", linewidth=0.6)
        axes.legend(frameon=False, fontsize=7)
    by_step.set_ylabel(primary_name(result))
    plots.format_step_axis(by_step)
    steps = ", ".join(map(str, result["paired_steps"]))
    paired.set_xticks([0, 1], [f"steps\n{steps}", "trajectory"])
    paired.set_xlim(-0.5, 1.5)
    paired.set_title("minus that of x̂0_t (paired)", fontsize=8)
    paired.spines[["top", "right"]].set_visible(False)
    subsets = f"{result['num_subsets']} subsets × {result['num_seeds']} seeds"
    title = f"{first}, by query example at a step; {subsets}, {_sizes(result)}"
    figure.suptitle(f"{result['experiment']}: {title}", fontsize=8)
    return figure


def _sizes(result: dict) -> str:
    return f"{result['num_queries']} queries, 95% intervals"
