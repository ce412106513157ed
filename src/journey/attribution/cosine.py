"""Cosine similarity of a query's estimate x̂0_t and a training example: of their pixels, or in an encoder's space."""

import numpy as np


def score(train: np.ndarray, x0_hat: np.ndarray) -> np.ndarray:
    """train: clean examples [N, …]; x0_hat: [step, query, …]. Returns [1, step, query, train].

    Raises: ValueError if an example is all zeros, which has no direction.
    """
    unit_train = _unit(train.reshape(len(train), -1))
    unit_queries = _unit(x0_hat.reshape(*x0_hat.shape[:2], -1))
    return (unit_queries @ unit_train.T)[None].astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (norms > 0).all():
        raise ValueError("cosine: an image is all zeros in this space, so it has no direction")
    return vectors / norms
