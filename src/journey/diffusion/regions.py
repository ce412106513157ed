"""A part of what a network sees: a box of its rows and columns. No region: all of it."""

from typing import TypeVar

Region = tuple[int, ...]
"""first row, first column, end row, end column; or nothing"""
Array = TypeVar("Array")  # of NumPy or torch


def inside(examples: Array, region: Region) -> Array:
    """The part of examples [..., H, W] that lies in a region.

    >>> import numpy as np
    >>> inside(np.arange(12).reshape(3, 4), (1, 0, 3, 2))
    array([[4, 5],
           [8, 9]])
    """
    if not region:
        return examples
    top, left, bottom, right = region
    return examples[..., top:bottom, left:right]


def quarters(height: int, width: int) -> dict[str, Region]:
    """A name and a box for each.

    >>> quarters(8, 8)["bottom left"]
    (4, 0, 8, 4)
    """
    rows = {"top": (0, height // 2), "bottom": (height // 2, height)}
    columns = {"left": (0, width // 2), "right": (width // 2, width)}
    found = {}
    for row, (top, bottom) in rows.items():
        for column, (left, right) in columns.items():
            found[f"{row} {column}"] = (top, left, bottom, right)
    return found
