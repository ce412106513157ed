"""Randomness as an argument: every random number is a function of (seed, purpose, index).

It therefore does not depend on batch size, order, device or number of workers.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def entropy(seed: int, purpose: str, *index: int | str) -> int:
    """Return a 63-bit number that depends on exactly (seed, purpose, index)."""
    text = repr((int(seed), purpose, *index)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 1


def generator(seed: int, purpose: str, *index: int | str) -> "torch.Generator":
    """Return a CPU generator for one item."""
    import torch  # here: planning and evaluating draw with NumPy alone

    return torch.Generator().manual_seed(entropy(seed, purpose, *index))


def numpy_generator(seed: int, purpose: str, *index: int | str) -> np.random.Generator:
    """Return a NumPy generator for one item."""
    return np.random.default_rng(entropy(seed, purpose, *index))
