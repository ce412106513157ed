"""The picture of the journeys: what guided each step."""

import textwrap
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure

from journey.palette import COLOURS

MOST_LETTERS = 12  # of a label: an image is no wider
OUTLINE = patheffects.withStroke(linewidth=1.5, foreground="white")  # letters can be read on any image


@dataclass(frozen=True)
class Guided:
    """What `journeys` draws.

    steps: [S]; x0_hat: in −1 … 1, [S, Q, C, H, W]; train: uint8 [N, C, H, W]; scores: [S, Q, N]; labels: text of every
    training image; ids: of the training images; queries: what each was asked for, or [].
    """

    steps: list[int]
    x0_hat: np.ndarray
    train: np.ndarray
    scores: np.ndarray
    labels: list[str]
    ids: tuple[str, ...]
    queries: tuple[str, ...] = ()


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
        gridspec_kw={"wspace": 0.08, "hspace": 0.16},
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
                    text = rows[row, column].text(0.5, 0.5, guided.labels[index][:MOST_LETTERS], color=colour, fontsize=6)
                    text.set_path_effects([OUTLINE])
                    rows[row, column].set_xlabel(guided.ids[index].rpartition("/")[2][-8:], fontsize=3.5, labelpad=1)
        asked = guided.queries[query % len(guided.queries)] if guided.queries else f"query {query}"
        for row, text in ((0, f"{textwrap.fill(asked, 12)}\nx̂0"), (1, "proponents"), (1 + num_shown, "opponents")):
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
