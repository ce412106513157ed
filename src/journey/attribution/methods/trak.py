"""TRAK on the denoising loss: of a journey's steps (Journey-TRAK) or of its destination.

Sign: the output is the loss, so a positive τ_i already means that leaving example i out raises the query's loss.
"""

import numpy as np

from journey.attribution.kernel import kernel_scores


def score(
    train: list[np.ndarray], queries: list[np.ndarray], num_queries: int, damping: list[float]
) -> tuple[np.ndarray, list[list[float]]]:
    """Mean of the kernel scores over checkpoints [damping, step, query, train], and condition numbers by checkpoint.

    train: features [N, p] of each checkpoint; queries: [step × query, p] of each.
    """
    total, conditions = 0.0, []
    for train_features, query_features in zip(train, queries, strict=True):
        scores, condition = kernel_scores(train_features, query_features, damping)
        total = total + scores / len(train)
        conditions.append(condition)
    return total.reshape(len(damping), -1, num_queries, total.shape[-1]), conditions
