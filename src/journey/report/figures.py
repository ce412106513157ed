"""The pictures of an experiment."""

from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

COLOURS = ("#c1272d", "#0000a7", "#008176", "#eecc16", "#7f3fbf", "#d46a00")
GREY = "#8c8c8c"


def lds_by_step(result: dict) -> Figure:
    """LDS against the step that is judged, for every method with its 95% interval, under the ceiling."""
    figure, (by_step, whole) = plt.subplots(1, 2, figsize=(9.5, 4.2), sharey=True, width_ratios=(3, 1), layout="constrained")
    steps = result["steps"]
    ceiling = {"ceiling": result["ceiling"]}
    by_step.plot(steps, result["ceiling"]["step"]["mean"], "--", color=GREY, label=f"ceiling ({result['ceiling']['kind']})")
    spread = 0.012 * (max(steps) - min(steps))  # side by side, so that intervals can be told apart
    for i, (name, lds) in enumerate((result["lds"] | ceiling).items()):
        place = i - len(result["lds"]) / 2
        style = {"fmt": "o-", "color": COLOURS[i % len(COLOURS)], "capsize": 2, "markersize": 4, "elinewidth": 1}
        if name == "ceiling":
            style["color"] = GREY
        else:
            at = np.array(steps) - spread * place
            by_step.errorbar(at, lds["step"]["mean"], _error(lds["step"]), label=name, **style)
        for x, target in enumerate(("trajectory", "destination")):
            whole.errorbar(x + 0.1 * place, lds[target]["mean"], _error(lds[target]), **style)
    by_step.invert_xaxis()
    by_step.set(xlabel="step t that is judged  (noise → image)", ylabel="LDS (Spearman, mean over queries)")
    whole.set_xticks([0, 1], ["trajectory", "destination"])
    whole.set_xlim(-0.6, 1.6)
    for axes in (by_step, whole):
        axes.axhline(0, color="black", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    by_step.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{result['experiment']}: {_sizes(result)}", fontsize=10)
    return figure


def lds_by_method(result: dict) -> Figure:
    """LDS of many methods as two maps, best and linear read-out: a row for each, highest mean over the paired steps first."""
    order = sorted(result["lds"], key=lambda name: -result["lds"][name]["paired_steps"]["mean"])
    columns = [f"{t}" for t in result["steps"]] + ["traj.", "dest."]
    size = (4.2 + 2 * 0.5 * len(columns), 1.6 + 0.24 * (len(order) + 1))
    figure, panels = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    for axes, title in zip(panels, ("best read-out", "linear read-out"), strict=True):
        judged = [result["lds"][name] if title.startswith("best") else result["lds"][name]["linear"] for name in order]
        rows = [
            [*lds["step"]["mean"], lds["trajectory"]["mean"], lds["destination"]["mean"]] for lds in [*judged, result["ceiling"]]
        ]
        values = 100 * np.array(rows)
        axes.imshow(values, cmap="RdBu_r", vmin=-60, vmax=60, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color="white" if abs(value) > 42 else "black")
        axes.axhline(len(order) - 0.5, color="black", linewidth=0.8)
        axes.axvline(len(result["steps"]) - 0.5, color="black", linewidth=0.8)
        axes.set_xticks(range(len(columns)), columns, fontsize=7)
        axes.set_yticks(range(len(order) + 1), [*order, "ceiling"], fontsize=7)
        axes.tick_params(length=0)
        axes.set_xlabel("judged at step t", fontsize=8)
        axes.set_title(title, fontsize=8)
    sizes = _sizes(result).removesuffix(", 95% intervals")
    figure.suptitle(f"{result['experiment']}: LDS × 100; {sizes}", fontsize=9)
    return figure


def ablations(result: dict, base: str, axes_values: dict[str, list[tuple[str, str]]]) -> Figure:
    """LDS along every axis that was varied: axes_values[axis] is (value as text, name of the method), base included."""
    columns = min(5, len(axes_values))
    rows = -(-len(axes_values) // columns)
    size = (2.3 * columns + 0.6, 2.7 * rows + 0.5)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    panels = grid.flatten()
    for axes, (axis, points) in zip(panels, axes_values.items(), strict=False):
        _along(axes, axis, points, result)
    for axes in panels[len(axes_values) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("LDS", fontsize=8)
    grid[0, 0].legend(frameon=False, fontsize=6)
    figure.suptitle(f"{result['experiment']}: {base}, one setting changed at a time; {_sizes(result)}", fontsize=9)
    return figure


def _along(axes: plt.Axes, axis: str, points: list[tuple[str, str]], result: dict) -> None:
    """One setting. Values that are no numbers are not joined by a line."""
    targets = {"paired_steps": "steps " + ", ".join(map(str, result["paired_steps"])), "trajectory": "trajectory"}
    line = "o-" if all(value[0].isdigit() for value, _ in points) else "o"
    for i, (target, label) in enumerate(targets.items()):
        judged = [result["lds"][name][target] for _, name in points]
        errors = np.concatenate([_error(j) for j in judged], 1)
        style = {"fmt": line, "color": COLOURS[i], "capsize": 2, "markersize": 4, "elinewidth": 1}
        at = np.arange(len(points)) + 0.1 * i  # beside each other
        axes.errorbar(at, [j["mean"] for j in judged], errors, label=label, **style)
    axes.set_xticks(range(len(points)), [v for v, _ in points], fontsize=7)
    axes.set_xlim(-0.5, len(points) - 0.4)
    axes.set_xlabel(axis, fontsize=8)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _sizes(result: dict) -> str:
    subsets = f"{result['num_subsets']} subsets × {result['num_seeds']} seeds"
    return f"{result['num_train']} training images, {subsets}, {result['num_queries']} queries, 95% intervals"


def _error(lds: dict) -> np.ndarray:
    """Distances from the mean to both ends of the interval. [2, 1 or S]"""
    mean, ends = np.atleast_1d(lds["mean"]), np.atleast_2d(lds["ci95"])
    return np.maximum(0, np.stack([mean - ends[:, 0], ends[:, 1] - mean]))


@dataclass(frozen=True)
class Guided:
    """What `journeys` draws.

    steps: [S]; x0_hat: in −1 … 1, [S, Q, C, H, W]; train: uint8 [N, C, H, W]; scores: [S, Q, N]; labels: text of every
    training image.
    """

    steps: list[int]
    x0_hat: np.ndarray
    train: np.ndarray
    scores: np.ndarray
    labels: list[str]


def journeys(guided: Guided, title: str, num_queries: int = 3, num_shown: int = 3) -> Figure:
    """For some queries: x̂0_t along t, and under each step its top proponents and opponents."""
    num_queries = min(num_queries, guided.x0_hat.shape[1])
    rows_each, num_steps = 1 + 2 * num_shown, len(guided.steps)
    heights = ([1.0] * rows_each + [0.35]) * num_queries
    size = (max(4.5, 0.62 * num_steps + 1.3), 0.62 * sum(heights) + 0.8)
    figure, axes = plt.subplots(
        len(heights),
        num_steps,
        figsize=size,
        squeeze=False,
        height_ratios=heights,
        gridspec_kw={"wspace": 0.08, "hspace": 0.08},
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for query in range(num_queries):
        rows = axes[query * (rows_each + 1) :]
        for column, t in enumerate(guided.steps):
            _show(rows[0, column], guided.x0_hat[column, query] / 2 + 0.5, None)
            rows[0, column].set_title(f"t={t}", fontsize=7, pad=2)
            order = np.argsort(-guided.scores[column, query])
            for place in range(num_shown):
                for row, index, colour in (
                    (1 + place, order[place], COLOURS[2]),
                    (1 + num_shown + place, order[-1 - place], COLOURS[0]),
                ):
                    _show(rows[row, column], guided.train[index] / 255, colour)
                    rows[row, column].text(0.5, 0.5, guided.labels[index], color=colour, fontsize=6)
        for row, text in ((0, f"query {query}\nx̂0"), (1, "proponents"), (1 + num_shown, "opponents")):
            rows[row, 0].text(-0.15, 0.5, text, transform=rows[row, 0].transAxes, ha="right", va="center", fontsize=7)
    figure.suptitle(title, fontsize=9, y=0.995)
    figure.subplots_adjust(left=1.0 / size[0], right=0.99, top=1 - 0.5 / size[1], bottom=0.01)
    return figure


def _show(axes: plt.Axes, image: np.ndarray, frame: str | None) -> None:
    """One image in 0 … 1, [C, H, W], in grey where it has one channel."""
    pixels = np.clip(image.transpose(1, 2, 0), 0, 1)
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    for spine in axes.spines.values():
        spine.set(color=frame or "black", linewidth=1.2 if frame else 0.5)
