"""The picture of the journeys: what guided each step."""

import textwrap
from dataclasses import dataclass

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure

from journey.evaluation.plots import BLUE, VERMILION

matplotlib.use("Agg")


CELL = 0.85  # inches of an image


MOST_STEPS = 8  # that are shown, evenly spread where there are more


MOST_LETTERS = 12  # of a label: an image is no wider


OUTLINE = patheffects.withStroke(
    linewidth=1.5, foreground="white"
)  # letters can be read on any image


@dataclass(frozen=True)
class AttributedTrajectories:
    """What `journeys` draws.

    steps: [S]; x0_hat: in −1 … 1, [S, Q, C, H, W]; train: uint8 [N, C, H, W]; scores: [S or 1, Q, N]; labels: text of every
    training image; ids: of the training images; queries: what each was asked for, or [].
    """

    steps: list[int]
    x0_hat: np.ndarray
    train: np.ndarray
    scores: np.ndarray
    labels: list[str]
    ids: tuple[str, ...]
    queries: tuple[str, ...] = ()


def distinct_queries(pictures: np.ndarray, num: int = 2) -> list[int]:
    """A few of some pictures [Q, …] that differ: the first, then each time the one farthest from those that there are.

    >>> differing(np.array([[0.0], [0.1], [9.0], [4.0]]), num=3)
    [0, 2, 3]
    """
    flat = pictures.reshape(len(pictures), -1)
    found = [0]
    while len(found) < min(num, len(flat)):
        nearest = np.min([np.linalg.norm(flat - flat[i], axis=1) for i in found], 0)
        found.append(int(nearest.argmax()))
    return found


def trajectory_figure(
    guided: AttributedTrajectories, title: str, queries: list[int], num_shown: int = 3
) -> Figure:
    """For some queries: x̂0_t along t, and under each step its top proponents and opponents."""
    rows_each, columns = 1 + 2 * num_shown, _spread(len(guided.steps))
    heights = ([1.0] * rows_each + [0.35]) * len(queries)
    size = (max(4.5, CELL * len(columns) + 1.3), CELL * sum(heights) + 0.8)
    figure, axes = plt.subplots(
        len(heights),
        len(columns),
        figsize=size,
        squeeze=False,
        height_ratios=heights,
        gridspec_kw={"wspace": 0.08, "hspace": 0.16},
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for place, query in enumerate(queries):
        rows = axes[place * (rows_each + 1) :]
        for column, step in enumerate(columns):
            _step(rows[:rows_each, column], guided, step, query, num_shown)
        asked = guided.queries[query % len(guided.queries)] if guided.queries else f"query {query}"
        for row, text in (
            (0, f"{textwrap.fill(asked, 12)}\nx̂0"),
            (1, "proponents"),
            (1 + num_shown, "opponents"),
        ):
            rows[row, 0].text(
                -0.15,
                0.5,
                text,
                transform=rows[row, 0].transAxes,
                ha="right",
                va="center",
                fontsize=8,
            )
    figure.suptitle(title, fontsize=10, y=0.995)
    figure.subplots_adjust(left=1.0 / size[0], right=0.99, top=1 - 0.5 / size[1], bottom=0.01)
    return figure


def _spread(num_steps: int) -> list[int]:
    """Which steps are shown: at most MOST_STEPS, the first and last among them."""
    return sorted({round(i) for i in np.linspace(0, num_steps - 1, min(num_steps, MOST_STEPS))})


def _step(
    rows: np.ndarray, guided: AttributedTrajectories, step: int, query: int, num_shown: int
) -> None:
    """A column: x̂0_t, then its proponents, then its opponents, each with its label and the end of its id."""
    _show(rows[0], guided.x0_hat[step, query] / 2 + 0.5, None)
    rows[0].set_title(f"t={guided.steps[step]}", fontsize=8, pad=2)
    order = np.argsort(-guided.scores[min(step, len(guided.scores) - 1), query])
    for row, index in enumerate([*order[:num_shown], *order[: -num_shown - 1 : -1]], 1):
        colour = BLUE if row <= num_shown else VERMILION
        _show(rows[row], guided.train[index] / 255, colour)
        text = rows[row].text(
            0.5, 0.5, guided.labels[index][:MOST_LETTERS], color=colour, fontsize=7
        )
        text.set_path_effects([OUTLINE])
        rows[row].set_xlabel(guided.ids[index].rpartition("/")[2][-8:], fontsize=4, labelpad=1)


def _show(axes: plt.Axes, image: np.ndarray, frame: str | None) -> None:
    """One image in 0 … 1, [C, H, W], in grey where it has one channel."""
    pixels = np.clip(image.transpose(1, 2, 0), 0, 1)
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    for spine in axes.spines.values():
        spine.set(color=frame or "black", linewidth=1.2 if frame else 0.5)
