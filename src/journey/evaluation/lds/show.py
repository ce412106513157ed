"""Tables and figures of the linear datamodeling score, from the result alone."""

import itertools
from collections.abc import Iterable
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame
from rich.table import Table

from journey.attribution.targets import FINAL_SAMPLE, PAIRED_STEPS, STEP, TRAJECTORY
from journey.evaluation import plots
from journey.evaluation.lds.datamodeling import primary
from journey.evaluation.lds.reliability import CEILINGS, ceiling_of, titled_ceilings
from journey.evaluation.rows import (
    Row,
    difference_of,
    format_half_width,
    format_interval,
    latex_table,
    markdown_table,
    method_names,
    pivot,
    rich_table,
    select,
    target_name,
    verdict,
)

MAX_NAMED = 6  # methods that a plot of curves distinguishes

MAX_PAIRED = 8  # methods of which all pairs are compared; of more, the first with each other one

SIGN_REVERSED = "sign reversed?"

# Settings whose numbers are no quantities; 0 of train_timesteps means all.
INDICES = ("first_checkpoint", "noise_set", "train_timesteps")

NOTES = """LDS × 100 [95% interval], and LDS / ceiling of these models.
Query-centred: minus the mean over queries. Linear: the sum of scores predicts, with
hyper-parameters chosen on held-out queries and subsets; ⊣ marks a choice at an end of its grid.
Query-centred linear LDS is the primary statistic. Chosen: the score transform is chosen too, for
each step. Shown: linear, with the hyper-parameters of the scores that page and pictures show.
Ceiling: the expected rank correlation of the best predictor, where only the noise samples of
measurements are noise (these models), or training too (over seeds). "sign reversed?" marks a linear
LDS that is significantly negative where another score transform has a higher one."""

GROUPS = """Retrained models lack one group of training images each; a group's score is the sum of
its members'. Interactions: with the second-order term, whose size is chosen on held-out groups.
Change: of outputs, relative to the full model's, in percent: without a group, and by another seed
alone."""

VERDICTS = """Differences of LDS × 100 [95% interval]. Supported: the interval is above 0; opposite
supported: below 0; equivalent: the 90% interval is within ±5; undecided: none of these."""


def primary_name(result: dict) -> str:
    """Return the name of a result's primary statistic."""
    quantity, transform = primary(result).values()
    return ("query-centred LDS" if quantity == "query_centred" else "LDS") + f", {transform} scores"


def differences(result: dict, quantity: str, methods: list[str]) -> list[Row]:
    """Return the differences of a quantity between methods: of all, or from the first of many.

    Those of single steps are left out.
    """
    first = methods if len(methods) <= MAX_PAIRED else methods[:1]
    compared = []
    for row in select(result["rows"], quantity=difference_of(quantity)):
        if row["method"] in first and row["against"] in methods and row["target"] != STEP:
            compared.append(row)
    return compared


def sign_reversed(rows: list[Row], row: Row) -> bool:
    """Return whether a linear LDS is significantly negative where transformed scores do better."""
    if row["score_transform"] != "linear" or float(row["high"]) >= 0:
        return False
    (chosen,) = select(rows, **_at_target(row, "quantity", "method"), score_transform="chosen")
    return float(chosen["value"]) > float(row["value"])


def _at_target(row: Row, *keys: str) -> Row:
    """Return the target of a row, and other conditions that identify it."""
    return {key: row[key] for key in (*keys, "target", "step") if key in row}


def tables(result: dict) -> list[Table]:
    """Return the LDS × 100 ± half the width of its interval, and the differences of methods."""
    rows, statistic = result["rows"], primary(result)
    main = select(rows, **statistic)
    paired = "paired steps: mean of t=" + ", ".join(map(str, result["paired_steps"]))
    name = primary_name(result)
    title = f"{result['experiment']}: {name} × 100 ± half of the 95% interval ({_sizes(result)})"

    def text(row: Row) -> str:
        mark = f" {SIGN_REVERSED}" if sign_reversed(rows, row) else ""
        return format_half_width(row) + mark

    frame = pivot(main, "method", target_name, text)
    for quantity, transform in (("lds", "linear"), ("query_centred", "chosen"), ("lds", "chosen")):
        others = {"quantity": quantity, "score_transform": transform}
        others_by_method = {}
        for row in select(rows, **others, target=PAIRED_STEPS):
            others_by_method[row["method"]] = text(row)
        if others != statistic and others_by_method:
            heading = f"{'plain' if quantity == 'lds' else 'centred'} {transform}"
            frame[f"{heading}, paired"] = frame["method"].map(others_by_method).fillna("")
    limits = titled_ceilings(rows, statistic["quantity"])
    limits_frame = pivot(limits, "method", target_name, format_half_width)
    limits_frame = limits_frame.reindex(columns=frame.columns, fill_value="")
    shown = [rich_table(frame, f"{title}; {paired}", limits_frame)]
    compared = differences(result, statistic["quantity"], plain_methods(result))
    if compared:
        frame = pivot(compared, _pair, target_name, _difference, heading="a − b")
        shown.append(rich_table(frame, f"paired differences of {name} × 100; {paired}"))
    return shown


def _pair(row: Row) -> str:
    return f"{row['method']} − {row['against']}"


def _difference(row: Row) -> str:
    """Return a difference with its interval and its verdict."""
    word = f" {verdict(row).value}" if "low_90" in row else ""
    return format_interval(row, 1, times=100, sign="+") + word


def texts(result: dict) -> dict[str, str]:
    """Return all LDS and ceilings with intervals, the chosen candidates, the costs and kernels."""
    # 1. The LDS of every method, the costs in its first line.
    rows, lines = result["rows"], []
    names = {"query_centred": "query-centred", "lds": "plain"}
    for name in method_names(rows, "lds"):
        cost = result["cost"][name]
        costs = {
            "seconds": f"{cost['seconds']:.0f}",
            "gradients": f"{cost['gradients']:,}",
            "MB": f"{cost['bytes'] / 1e6:.1f}",
        }
        for quantity, transform in itertools.product(names, ("linear", "chosen", "shown")):
            conditions = {"quantity": quantity, "score_transform": transform}
            selected = select(rows, **conditions, method=name)
            if not selected:
                continue
            line = {"method": name, "scores": f"{names[quantity]}, {transform}"}
            line |= _cells(selected, rows, ceiling_of(quantity))
            if quantity == "query_centred":
                if transform == "shown":
                    choices = [result["shown"][name]]
                else:
                    choices = result["chosen"][name][transform][STEP]
                line["chosen for the steps"] = _format_choices(choices, result["candidates"][name])
            lines.append(line | costs)
            costs = {}

    # 2. The ceilings.
    for quantity, prefix in names.items():
        limits = ceiling_of(quantity)
        for name in method_names(rows, limits):
            line = {"method": CEILINGS[name], "scores": prefix}
            lines.append(line | _cells(select(rows, quantity=limits, method=name), rows))
    text = f"{markdown_table(DataFrame(lines).fillna(''))}\n\n{NOTES}\n"

    # 3. The differences, and the kernels.
    for quantity, prefix in names.items():
        compared = differences(result, quantity, plain_methods(result))
        if compared and "low_90" in compared[0]:
            heading = f"a − b, {prefix}"
            frame = pivot(compared, _pair, target_name, _difference, heading=heading)
            text += f"\n{markdown_table(frame)}\n"
    if "primary" in result:
        text += f"\n{VERDICTS}\n"
    if "groups" in result:
        text += _group_tables(rows)
    kernels = _kernel_lines(result)
    if kernels:
        text += f"\n{markdown_table(DataFrame(kernels))}\n"

    # 4. The primary statistic for a paper.
    frames = [pivot(select(rows, **primary(result)), "method", target_name, format_half_width)]
    compared = differences(result, primary(result)["quantity"], plain_methods(result))
    if compared:
        frames.append(pivot(compared, _pair, target_name, _difference, heading="a − b"))
    title = f"% {primary_name(result)} × 100 ± half of the 95% interval; {_sizes(result)}"
    latex = "\n\n".join([title, *map(latex_table, frames)])
    return {"lds.md": text, "lds.tex": f"{latex}\n"}


def _group_tables(rows: list[Row]) -> str:
    """Return the LDS with second-order terms of groups, and how much outputs change."""
    text = f"\n{GROUPS}\n"
    for quantity, prefix in (("query_centred", "query-centred"), ("lds", "plain")):
        lines = select(rows, quantity=f"{quantity}_interaction")
        if lines:
            heading = f"{prefix}, with interactions"
            frame = pivot(
                lines, "method", target_name, lambda r: format_interval(r, 0, 100), heading
            )
            gains = select(rows, quantity=f"{quantity}_interaction_gain")
            gained = pivot(gains, "method", target_name, _difference, heading="gain")
            text += f"\n{markdown_table(frame)}\n\n{markdown_table(gained)}\n"
    changes = select(rows, quantity="change")
    frame = pivot(changes, "method", target_name, lambda row: format_interval(row, 1, 100), "%")
    return f"{text}\n{markdown_table(frame)}\n"


def _cells(rows: list[Row], all_rows: list[Row], ceiling: str = "") -> dict[str, str]:
    """Return the texts of the targets; with their share of a ceiling of these models, if given."""
    cells = {}
    for row in rows:
        text = format_interval(row, 0, times=100)
        if ceiling:
            conditions = {"quantity": ceiling, "method": "noise_samples"}
            (limit,) = select(all_rows, **conditions, **_at_target(row))
            value, most = float(row["value"]), float(limit["value"])
            share = f" {value / most:z.2f}" if most > 0 else " –"
            text += share.replace("-", "−")
        if "score_transform" in row and sign_reversed(all_rows, row):
            text += f" {SIGN_REVERSED}"
        cells[target_name(row)] = text
    return cells


def _format_choices(cells: list[dict], candidates: list[dict[str, float]]) -> str:
    """Return the distinct choices; ⊣ marks an end of a grid of values."""
    choices = []
    for cell in cells:
        words = []
        for key, value in cell.items():
            if isinstance(value, str):
                words.append(value)
                continue
            grid = sorted({candidate[key] for candidate in candidates})
            at_end = len(grid) > 1 and value in (grid[0], grid[-1])
            words.append(f"{value:g}⊣" if at_end else f"{value:g}")
        choices.append(" ".join(words))
    return ", ".join(dict.fromkeys(choices))


def _kernel_lines(result: dict) -> list[dict[str, str]]:
    """Return the diagnostics of every kernel that was inverted, as means over checkpoints."""
    lines = []
    for name, diagnostics in result["diagnostics"].items():
        conditions = np.transpose(diagnostics.get("condition_number", []))  # [λ, checkpoint]
        parameters = np.transpose(diagnostics.get("effective_parameters", []))
        for i in range(len(conditions)):
            line = {
                "kernel of": name,
                "λ, relative": f"{result['candidates'][name][i]['damping']:g}",
                "effective parameters": f"{fmean(parameters[i]):.0f}",
                "condition number": f"{fmean(conditions[i]):.2g}",
            }
            lines.append(line)
    return lines


def figures(result: dict) -> dict[str, Figure]:
    """Return the figures that a result can fill, by file name."""
    drawn = {"lds_by_step.png": lds_by_step(result)}
    if len(plain_methods(result)) > MAX_NAMED:
        drawn["lds_by_method.png"] = lds_by_method(result)
    if result["variant_axes"]:
        drawn["ablations.png"] = ablation_figure(result)
    return drawn


def plain_methods(result: dict) -> list[str]:
    """Return the methods of a result without their variants."""
    return [name for name in method_names(result["rows"], "lds") if name not in result["variants"]]


def by_paired_steps(result: dict, methods: Iterable[str]) -> list[str]:
    """Return methods in the order of their LDS over the paired steps, the highest first."""
    rows = select(result["rows"], **primary(result), target=PAIRED_STEPS)
    lds = {row["method"]: float(row["value"]) for row in rows}
    return sorted(methods, key=lambda name: -lds[name])


def lds_by_step(result: dict) -> Figure:
    """Return a plot of the LDS against t, of the trajectory and the final sample, with ceilings.

    Of many methods, the first and the best are named; the others are grey, without intervals.
    """
    figure, ((by_step, aggregates),) = plots.new_figure(
        1, 2, (plots.PAGE_WIDTH, 3.4), sharey=True, width_ratios=(3, 1)
    )
    quantity = ceiling_of(primary(result)["quantity"])
    ceilings = select(result["rows"], quantity=quantity)
    for name, dashes in zip(method_names(ceilings, quantity), ("--", ":"), strict=False):
        values = _values(ceilings, method=name, target=STEP)
        by_step.plot(result["steps"], values, dashes, color=plots.GREY, label=CEILINGS[name])

    chosen = select(result["rows"], **primary(result))
    named = plain_methods(result)
    others = []
    if len(named) > MAX_NAMED:
        best = {named[0], *by_paired_steps(result, named)[: MAX_NAMED - 1]}
        others = [name for name in named if name not in best]
        named = [name for name in named if name in best]
    for i, name in enumerate(others):
        values = _values(chosen, method=name, target=STEP)
        label = None if i else f"{len(others)} other methods"
        style = {"color": plots.LIGHT, "linewidth": 0.9, "zorder": 0}
        by_step.plot(result["steps"], values, label=label, **style)
    for i, name in enumerate(named):
        place = i - len(named) / 2
        rows, colour = select(chosen, method=name), plots.method_colour(name)
        line = f"{plots.method_marker(name)}-"
        plots.plot_curve(by_step, select(rows, target=STEP), colour, name, line)
        _plot_aggregates(aggregates, rows, colour, place, line)
    these_models = select(ceilings, method="noise_samples")
    _plot_aggregates(aggregates, these_models, plots.GREY, len(named) / 2, "o")

    plots.format_step_axis(by_step)
    by_step.set_ylabel(primary_name(result))
    aggregates.set_xticks([0, 1], ["trajectory", "final sample"])
    aggregates.set_xlim(-0.6, 1.6)
    aggregates.spines[["top", "right"]].set_visible(False)
    for axes in (by_step, aggregates):
        axes.axhline(0, color="black", linewidth=0.6)
    plots.legend_below(figure, 5)
    figure.suptitle(f"{result['experiment']}: {_sizes(result)}, 95% intervals", fontsize=8)
    return figure


def _plot_aggregates(axes: Axes, rows: list[Row], colour: str, place: float, line: str) -> None:
    """Draw the trajectory and the final sample."""
    for i, target in enumerate((TRAJECTORY, FINAL_SAMPLE)):
        plots.plot_points(axes, [i + 0.1 * place], select(rows, target=target), colour, line=line)


def lds_by_method(result: dict) -> Figure:
    """Return a heat map of the primary statistic of many methods; `lds.md` has their variants."""
    rows = result["rows"]
    names = by_paired_steps(result, plain_methods(result))
    columns = [*result["steps"], "traj.", "final"]
    lds, quantity = select(rows, **primary(result)), ceiling_of(primary(result)["quantity"])
    values = [_values(lds, method=name) for name in names]
    num_methods = len(names)
    for name in method_names(rows, quantity):
        values.append(_values(rows, quantity=quantity, method=name))
        names.append(CEILINGS[name])
    figure, ((axes,),) = plots.new_figure(1, 1, (plots.PAGE_WIDTH, 0.7 + 0.21 * len(names)))
    plots.heatmap(axes, 100 * np.array(values), names, columns, (-60, 60), fontsize=7.5)
    axes.axhline(num_methods - 0.5, color="black", linewidth=0.8)
    axes.axvline(len(result["steps"]) - 0.5, color="black", linewidth=0.8)
    axes.set_xlabel("step t")
    title = f"{result['experiment']}: {primary_name(result)}, LDS × 100; {_sizes(result)}"
    figure.suptitle(title, fontsize=8)
    return figure


def _values(rows: list[Row], **conditions: str) -> list[float]:
    """Return the values of the steps, the trajectory and the final sample."""
    selected = select(rows, **conditions)
    return [float(row["value"]) for row in selected if row["target"] != PAIRED_STEPS]


def ablation_figure(result: dict) -> Figure:
    """Return plots of the LDS against each setting in which variants of the first method differ."""
    variant_axes = result["variant_axes"]
    columns = min(4, len(variant_axes))
    rows = -(-len(variant_axes) // columns)
    size = (plots.COLUMN_WIDTH if columns == 1 else plots.PAGE_WIDTH, 2.2 * rows + 0.3)
    figure, grid = plots.new_figure(rows, columns, size, sharey=True)
    chosen = select(result["rows"], **primary(result))
    targets = {
        PAIRED_STEPS: "steps " + ", ".join(map(str, result["paired_steps"])),
        TRAJECTORY: "trajectory",
    }
    for axes, (setting, points) in zip(grid.flat, variant_axes.items(), strict=False):
        # A line joins quantities, no names and no numbers that stand for one.
        is_quantity = all(value[0].isdigit() for value, _ in points)
        line = "o-" if is_quantity and setting not in INDICES else "o"
        for i, (target, label) in enumerate(targets.items()):
            of_target = select(chosen, target=target)
            variants = [select(of_target, method=name)[0] for _, name in points]
            positions = np.arange(len(points)) + 0.1 * i
            plots.plot_points(axes, positions, variants, plots.COLOURS[i], label, line)
        names = [value.removesuffix(".0") for value, _ in points]
        rotation = 0 if len(names) < 6 else 45
        axes.set_xticks(range(len(points)), names, fontsize=6.5, rotation=rotation)
        axes.set_xlim(-0.5, len(points) - 0.4)
        axes.set_xlabel(setting)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(variant_axes) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(primary_name(result))
    plots.legend_below(figure, 2)
    base = plain_methods(result)[0]
    title = f"{result['experiment']}: {base}, one setting changed at a time"
    figure.suptitle(f"{title}; {_sizes(result)}, 95% intervals", fontsize=8)
    return figure


def _sizes(result: dict) -> str:
    """Return the sizes of the experiment."""
    unit = f"groups ({result['groups']})" if "groups" in result else "subsets"
    seeds = "seed" if result["num_seeds"] == 1 else "seeds"
    subsets = f"{result['num_subsets']} {unit} × {result['num_seeds']} {seeds}"
    return f"{result['num_train']} training images, {subsets}, {result['num_queries']} queries"
