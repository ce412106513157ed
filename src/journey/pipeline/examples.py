"""What a diffusion model is trained on: clean tensors, as they are or with a deviation, and what conditions them.

A part of what a network sees: a box of its rows and columns, or one for each query. No region: all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """What all of N examples have, or none has.

    x0         clean examples, or of latents the mean, float32 [N, …]
    deviation  standard deviation of latents, of which every draw is another sample, [N, …]
    context    what conditions each, one or more of it (captions), [N, C, L, E]
    """

    x0: Tensor
    deviation: Tensor | None = None
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x0.shape[1:])

    def to(self, device: torch.device) -> "Examples":
        return self._each(lambda tensor: tensor.to(device))

    def __getitem__(self, index: Tensor | slice | int) -> "Examples":
        return self._each(lambda tensor: tensor[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Examples":
        return Examples(
            **{
                name: None if tensor is None else change(tensor)
                for name, tensor in vars(self).items()
            }
        )


Region = tuple[int, ...]
"""first row, first column, end row, end column; the same of every query, one after the other; or nothing"""


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


def of_query(region: Region, query: int) -> Region:
    """A query's own box, where each has one.

    >>> of_query((0, 0, 4, 8, 4, 0, 8, 8), 1)
    (4, 0, 8, 8)
    """
    return region[4 * query : 4 * query + 4] if len(region) > 4 else region


def boxes(region: Region, num_queries: int) -> list[tuple[slice, Region]]:
    """Which queries have which box.

    >>> boxes((0, 0, 4, 8), 24)
    [(slice(0, 24, None), (0, 0, 4, 8))]
    """
    if len(region) <= 4:
        return [(slice(0, num_queries), region)]
    return [(slice(query, query + 1), of_query(region, query)) for query in range(num_queries)]


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
