"""Kernel scores of several checkpoints as one: at each step of the journey, or for all of them together.

Sign: positive means proponent. Where the output is the loss, a positive τ_i says that leaving example i out raises the
query's loss; other outputs take over the sign of the inner product, in which an example is its own proponent.
"""

from typing import assert_never

import numpy as np

from journey.attribution.kernel import Conditioning, inner_products, kernel_scores
from journey.attribution.stored import Scaled
from journey.config.groups import DampingUnit, Kernel, Scale


def add_scores(
    out: np.ndarray,  # scores to add to, [candidate, step, query, train]; of a trajectory, a single step
    # [checkpoint][one for all steps, or one for each], each [N, p] or, of EK-FAC, [N, damping, p]
    train: list[list[np.ndarray | Scaled]],
    queries: list[np.ndarray],  # [checkpoint], each [step × query, …]
    weights: list[float],  # what the scores of each checkpoint count
    kernel: Kernel,
    damping: list[float],  # λ, relative: the candidates of out; none where the kernel is the identity
    unit: DampingUnit,
    scale: Scale,
    of_step: np.ndarray | None = None,  # what the output of each step counts in a trajectory's, [step, query]; None: the same
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
            conditions.append(_add(together, train_features[0], flat, weight, kernel, damping, unit, scale))
        else:
            parts = zip(train_features, by_step, strict=True)
            steps = [_add(out[:, i], phi, phi_q, weight, kernel, damping, unit, scale) for i, (phi, phi_q) in enumerate(parts)]
            conditions.append([max(of, key=lambda found: found.condition_number) for of in zip(*steps, strict=True)])
    return conditions


def described(solved: list[list[Conditioning]]) -> dict[str, object]:
    """As JSON: each of its numbers [checkpoint][damping], by name."""
    return {name: [[vars(of)[name] for of in row] for row in solved] for name in ("condition_number", "effective_parameters")}


def _mean(by_step: np.ndarray, of_step: np.ndarray | None) -> np.ndarray:
    """Over the steps. [S, Q, …] → [Q, …]"""
    if of_step is None:
        return by_step.mean(0)
    return np.einsum("sq...,sq->q...", by_step, (of_step / len(of_step)).astype(np.float32))


def _add(
    out: np.ndarray,
    train: np.ndarray | Scaled,
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
                of_damping = train.of_damping(i) if isinstance(train, Scaled) else train[:, i]
                inner_products(out[i], of_damping, queries[:, i], scale, weight)
        case _:
            assert_never(kernel)
    return []
