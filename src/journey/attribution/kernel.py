"""Kernel scores of training examples for queries, summed over an ensemble of checkpoints.

    τ(q, i) = φ_qᵀ K⁻¹ φ_i,   K = ΦᵀΦ + λI,   λ = damping × ‖Φ‖² / min(N, p)

Park et al. 2023 ("TRAK"), Equation 13 with Q = 1; Georgiev et al. 2023 ("Journey-TRAK"), Section 3.

    Φ    features of the training examples [N, p]
    φ_q  features of the queries [Q, p]

λ is relative to the mean of the min(N, p) eigenvalues of ΦᵀΦ that can differ from zero, so damping
means the same at every p. With `DampingUnit.diagonal` it is relative to the mean of all p.

Solves are float64 Cholesky of the smaller of two matrices: K [p, p] ("primal") or, since
K⁻¹Φᵀ = Φᵀ(ΦΦᵀ + λI)⁻¹, ΦΦᵀ + λI [N, N] ("dual"). Features may be mapped from disk or quantized, and
are read in blocks. Scores are added to `out`, float32, which may be mapped too, so memory holds
blocks and the smaller matrix.

Sign: positive is a proponent. If the output is the loss, a positive τ_i predicts that removing
example i increases the query's loss. Other outputs take the sign of the inner product, by which an
example is its own proponent.
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

Features = np.ndarray | QuantizedFeatures
"""features of training examples, possibly mapped from disk"""

BLOCK_BYTES = 2**27  # the largest block of features in memory, as float64
STRIPS = 8  # of a Gram matrix
SCALES_OF_KERNEL = (Scale.influence, Scale.leverage)
LEAST_DIVISOR = 1e-12  # of a score: 1 − a leverage is rounding error below it


class SingularKernelError(RuntimeError):
    """A kernel matrix that has no Cholesky factor; the message names a sufficient damping."""


@dataclass(frozen=True)
class Conditioning:
    """Condition number of one K (1-norm, estimated by LAPACK), and tr(ΦᵀΦ K⁻¹)."""

    condition_number: float
    effective_parameters: float


def add_ensemble_scores(
    out: np.ndarray,
    train: list[list[Features]],
    queries: list[np.ndarray],
    weights: list[float],
    kernel: Kernel,
    damping: list[float],
    unit: DampingUnit,
    scale: Scale,
    step_weights: np.ndarray | None = None,
) -> list[list[Conditioning]]:
    """Add the weighted scores of every checkpoint.

    If out has one step and the queries have features of several, the score is that of the weighted
    mean of the steps' outputs, whose gradient is the mean of gradients.

    Args:
        out: Scores to add to, float32 [damping, step, query, train].
        train: Features [checkpoint][one for all steps, or one per step], each [N, p] or, if
            preconditioned by EK-FAC, [N, damping, p].
        queries: Features [checkpoint], each [step × query, …] like those of training examples.
        weights: Weight of each checkpoint.
        kernel: Which K.
        damping: Values of λ, relative; unused if the kernel is the identity.
        unit: What λ is relative to.
        scale: What scores are divided by.
        step_weights: Weight of each step in the output of a trajectory [step, query]; None: equal.

    Returns:
        The conditioning of K [checkpoint][damping], the worst of all steps.
    """
    num_steps, num_queries = out.shape[1:3]
    conditions = []
    for features, query_features, weight in zip(train, queries, weights, strict=True):
        by_step = query_features.reshape(-1, num_queries, *query_features.shape[1:])
        if num_steps == 1:
            if step_weights is None:
                by_step = by_step.mean(0, keepdims=True)
            else:
                relative = (step_weights / len(step_weights)).astype(np.float32)
                by_step = np.einsum("sq...,sq->q...", by_step, relative)[None]

        # Steps that share training features are solved together, as [step × query].
        parts = np.moveaxis(out, 1, 0)  # [step, damping, query, train]
        if len(features) == 1:
            by_step = by_step.reshape(1, -1, *by_step.shape[2:])
            parts = out.reshape(1, len(out), by_step.shape[1], -1)

        worst: list[Conditioning] = []
        for scores, phi, phi_q in zip(parts, features, by_step, strict=True):
            match kernel:
                case Kernel.gram:
                    solved = kernel_scores(scores, phi, phi_q, damping, scale, weight, unit)
                    pairs = zip(worst or solved, solved, strict=True)
                    worst = [max(pair, key=lambda c: c.condition_number) for pair in pairs]
                case Kernel.identity:
                    inner_products(scores[0], phi, phi_q, scale, weight)
                case Kernel.ekfac:  # features are preconditioned already
                    for i in range(len(damping)):
                        damped: Features = (
                            phi.at_damping(i) if isinstance(phi, QuantizedFeatures) else phi[:, i]
                        )
                        inner_products(scores[i], damped, phi_q[:, i], scale, weight)
                case _:
                    assert_never(kernel)
        conditions.append(worst)
    return conditions


def describe_conditioning(conditions: list[list[Conditioning]]) -> dict[str, object]:
    """Return the numbers of every K by name, [checkpoint][damping], as JSON."""
    condition_numbers, effective_parameters = [], []
    for row in conditions:
        condition_numbers.append([c.condition_number for c in row])
        effective_parameters.append([c.effective_parameters for c in row])
    return {"condition_number": condition_numbers, "effective_parameters": effective_parameters}


def inner_products(
    out: np.ndarray,
    train: Features,
    queries: np.ndarray,
    scale: Scale = Scale.none,
    weight: float = 1.0,
) -> None:
    """Add weight × φ_qᵀ φ_i, scaled, to out [Q, N]; refuse NaN and zero rows."""
    train_norms = feature_norms(train, "training example")
    query_norms = feature_norms(queries, "query")
    right = torch.from_numpy(queries.astype(np.float64, order="C"))
    for rows, phi in _row_blocks(train):
        tau = (right @ phi.T).numpy()
        out[:, rows] += weight * _scaled(tau, scale, train_norms[rows], query_norms, None)


def kernel_scores(
    out: np.ndarray,
    train: Features,
    queries: np.ndarray,
    damping: list[float],
    scale: Scale = Scale.none,
    weight: float = 1.0,
    unit: DampingUnit = DampingUnit.eigenvalue,
) -> list[Conditioning]:
    """Add weight × τ, scaled, for every damping to out [damping, Q, N]; refuse NaN and zero rows.

    Returns:
        How K was conditioned at each damping.
    """
    train_norms = feature_norms(train, "training example")
    query_norms = feature_norms(queries, "query")
    n, p = train.shape
    dual = n <= p

    # 1. The smaller Gram matrix G, ΦΦᵀ or ΦᵀΦ, and what is solved for, φ_q Φᵀ [Q, N] or φ_q [Q, p].
    gram = torch.zeros(min(n, p), min(n, p), dtype=torch.float64)
    if dual:
        right = torch.zeros(len(queries), n, dtype=torch.float64)
        columns = n + len(queries)
        blocks = zip(_row_blocks(train.T, columns), _row_blocks(queries.T, columns), strict=True)
        for (_, phi), (_, phi_q) in blocks:
            _add_gram(gram, phi)
            right.addmm_(phi_q.T, phi)
    else:
        right = torch.from_numpy(queries.astype(np.float64, order="C"))
        for _, phi in _row_blocks(train):
            _add_gram(gram, phi)
    gram.tril_().add_(gram.tril(-1).T)

    # 2. A solve for every damping.
    unit_damping = mean_eigenvalue(train_norms, p, unit)
    conditions = []
    for scores, relative in zip(out, damping, strict=True):
        factor, conditioning = _factorize(gram, relative, unit_damping)
        conditions.append(conditioning)
        solved = torch.cholesky_solve(right.T, factor).T  # [Q, N] or [Q, p]
        divisors = None  # ‖K⁻¹ φ_i‖ or 1 − φ_iᵀ K⁻¹ φ_i
        if dual:
            if scale in SCALES_OF_KERNEL:
                inverse = torch.cholesky_inverse(factor)  # X = (ΦΦᵀ + λI)⁻¹
                if scale is Scale.influence:  # √diag(X ΦΦᵀ X)
                    divisors = ((inverse @ gram) * inverse).sum(1).sqrt().numpy()
                else:  # 1 − diag(ΦΦᵀ X) = λ diag(X)
                    divisors = relative * unit_damping * inverse.diagonal().numpy()
            scores += weight * _scaled(solved.numpy(), scale, train_norms, query_norms, divisors)
        else:
            for rows, phi in _row_blocks(train):
                if scale in SCALES_OF_KERNEL:
                    columns = torch.cholesky_solve(phi.T, factor)  # K⁻¹ φ_i
                    if scale is Scale.influence:
                        divisors = columns.norm(dim=0).numpy()
                    else:
                        divisors = (1 - (columns * phi.T).sum(0)).numpy()
                tau, block_norms = (solved @ phi.T).numpy(), train_norms[rows]
                scores[:, rows] += weight * _scaled(tau, scale, block_norms, query_norms, divisors)
    return conditions


def mean_eigenvalue(train_norms: np.ndarray, p: int, unit: DampingUnit) -> float:
    """Return the λ of damping 1, from ‖φ_i‖ [N]."""
    num_eigenvalues = min(len(train_norms), p) if unit is DampingUnit.eigenvalue else p
    return float(np.square(train_norms).sum()) / num_eigenvalues


def feature_norms(features: Features, name: str) -> np.ndarray:
    """Return ‖φ‖ of every row, float64; errors call a row by `name`.

    Raises:
        ValueError: If a row contains NaN or infinity, or is all zero.
    """
    norms = torch.cat([phi.norm(dim=1) for _, phi in _row_blocks(features)]).numpy()
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise ValueError(
            f"features of {name} {bad[0]} have norm {norms[bad[0]]}; it must be positive and finite"
        )
    return norms


def _add_gram(gram: Tensor, phi: Tensor) -> None:
    """Add ΦᵀΦ to the lower triangle of gram by strips, which saves nearly half of the work."""
    p = phi.shape[1]
    size = -(-p // STRIPS)
    for first in range(0, p, size):
        strip = slice(first, first + size)
        gram[strip, : first + size].addmm_(phi[:, strip].T, phi[:, : first + size])


def _factorize(gram: Tensor, relative: float, unit_damping: float) -> tuple[Tensor, Conditioning]:
    """Return the Cholesky factor L of G + λI, λ = relative × unit_damping, and its conditioning.

    Raises:
        SingularKernelError: If the matrix is singular to rounding.
    """
    damping = relative * unit_damping
    damped = gram.clone()
    damped.diagonal().add_(damping)
    norm = float(damped.abs().sum(0).max())
    factor, failed = torch.linalg.cholesky_ex(damped)
    del damped
    reciprocal = 0.0 if failed else scipy.linalg.lapack.dpocon(factor.numpy(), norm, uplo="L")[0]
    if not reciprocal > 1e-14:
        condition, sufficient = 1 / max(reciprocal, 1e-17), norm / unit_damping * 1e-12
        raise SingularKernelError(
            f"kernel matrix of size {len(gram)} is singular: its condition number is "
            f"{condition:.1g} or more; use damping={sufficient:.1g} or more"
        )
    # Degrees of freedom of ridge regression, tr(G (G + λI)⁻¹) = n − λ ‖L⁻¹‖² (Hastie, Tibshirani
    # and Friedman 2009, Equation 3.50).
    inverse, _ = scipy.linalg.lapack.dtrtri(factor.numpy(), lower=1)
    effective = len(factor) - damping * float(np.square(np.tril(inverse)).sum())
    return factor, Conditioning(1 / reciprocal, effective)


def _scaled(
    tau: np.ndarray,
    scale: Scale,
    train_norms: np.ndarray,
    query_norms: np.ndarray,
    divisors: np.ndarray | None,
) -> np.ndarray:
    """Return scores [Q, N], divided by norms of features, or by numbers of the kernel."""
    match scale:
        case Scale.none:
            return tau
        case Scale.gradient:
            return tau / train_norms
        case Scale.cosine:
            return tau / train_norms / query_norms[:, None]
        case Scale.influence | Scale.leverage:
            if divisors is None:
                raise ValueError(f"scale={scale.value} needs kernel=gram")
            if not divisors.min() > LEAST_DIVISOR:
                raise ValueError(f"scale={scale.value} would divide by 0; use a larger damping")
            return tau / divisors
        case _:
            assert_never(scale)


def _row_blocks(matrix: Features, num_columns: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows and the rows, float64, at most `BLOCK_BYTES` of `num_columns`."""
    size = max(1, BLOCK_BYTES // (8 * (num_columns or matrix.shape[1])))
    for first in range(0, len(matrix), size):
        block = torch.from_numpy(matrix[first : first + size].astype(np.float64))
        yield slice(first, first + len(block)), block
