"""Random projections φ = Pᵀg of gradients with E[PPᵀ] = I, and features stored in fewer bytes.

Symbols: d parameters; p dimension of the features; g gradients [B, d]; φ features [B, p].

P [d, p] is never in memory as a whole, and is the same on every device.

A stored row is divided by its largest absolute value. fp16 keeps the quotient in two bytes, to a
relative error of 2⁻¹¹; int8 in one, to an error of half of 1/127 of the largest value.
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

DTYPES = {Storage.fp32: np.float32, Storage.fp16: np.float16, Storage.int8: np.int8}
LARGEST_CODE = {Storage.fp16: 1.0, Storage.int8: 127.0}


def make_projection(
    projection: Projection, d: int, p: int, seed: int, key: str, device: torch.device
) -> Projector:
    """Return a random projection from d to p dimensions.

    There is one key for each checkpoint, which training images and queries share.

    Raises:
        ValueError: If projection=kronecker, which `journey.attribution.logra` implements.
    """
    match projection:
        case Projection.none:
            return lambda gradients: gradients
        case Projection.sparse:
            return _sparse(d, p, seed, key, device)
        case Projection.gaussian | Projection.rademacher:
            return _dense(projection, d, p, seed, key, device)
        case Projection.kronecker:
            raise ValueError("projection=kronecker: projects inside layers, not whole gradients")
        case _:
            assert_never(projection)


def _sparse(d: int, p: int, seed: int, key: str, device: torch.device) -> Projector:
    """Return the count sketch (Charikar et al. 2002): each coordinate with a sign in one bucket.

    This is the sparse Johnson–Lindenstrauss transform with one entry per column. It costs O(Bd).
    """
    random = generator(seed, "sparse projection", key)
    bucket = torch.randint(p, (d,), generator=random)
    sign = torch.randint(2, (d,), generator=random) * 2.0 - 1.0
    if device.type != "cpu":
        return segment_sums(bucket, sign, p, device)
    return lambda g: torch.zeros(len(g), p).index_add_(1, bucket, g * sign)


def segment_sums(bucket: Tensor, sign: Tensor, p: int, device: torch.device) -> Projector:
    """Return the projection that adds coordinates, times their signs, to p buckets.

    An accelerator's `index_add_` adds in any order. Here, each bucket is a row of coordinates,
    filled up with zeros, whose sum has one order.
    """
    order, counts = bucket.argsort(stable=True), bucket.bincount(minlength=p)
    place = torch.arange(len(bucket)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    shape = (p, int(counts.max()))
    coordinates, signs = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape)
    coordinates[bucket[order], place] = order.int()
    signs[bucket[order], place] = sign[order]
    coordinates, signs = coordinates.flatten().to(device), signs.to(device)
    return lambda g: (g.index_select(1, coordinates).unflatten(1, shape) * signs).sum(2)


def _dense(
    projection: Projection, d: int, p: int, seed: int, key: str, device: torch.device
) -> Projector:
    """Return a projection with entries N(0, 1/p) or ±1/√p, as in the paper. It costs O(Bdp)."""
    block_rows = max(1, 2**24 // p)  # 64 MiB of P at a time, generated anew for each batch

    def project(g: Tensor) -> Tensor:
        features = torch.zeros(len(g), p, device=g.device)
        for first in range(0, d, block_rows):
            shape = (min(block_rows, d - first), p)
            random = generator(seed, "dense projection", key, first)
            if projection is Projection.gaussian:
                block = torch.randn(shape, generator=random)
            else:
                block = torch.randint(2, shape, generator=random) * 2.0 - 1.0
            features += g[:, first : first + block_rows] @ block.to(device)
        return features / p**0.5

    return project


def quantize(block: np.ndarray, storage: Storage) -> tuple[np.ndarray, np.ndarray]:
    """Return codes [B, …, p] of fp16 or int8, and their scales, float32 [B, …, 1]."""
    scale = np.abs(block).max(axis=-1, keepdims=True) / LARGEST_CODE[storage]
    codes = block / np.where(scale > 0, scale, 1)
    codes = np.rint(codes) if storage is Storage.int8 else codes
    return codes.astype(DTYPES[storage]), scale.astype(np.float32)


@dataclass(frozen=True)
class QuantizedFeatures:
    """Features that are read as the float32 array that their codes stand for."""

    codes: np.ndarray  # [rows, …, p], possibly mapped from disk
    scale: np.ndarray  # factors of the codes [rows, …, 1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the features."""
        return self.codes.shape

    @property
    def T(self) -> "QuantizedFeatures":
        """Return the transposed features."""
        return QuantizedFeatures(self.codes.T, self.scale.T)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: slice) -> np.ndarray:
        scale = self.scale if len(self.scale) == 1 else self.scale[index]  # 1: transposed
        return self.codes[index].astype(np.float32) * scale

    def at_damping(self, i: int) -> "QuantizedFeatures":
        """Return the features for the i-th damping. [rows, damping, p] → [rows, p]"""
        return QuantizedFeatures(self.codes[:, i], self.scale[:, i])
