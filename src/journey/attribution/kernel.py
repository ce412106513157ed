"""Kernel scores (Park et al. 2023, "TRAK", Equation 13 with Q = 1; Georgiev et al. 2023, Section 3).

    τ(q, i) = φ_qᵀ K⁻¹ φ_i,   K = ΦᵀΦ + λI,   λ = damping × ‖Φ‖² / min(N, p)

    Φ  features of the training images [N, p];  φ_q  of the queries [Q, p]

λ is relative to the mean of the eigenvalues that can be other than zero, so it means the same at every p; relative to the mean of
all p (`DampingUnit.diagonal`), it does not. What it leaves is told by the effective number of parameters, tr(ΦᵀΦ K⁻¹).

Solves are float64 Cholesky, in whichever of two equal forms is smaller: K [p, p], or, since K⁻¹ Φᵀ = Φᵀ (ΦΦᵀ + λI)⁻¹,
ΦΦᵀ + λI [N, N]. Features may be mapped from disk, and be codes: they are read in blocks. Scores are added to `out`, float32,
which may be mapped too, so memory holds blocks and the smaller matrix.


Kernel scores of several checkpoints as one: at each step of the journey, or for all of them together.

Sign: positive means proponent. Where the output is the loss, a positive τ_i says that leaving example i out raises the
query's loss; other outputs take over the sign of the inner product, in which an example is its own proponent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from journey.attribution.projections import QuantizedFeatures
from journey.pipeline.settings import DampingUnit, Kernel, Scale

BLOCK_BYTES = 2**27  # of float64, the largest piece of features in memory at once


STRIPS = 8  # of a Gram matrix


class SingularKernelError(RuntimeError):
    """A kernel matrix that cannot be factorised. The message names its condition number and a damping that would do."""


def inner_products(
    out: np.ndarray,
    train: np.ndarray | QuantizedFeatures,
    queries: np.ndarray,
    scale: Scale = Scale.none,
    weight: float = 1.0,
) -> None:
    """Add weight × φ_qᵀ φ_i, scaled, to out [Q, N].

    Raises: ValueError on NaN or an all-zero row.
    """
    norms = feature_norms(train, "training example"), feature_norms(queries, "query")
    right = torch.cat(list(_blocks(queries, _rows(queries.shape[1]))))
    for rows, phi in _row_blocks(train):
        out[:, rows] += weight * _scaled(
            (right @ phi.T).numpy(), scale, norms[0][rows], norms[1], None
        )


@dataclass(frozen=True)
class Conditioning:
    """Of one K: its condition number (in the 1-norm, as LAPACK estimates it) and tr(ΦᵀΦ K⁻¹)."""

    condition_number: float
    effective_parameters: float


def kernel_scores(
    out: np.ndarray,
    train: np.ndarray | QuantizedFeatures,
    queries: np.ndarray,
    damping: list[float],
    scale: Scale = Scale.none,
    weight: float = 1.0,
    unit: DampingUnit = DampingUnit.eigenvalue,
) -> list[Conditioning]:
    """Add weight × τ, scaled, for every damping to out [damping, Q, N].

    Raises: ValueError on NaN or an all-zero row; SingularKernelError.
    """
    train_norms, query_norms = (
        feature_norms(train, "training example"),
        feature_norms(queries, "query"),
    )
    n, p = train.shape
    dual = n <= p
    gram, right = _dual_gram(train, queries) if dual else _primal_gram(train, queries)
    one = mean_eigenvalue(train_norms, p, unit)

    found = []
    for scores, relative in zip(out, damping, strict=True):
        factor, condition = _factorise(gram, relative, one)
        found.append(Conditioning(condition, _effective_parameters(factor, relative * one)))
        solved = torch.cholesky_solve(right.T, factor).T  # [Q, N] or [Q, p]
        for rows, phi in [(slice(None), None)] if dual else _row_blocks(train):
            tau = solved if dual else solved @ phi.T
            influence = (
                _influence_norms(factor, gram if dual else phi, dual)
                if scale is Scale.influence
                else None
            )
            scores[:, rows] += weight * _scaled(
                tau.numpy(), scale, train_norms[rows], query_norms, influence
            )
    return found


def mean_eigenvalue(train_norms: np.ndarray, p: int, unit: DampingUnit) -> float:
    """λ of damping 1. train_norms: ‖φ_i‖ [N]"""
    num_eigenvalues = min(len(train_norms), p) if unit is DampingUnit.eigenvalue else p
    return float(np.square(train_norms).sum()) / num_eigenvalues


def feature_norms(features: np.ndarray | QuantizedFeatures, of: str) -> np.ndarray:
    """‖φ‖ of every row, float64.

    Raises: ValueError naming the first row that holds NaN or infinity, or nothing but zeros.
    """
    norms = torch.cat([phi.norm(dim=1) for _, phi in _row_blocks(features)]).numpy()
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise ValueError(f"features of {of} {bad[0]}: norm {norms[bad[0]]}, so no score")
    return norms


def _dual_gram(train: np.ndarray | QuantizedFeatures, queries: np.ndarray) -> tuple[Tensor, Tensor]:
    """ΦΦᵀ [N, N] and φ_q Φᵀ [Q, N], summed over blocks of columns."""
    n, num_queries = len(train), len(queries)
    gram, right = (
        torch.zeros(n, n, dtype=torch.float64),
        torch.zeros(num_queries, n, dtype=torch.float64),
    )
    rows = _rows(n + num_queries)
    for phi, phi_q in zip(_blocks(train.T, rows), _blocks(queries.T, rows), strict=True):
        _add_gram(gram, phi)
        right.addmm_(phi_q.T, phi)
    return _symmetric(gram), right


def _primal_gram(
    train: np.ndarray | QuantizedFeatures, queries: np.ndarray
) -> tuple[Tensor, Tensor]:
    """ΦᵀΦ [p, p], summed over blocks of rows, and φ_q [Q, p]."""
    p = train.shape[1]
    gram = torch.zeros(p, p, dtype=torch.float64)
    for _, phi in _row_blocks(train):
        _add_gram(gram, phi)
    return _symmetric(gram), torch.cat(list(_blocks(queries, _rows(p))))


def _add_gram(gram: Tensor, phi: Tensor) -> None:
    """Add ΦᵀΦ to the lower triangle of gram, strip by strip up to the diagonal: nearly half of the work is left out."""
    p = phi.shape[1]
    size = -(-p // STRIPS)
    for first in range(0, p, size):
        strip = slice(first, first + size)
        gram[strip, : first + size].addmm_(phi[:, strip].T, phi[:, : first + size])


def _symmetric(gram: Tensor) -> Tensor:
    """What the lower triangle says, above it too, in place."""
    strict = gram.tril(-1).T
    return gram.tril_().add_(strict)


def _factorise(gram: Tensor, relative: float, one: float) -> tuple[Tensor, float]:
    """The Cholesky factor of gram + λI, and its condition number; one: the λ of damping 1."""
    damped = gram.clone()
    damped.diagonal().add_(relative * one)
    norm = float(damped.abs().sum(0).max())
    factor, failed = torch.linalg.cholesky_ex(damped)
    reciprocal = 0.0 if failed else scipy.linalg.lapack.dpocon(factor.numpy(), norm, uplo="L")[0]
    if not reciprocal > 1e-14:
        condition, enough = 1 / max(reciprocal, 1e-17), norm / one * 1e-12
        message = (
            f"is singular: condition number {condition:.1g} or more; damping={enough:.1g} would do"
        )
        raise SingularKernelError(f"kernel matrix of size {len(gram)} {message}")
    return factor, 1 / reciprocal


def _effective_parameters(factor: Tensor, damping: float) -> float:
    """tr(G (G + λI)⁻¹) = n − λ ‖L⁻¹‖² for G + λI = L Lᵀ [n, n]: the degrees of freedom of ridge regression (Hastie, Tibshirani
    and Friedman 2009, Equation 3.50).
    """
    inverse, _ = scipy.linalg.lapack.dtrtri(factor.numpy(), lower=1)
    return len(factor) - damping * float(np.square(np.tril(inverse)).sum())


def _influence_norms(factor: Tensor, block: Tensor, dual: bool) -> np.ndarray:
    """‖K⁻¹ φ_i‖: of the rows φ of a block, or, of everything, from X = (ΦΦᵀ + λI)⁻¹ as √diag(X ΦΦᵀ X)."""
    if not dual:
        return torch.cholesky_solve(block.T, factor).norm(dim=0).numpy()
    inverse = torch.cholesky_inverse(factor)
    return ((inverse @ block) * inverse).sum(1).sqrt().numpy()


def _scaled(
    tau: np.ndarray,
    scale: Scale,
    train_norms: np.ndarray,
    query_norms: np.ndarray,
    influence_norms: np.ndarray | None,
) -> np.ndarray:
    match scale:
        case Scale.none:
            return tau
        case Scale.gradient:
            return tau / train_norms
        case Scale.cosine:
            return tau / train_norms / query_norms[:, None]
        case Scale.influence if influence_norms is not None:
            return tau / influence_norms
        case _:
            raise ValueError(f"scale={scale.value}: needs a kernel")


def _rows(num_columns: int) -> int:
    return max(1, BLOCK_BYTES // (8 * num_columns))


def _row_blocks(matrix: np.ndarray | QuantizedFeatures) -> Iterator[tuple[slice, Tensor]]:
    """Which rows, and they."""
    rows = _rows(matrix.shape[1])
    for first, block in zip(range(0, len(matrix), rows), _blocks(matrix, rows), strict=True):
        yield slice(first, first + len(block)), block


def _blocks(matrix: np.ndarray | QuantizedFeatures, rows: int) -> Iterator[Tensor]:
    """A matrix in float64, some rows at a time."""
    for first in range(0, len(matrix), rows):
        yield torch.from_numpy(matrix[first : first + rows].astype(np.float64))


def add_ensemble_scores(
    out: np.ndarray,  # scores to add to, [candidate, step, query, train]; of a trajectory, a single step
    # [checkpoint][one for all steps, or one for each], each [N, p] or, of EK-FAC, [N, damping, p]
    train: list[list[np.ndarray | QuantizedFeatures]],
    queries: list[np.ndarray],  # [checkpoint], each [step × query, …]
    weights: list[float],  # what the scores of each checkpoint count
    kernel: Kernel,
    damping: list[
        float
    ],  # λ, relative: the candidates of out; none where the kernel is the identity
    unit: DampingUnit,
    scale: Scale,
    of_step: np.ndarray
    | None = None,  # what the output of each step counts in a trajectory's, [step, query]; None: the same
) -> list[list[Conditioning]]:
    """Add weighted scores of every checkpoint; returns what kernels were solved [checkpoint][damping].

    Where out has one step and there are features of several, the score is of the weighted mean of their outputs, whose gradient
    is that mean of gradients.
    """
    num_steps, num_queries = out.shape[1:3]
    conditions = []
    for train_features, query_features, weight in zip(train, queries, weights, strict=True):
        by_step = query_features.reshape(-1, num_queries, *query_features.shape[1:])  # [S, Q, …]
        if num_steps == 1:
            by_step = _mean(by_step, of_step)[None]  # [1, Q, …]
        if len(train_features) == 1:
            together = out.reshape(len(out), num_steps * num_queries, -1)  # [candidate, S × Q, N]
            flat = by_step.reshape(-1, *by_step.shape[2:])  # [S × Q, …]
            conditions.append(
                _add(together, train_features[0], flat, weight, kernel, damping, unit, scale)
            )
        else:
            parts = zip(train_features, by_step, strict=True)
            steps = [
                _add(out[:, i], phi, phi_q, weight, kernel, damping, unit, scale)
                for i, (phi, phi_q) in enumerate(parts)
            ]
            conditions.append(
                [
                    max(of, key=lambda found: found.condition_number)
                    for of in zip(*steps, strict=True)
                ]
            )
    return conditions


def describe_conditioning(solved: list[list[Conditioning]]) -> dict[str, object]:
    """As JSON: each of its numbers [checkpoint][damping], by name."""
    return {
        name: [[vars(of)[name] for of in row] for row in solved]
        for name in ("condition_number", "effective_parameters")
    }


def _mean(by_step: np.ndarray, of_step: np.ndarray | None) -> np.ndarray:
    """Over the steps. [S, Q, …] → [Q, …]"""
    if of_step is None:
        return by_step.mean(0)
    return np.einsum("sq...,sq->q...", by_step, (of_step / len(of_step)).astype(np.float32))


def _add(
    out: np.ndarray,
    train: np.ndarray | QuantizedFeatures,
    queries: np.ndarray,
    weight: float,
    kernel: Kernel,
    damping: list[float],
    unit: DampingUnit,
    scale: Scale,
) -> list[Conditioning]:
    """One checkpoint's scores, into out [candidate, Q, N]."""
    match kernel:
        case Kernel.gram:
            return kernel_scores(out, train, queries, damping, scale, weight, unit)
        case Kernel.identity:
            inner_products(out[0], train, queries, scale, weight)
        case Kernel.ekfac:  # features are whitened already
            for i in range(len(damping)):
                of_damping = (
                    train.of_damping(i) if isinstance(train, QuantizedFeatures) else train[:, i]
                )
                inner_products(out[i], of_damping, queries[:, i], scale, weight)
        case _:
            assert_never(kernel)
    return []
