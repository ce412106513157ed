"""Images that stay in their files until they are asked for. N: all of them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Decoded:
    """In place of an array uint8 [N, C, H, W]: what is indexed is decoded, by threads, and nothing is kept."""

    files: Sequence[str]
    image_shape: tuple[int, int, int]  # C, H, W
    decode: Callable[[str], np.ndarray]  # one file, as uint8 [C, H, W]
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.image_shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """The images of a slice, a mask or an array of rows. Raises: what decoding the first bad one of them raises."""
        rows = np.arange(len(self))[index]
        images = np.empty((len(rows), *self.image_shape), self.dtype)

        def fill(place: int) -> None:
            images[place] = self.decode(self.files[rows[place]])

        with ThreadPoolExecutor() as threads:
            for _ in threads.map(fill, range(len(rows))):  # raises what a thread raised
                pass
        return images
