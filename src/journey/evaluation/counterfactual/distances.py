"""How far apart images are, and samples of images."""

import numpy as np
from scipy import linalg
from skimage.metrics import structural_similarity

RANGE = 2.0  # pixels are in −1…1


def l2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distance of pictures [B, C, H, W], each pair. [B]"""
    return np.sqrt(np.square(a - b).sum((1, 2, 3), dtype=np.float64))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) of pictures [B, C, H, W] of 7×7 pixels or more, each pair. [B]"""
    a, b = np.clip(a, -1, 1), np.clip(b, -1, 1)
    pairs = zip(a, b, strict=True)
    return np.array([structural_similarity(x, y, data_range=RANGE, channel_axis=0, win_size=7) for x, y in pairs])


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of features [B, E], each pair. [B]"""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two samples [n, E] as normal distributions: ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) (Dowson and
    Landau 1982). Two samples of one distribution are at a distance too: the smaller n and the larger E, the further.
    """
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    root = [_root(np.cov(sample.T)) for sample in (a, b)]
    # tr (Σ_a Σ_b)^½ is the sum of the singular values of Σ_a^½ Σ_b^½.
    common = np.linalg.svd(root[0] @ root[1], compute_uv=False).sum()
    return float(mean + np.square(root[0]).sum() + np.square(root[1]).sum() - 2 * common)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root."""
    values, vectors = linalg.eigh(np.atleast_2d(covariance))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def principal(train: np.ndarray, dimensions: int) -> "tuple[np.ndarray, np.ndarray]":
    """The mean of features [N, E] and their first principal axes, in units of the standard deviation along each. [E], [E, d]"""
    mean = train.mean(0, dtype=np.float64)
    _, scale, axes = linalg.svd(train - mean, full_matrices=False)
    scale = scale[:dimensions] / np.sqrt(len(train) - 1)
    return mean, axes[:dimensions].T / np.maximum(scale, 1e-12)
