"""What a method ranks first along a journey: scores [S, Q, N].

S  steps;  Q  queries;  N  training images;  k  how many of them are its top;  top  their rows, [S, Q, k]
"""

import numpy as np


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """The k training images that are ranked first; equal scores are ranked by row."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def class_share(of_top: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Which share of the top has the class of the query. labels: [N], classes: [Q] → [S, Q]"""
    return (labels[of_top] == classes[:, None]).mean(-1)


def base_rate(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Which share of all training images has the class of the query. [Q]"""
    return (labels == classes[:, None]).mean(-1)


def kept(of_top: np.ndarray) -> np.ndarray:
    """Which share of the top is in that of the step before. [S − 1, Q]"""
    return (of_top[1:, :, :, None] == of_top[:-1, :, None, :]).any(-1).mean(-1)


def rank_correlations(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's ρ, over training images, of the scores at every two steps: of one query; and of a query with the others, the
    mean over them. Each [S, S, Q]
    """
    from scipy.stats import rankdata  # here: importing it takes a while

    ranks = rankdata(scores, axis=-1)
    z = ranks - ranks.mean(-1, keepdims=True)
    norm = np.linalg.norm(z, axis=-1, keepdims=True)
    z = np.divide(z, norm, out=np.zeros(z.shape), where=norm > 0)
    own = np.einsum("sqn,uqn->suq", z, z)
    others = (np.einsum("sqn,un->suq", z, z.sum(1)) - own) / (z.shape[1] - 1)
    return own, others
