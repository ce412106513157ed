"""What a diffusion model is trained on: clean examples with their conditions; and their regions.

A region is a box of rows and columns, or a box for each query. An empty region is everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Clean examples. Either all of them have a deviation, or none; likewise a condition.

    An example has one or several alternative conditions: the text states of its captions
    [N, C, L, E], or class labels [N, C].
    """

    x0: Tensor  # clean examples, or the mean of their latents, float32 [N, …]
    deviation: Tensor | None = None  # of latents, of which every use is a fresh sample [N, …]
    condition: Tensor | None = None  # [N, C, …]

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example."""
        return tuple(self.x0.shape[1:])

    def to(self, device: torch.device) -> Examples:
        """Return the examples on a device."""
        return self._map(lambda tensor: tensor.to(device))

    def __getitem__(self, index: Tensor | slice | int) -> Examples:
        return self._map(lambda tensor: tensor[index])

    def _map(self, function: Callable[[Tensor], Tensor]) -> Examples:
        fields = vars(self).items()
        return Examples(**{name: function(value) for name, value in fields if value is not None})


Region = tuple[int, ...]
"""(first row, first column, end row, end column); those of all queries in turn; or ()"""


Array = TypeVar("Array", "np.ndarray", "Tensor")


def inside(examples: Array, region: Region) -> Array:
    """Return the part of examples [..., H, W] inside a box.

    >>> import numpy as np
    >>> inside(np.arange(12).reshape(3, 4), (1, 0, 3, 2))
    array([[4, 5],
           [8, 9]])
    """
    if not region:
        return examples
    top, left, bottom, right = region
    return examples[..., top:bottom, left:right]


def query_region(region: Region, query: int) -> Region:
    """Return the box of a query.

    >>> query_region((0, 0, 4, 8, 4, 0, 8, 8), 1)
    (4, 0, 8, 8)
    """
    return region[4 * query : 4 * query + 4] if len(region) > 4 else region


def boxes(region: Region, num_queries: int) -> list[tuple[slice, Region]]:
    """Return each box with the queries that have it.

    >>> boxes((0, 0, 4, 8), 24)
    [(slice(0, 24, None), (0, 0, 4, 8))]
    """
    if len(region) <= 4:
        return [(slice(0, num_queries), region)]
    return [(slice(q, q + 1), query_region(region, q)) for q in range(num_queries)]


def quarters(height: int, width: int) -> dict[str, Region]:
    """Return the four quarters of an image by name.

    >>> quarters(8, 8)["bottom left"]
    (4, 0, 8, 4)
    """
    y, x = height // 2, width // 2
    return {
        "top left": (0, 0, y, x),
        "top right": (0, x, y, width),
        "bottom left": (y, 0, height, x),
        "bottom right": (y, x, height, width),
    }
