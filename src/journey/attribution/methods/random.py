"""Scores that know nothing: the floor every method is compared with."""

import numpy as np

from journey.seeding import numpy_generator


def score(num_steps: int, num_queries: int, num_train: int, seed: int) -> np.ndarray:
    """Independent N(0, 1). [1, step, query, train]"""
    draws = numpy_generator(seed, "random scores").standard_normal((1, num_steps, num_queries, num_train))
    return draws.astype(np.float32)
