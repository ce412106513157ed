"""The tables of when things are decided, for the terminal.

The pictures of when things are decided."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from journey.evaluation.plots import COLOURS, GREY, format_step_axis, method_colour, plot_curve
from journey.evaluation.rows import Row, error_bars, format_interval, method_names, select


def emergence_tables(result: dict) -> list[Table]:
    """When each thing is decided; and whether the attributions of each method know of it."""
    return [decided_table(result), predicted_table(result)]


def decided_table(result: dict) -> Table:
    """A row for each classifier and number: where its mean curve rises, and how long that takes."""
    sizes = f"{result['num_queries']} queries × {result['num_continuations']} continuations"
    columns = ("steepest", "halfway", "width, 25–75%", "width of one query")
    title = (
        f"{result['experiment']}: when it is decided, t with 95% intervals over queries ({sizes})"
    )
    table = Table("", *columns, title=title, title_justify="left")
    found = result["rows"]
    for name in [*method_names(found, "probability"), *method_names(found, "decided")]:
        of_curve = select(found, method=name, target="mean_curve")
        cells = [
            _first_interval(select(of_curve, quantity=quantity))
            for quantity in ("steepest", "halfway", "width")
        ]
        table.add_row(
            name,
            *cells,
            _first_interval(select(found, quantity="width", method=name, target="query")),
        )
    return table


def predicted_table(result: dict) -> Table:
    """A row for each method and classifier: ρ of the step of emergence with that of the attributions, and of shuffled queries."""
    title = f"{result['experiment']}: Spearman's ρ over queries of where a class emerges and where its attributions are strongest"
    table = Table("", "ρ", "shuffled queries", "queries", title=title, title_justify="left")
    for row in [
        *select(result["rows"], quantity="predicts"),
        *select(result["rows"], quantity="reliability"),
    ]:
        about = " ".join(
            str(row[key]) for key in ("quantity", "method", "by", "target") if key in row
        )
        null = f"[{row['null_low']:.2f}, {row['null_high']:.2f}]"
        table.add_row(about, format_interval(row, 2), null, str(row["num_queries"]))
    return table


def _first_interval(found: list[Row]) -> str:
    return format_interval(found[0], 0) if found else "–"


WAYS = {
    "rise": "t at which its share of the top has risen halfway",
    "centre": "mean t of its share above the base rate",
}


def emergence_figure(result: dict) -> Figure:
    """P(a query's own class | x_t) by both classifiers, and the share of other numbers' variance that x_t has decided."""
    figure, (of_class, of_looks) = plt.subplots(
        1, 2, figsize=(9.5, 4.2), sharey=True, layout="constrained"
    )
    for axes, quantity, title in (
        (of_class, "probability", "P(class of the final image | x_t)"),
        (of_looks, "decided", "1 − E[Var(f | x_t)] / Var(f)"),
    ):
        for i, name in enumerate(method_names(result["rows"], quantity)):
            of_steps = select(result["rows"], quantity=quantity, method=name, target="step")
            halfway = select(result["rows"], quantity="halfway", method=name, target="mean_curve")
            said = f"{name}: halfway at {halfway[0]['value']:.0f}" if halfway else name
            plot_curve(axes, of_steps, COLOURS[i], said, place=i)
        axes.set_title(title, fontsize=9)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        format_step_axis(axes)
    of_class.set_ylim(top=1.02)
    figure.suptitle(f"{result['experiment']}: {_sizes(result)}", fontsize=10)
    return figure


def class_figure(result: dict) -> Figure:
    """P(class | x_t) of the queries that end in each class, a panel for each classifier."""
    figure, panels = plt.subplots(
        1,
        len(result["classes"]),
        figsize=(9.5, 4.2),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    every = sorted({name for of in result["classes"].values() for name in of})
    colours = dict(
        zip(every, plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(every))), strict=True)
    )
    for axes, (by, of) in zip(panels[0], result["classes"].items(), strict=True):
        for name, its in of.items():
            axes.plot(
                result["steps"],
                its["curve"],
                "o-",
                color=colours[name],
                markersize=3,
                label=f"{name} ({its['num_queries']})",
            )
        axes.set_title(f"by the classifier of {by}", fontsize=9)
        axes.legend(frameon=False, fontsize=7, title="class (queries)", title_fontsize=7, ncols=2)
        format_step_axis(axes)
    panels[0, 0].set_ylabel("P(class | x_t), queries of the class")
    sizes = _sizes(result).removesuffix(", 95% intervals over queries")
    figure.suptitle(
        f"{result['experiment']}: every class; {sizes}, no intervals: few queries each", fontsize=10
    )
    return figure


def attribution_figure(result: dict) -> Figure:
    """Above, for each method, where classes emerge against where their attributions are strongest; below, the share of the class
    along t, and ρ over queries beside what shuffled queries have.
    """
    methods, by = list(result["queries"]["strongest"]), next(iter(result["classes"]))
    figure = plt.figure(figsize=(max(9.5, 2.6 * len(methods)), 6.8), layout="constrained")
    above, below = figure.subfigures(2, 1)
    panels = above.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        _scatter(axes, result, method, by)
    panels[0].set_ylabel(WAYS["rise"], fontsize=7)
    along, rho = below.subplots(1, 2, width_ratios=(1, 1))
    for i, method in enumerate(methods):
        share = select(result["rows"], quantity="class_share", method=method, by=by)
        plot_curve(along, share, method_colour(method), method, place=i)
    base = select(result["rows"], quantity="base_rate", by=by)[0]["value"]
    along.axhline(base, color=GREY, linestyle="--", label="base rate")
    along.set_ylabel(f"share of the class in the top {result['top_k']}", fontsize=8)
    along.set_ylim(bottom=0)
    along.legend(frameon=False, fontsize=7)
    format_step_axis(along)
    _rhos(rho, result, methods)
    figure.suptitle(
        f"{result['experiment']}: attributions of a query's class; {_sizes(result)}; classes by {by}",
        fontsize=10,
    )
    return figure


def _scatter(axes: plt.Axes, result: dict, method: str, by: str) -> None:
    emerges = result["queries"]["emerges"][by]
    strongest = result["queries"]["strongest"][method][by]["rise"]
    pairs = [
        (x, y) for x, y in zip(emerges, strongest, strict=True) if x is not None and y is not None
    ]
    axes.scatter(
        *np.array(pairs).reshape(-1, 2).T,
        s=16,
        color=method_colour(method),
        alpha=0.75,
        linewidths=0,
    )
    ends = [min(result["steps"]), max(result["steps"])]
    axes.plot(ends, ends, color=GREY, linewidth=0.7)
    found = select(result["rows"], quantity="predicts", method=method, by=by, target="rise")
    said = (
        f"ρ = {found[0]['value']:.2f} [{found[0]['low']:.2f}, {found[0]['high']:.2f}]"
        if found
        else ""
    )
    null = f"\nshuffled: {found[0]['null_low']:.2f} … {found[0]['null_high']:.2f}" if found else ""
    axes.set_title(f"{method}, {len(pairs)} queries\n{said}{null}", fontsize=7.5)
    axes.set_xlabel("t at which the class emerges", fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _rhos(axes: plt.Axes, result: dict, methods: list[str]) -> None:
    """ρ of every method, classifier and way with its interval, over the band of shuffled queries."""
    found = [
        row
        for method in methods
        for row in select(result["rows"], quantity="predicts", method=method)
    ]
    for y, row in enumerate(found):
        axes.barh(
            y,
            row["null_high"] - row["null_low"],
            0.8,
            row["null_low"],
            color=GREY,
            alpha=0.35,
            linewidth=0,
        )
        style = {
            "fmt": "o",
            "color": method_colour(row["method"]),
            "markersize": 4,
            "capsize": 2,
            "elinewidth": 1,
        }
        axes.errorbar(row["value"], y, xerr=error_bars([row]), **style)
    axes.set_yticks(
        range(len(found)),
        [f"{row['method']}, {row['by']}, {row['target']}" for row in found],
        fontsize=6,
    )
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel("Spearman's ρ over queries, 95%; grey: shuffled queries", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _sizes(result: dict) -> str:
    return f"{result['num_queries']} queries × {result['num_continuations']} continuations, 95% intervals over queries"
