"""The gradient methods: kernel scores of features, at a step of the journey, at all of them as one, or at the destination.

Sign: positive means proponent. Where the output is the loss, a positive τ_i says that leaving example i out raises the
query's loss; other outputs take over the sign of the inner product, in which an example is its own proponent.
"""

import numpy as np

from journey import config
from journey.attribution.kernel import inner_products, kernel_scores


def score(
    out: np.ndarray,
    method: config.GradientMethod,
    train: list[list[np.ndarray]],
    queries: list[np.ndarray],
    weights: list[float],
) -> list[list[float]]:
    """Add the scores to out [candidate, step, query, train], which begins as zeros; returns condition numbers by checkpoint.

    train: features [N, p] (ekfac: [N, damping, p]) of each checkpoint, one for all steps or one for each; queries:
    [step × query, …] of each; weights: of each, what its scores count.
    """
    num_steps, num_queries = out.shape[1:3]
    conditions = []
    for train_features, query_features, weight in zip(train, queries, weights, strict=True):
        by_step = query_features.reshape(-1, num_queries, *query_features.shape[1:])
        if method.at is config.At.trajectory:  # the mean of outputs has the mean of gradients
            by_step = by_step.mean(0, keepdims=True)
        if len(train_features) == 1:
            together = out.reshape(len(out), num_steps * num_queries, -1)
            conditions.append(_add(together, method, train_features[0], by_step.reshape(-1, *by_step.shape[2:]), weight))
        else:
            parts = zip(train_features, by_step, strict=True)
            steps = [_add(out[:, i], method, phi, phi_q, weight) for i, (phi, phi_q) in enumerate(parts)]
            conditions.append([max(of_damping) for of_damping in zip(*steps, strict=True)])
    if method.readout is config.Readout.square:
        np.square(out, out=out)
    return conditions


def _add(out: np.ndarray, method: config.GradientMethod, train: np.ndarray, queries: np.ndarray, weight: float) -> list[float]:
    """One checkpoint's scores, into out [candidate, Q, N]."""
    match method.kernel:
        case config.Kernel.gram:
            return kernel_scores(out, train, queries, method.damping, method.scale, weight)
        case config.Kernel.identity:
            inner_products(out[0], train, queries, method.scale, weight)
        case config.Kernel.ekfac:  # features are whitened already
            for i in range(len(method.damping)):
                inner_products(out[i], train[:, i], queries[:, i], method.scale, weight)
        case _:
            raise config.ConfigError(f"method.{method.name}.kernel={method.kernel}: unknown")
    return []
