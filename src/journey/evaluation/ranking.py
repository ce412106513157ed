"""What methods rank first: the candidate that an evaluation uses, and the top images of each query.

S  steps;  Q  queries;  N  training images;  k  size of the top;  scores [S, Q, N];  top [S, Q, k]
"""

import numpy as np

from journey.engine.checks import require
from journey.pipeline.interfaces import Method, Score


def candidate_index(name: str, method: Method, candidates: dict[str, float]) -> int:
    """Return the position of a method's hyper-parameter along the first axis of its scores.

    Args:
        name: The name of the method.
        method: The method.
        candidates: The value to use, by method; a method with a single candidate needs none.

    Raises:
        ConfigError: The method has several candidates and `candidates` names none of them.
    """
    settings = method.candidates()
    if len(settings) == 1 and name not in candidates:
        return 0
    values = [value for candidate in settings for value in candidate.values()]
    value = candidates.get(name)
    choices = ", ".join(f"{choice:g}" for choice in values)
    allowed = f"one of {choices}: {'/'.join(settings[0])} of {name}"
    require(value in values, f"evaluation.candidates.{name}", value, allowed)
    return values.index(candidates[name])


def candidate_settings(
    scores: dict[str, Score], candidates: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Return the hyper-parameters that an evaluation uses, by method. See `candidate_index`."""
    settings = {}
    for name, score in scores.items():
        index = candidate_index(name, score.method, candidates)
        settings[name] = score.method.candidates()[index]
    return settings


def top_images(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the k training images with the highest scores, ties by index. [..., k]"""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def class_share(top: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the share of the top that has the query's class, of labels [N], classes [Q]. [S, Q]"""
    return (labels[top] == classes[:, None]).mean(-1)


def base_rate(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the share of all training images that have the class of each query. [Q]"""
    return (labels == classes[:, None]).mean(-1)


def top_overlap(top: np.ndarray) -> np.ndarray:
    """Return the share of the top images that are in the top of the step before. [S − 1, Q]"""
    return (top[1:, :, :, None] == top[:-1, :, None, :]).any(-1).mean(-1)


def rank_correlations(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Spearman's ρ, over training images, of the scores at every two steps. [S, S, Q] each

    The first is that of each query with itself, the second its mean with all other queries.
    """
    from scipy.stats import rankdata  # slow to import

    ranks = rankdata(scores, axis=-1)
    z = ranks - ranks.mean(-1, keepdims=True)
    norm = np.linalg.norm(z, axis=-1, keepdims=True)
    z = np.divide(z, norm, out=np.zeros(z.shape), where=norm > 0)
    same = np.einsum("sqn,uqn->suq", z, z)
    others = (np.einsum("sqn,un->suq", z, z.sum(1)) - same) / (z.shape[1] - 1)
    return same, others
