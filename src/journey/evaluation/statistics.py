"""Rank correlation under resampling, and intervals.

M  subsets;  B  bootstrap replicates;  w  how often a replicate holds each subset, [B, M]
"""

import numpy as np

BLOCK = 2**22  # elements of the largest temporary


def weighted_spearman(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's ρ of a and b [R, M], row by row, over M observations of which replicate k holds weights[k]. [B, R]

    Equal to Spearman's ρ (ties share their mean rank) of the observations each repeated as often as its weight.
    A row or replicate that is constant carries no order: its ρ is 0.
    """
    num_rows, num_observations = a.shape
    rows = max(1, BLOCK // (num_observations * max(len(weights), num_observations)))
    blocks = [slice(first, first + rows) for first in range(0, num_rows, rows)]
    return np.concatenate([_correlate(a[r], b[r], weights.astype(np.float64)) for r in blocks], 1)


def _correlate(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation of weighted midranks."""
    w = weights[:, None]  # [B, 1, M]
    total = w.sum(-1)
    x, y = _midranks(a, weights), _midranks(b, weights)  # [B, R, M]
    x -= (w * x).sum(-1, keepdims=True) / total[..., None]
    y -= (w * y).sum(-1, keepdims=True) / total[..., None]
    covariance = (w * x * y).sum(-1)
    scale = np.sqrt((w * x * x).sum(-1) * (w * y * y).sum(-1))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-9 * total)


def _midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank of each observation: the weight below it and half the weight of its equals. [B, R, M]"""
    x, y = values[:, :, None], values[:, None, :]
    below = (y < x) + 0.5 * (y == x)  # [R, M, M]
    return np.einsum("rij,bj->bri", below, weights, optimize=True)


def bootstrap_weights(num: int, num_replicates: int, random: np.random.Generator) -> np.ndarray:
    """How often each of `num` items is drawn in `num` draws with replacement. int [B, num]"""
    return random.multinomial(num, np.full(num, 1 / num), num_replicates)


def interval(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile interval over the first axis."""
    low, high = np.percentile(replicates, (2.5, 97.5), axis=0)
    return low, high
