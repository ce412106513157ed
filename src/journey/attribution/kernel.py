"""Kernel scores (Park et al. 2023, "TRAK", Equation 13 with Q = 1; Georgiev et al. 2023, Section 3).

    τ(q, i) = φ_qᵀ (ΦᵀΦ + λI)⁻¹ φ_i,   λ = damping × mean diagonal of ΦᵀΦ

    Φ  features of the training images [N, p];  φ_q  of the queries [Q, p];  K  the matrix that is solved

Solves are float64 Cholesky, in whichever of two equal forms is smaller: K = ΦᵀΦ + λI [p, p], or, since
(ΦᵀΦ + λI)⁻¹ Φᵀ = Φᵀ (ΦΦᵀ + λI)⁻¹, K = ΦΦᵀ + λI [N, N].
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK = 4096


class SingularKernelError(RuntimeError):
    """A kernel matrix that cannot be factorised. The message names its condition number and a damping that would do."""


def kernel_scores(train: np.ndarray, queries: np.ndarray, damping: list[float]) -> tuple[np.ndarray, list[float]]:
    """Scores for every damping, float32 [damping, Q, N], and the condition number of each K.

    `train` and `queries` may be mapped from disk: they are read in chunks.

    Raises: ValueError on NaN or an all-zero row of `train`; SingularKernelError.
    """
    check_features(train)
    n, p = train.shape
    dual = n <= p
    gram = _gram(train.T if dual else train)  # ΦΦᵀ or ΦᵀΦ
    queries_64 = torch.from_numpy(np.asarray(queries, dtype=np.float64))
    cross = _cross(train, queries_64) if dual else queries_64  # Φφ_q, or φ_q: right-hand sides [Q, N or p]
    mean_diagonal = float(gram.trace()) / p
    eigenvalues = torch.linalg.eigvalsh(gram)
    smallest, largest = max(0.0, float(eigenvalues[0])), float(eigenvalues[-1])

    scores = np.empty((len(damping), len(queries), n), np.float32)
    conditions = []
    for out, relative in zip(scores, damping, strict=True):
        absolute = relative * mean_diagonal
        conditions.append((largest + absolute) / (smallest + absolute))
        solved = _solve(gram, cross, absolute, conditions[-1], largest / mean_diagonal)
        out[:] = solved.numpy() if dual else _cross(train, solved).numpy()
    return scores, conditions


def check_features(features: np.ndarray) -> None:
    """Raises: ValueError naming the first row that holds NaN or infinity, or nothing but zeros."""
    for first, chunk in _row_chunks(features):
        squared_norms = np.einsum("ij,ij->i", chunk, chunk)
        bad = np.flatnonzero(~np.isfinite(squared_norms) | (squared_norms == 0))
        if len(bad):
            raise ValueError(f"features of example {first + bad[0]}: squared norm {squared_norms[bad[0]]}, so no score")


def _gram(matrix: np.ndarray) -> Tensor:
    """AᵀA in float64, A read in chunks of rows."""
    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for _, chunk in _row_chunks(matrix):
        rows = torch.from_numpy(chunk.astype(np.float64))
        gram.addmm_(rows.T, rows)
    return gram


def _cross(train: np.ndarray, vectors: Tensor) -> Tensor:
    """Inner products of vectors [Q, p] with every training feature. float64 [Q, N]"""
    parts = [vectors @ torch.from_numpy(chunk.astype(np.float64)).T for _, chunk in _row_chunks(train)]
    return torch.cat(parts, 1)


def _row_chunks(matrix: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, len(matrix), CHUNK):
        yield first, np.asarray(matrix[first : first + CHUNK])


def _solve(gram: Tensor, right: Tensor, absolute: float, condition: float, largest: float) -> Tensor:
    """(gram + λI)⁻¹ applied to every row of `right`."""
    factor, failed = torch.linalg.cholesky_ex(gram + absolute * torch.eye(len(gram), dtype=torch.float64))
    if failed or not condition < 1e14:
        enough = f"damping={largest * 1e-12:.1g} would do"
        raise SingularKernelError(f"kernel matrix of size {len(gram)} is singular: condition number {condition:.1g}; {enough}")
    return torch.cholesky_solve(right.T, factor).T
