"""Random projections φ = Pᵀg of gradients, E[PPᵀ] = I: never a d×p matrix in memory, the same on every device.

d  number of parameters;  p  dimension of the features;  g  gradients [B, d]
"""

from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor

from journey.config.groups import Projection
from journey.seeding import generator

Project = Callable[[Tensor], Tensor]
"""gradients [B, d] → features [B, p]"""


def projection(kind: Projection, d: int, p: int, seed: int, key: str, device: torch.device) -> Project:
    """The projection a key names (one per checkpoint, shared by training images and queries)."""
    match kind:
        case Projection.none:
            return lambda g: g
        case Projection.sparse:
            return _sparse(d, p, seed, key, device)
        case Projection.gaussian | Projection.rademacher:
            return _dense(kind, d, p, seed, key, device)
        case Projection.kronecker:
            raise ValueError("projection=kronecker: is no projection of gradients, but made in their stead")
        case _:
            assert_never(kind)


def _sparse(d: int, p: int, seed: int, key: str, device: torch.device) -> Project:
    """Every coordinate is added, with a random sign, to one random bucket (Charikar et al. 2002, "count sketch").

    The sparse Johnson–Lindenstrauss transform with one entry per column: O(Bd) whatever p is.
    """
    random = generator(seed, "sparse projection", key)
    bucket = torch.randint(p, (d,), generator=random).to(device)
    sign = (torch.randint(2, (d,), generator=random) * 2.0 - 1.0).to(device)
    return lambda g: torch.zeros(len(g), p, device=g.device).index_add_(1, bucket, g * sign)


def _dense(kind: Projection, d: int, p: int, seed: int, key: str, device: torch.device) -> Project:
    """Entries N(0, 1/p) or ±1/√p, drawn in blocks of rows and dropped again: O(Bdp), for parity with the paper."""
    rows = max(1, 2**24 // p)  # 64 MiB at a time

    def project(g: Tensor) -> Tensor:
        features = torch.zeros(len(g), p, device=g.device)
        for first in range(0, d, rows):
            features += g[:, first : first + rows] @ _block(kind, min(rows, d - first), p, seed, key, first).to(device)
        return features / p**0.5

    return project


def _block(kind: Projection, rows: int, p: int, seed: int, key: str, first: int) -> Tensor:
    random = generator(seed, "dense projection", key, first)
    if kind is Projection.gaussian:
        return torch.randn(rows, p, generator=random)
    return torch.randint(2, (rows, p), generator=random) * 2.0 - 1.0
