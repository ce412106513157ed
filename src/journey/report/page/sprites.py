"""Many small pictures as a few large ones, each once, for a page that holds them in itself.

A sheet is a grid of tiles, row by row; a page shows a tile of it. B  pictures;  C, H, W  of each
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

PIXELS = 10_000_000  # of all pictures of one sort: beyond, they are made smaller by a whole factor
LOSSLESS = 200_000  # bytes of a sheet; a larger one is kept by what the eye sees of it
QUALITY = 75  # of that, in percent


@dataclass(frozen=True)
class Sheets:
    """uris: of the sheets, as `data:`; columns: of tiles; rows: of tiles, in every sheet, the last of which may not be full."""

    uris: list[str]
    columns: int
    rows: int


def sheets(pictures: np.ndarray, columns: int, rows: int) -> Sheets:
    """Pictures in 0…255, uint8 [B, C, H, W], C being 1 or 3, as sheets of columns × rows tiles."""
    each = columns * rows
    parts = [pictures[first : first + each] for first in range(0, len(pictures), each)]
    return Sheets([_uri(_grid(part, columns)) for part in parts], columns, rows)


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
        return uri(encoded, "image/png")
    return uri(_encoded(image, "webp", quality=QUALITY), "image/webp")


def _encoded(image: Image.Image, form: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def uri(content: bytes, kind: str) -> str:
    """Content inside an address.

    >>> uri(b"hi", "text/plain")
    'data:text/plain;base64,aGk='
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
