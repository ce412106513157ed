"""The page of a report: one HTML file with all trajectories and the images that rank highest.

The page embeds everything. Its pictures are tiles of a few large sprite sheets, and its numbers
(trajectories, ranked training images, curves) are one JSON object that the script reads.

B  pictures, of shape C, H, W;  S  steps;  Q  queries;  N  training images
k  proponents, and as many opponents;  U  training images that are shown at all
C  candidates: values of a method's hyper-parameter
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from journey.engine.text import printable, printable_json
from journey.evaluation.lds.reliability import CEILINGS
from journey.evaluation.plots import method_colour
from journey.evaluation.rows import Row
from journey.pipeline.images import ImageSet

TEMPLATES = Path(__file__).parent
MOST_PIXELS = 10_000_000  # of all pictures of one sort; more are reduced by an integer factor
LOSSLESS_BYTES = 200_000  # of a sheet; a larger one is compressed with loss
QUALITY = 75  # of that compression, in percent
NUM_SHOWN = 5  # k
MOST_RANKED = 800_000  # places in rankings of hyper-parameters that are not shown first
MOST_LETTERS = 140  # of a caption
MOST_COMPARED = 1000  # training images with which final samples are compared
CEILING = "ceiling"  # the kind of a line
GRID = 16  # training images in a row of a sheet, and rows


@dataclass(frozen=True)
class RankedImages:
    """The training images that a method ranks first and last.

    Attributes:
        rows: Their rows: best first, then worst first. [S or 1, Q, 2k]
        scores: Their scores, of the same shape.
        setting: The hyper-parameter value of the scores, as text.
    """

    rows: np.ndarray
    scores: np.ndarray
    setting: str


@dataclass(frozen=True)
class PageMethod:
    """A method of the page.

    Attributes:
        rankings: The ranked images with each hyper-parameter value. [C]
        shown: Index of the value that is shown first.
        reason: Why it is, in a few words.
        targets: Methods that differ from this one in what they attribute alone, by what that is;
            this one is among them. Empty: the method has no such choice.
        chosen_as: The method that a reader chooses to see this one.
    """

    rankings: list[RankedImages]
    shown: int = 0
    reason: str = ""
    targets: dict[str, str] = field(default_factory=dict)
    chosen_as: str = ""


@dataclass(frozen=True)
class PageTrajectories:
    """Trajectories in pixels.

    Attributes:
        steps: The S timesteps.
        x_t: Noisy pictures, in −1…1. [S, Q, C, H, W]
        x0_hat: Estimates of the final samples, in −1…1. [S, Q, C, H, W]
        final: The final samples, in −1…1. [Q, C, H, W]
        prompts: Prompts that the queries use in turn, or none.
    """

    steps: tuple[int, ...]
    x_t: np.ndarray
    x0_hat: np.ndarray
    final: np.ndarray
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page.

    Attributes:
        path: The path of its .png.
        caption: What it shows, which is also its text alternative.
        width: Pixels on the page, if it has as many.
        is_plot: Whether a dark page inverts it: not if it shows images.
    """

    path: Path
    caption: str
    width: int
    is_plot: bool


def rank_images(scores: np.ndarray, setting: str, num_shown: int = NUM_SHOWN) -> RankedImages:
    """Return the first and last images by scores [S or 1, Q, N]; equal scores are ranked by row."""
    num_train = scores.shape[-1]
    k = min(num_shown, num_train)
    rows, values = [], []
    for at_step in scores:  # one at a time: scores are mapped from disk
        lowest = num_train - 1 - _highest(-at_step[:, ::-1], k)  # the highest in reverse order
        rows.append(np.concatenate([_highest(at_step, k), lowest], 1))
        values.append(np.take_along_axis(at_step, rows[-1], -1))
    return RankedImages(np.stack(rows), np.stack(values), setting)


def _highest(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the k highest of each query, of scores [Q, N], without sorting all. [Q, k]"""
    limits = np.partition(scores, -k, axis=-1)[:, -k]
    rows = []
    for of_query, limit in zip(scores, limits, strict=True):
        best = np.flatnonzero(of_query >= limit)  # more than k if some are equal
        rows.append(best[np.argsort(-of_query[best], kind="stable")[:k]])
    return np.stack(rows)


def rank_candidates(
    scores: Mapping[str, np.ndarray], settings: Mapping[str, list[str]], shown: Mapping[str, int]
) -> dict[str, list[RankedImages]]:
    """Return the ranked images of every method with each of its candidates.

    Where many would make the page too large, candidates that are not shown first have fewer images.

    Args:
        scores: Scores by method. [C, S or 1, Q, N]
        settings: The candidates by method, as text. [C]
        shown: Index of the candidate that is shown first, by method.
    """
    others = sum((len(array) - 1) * array.shape[1] * array.shape[2] for array in scores.values())
    num_shown = max(1, min(NUM_SHOWN, MOST_RANKED // (2 * max(1, others))))
    rankings: dict[str, list[RankedImages]] = {}
    for name, array in scores.items():
        rankings[name] = []
        for i, text in enumerate(settings[name]):
            k = NUM_SHOWN if i == shown[name] else num_shown
            rankings[name].append(rank_images(array[i], text, k))
    return rankings


def page_html(title: str, about: str, contents: dict, figures: list[PageFigure]) -> str:
    """Return the page, with all texts as they are.

    Args:
        title: The name of the experiment.
        about: A sentence on its data and model.
        contents: What the script reads, from `page_contents`.
        figures: The figures below the curves.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    data = json.dumps(printable_json(contents), separators=(",", ":"), allow_nan=False)
    pictures = []
    for figure in figures:
        picture = {"name": figure.path.name, "stem": figure.path.stem, "is_plot": figure.is_plot}
        picture["width"] = figure.width
        picture["title"] = printable(figure.caption)
        picture["uri"] = data_uri(figure.path.read_bytes(), "image/png")
        pictures.append(picture)
    kinds = {line["kind"] for curve in contents["curves"] for line in curve["lines"]}
    return environment.get_template("index.html.jinja").render(
        title=printable(title),
        about=printable(about),
        data=Markup(data.replace("<", "\\u003c")),  # no text can end the script element
        style=Markup((TEMPLATES / "page.css").read_text()),
        script=Markup((TEMPLATES / "page.js").read_text()),
        pictures=pictures,
        has_curves=bool(contents["curves"]),
        has_ceiling=CEILING in kinds,
        command=printable(contents["run"].get("command", "")),
        commit=printable(contents["run"].get("commit", "")),
    )


def page_contents(
    trajectories: PageTrajectories,
    methods: dict[str, PageMethod],
    images: ImageSet,
    curves: dict[str, list[Row]],
    variants: Sequence[str] = (),
    run: Mapping[str, str] = MappingProxyType({}),
    duplicates: np.ndarray | None = None,
) -> dict:
    """Return everything that the page's script reads.

    Args:
        trajectories: The trajectories of all queries.
        methods: The methods, by name.
        images: The training images.
        curves: The rows of each curve over the steps, by title.
        variants: Variants of the methods; those that are not among `methods` have curves alone.
        run: The command and the commit, as far as they are known.
        duplicates: The rows of each query's injected duplicates, if there are any. [Q, copies]
    """
    used = np.zeros(len(images), bool)
    for method in methods.values():
        for ranked in method.rankings:
            used[ranked.rows] = True
    shown = np.flatnonzero(used)
    duplicate_of = np.full(len(images), -1)
    for query, rows in enumerate(() if duplicates is None else duplicates):
        duplicate_of[rows] = query
    kinds = dict.fromkeys(CEILINGS.values(), CEILING)
    kinds |= dict.fromkeys(variants, "variant") | dict.fromkeys(methods, "method")
    lines = {title: _lines(rows, kinds) for title, rows in curves.items()}
    names = {*methods, *(line["name"] for of_title in lines.values() for line in of_title)}
    return {
        "steps": list(trajectories.steps),
        "queries": [_query(trajectories, q) for q in range(trajectories.x_t.shape[1])],
        "finals": _sheets(_pixels(trajectories.final)),
        "lead": most_typical(trajectories.final, images),
        "run": dict(run),
        "train": _train(images, shown) | {"duplicate_of": duplicate_of[shown].tolist()},
        "methods": {name: _method(name, method, shown) for name, method in methods.items()},
        "curves": [{"title": title, "lines": of_title} for title, of_title in lines.items()],
        "colours": {name: method_colour(name) for name in sorted(names)},
    }


def _query(trajectories: PageTrajectories, query: int) -> dict:
    """Return a query's name and its sheet: x_t above x̂0_t, a column for each step."""
    num_steps, num_queries = trajectories.x_t.shape[:2]
    both = np.concatenate([trajectories.x_t[:, query], trajectories.x0_hat[:, query]])
    pictures = reduced(_pixels(both), 2 * num_steps * num_queries)
    prompts = trajectories.prompts
    name = f"query {query}"
    if any(prompts):
        name += f": {prompts[query % len(prompts)]}"
    return {"name": name, "sheet": sprite_sheets(pictures, num_steps, 2)[0]}


def _pixels(pictures: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(pictures, -1, 1) * 127.5 + 127.5).astype(np.uint8)


def most_typical(final: np.ndarray, images: ImageSet) -> int:
    """Return the query whose final sample correlates most with one of the training images.

    It is what a page shows first: people can mostly read it. Of many images, some are compared.

    Args:
        final: Final samples. [Q, C, H, W]
        images: The training images.
    """
    rows = np.linspace(0, len(images) - 1, min(len(images), MOST_COMPARED)).round().astype(int)
    train = np.asarray(images.images[rows], np.float32).reshape(len(rows), -1)
    samples = np.asarray(final, np.float32).reshape(len(final), -1)
    if samples.shape[1] != train.shape[1]:
        return 0
    normalized = []
    for pictures in (samples, train):
        centred = pictures - pictures.mean(1, keepdims=True)
        normalized.append(centred / np.maximum(np.linalg.norm(centred, axis=1)[:, None], 1e-6))
    return int((normalized[0] @ normalized[1].T).max(1).argmax())


def _sheets(pictures: np.ndarray) -> dict:
    """Return pictures, uint8 [B, C, H, W], in sheets, with the rows of each."""
    num_rows = []
    for first in range(0, len(pictures), GRID**2):
        num_rows.append(-(-min(len(pictures) - first, GRID**2) // GRID))
    sheets = sprite_sheets(reduced(pictures, len(pictures)), GRID, GRID)
    return {"sheets": sheets, "grid": GRID, "rows": num_rows}


def _train(images: ImageSet, shown: np.ndarray) -> dict:
    """Return the training images that are shown, in sheets, with their ids and labels.

    Args:
        images: The training images.
        shown: The rows of those that are shown. [U]
    """
    pictures = np.zeros((0, *images.images.shape[1:]), np.uint8)
    if len(shown):
        pictures = np.asarray(images.images[shown])
    labels = []
    for row in shown:  # captions at more length than a figure has room for
        caption = None if images.captions is None else images.captions[row][0][:MOST_LETTERS]
        labels.append(images.describe(row) if caption is None else caption)
    return _sheets(pictures) | {"ids": [images.ids[row] for row in shown], "labels": labels}


def _method(name: str, method: PageMethod, shown: np.ndarray) -> dict:
    """Return a method with its rankings."""
    return {
        "rankings": [_ranked(ranked, shown) for ranked in method.rankings],
        "shown": method.shown,
        "reason": method.reason,
        "targets": dict(method.targets),
        "chosen_as": method.chosen_as or name,
    }


def _ranked(ranked: RankedImages, shown: np.ndarray) -> dict:
    """Return ranked images by their places among the shown ones; base64 is smaller than digits."""
    places = np.searchsorted(shown, ranked.rows).astype("<u4")
    return {
        "setting": ranked.setting,
        "num_scores": ranked.rows.shape[0],
        "shown": ranked.rows.shape[2],
        "places": base64.b64encode(places.tobytes()).decode(),
        "scores": base64.b64encode(ranked.scores.astype("<f4").tobytes()).decode(),
    }


def _lines(rows: list[Row], kinds: dict[str, str]) -> list[dict]:
    """Return a line for each method or candidate of one, with its kind.

    It has points [t, value, low, high], and the numbers [value, low, high] of other targets. What
    is neither a method nor a variant nor a ceiling is a reference, such as chance.
    """
    lines: dict[tuple[str, object], dict] = {}
    for row in rows:
        name, candidate = str(row["method"]), row.get("candidate")
        if (name, candidate) not in lines:
            line: dict = {"name": name, "candidate": candidate, "points": [], "targets": {}}
            lines[name, candidate] = line | {"kind": kinds.get(name, "reference")}
        line = lines[name, candidate]
        interval = [row[key] for key in ("value", "low", "high")]
        if "step" in row:
            line["points"].append([row["step"], *interval])
        else:
            line["targets"][row["target"]] = interval
    return list(lines.values())


def sprite_sheets(pictures: np.ndarray, columns: int, rows: int) -> list[str]:
    """Return `data:` URIs of sheets of columns × rows tiles. The last one may have fewer rows.

    Args:
        pictures: uint8 [B, C, H, W] with one or three channels.
        columns: Tiles in a row.
        rows: Rows of a sheet.
    """
    sheets = []
    channels, height, width = pictures.shape[1:]
    for first in range(0, len(pictures), columns * rows):
        part = pictures[first : first + columns * rows]
        num_rows = -(-len(part) // columns)
        tiles = np.zeros((num_rows * columns, channels, height, width), np.uint8)
        tiles[: len(part)] = part
        grid = tiles.reshape(num_rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
        grid = grid.reshape(num_rows * height, columns * width, channels)
        image = Image.fromarray(grid[..., 0] if channels == 1 else grid)
        lossless, lossy = io.BytesIO(), io.BytesIO()
        image.save(lossless, "png", optimize=True)
        if len(lossless.getvalue()) <= LOSSLESS_BYTES:
            sheets.append(data_uri(lossless.getvalue(), "image/png"))
        else:
            image.save(lossy, "webp", quality=QUALITY)
            sheets.append(data_uri(lossy.getvalue(), "image/webp"))
    return sheets


def reduced(pictures: np.ndarray, total: int) -> np.ndarray:
    """Return pictures [..., C, H, W], uint8, so small that `total` of them fit in MOST_PIXELS.

    >>> reduced(np.full((1, 1, 4, 4), 7, np.uint8), total=MOST_PIXELS // 4).tolist()
    [[[[7, 7], [7, 7]]]]
    """
    height, width = pictures.shape[-2:]
    factor = int(np.ceil(np.sqrt(total * height * width / MOST_PIXELS)))
    if factor <= 1:
        return pictures
    h, w = max(1, height // factor), max(1, width // factor)
    by_h, by_w = height // h, width // w
    tiles = pictures[..., : h * by_h, : w * by_w].reshape(*pictures.shape[:-2], h, by_h, w, by_w)
    return np.rint(tiles.mean((-3, -1))).astype(np.uint8)


def data_uri(content: bytes, media_type: str) -> str:
    """Return content as a `data:` URI.

    >>> data_uri(b"hi", "text/plain")
    'data:text/plain;base64,aGk='
    """
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
