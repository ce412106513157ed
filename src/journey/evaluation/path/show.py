"""The tables of what changes along a journey, for the terminal.

The pictures of what changes along a journey."""

from itertools import pairwise
from statistics import fmean

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from journey.attribution.targets import PAIRED_STEPS, STEP, TRAJECTORY
from journey.evaluation.plots import COLOURS, GREY, format_step_axis, method_colour, plot_curve
from journey.evaluation.rows import Row, error_bars, format_interval, method_names, select


def path_tables(result: dict) -> list[Table]:
    """What attributions at one step are to those at another; and how far x̂0_t is from E[x_0 | x_t]."""
    return [correlation_table(result), distance_table(result)]


def correlation_table(result: dict) -> Table:
    """A row for each method that scores steps."""
    steps, k = result["steps"], result["top_k"]
    first, last = steps[0], steps[-1]
    columns = (
        "ρ of neighbours",
        f"ρ of t={first} and {last}",
        f"top {k} kept",
        f"class share t={first}",
        f"class share t={last}",
    )
    title = (
        f"{result['experiment']}: attributions along the journey, {result['num_queries']} queries"
    )
    table = Table("method", *columns, title=title, title_justify="left")
    for name in method_names(result["rows"], "rank_correlation"):
        rhos = select(result["rows"], quantity="rank_correlation", method=name)
        neighbours = [select(rhos, step=t, other_step=u)[0]["value"] for t, u in pairwise(steps)]
        kept = [row["value"] for row in select(result["rows"], quantity="kept", method=name)]
        shares = [
            select(result["rows"], quantity="class_share", method=name, step=t)[0]
            for t in (first, last)
        ]
        ends = select(rhos, step=first, other_step=last)[0]
        table.add_row(
            name,
            f"{fmean(neighbours):.2f}",
            _interval_text(ends),
            f"{fmean(kept):.2f}",
            *map(_interval_text, shares),
        )
    (base,) = select(result["rows"], quantity="base_rate")
    table.add_row(
        "base rate",
        "",
        "",
        f"{k / result['num_train']:.2f}",
        _interval_text(base),
        _interval_text(base),
    )
    return table


def distance_table(result: dict) -> Table:
    """Mean squared distances, a row for each step."""
    found = select(result["rows"], quantity="distance")
    columns = list(dict.fromkeys(row["method"] for row in found))
    table = Table(
        "t",
        *columns,
        title="squared distances for each element, means over queries",
        title_justify="left",
    )
    for t in result["steps"]:
        table.add_row(
            f"{t}", *(f"{select(found, method=name, step=t)[0]['value']:.4f}" for name in columns)
        )
    return table


def _interval_text(row: Row) -> str:
    return format_interval(row, 2)


DISTANCES = {
    "estimate_to_final": ("‖x̂0_t − x_0‖²", COLOURS[1], "o-"),
    "mean_to_final": ("‖E[x_0|x_t] − x_0‖²", COLOURS[2], "o-"),
    "spread": ("Var(x_0|x_t)", GREY, "o:"),
    "estimate_to_mean": ("‖x̂0_t − E[x_0|x_t]‖²", COLOURS[0], "o-"),
    "monte_carlo": ("error of the mean, taken off", GREY, "o--"),
}


def plain_methods(result: dict) -> list[str]:
    """The methods that score steps, without variants of them."""
    return [
        name
        for name in method_names(result["rows"], "rank_correlation")
        if name not in result["variants"]
    ]


def correlation_figure(result: dict) -> Figure:
    """Rank correlation between every two steps: below the diagonal of a query with itself, above it with the others."""
    methods, steps = plain_methods(result), result["steps"]
    figure, panels = plt.subplots(
        1, len(methods), figsize=(3.3 * len(methods), 3.9), layout="constrained", squeeze=False
    )
    for axes, method in zip(panels[0], methods, strict=True):
        own, others = (
            _matrix(result, quantity, method)
            for quantity in ("rank_correlation", "rank_correlation_others")
        )
        shown = np.tril(own.T) + np.triu(others, 1)
        axes.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1)
        for (i, j), value in np.ndenumerate(shown):
            axes.text(
                j,
                i,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if value > 0.7 else "black",
            )
        axes.set_xticks(range(len(steps)), steps, fontsize=7)
        axes.set_yticks(range(len(steps)), steps, fontsize=7)
        axes.tick_params(length=0)
        axes.set_title(method, fontsize=9)
    panels[0, 0].set_ylabel("step t")
    under = "below the diagonal: one query at two steps; above: two queries"
    sizes = f"means over {result['num_queries']} queries"
    figure.suptitle(
        f"{result['experiment']}: rank correlation of attributions × 100, {sizes}\n{under}",
        fontsize=9,
    )
    return figure


def _matrix(result: dict, quantity: str, method: str) -> np.ndarray:
    """Above the diagonal, and on it."""
    steps = result["steps"]
    matrix = np.zeros((len(steps), len(steps)))
    for row in select(result["rows"], quantity=quantity, method=method):
        matrix[steps.index(row["step"]), steps.index(row["other_step"])] = row["value"]
    return matrix


def top_figure(result: dict) -> Figure:
    """What of the top is kept from step to step, and how much of it has the query's class."""
    figure, (overlap, composed) = plt.subplots(
        1, 2, figsize=(9.5, 4.2), sharey=True, layout="constrained"
    )
    for i, method in enumerate(plain_methods(result)):
        for axes, quantity in ((overlap, "kept"), (composed, "class_share")):
            plot_curve(
                axes,
                select(result["rows"], quantity=quantity, method=method),
                method_colour(method),
                method,
                place=i,
            )
    (base,) = select(result["rows"], quantity="base_rate")
    chance = result["top_k"] / result["num_train"]
    for axes, level, label in (
        (overlap, chance, "by chance"),
        (composed, base["value"], "base rate"),
    ):
        axes.axhline(level, color=GREY, linestyle="--", label=label)
        axes.legend(frameon=False, fontsize=8)
        format_step_axis(axes)
    overlap.set_ylim(0, 1.02)
    overlap.set_title(
        f"share of the top {result['top_k']} that was there at the step before", fontsize=9
    )
    composed.set_title(f"share of the query's class in the top {result['top_k']}", fontsize=9)
    figure.suptitle(f"{result['experiment']}: {_sizes(result)}", fontsize=10)
    return figure


def distance_figure(result: dict) -> Figure:
    """How far x̂0_t is from E[x_0 | x_t], beside how far either is from the final image."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for i, (name, (label, drawn_in, line)) in enumerate(DISTANCES.items()):
        plot_curve(
            axes,
            select(result["rows"], quantity="distance", method=name),
            drawn_in,
            label,
            place=i,
            line=line,
        )
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_ylabel("squared distance for each element (pixels in −1…1)", fontsize=8)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    format_step_axis(axes)
    drawn = f"{result['num_continuations']} continuations"
    figure.suptitle(
        f"{result['experiment']}: what x̂0_t is an estimate of; {_sizes(result)}, {drawn}",
        fontsize=9,
    )
    return figure


def query_example_variants(result: dict) -> dict[str, str]:
    """The first method by what it asks: x̂0_t, and its variants that ask something else."""
    first = method_names(result["rows"], "lds")[0]
    prefix = f"{first}-query_example-"
    return {"estimate": first} | {
        name.removeprefix(prefix): name for name in result["variants"] if name.startswith(prefix)
    }


def query_example_figure(result: dict) -> Figure:
    """LDS of the first method by what its queries' gradients are of, and what each has less than that of x̂0_t, in pairs."""
    ways = query_example_variants(result)
    first = ways["estimate"]
    figure, (by_step, paired) = plt.subplots(
        1, 2, figsize=(9.5, 4.2), width_ratios=(3, 2), layout="constrained"
    )
    for i, (way, method) in enumerate(ways.items()):
        lds = select(
            result["rows"], quantity="lds", method=method, score_transform="best", target=STEP
        )
        plot_curve(by_step, lds, COLOURS[i], way, place=i)
        if method == first:
            continue
        for x, target in enumerate((PAIRED_STEPS, TRAJECTORY)):
            (row,) = select(
                result["rows"], quantity="difference", method=first, against=method, target=target
            )
            turned = {"value": -row["value"], "low": -row["high"], "high": -row["low"]}
            style = {
                "fmt": "o",
                "color": COLOURS[i],
                "capsize": 2,
                "markersize": 4,
                "elinewidth": 1,
            }
            paired.errorbar(
                x + 0.12 * (i - 2),
                turned["value"],
                error_bars([turned]),
                label=way if x == 0 else None,
                **style,
            )
    for axes in (by_step, paired):
        axes.axhline(0, color="black", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8)
    by_step.set_ylabel("LDS (Spearman, mean over queries)")
    format_step_axis(by_step)
    paired.set_xticks(
        [0, 1], ["steps " + ", ".join(map(str, result["paired_steps"])), "trajectory"], fontsize=8
    )
    paired.set_xlim(-0.5, 1.5)
    paired.set_title("LDS minus that of x̂0_t (paired)", fontsize=9)
    paired.spines[["top", "right"]].set_visible(False)
    subsets = f"{result['num_subsets']} subsets × {result['num_seeds']} seeds"
    figure.suptitle(
        f"{result['experiment']}: {first}, by what is asked at a step; {subsets}, {_sizes(result)}",
        fontsize=9,
    )
    return figure


def _sizes(result: dict) -> str:
    return f"{result['num_queries']} queries, 95% intervals"
