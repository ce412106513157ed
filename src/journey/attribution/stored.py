"""Features as they are stored: float32, or in fewer bytes with a scale for every row.

A row is divided by its largest absolute value; fp16 keeps what is left in two bytes, to 2⁻¹¹ of each number; int8 in one, to half
of 1/127 of the largest.
"""

from dataclasses import dataclass

import numpy as np

from journey.config.groups import Storage

DTYPES = {Storage.fp32: np.float32, Storage.fp16: np.float16, Storage.int8: np.int8}
LARGEST = {Storage.fp16: 1.0, Storage.int8: 127.0}  # code


def encoded(block: np.ndarray, storage: Storage) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and what they are to be multiplied by. [B, …, p] → [B, …, p], float32 [B, …, 1]

    Raises: KeyError where there is nothing to encode: fp32.
    """
    scale = np.abs(block).max(axis=-1, keepdims=True) / LARGEST[storage]
    codes = block / np.where(scale > 0, scale, 1)
    return (np.rint(codes) if storage is Storage.int8 else codes).astype(DTYPES[storage]), scale.astype(np.float32)


@dataclass(frozen=True)
class Scaled:
    """Codes [rows, …, p], which may be mapped from disk, and their scales [rows, …, 1]; read as the array that they stand for."""

    codes: np.ndarray
    scale: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def T(self) -> "Scaled":
        return Scaled(self.codes.T, self.scale.T)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: slice) -> np.ndarray:
        """Some rows, or columns of what is transposed. float32"""
        return self.codes[index].astype(np.float32) * (self.scale if len(self.scale) == 1 else self.scale[index])

    def of_damping(self, i: int) -> "Scaled":
        """[rows, damping, p] → [rows, p]"""
        return Scaled(self.codes[:, i], self.scale[:, i])
