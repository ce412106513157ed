"""The pictures of linear datamodeling scores."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from journey.attribution.targets import DESTINATION, PAIRED, STEP, TRAJECTORY
from journey.evaluation.lds.tables import ceilings
from journey.evaluation.rows import Row, errors, names, select
from journey.palette import COLOURS, GREY, LIGHT, colour, mark

MOST_NAMED = 6
MARKED = {"fmt": "o-", "capsize": 2, "markersize": 4, "elinewidth": 1}


def lds_by_step(result: dict) -> Figure:
    """LDS against the step that is judged, for every method with its 95% interval, under the ceilings.

    Of many methods only the first and the best few are named; the others are grey, and without their intervals.
    """
    figure, (by_step, whole) = plt.subplots(1, 2, figsize=(9.5, 4.6), sharey=True, width_ratios=(3, 1), layout="constrained")
    every, shown = plain(result), named(result)
    for (noise, title), dashes in zip(ceilings(result).items(), ("--", ":"), strict=False):
        of_steps = select(result["rows"], quantity="ceiling", method=noise, target=STEP)
        by_step.plot(result["steps"], [row["value"] for row in of_steps], dashes, color=GREY, label=title)
    for i, name in enumerate(name for name in every if name not in shown):
        label = f"{len(every) - len(shown)} other methods" if i == 0 else None
        by_step.plot(result["steps"], _values(_best(result, name))[:-2], color=LIGHT, linewidth=0.9, label=label, zorder=0)
    for i, name in enumerate(shown):
        _method(by_step, whole, result, name, i - len(shown) / 2)
    _wholes(whole, select(result["rows"], quantity="ceiling", method="draws"), {**MARKED, "color": GREY}, len(shown) / 2)
    by_step.invert_xaxis()
    by_step.set(xlabel="step t that is judged  (noise → image)", ylabel="LDS (Spearman, mean over queries)")
    whole.set_xticks([0, 1], ["trajectory", "destination"])
    whole.set_xlim(-0.6, 1.6)
    for axes in (by_step, whole):
        axes.axhline(0, color="black", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(f"{result['experiment']}: {_sizes(result)}", fontsize=10)
    return figure


def named(result: dict) -> list[str]:
    """The methods that a picture tells apart: all, or of many the first and those with the highest LDS over the paired steps."""
    every = plain(result)
    if len(every) <= MOST_NAMED:
        return every
    paired = [select(_best(result, name), target=PAIRED)[0] for name in every]
    best = sorted(paired, key=lambda row: -row["value"])[: MOST_NAMED - 1]
    return [name for name in every if name == every[0] or name in {row["method"] for row in best}]


def _method(by_step: plt.Axes, whole: plt.Axes, result: dict, name: str, place: float) -> None:
    """One method, beside the others by its place, so that intervals can be told apart."""
    of_steps = select(_best(result, name), target=STEP)
    spread = 0.012 * (max(result["steps"]) - min(result["steps"]))
    at = np.array([row["step"] for row in of_steps]) - spread * place
    look = {**MARKED, "fmt": f"{mark(name)}-", "color": colour(name)}
    by_step.errorbar(at, [row["value"] for row in of_steps], errors(of_steps), label=name, **look)
    _wholes(whole, _best(result, name), look, place)


def _wholes(axes: plt.Axes, rows: list[Row], look: dict, place: float) -> None:
    """The trajectory and the destination."""
    for x, target in enumerate((TRAJECTORY, DESTINATION)):
        (row,) = select(rows, target=target)
        axes.errorbar(x + 0.1 * place, row["value"], errors([row]), **look)


def _best(result: dict, name: str) -> list[Row]:
    return select(result["rows"], quantity="lds", method=name, readout="best")


def plain(result: dict) -> list[str]:
    """The methods that were asked for, without variants of them."""
    return [name for name in names(result["rows"], "lds") if name not in result["variants"]]


def lds_by_method(result: dict) -> Figure:
    """LDS of many methods as two maps, best and linear read-out: a row for each, highest mean over the paired steps first."""
    rows = result["rows"]
    paired = {name: select(_best(result, name), target=PAIRED)[0]["value"] for name in names(rows, "lds")}
    order = sorted(paired, key=lambda name: -paired[name])
    columns = [f"{t}" for t in result["steps"]] + ["traj.", "dest."]
    limits = {title: _values(select(rows, quantity="ceiling", method=noise)) for noise, title in ceilings(result).items()}
    size = (4.2 + 2 * 0.5 * len(columns), 1.6 + 0.24 * (len(order) + len(limits)))
    figure, panels = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    for axes, readout in zip(panels, ("best", "linear"), strict=True):
        judged = [_values(select(rows, quantity="lds", method=name, readout=readout)) for name in order]
        values = 100 * np.array([*judged, *limits.values()])
        axes.imshow(values, cmap="RdBu_r", vmin=-60, vmax=60, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color="white" if abs(value) > 42 else "black")
        axes.axhline(len(order) - 0.5, color="black", linewidth=0.8)
        axes.axvline(len(result["steps"]) - 0.5, color="black", linewidth=0.8)
        axes.set_xticks(range(len(columns)), columns, fontsize=7)
        axes.set_yticks(range(len(order) + len(limits)), [*order, *limits], fontsize=7)
        axes.tick_params(length=0)
        axes.set_xlabel("judged at step t", fontsize=8)
        axes.set_title(f"{readout} read-out", fontsize=8)
    sizes = _sizes(result).removesuffix(", 95% intervals")
    figure.suptitle(f"{result['experiment']}: LDS × 100; {sizes}", fontsize=9)
    return figure


def _values(rows: list[Row]) -> list[float]:
    """Of the steps, the trajectory and the destination."""
    return [row["value"] for target in (STEP, TRAJECTORY, DESTINATION) for row in select(rows, target=target)]


def ablations(result: dict, base: str, axes_values: dict[str, list[tuple[str, str]]]) -> Figure:
    """LDS along every axis that was varied: axes_values[axis] is (value as text, name of the method), base included."""
    columns = min(5, len(axes_values))
    rows = -(-len(axes_values) // columns)
    size = (max(6.0, 2.3 * columns + 0.6), 2.7 * rows + 0.7)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    panels = grid.flatten()
    for axes, (axis, points) in zip(panels, axes_values.items(), strict=False):
        _along(axes, axis, points, result)
    for axes in panels[len(axes_values) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("LDS", fontsize=8)
    grid[0, 0].legend(frameon=False, fontsize=6)
    figure.suptitle(f"{result['experiment']}: {base}, one setting changed at a time\n{_sizes(result)}", fontsize=9)
    return figure


def _along(axes: plt.Axes, axis: str, points: list[tuple[str, str]], result: dict) -> None:
    """One setting. Values that are no numbers are not joined by a line."""
    targets = {PAIRED: "steps " + ", ".join(map(str, result["paired_steps"])), TRAJECTORY: "trajectory"}
    line = "o-" if all(value[0].isdigit() for value, _ in points) else "o"
    for i, (target, label) in enumerate(targets.items()):
        best = select(result["rows"], quantity="lds", readout="best", target=target)
        judged = [select(best, method=name)[0] for _, name in points]
        style = {**MARKED, "fmt": line, "color": COLOURS[i]}
        at = np.arange(len(points)) + 0.1 * i  # beside each other
        axes.errorbar(at, [row["value"] for row in judged], errors(judged), label=label, **style)
    axes.set_xticks(range(len(points)), [v for v, _ in points], fontsize=7)
    axes.set_xlim(-0.5, len(points) - 0.4)
    axes.set_xlabel(axis, fontsize=8)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _sizes(result: dict) -> str:
    subsets = f"{result['num_subsets']} subsets × {result['num_seeds']} seeds"
    return f"{result['num_train']} training images, {subsets}, {result['num_queries']} queries, 95% intervals"
