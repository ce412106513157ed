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
    sizes = f"{result['num_train']} training images, {result['num_subsets']} subsets × {result['num_seeds']} seeds"
    figure.suptitle(f"{result['experiment']}: {sizes}, {result['num_queries']} queries, 95% intervals", fontsize=10)
    return figure


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
