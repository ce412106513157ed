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

BLOCK_BYTES = 2**27  # of float64, the largest piece of features in memory at once


class SingularKernelError(RuntimeError):
    """A kernel matrix that cannot be factorised. The message names its condition number and a damping that would do."""


def kernel_scores(train: np.ndarray, queries: np.ndarray, damping: list[float]) -> tuple[np.ndarray, list[float]]:
    """Scores for every damping, float32 [damping, Q, N], and the condition number of each K.

    `train` and `queries` may be mapped from disk: they are read in chunks.

    Raises: ValueError on NaN or an all-zero row; SingularKernelError.
    """
    check_features(train, "training example")
    check_features(queries, "query")
    n, p = train.shape
    dual = n <= p
    if dual:  # ΦΦᵀ and φ_q Φᵀ, summed over blocks of columns
        gram, right = torch.zeros(n, n, dtype=torch.float64), torch.zeros(len(queries), n, dtype=torch.float64)
        rows = _rows(n + len(queries))
        for phi, phi_q in zip(_blocks(train.T, rows), _blocks(queries.T, rows), strict=True):
            gram.addmm_(phi.T, phi)
            right.addmm_(phi_q.T, phi)
    else:  # ΦᵀΦ, summed over blocks of rows
        gram, right = torch.zeros(p, p, dtype=torch.float64), torch.cat(list(_blocks(queries, _rows(p))))
        for phi in _blocks(train, _rows(p)):
            gram.addmm_(phi.T, phi)
    mean_diagonal = float(gram.trace()) / p
    eigenvalues = torch.linalg.eigvalsh(gram)
    smallest, largest = max(0.0, float(eigenvalues[0])), float(eigenvalues[-1])

    scores = np.empty((len(damping), len(queries), n), np.float32)
    conditions = []
    for out, relative in zip(scores, damping, strict=True):
        absolute = relative * mean_diagonal
        conditions.append((largest + absolute) / (smallest + absolute))
        solved = _solve(gram, right, absolute, conditions[-1], largest / mean_diagonal)
        out[:] = solved if dual else torch.cat([solved @ phi.T for phi in _blocks(train, _rows(p))], 1)
    return scores, conditions


def check_features(features: np.ndarray, of: str) -> None:
    """Raises: ValueError naming the first row that holds NaN or infinity, or nothing but zeros."""
    rows = _rows(features.shape[1])
    squared_norms = torch.cat([phi.square().sum(1) for phi in _blocks(features, rows)]).numpy()
    bad = np.flatnonzero(~np.isfinite(squared_norms) | (squared_norms == 0))
    if len(bad):
        raise ValueError(f"features of {of} {bad[0]}: squared norm {squared_norms[bad[0]]}, so no score")


def _rows(num_columns: int) -> int:
    return max(1, BLOCK_BYTES // (8 * num_columns))


def _blocks(matrix: np.ndarray, rows: int) -> Iterator[Tensor]:
    """A matrix in float64, some rows at a time."""
    for first in range(0, len(matrix), rows):
        yield torch.from_numpy(matrix[first : first + rows].astype(np.float64))


def _solve(gram: Tensor, right: Tensor, absolute: float, condition: float, largest_relative: float) -> Tensor:
    """(gram + λI)⁻¹ applied to every row of `right`."""
    factor, failed = torch.linalg.cholesky_ex(gram + absolute * torch.eye(len(gram), dtype=torch.float64))
    if failed or not condition < 1e14:
        enough = f"damping={largest_relative * 1e-12:.1g} would do"
        raise SingularKernelError(f"kernel matrix of size {len(gram)} is singular: condition number {condition:.1g}; {enough}")
    return torch.cholesky_solve(right.T, factor).T
