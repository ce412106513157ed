"""Randomness as an argument: every random number is a function of (seed, purpose, index)."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def entropy(seed: int, purpose: str, *index: int | str) -> int:
    """A 63-bit number that depends on exactly (seed, purpose, index)."""
    text = repr((int(seed), purpose, *index)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 1


def generator(seed: int, purpose: str, *index: int | str) -> "torch.Generator":
    """A CPU generator for one item, so numbers depend on no batch size, order, device or worker count."""
    import torch  # here: planning and judging draw with NumPy alone

    return torch.Generator().manual_seed(entropy(seed, purpose, *index))


def numpy_generator(seed: int, purpose: str, *index: int | str) -> np.random.Generator:
    """The same for NumPy."""
    return np.random.default_rng(entropy(seed, purpose, *index))
