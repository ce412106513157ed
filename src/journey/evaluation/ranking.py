"""Which hyper-parameter an evaluation asks a method with that does not choose among them.

What a method ranks first along a journey: scores [S, Q, N].

S  steps;  Q  queries;  N  training images;  k  how many of them are its top;  top  their rows, [S, Q, k]
"""

import numpy as np

from journey.engine.checks import require
from journey.pipeline.interfaces import Method, Score


def candidate_index(name: str, method: Method, candidates: dict[str, float]) -> int:
    """Along the first axis of a method's scores. candidates: a hyper-parameter by method; of one that has several.

    Raises: ConfigError if it has several and none of them is named.
    """
    known = method.candidates()
    if len(known) == 1 and name not in candidates:
        return 0
    values = [value for settings in known for value in settings.values()]
    allowed = (
        f"one of {', '.join(f'{value:g}' for value in values)}: {'/'.join(known[0])} of {name}"
    )
    require(
        candidates.get(name) in values,
        f"evaluation.candidates.{name}",
        candidates.get(name),
        allowed,
    )
    return values.index(candidates[name])


def candidate_settings(
    scores: dict[str, Score], candidates: dict[str, float]
) -> dict[str, dict[str, float]]:
    """What every method is asked with."""
    return {
        name: score.method.candidates()[candidate_index(name, score.method, candidates)]
        for name, score in scores.items()
    }


def top_images(scores: np.ndarray, k: int) -> np.ndarray:
    """The k training images that are ranked first; equal scores are ranked by row."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def class_share(of_top: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Which share of the top has the class of the query. labels: [N], classes: [Q] → [S, Q]"""
    return (labels[of_top] == classes[:, None]).mean(-1)


def base_rate(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Which share of all training images has the class of the query. [Q]"""
    return (labels == classes[:, None]).mean(-1)


def top_overlap(of_top: np.ndarray) -> np.ndarray:
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
