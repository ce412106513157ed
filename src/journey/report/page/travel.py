"""What the page knows, as JSON: the journeys, what every method ranks first and last at each of their steps, and curves.

S  steps;  Q  queries;  N  training images;  k  proponents, and as many opponents;  U  training images that are shown at all
"""

import base64
from dataclasses import dataclass

import numpy as np

from journey import palette
from journey.data import ImageSet
from journey.evaluation.rows import Row
from journey.report.page import sprites

SHOWN = 5  # k
WORDS = 140  # letters of a caption
GRID = 16  # training images in a row of a sheet, and rows


@dataclass(frozen=True)
class Ranked:
    """Of one method: rows of the training images it ranks first, best first, then of those it ranks last, worst first, and
    their scores. Each [S or 1, Q, 2k]; setting: the hyper-parameter it is shown with.
    """

    rows: np.ndarray
    scores: np.ndarray
    setting: str


def ranked(scores: np.ndarray, setting: str) -> Ranked:
    """The first and last of scores [S or 1, Q, N]; equal scores are ranked by row."""
    k = min(SHOWN, scores.shape[-1])
    found = []
    for of_step in scores:  # one at a time: scores are mapped from disk
        order = np.argsort(-of_step, axis=-1, kind="stable")
        found.append(np.concatenate([order[:, :k], order[:, : -k - 1 : -1]], 1))
    rows = np.stack(found)
    return Ranked(rows, np.stack([np.take_along_axis(*of, -1) for of in zip(scores, rows, strict=True)]), setting)


@dataclass(frozen=True)
class Journeys:
    """steps: [S]; x_t, x0_hat: pictures in −1…1, [S, Q, C, H, W]; prompts: which queries take in turn, or none."""

    steps: tuple[int, ...]
    x_t: np.ndarray
    x0_hat: np.ndarray
    prompts: tuple[str, ...]


def contents(journeys: Journeys, methods: dict[str, Ranked], images: ImageSet, curves: dict[str, list[Row]]) -> dict:
    """Everything that the page's script reads; images are those of training."""
    every = [np.zeros(0, np.int64), *(of.rows.ravel() for of in methods.values())]
    used = np.unique(np.concatenate(every))
    lines = {str(row["method"]) for rows in curves.values() for row in rows}
    return {
        "steps": list(journeys.steps),
        "queries": [_query(journeys, q) for q in range(journeys.x_t.shape[1])],
        "train": _train(images, used),
        "methods": {name: _numbered(of, used) for name, of in methods.items()},
        "curves": [{"title": title, "lines": _lines(rows)} for title, rows in curves.items()],
        "colours": {name: palette.colour(name) for name in sorted({*methods, *lines})},
    }


def _query(journeys: Journeys, query: int) -> dict:
    """A sheet of two rows of tiles, x_t above x̂0_t, a column for each step; and what the query is called."""
    num_steps, num_queries = journeys.x_t.shape[:2]
    both = np.concatenate([journeys.x_t[:, query], journeys.x0_hat[:, query]])
    pictures = sprites.reduced(sprites.as_bytes(both), 2 * num_steps * num_queries)
    prompt = f": {journeys.prompts[query % len(journeys.prompts)]}" if any(journeys.prompts) else ""
    of = sprites.sheets(pictures, num_steps, 2)
    return {"name": f"query {query}{prompt}", "sheet": of.uris[0]}


def _train(images: ImageSet, used: np.ndarray) -> dict:
    """The training images that are shown at all, in sheets, with their ids and what a person calls them. used: rows [U]"""
    pictures = np.asarray(images.images[used]) if len(used) else np.zeros((0, *images.images.shape[1:]), np.uint8)
    of = sprites.sheets(sprites.reduced(pictures, len(used)), GRID, GRID)
    return {
        "sheets": of.uris,
        "grid": GRID,
        "rows": [-(-len(used[first : first + GRID**2]) // GRID) for first in range(0, len(used), GRID**2)],
        "ids": [images.ids[i] for i in used],
        "labels": [_called(images, i) for i in used],
    }


def _called(images: ImageSet, row: int) -> str:
    """Its first caption, at more length than a figure has room for, or its class."""
    return images.describe(row) if images.captions is None else images.captions[row][0][:WORDS]


def _numbered(of: Ranked, used: np.ndarray) -> dict:
    """Rows by their places among the images that are shown; as bytes, which are a third of what digits would be."""
    return {
        "setting": of.setting,
        "num_scores": of.rows.shape[0],
        "shown": of.rows.shape[2],
        "places": _bytes(np.searchsorted(used, of.rows).astype("<u4")),
        "scores": _bytes(of.scores.astype("<f4")),
    }


def _bytes(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _lines(rows: list[Row]) -> list[dict]:
    """A line for each method: [t, value, low, high] at its steps."""
    of: dict[str, list[list[float]]] = {}
    for row in rows:
        of.setdefault(str(row["method"]), []).append([row["step"], row["value"], row["low"], row["high"]])
    return [{"name": name, "points": points} for name, points in of.items()]
