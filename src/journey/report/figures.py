"""The figure of trajectories, with the images that influenced each step; and contact sheets."""

import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from journey.engine.text import printable
from journey.evaluation.plots import BLUE, PAGE_WIDTH, PICTURES, VERMILION, PlainFigure
from journey.pipeline.images import ImageFiles

TILE = 64  # pixels of the longer side of an image of a contact sheet, at least
MOST_IN_SHEET = 100  # images of a contact sheet; of more, evenly spaced ones
CELL = 0.85  # width and height of an image, in inches
MOST_STEPS = 8  # that are shown; of more, evenly spaced ones
MOST_LETTERS = 12  # of a label: no wider than an image
MOST_IN_PROMPT = 96  # letters of a prompt, in lines of a label's width
OUTLINE = patheffects.withStroke(linewidth=1.5, foreground="white")  # readable on any image


@dataclass(frozen=True)
class AttributedTrajectories:
    """Trajectories and scores of the training images at their steps.

    Attributes:
        steps: The S timesteps.
        x0_hat: Estimates of the final sample, in −1…1. [S, Q, C, H, W]
        train: Training images, uint8. [N, C, H, W]
        scores: [S or 1, Q, N]
        labels: A short text for every training image.
        ids: The names of the training images.
        prompts: Prompts that the queries use in turn, or none.
    """

    steps: tuple[int, ...]
    x0_hat: np.ndarray
    train: np.ndarray | ImageFiles
    scores: np.ndarray
    labels: list[str]
    ids: tuple[str, ...]
    prompts: tuple[str, ...] = ()


def shown_in_sheet(count: int) -> np.ndarray:
    """Return the rows, of `count`, that a contact sheet shows.

    >>> shown_in_sheet(3).tolist(), len(shown_in_sheet(1000))
    ([0, 1, 2], 100)
    """
    return np.linspace(0, count - 1, min(count, MOST_IN_SHEET)).round().astype(int)


def contact_sheet(pictures: np.ndarray) -> Image.Image:
    """Return pictures, uint8 [B, C, H, W] with one or three channels, as one image in rows.

    Small ones are enlarged by an integer factor, so that their pixels stay visible; large ones are
    reduced to two tiles' side.
    """
    num, channels, height, width = pictures.shape
    side = max(height, width)
    scale = max(1, TILE // side) if side <= 2 * TILE else 2 * TILE / side
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = int(np.ceil(np.sqrt(1.5 * num)))
    gap = 2
    step = (size[0] + gap, size[1] + gap)
    num_rows = -(-num // columns)
    sheet_size = (columns * step[0] + gap, num_rows * step[1] + gap)
    sheet = Image.new("L" if channels == 1 else "RGB", sheet_size, "gray")
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    for i, picture in enumerate(pictures):
        pixels = picture[0] if channels == 1 else picture.transpose(1, 2, 0)
        row, column = divmod(i, columns)
        place = (gap + column * step[0], gap + row * step[1])
        sheet.paste(Image.fromarray(pixels).resize(size, method), place)
    return sheet


def distinct_queries(pictures: np.ndarray, num: int = 2) -> list[int]:
    """Return a few queries that look different, by farthest-point sampling from the first.

    >>> distinct_queries(np.array([[0.0], [0.1], [9.0], [4.0]]), num=3)
    [0, 2, 3]
    """
    flat = pictures.reshape(len(pictures), -1)
    queries = [0]
    distance = np.full(len(flat), np.inf)
    while len(queries) < min(num, len(flat)):
        distance = np.minimum(distance, np.linalg.norm(flat - flat[queries[-1]], axis=1))
        queries.append(int(distance.argmax()))
    return queries


def trajectory_figure(
    trajectories: AttributedTrajectories, title: str, queries: list[int], num_shown: int = 3
) -> Figure:
    """Return a figure of x̂0_t along the steps, with the top proponents and opponents below.

    Args:
        trajectories: What is drawn.
        title: The title of the figure.
        queries: The queries that are shown, one below the other.
        num_shown: The number of proponents, and of opponents.
    """
    num_steps, num_rows = len(trajectories.steps), 1 + 2 * num_shown
    steps = sorted(
        set(np.linspace(0, num_steps - 1, min(num_steps, MOST_STEPS)).round().astype(int))
    )
    heights = ([1.0] * num_rows + [0.35]) * len(queries)
    cell = min(CELL, (PAGE_WIDTH - 1.1) / len(steps))
    size = (max(3.5, cell * len(steps) + 1.1), 1.12 * cell * sum(heights) + 0.4)
    figure = PlainFigure(figsize=size)
    spacing = {"wspace": 0.08, "hspace": 0.2}
    axes = figure.subplots(
        len(heights), len(steps), squeeze=False, height_ratios=heights, gridspec_kw=spacing
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for place, query in enumerate(queries):
        rows = axes[place * (num_rows + 1) :]
        for column, step in enumerate(steps):
            _draw_step(rows[:num_rows, column], trajectories, step, query, num_shown)
        prompts = trajectories.prompts
        name = prompts[query % len(prompts)] if prompts else f"query {query}"
        name = textwrap.fill(printable(name, MOST_IN_PROMPT), 12)
        texts = {0: f"{name}\nx̂0", 1: "proponents", 1 + num_shown: "opponents"}
        for row, text in texts.items():
            position = {"transform": rows[row, 0].transAxes, "ha": "right", "va": "center"}
            rows[row, 0].text(-0.15, 0.5, text, fontsize=8, **position)
    figure.suptitle(title, fontsize=8, y=0.999)
    figure.set_gid(PICTURES)
    figure.subplots_adjust(left=1.0 / size[0], right=0.99, top=1 - 0.35 / size[1], bottom=0.01)
    return figure


def _draw_step(
    rows: np.ndarray, trajectories: AttributedTrajectories, step: int, query: int, num_shown: int
) -> None:
    """Draw a column: x̂0_t, its proponents, then its opponents, with labels and ids."""
    _draw_image(rows[0], trajectories.x0_hat[step, query] / 2 + 0.5, None)
    rows[0].set_title(f"t={trajectories.steps[step]}", fontsize=8, pad=2)
    order = np.argsort(-trajectories.scores[min(step, len(trajectories.scores) - 1), query])
    for row, index in enumerate([*order[:num_shown], *order[: -num_shown - 1 : -1]], 1):
        colour = BLUE if row <= num_shown else VERMILION
        _draw_image(rows[row], trajectories.train[index] / 255, colour)
        label = printable(trajectories.labels[index])[:MOST_LETTERS]
        corner = {"transform": rows[row].transAxes, "ha": "left", "va": "top"}
        text = rows[row].text(0.04, 0.97, label, color=colour, fontsize=7, **corner)
        text.set_path_effects([OUTLINE])
        name = printable(trajectories.ids[index].rpartition("/")[2][-8:])
        rows[row].set_xlabel(name, fontsize=6, labelpad=1)


def _draw_image(axes: Axes, image: np.ndarray, frame: str | None) -> None:
    """Draw an image in 0…1 [C, H, W], grey if it has one channel."""
    pixels = np.clip(image.transpose(1, 2, 0), 0, 1)
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    for spine in axes.spines.values():
        spine.set(color=frame or "black", linewidth=1.2 if frame else 0.5)
