"""Scores from retrained models, without any gradient.

M  models;  N  training images;  T  outputs of a query, by step or other target;  Q  queries
"""

import numpy as np


def difference(masks: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Empirical influence (Feldman and Zhang 2020): mean output of models without an image minus that of those with it.

    masks: bool [M, N]; outputs: [M, T, Q]. Returns [1, T, Q, N].

    Raises: ValueError if an image is in all subsets or in none.
    """
    counts = masks.sum(0)
    if not ((counts > 0) & (counts < len(masks))).all():
        raise ValueError(f"an image is in all or none of the {len(masks)} subsets; a larger num_subsets makes that unlikely")
    kept, total = np.einsum("mn,mtq->tqn", masks, outputs), outputs.sum(0)[..., None]
    return ((total - kept) / (len(masks) - counts) - kept / counts)[None]


def ridge(masks: np.ndarray, outputs: np.ndarray, damping: list[float]) -> np.ndarray:
    """Datamodels (Ilyas et al. 2022), with a ridge instead of the lasso: τ = −coefficients. [damping, T, Q, N]

    λ is relative to the mean diagonal of the centred Gram matrix of subsets [M, M], which is what is solved.
    """
    x, y = masks - masks.mean(0), outputs - outputs.mean(0)
    gram = x @ x.T
    mean_diagonal = gram.trace() / len(gram)
    scores = []
    for relative in damping:
        alpha = np.linalg.solve(gram + relative * mean_diagonal * np.eye(len(gram)), y.reshape(len(y), -1))
        scores.append(-(alpha.T @ x).reshape(*y.shape[1:], -1))
    return np.stack(scores)
