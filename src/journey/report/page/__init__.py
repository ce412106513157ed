"""Many small pictures as a few large ones, each once, for a page that holds them in itself.

A sheet is a grid of tiles, row by row; a page shows a tile of it. B  pictures;  C, H, W  of each


What the page knows, as JSON: the journeys, what every method ranks first and last at each of their steps, and curves.

S  steps;  Q  queries;  N  training images;  k  proponents, and as many opponents;  U  training images that are shown at all


Write the page: the templates beside this file, filled in."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from journey.evaluation.plots import method_colour
from journey.evaluation.rows import Row
from journey.pipeline.images import ImageSet

PIXELS = 10_000_000  # of all pictures of one sort: beyond, they are made smaller by a whole factor


LOSSLESS = 200_000  # bytes of a sheet; a larger one is kept by what the eye sees of it


QUALITY = 75  # of that, in percent


@dataclass(frozen=True)
class SpriteSheets:
    """uris: of the sheets, as `data:`; columns: of tiles; rows: of tiles, in every sheet, the last of which may not be full."""

    uris: list[str]
    columns: int
    rows: int


def sprite_sheets(pictures: np.ndarray, columns: int, rows: int) -> SpriteSheets:
    """Pictures in 0…255, uint8 [B, C, H, W], C being 1 or 3, as sheets of columns × rows tiles."""
    each = columns * rows
    parts = [pictures[first : first + each] for first in range(0, len(pictures), each)]
    return SpriteSheets([_uri(_grid(part, columns)) for part in parts], columns, rows)


def reduced(pictures: np.ndarray, total: int) -> np.ndarray:
    """Pictures [..., C, H, W], uint8, as small as they must be for `total` of them to stay within PIXELS.

    >>> reduced(np.full((1, 1, 4, 4), 7, np.uint8), total=PIXELS // 4).tolist()
    [[[[7, 7], [7, 7]]]]
    """
    height, width = pictures.shape[-2:]
    factor = int(np.ceil(np.sqrt(total * height * width / PIXELS)))
    if factor <= 1:
        return pictures
    h, w = max(1, height // factor), max(1, width // factor)
    by_h, by_w = height // h, width // w
    tiles = pictures[..., : h * by_h, : w * by_w].reshape(*pictures.shape[:-2], h, by_h, w, by_w)
    return np.rint(tiles.mean((-3, -1))).astype(np.uint8)


def as_bytes(pictures: np.ndarray) -> np.ndarray:
    """Pictures in −1…1 as uint8; what lies beyond is white or black."""
    return np.rint(np.clip(pictures, -1, 1) * 127.5 + 127.5).astype(np.uint8)


def _grid(pictures: np.ndarray, columns: int) -> np.ndarray:
    """[B, C, H, W] → [rows × H, columns × W, C], the rest black."""
    num, channels, height, width = pictures.shape
    rows = -(-num // columns)
    filled = np.zeros((rows * columns, channels, height, width), np.uint8)
    filled[:num] = pictures
    grid = filled.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    return grid.reshape(rows * height, columns * width, channels)


def _uri(grid: np.ndarray) -> str:
    """A sheet without loss if it is small, else nearly so."""
    image = Image.fromarray(grid[..., 0] if grid.shape[2] == 1 else grid)
    encoded = _encoded(image, "png", optimize=True)
    if len(encoded) <= LOSSLESS:
        return data_uri(encoded, "image/png")
    return data_uri(_encoded(image, "webp", quality=QUALITY), "image/webp")


def _encoded(image: Image.Image, form: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Content inside an address.

    >>> uri(b"hi", "text/plain")
    'data:text/plain;base64,aGk='
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


SHOWN = 5  # k


WORDS = 140  # letters of a caption


GRID = 16  # training images in a row of a sheet, and rows


@dataclass(frozen=True)
class RankedImages:
    """Of one method: rows of the training images it ranks first, best first, then of those it ranks last, worst first, and
    their scores. Each [S or 1, Q, 2k]; setting: the hyper-parameter it is shown with.
    """

    rows: np.ndarray
    scores: np.ndarray
    setting: str


def rank_images(scores: np.ndarray, setting: str) -> RankedImages:
    """The first and last of scores [S or 1, Q, N]; equal scores are ranked by row."""
    k = min(SHOWN, scores.shape[-1])
    found = []
    for of_step in scores:  # one at a time: scores are mapped from disk
        order = np.argsort(-of_step, axis=-1, kind="stable")
        found.append(np.concatenate([order[:, :k], order[:, : -k - 1 : -1]], 1))
    rows = np.stack(found)
    return RankedImages(
        rows,
        np.stack([np.take_along_axis(*of, -1) for of in zip(scores, rows, strict=True)]),
        setting,
    )


@dataclass(frozen=True)
class PageTrajectories:
    """steps: [S]; x_t, x0_hat: pictures in −1…1, [S, Q, C, H, W]; prompts: which queries take in turn, or none."""

    steps: tuple[int, ...]
    x_t: np.ndarray
    x0_hat: np.ndarray
    prompts: tuple[str, ...]


def page_contents(
    trajectories: PageTrajectories,
    methods: dict[str, RankedImages],
    images: ImageSet,
    curves: dict[str, list[Row]],
) -> dict:
    """Everything that the page's script reads; images are those of training."""
    every = [np.zeros(0, np.int64), *(of.rows.ravel() for of in methods.values())]
    used = np.unique(np.concatenate(every))
    lines = {str(row["method"]) for rows in curves.values() for row in rows}
    return {
        "steps": list(trajectories.steps),
        "queries": [_query(trajectories, q) for q in range(trajectories.x_t.shape[1])],
        "train": _train(images, used),
        "methods": {name: _numbered(of, used) for name, of in methods.items()},
        "curves": [{"title": title, "lines": _lines(rows)} for title, rows in curves.items()],
        "colours": {name: method_colour(name) for name in sorted({*methods, *lines})},
    }


def _query(trajectories: PageTrajectories, query: int) -> dict:
    """A sheet of two rows of tiles, x_t above x̂0_t, a column for each step; and what the query is called."""
    num_steps, num_queries = trajectories.x_t.shape[:2]
    both = np.concatenate([trajectories.x_t[:, query], trajectories.x0_hat[:, query]])
    pictures = reduced(as_bytes(both), 2 * num_steps * num_queries)
    prompt = (
        f": {trajectories.prompts[query % len(trajectories.prompts)]}"
        if any(trajectories.prompts)
        else ""
    )
    of = sprite_sheets(pictures, num_steps, 2)
    return {"name": f"query {query}{prompt}", "sheet": of.uris[0]}


def _train(images: ImageSet, used: np.ndarray) -> dict:
    """The training images that are shown at all, in sheets, with their ids and what a person calls them. used: rows [U]"""
    pictures = (
        np.asarray(images.images[used])
        if len(used)
        else np.zeros((0, *images.images.shape[1:]), np.uint8)
    )
    of = sprite_sheets(reduced(pictures, len(used)), GRID, GRID)
    return {
        "sheets": of.uris,
        "grid": GRID,
        "rows": [
            -(-len(used[first : first + GRID**2]) // GRID) for first in range(0, len(used), GRID**2)
        ],
        "ids": [images.ids[i] for i in used],
        "labels": [_called(images, i) for i in used],
    }


def _called(images: ImageSet, row: int) -> str:
    """Its first caption, at more length than a figure has room for, or its class."""
    return images.describe(row) if images.captions is None else images.captions[row][0][:WORDS]


def _numbered(of: RankedImages, used: np.ndarray) -> dict:
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
        of.setdefault(str(row["method"]), []).append(
            [row["step"], row["value"], row["low"], row["high"]]
        )
    return [{"name": name, "points": points} for name, points in of.items()]


TEMPLATES = Path(__file__).parent


PAGE = "index.html"


@dataclass(frozen=True)
class PagePicture:
    """A figure of the report. title: what stands over it, which says what it shows to those who do not see it."""

    path: Path
    title: str

    @property
    def uri(self) -> str:
        return data_uri(self.path.read_bytes(), "image/png")


def page_html(title: str, about: str, contents: dict, pictures: list[PagePicture]) -> str:
    """The whole page. contents: what its script reads, as `journey.report.page.travel` has it."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    style, script = (Markup((TEMPLATES / name).read_text()) for name in ("page.css", "page.js"))
    page = environment.get_template("index.html.jinja")
    data = Markup(
        json.dumps(contents, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    )  # ends no script
    return page.render(
        title=title, about=about, data=data, style=style, script=script, pictures=pictures
    )
