"""Tables and figures of `emergence`."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from pandas import DataFrame
from rich.table import Table

from journey.evaluation import plots
from journey.evaluation.rows import Row, format_interval, method_names, pivot, rich_table, select


def tables(result: dict) -> list[Table]:
    """Return tables of where classes emerge, and of how scores reflect it."""
    shown = [emergence_table(result), correlation_table(result)]
    if select(result["rows"], quantity="excess"):
        shown.insert(1, excess_table(result))
    return shown


def figures(result: dict) -> dict[str, Figure]:
    """Return the figures of a result by file name."""
    drawn = {"emergence.png": emergence_figure(result)}
    if result.get("features") == "parts":
        drawn["parts.png"] = parts_figure(result)
        return drawn
    drawn["classes.png"] = class_figure(result)
    if result["queries"]["attribution_step"]:
        drawn["attribution.png"] = attribution_figure(result)
    return drawn


def emergence_table(result: dict) -> Table:
    """Return where and how fast the curve of each classifier and statistic rises, a line each."""
    rows, lines = result["rows"], []
    columns = {
        "steepest": {"quantity": "steepest", "target": "mean_curve"},
        "halfway": {"quantity": "halfway", "target": "mean_curve"},
        "width, 25–75%": {"quantity": "width", "target": "mean_curve"},
        "width of one query": {"quantity": "width", "target": "query"},
    }
    for name in [*method_names(rows, "probability"), *method_names(rows, "explained_variance")]:
        line = {"": name}
        for heading, conditions in columns.items():
            cell = select(rows, method=name, **conditions)
            line[heading] = format_interval(cell[0], 0) if cell else "–"
        lines.append(line)
    title = f"{result['experiment']}: t at which each is determined; {_sizes(result)}"
    return rich_table(DataFrame(lines), title)


def _feature(result: dict) -> str:
    """Return what a feature is called; results of the former protocol have classes."""
    return "part" if result.get("features") == "parts" else "class"


def excess_table(result: dict) -> Table:
    """Return the excess of each method over permuted queries, a mean of steps, by feature."""

    def line(row: Row) -> str:
        if row["target"] in ("seen", "unseen"):  # compositions of head and hat
            return f"{row['method']}, {row['target']} compositions"
        return str(row["method"])

    rows = [row for row in select(result["rows"], quantity="excess") if row["target"] != "step"]
    frame = pivot(rows, line, "classifier", lambda row: format_interval(row, 0, times=100))
    title = f"share in the top {result['top_k']} minus that of permuted queries × 100, mean of t"
    return rich_table(frame, f"{result['experiment']}: {title}")


def correlation_table(result: dict) -> Table:
    """Return the rank correlations over queries and those of shuffled queries, a line each."""
    lines = []
    for quantity in ("step_correlation", "reliability"):
        for row in select(result["rows"], quantity=quantity):
            keys = [key for key in ("quantity", "method", "classifier", "target") if key in row]
            null = f"[{row['null_low']:.2f}, {row['null_high']:.2f}]".replace("-", "−")
            line = {"": " ".join(str(row[key]) for key in keys), "ρ": format_interval(row, 2)}
            lines.append(line | {"shuffled queries": null, "queries": str(row["num_queries"])})
    title = "Spearman's ρ over queries: where classes emerge and where their scores are strongest"
    return rich_table(DataFrame(lines), f"{result['experiment']}: {title}")


def emergence_figure(result: dict) -> Figure:
    """Return P(class of the final sample | x_t), and the variance of statistics x_t explains."""
    figure, grid = plots.new_figure(1, 2, (plots.PAGE_WIDTH, 3.0), sharey=True)
    titles = {
        "probability": f"P({_feature(result)} of the final sample | x_t)",
        "explained_variance": "1 − E[Var(f | x_t)] / Var(f)",
    }
    for axes, (quantity, title) in zip(grid[0], titles.items(), strict=True):
        for i, name in enumerate(method_names(result["rows"], quantity)):
            curve = select(result["rows"], quantity=quantity, method=name, target="step")
            halfway = select(result["rows"], quantity="halfway", method=name, target="mean_curve")
            label = f"{name}: halfway at {halfway[0]['value']:.0f}" if halfway else name
            plots.plot_curve(axes, curve, plots.COLOURS[i], label)
        axes.set_title(title, fontsize=8)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.legend(frameon=False, fontsize=6.5, loc="best")
        plots.format_step_axis(axes)
    grid[0, 0].set_ylim(top=1.02)
    figure.suptitle(f"{result['experiment']}: {_sizes(result)}", fontsize=8)
    return figure


def class_figure(result: dict) -> Figure:
    """Return P(class | x_t) of the queries that end in each class, a panel for each classifier."""
    figure, grid = plots.new_figure(1, len(result["classes"]), (plots.PAGE_WIDTH, 3.0), sharey=True)
    names = sorted({name for curves in result["classes"].values() for name in curves})
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
    for axes, (classifier, curves) in zip(grid[0], result["classes"].items(), strict=True):
        for name, numbers in curves.items():
            label, colour = f"{name} ({numbers['num_queries']})", colours[names.index(name)]
            axes.plot(result["steps"], numbers["curve"], "o-", c=colour, ms=3, label=label)
        axes.set_title(f"by the classifier of {classifier}", fontsize=8)
        axes.legend(frameon=False, fontsize=6.5, title="class (queries)", title_fontsize=7, ncols=2)
        plots.format_step_axis(axes)
    grid[0, 0].set_ylabel("P(class | x_t), queries of the class")
    title = f"{result['experiment']}: classes with few queries each, hence no intervals"
    figure.suptitle(title, fontsize=8)
    return figure


def parts_figure(result: dict) -> Figure:
    """Return the share of a query's part in the top of each method along t, a panel for a family.

    The dashed line is its share of all training images, the dotted one P(part | x_t).
    """
    figure, grid = plots.new_figure(2, 3, (11, 6.6), sharey=True)
    rows = result["rows"]
    for axes, family in zip(grid.flat, result["classes"], strict=True):
        of_family = select(rows, classifier=family)
        for method in method_names(of_family, "class_share"):
            share = select(of_family, quantity="class_share", method=method)
            colour, line = plots.method_colour(method), f"{plots.method_marker(method)}-"
            plots.plot_curve(axes, share, colour, method, line)
        base = select(of_family, quantity="base_rate")[0]["value"]
        axes.axhline(base, color=plots.GREY, linestyle="--", label="base rate")
        curve = select(rows, quantity="probability", method=family, target="step")
        values = [row["value"] for row in curve]
        axes.plot(result["steps"], values, ":", color="black", label="P(part | x_t)")
        axes.set_title(family, fontsize=9)
        plots.format_step_axis(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"share of the part in the top {result['top_k']}", fontsize=8)
    grid[0, 0].set_ylim(0, 1.02)
    plots.legend_below(figure, 8)
    figure.suptitle(f"{result['experiment']}: {_sizes(result)}", fontsize=10)
    return figure


def attribution_figure(result: dict) -> Figure:
    """Return the share of the query's class in the top along t, and its rank correlations.

    They are those, over queries, of where a class emerges and where its scores are strongest.
    """
    rows, methods = result["rows"], list(result["queries"]["attribution_step"])
    classifier = next(iter(result["classes"]))
    figure, ((share_axes, axes),) = plots.new_figure(
        1, 2, (plots.PAGE_WIDTH, 3.2), width_ratios=(1, 1)
    )
    for method in methods:
        share = select(rows, quantity="class_share", method=method, classifier=classifier)
        line = f"{plots.method_marker(method)}-"
        plots.plot_curve(share_axes, share, plots.method_colour(method), method, line)
    base = select(rows, quantity="base_rate", classifier=classifier)[0]["value"]
    share_axes.axhline(base, color=plots.GREY, linestyle="--", label="base rate")
    share_axes.set_ylabel(f"share of the query's class in the top {result['top_k']}")
    share_axes.set_ylim(bottom=0)
    share_axes.legend(frameon=False, fontsize=7)
    plots.format_step_axis(share_axes)

    # One line for each method and target, by the first classifier; the table has the others.
    names: list[str] = []
    for row in select(rows, quantity="step_correlation", classifier=classifier):
        y, low, high = len(names), float(row["null_low"]), float(row["null_high"])
        axes.barh(y, high - low, 0.8, low, color=plots.GREY, alpha=0.3)
        colour = plots.method_colour(str(row["method"]))
        plots.plot_points(axes, [y], [row], colour, horizontal=True)
        names.append(f"{row['method']}, {row['target']}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel("Spearman's ρ over queries; grey: shuffled")
    axes.spines[["top", "right"]].set_visible(False)
    title = f"{result['experiment']}: {_sizes(result)}; classes by {classifier}"
    figure.suptitle(title, fontsize=8)
    return figure


def _sizes(result: dict) -> str:
    sizes = f"{result['num_queries']} queries × {result['num_continuations']} continuations"
    return f"{sizes}, 95% intervals over queries"
