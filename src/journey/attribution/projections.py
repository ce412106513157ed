"""Random projections φ = Pᵀg of gradients, E[PPᵀ] = I: never a d×p matrix in memory, the same on every device.

d  number of parameters;  p  dimension of the features;  g  gradients [B, d]


Features as they are stored: float32, or in fewer bytes with a scale for every row.

A row is divided by its largest absolute value; fp16 keeps what is left in two bytes, to 2⁻¹¹ of each number; int8 in one, to half
of 1/127 of the largest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from journey.engine.seeding import generator
from journey.pipeline.settings import Projection, Storage

Projector = Callable[[Tensor], Tensor]
"""gradients [B, d] → features [B, p]"""


def make_projection(
    kind: Projection, d: int, p: int, seed: int, key: str, device: torch.device
) -> Projector:
    """The projection a key names (one per checkpoint, shared by training images and queries)."""
    match kind:
        case Projection.none:
            return lambda g: g
        case Projection.sparse:
            return _sparse(d, p, seed, key, device)
        case Projection.gaussian | Projection.rademacher:
            return _dense(kind, d, p, seed, key, device)
        case Projection.kronecker:
            raise ValueError(
                "projection=kronecker: is no projection of gradients, but made in their stead"
            )
        case _:
            assert_never(kind)


def _sparse(d: int, p: int, seed: int, key: str, device: torch.device) -> Projector:
    """Every coordinate is added, with a random sign, to one random bucket (Charikar et al. 2002, "count sketch").

    The sparse Johnson–Lindenstrauss transform with one entry per column: O(Bd) whatever p is.
    """
    random = generator(seed, "sparse projection", key)
    bucket = torch.randint(p, (d,), generator=random).to(device)
    sign = (torch.randint(2, (d,), generator=random) * 2.0 - 1.0).to(device)
    return lambda g: torch.zeros(len(g), p, device=g.device).index_add_(1, bucket, g * sign)


def _dense(
    kind: Projection, d: int, p: int, seed: int, key: str, device: torch.device
) -> Projector:
    """Entries N(0, 1/p) or ±1/√p, drawn in blocks of rows and dropped again: O(Bdp), for parity with the paper."""
    rows = max(1, 2**24 // p)  # 64 MiB at a time

    def project(g: Tensor) -> Tensor:
        features = torch.zeros(len(g), p, device=g.device)
        for first in range(0, d, rows):
            features += g[:, first : first + rows] @ _block(
                kind, min(rows, d - first), p, seed, key, first
            ).to(device)
        return features / p**0.5

    return project


def _block(kind: Projection, rows: int, p: int, seed: int, key: str, first: int) -> Tensor:
    random = generator(seed, "dense projection", key, first)
    if kind is Projection.gaussian:
        return torch.randn(rows, p, generator=random)
    return torch.randint(2, (rows, p), generator=random) * 2.0 - 1.0


DTYPES = {Storage.fp32: np.float32, Storage.fp16: np.float16, Storage.int8: np.int8}


LARGEST = {Storage.fp16: 1.0, Storage.int8: 127.0}  # code


def quantize(block: np.ndarray, storage: Storage) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and what they are to be multiplied by. [B, …, p] → [B, …, p], float32 [B, …, 1]

    Raises: KeyError where there is nothing to encode: fp32.
    """
    scale = np.abs(block).max(axis=-1, keepdims=True) / LARGEST[storage]
    codes = block / np.where(scale > 0, scale, 1)
    return (np.rint(codes) if storage is Storage.int8 else codes).astype(
        DTYPES[storage]
    ), scale.astype(np.float32)


@dataclass(frozen=True)
class QuantizedFeatures:
    """Codes [rows, …, p], which may be mapped from disk, and their scales [rows, …, 1]; read as the array that they stand for."""

    codes: np.ndarray
    scale: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def T(self) -> "QuantizedFeatures":
        return QuantizedFeatures(self.codes.T, self.scale.T)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: slice) -> np.ndarray:
        """Some rows, or columns of what is transposed. float32"""
        return self.codes[index].astype(np.float32) * (
            self.scale if len(self.scale) == 1 else self.scale[index]
        )

    def of_damping(self, i: int) -> "QuantizedFeatures":
        """[rows, damping, p] → [rows, p]"""
        return QuantizedFeatures(self.codes[:, i], self.scale[:, i])
