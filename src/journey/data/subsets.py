"""Which training images a model sees. N: all training images."""

from collections.abc import Callable

import numpy as np

from journey.artifacts.keep import All, Keep, RandomSubset, Without, WithoutRandom
from journey.artifacts.specs import Score
from journey.config.checks import require
from journey.data import ImageSet
from journey.data.splits import proportional_order
from journey.seeding import entropy, numpy_generator


def rows(keep: Keep, images: ImageSet, scores: Callable[[Score], np.ndarray]) -> np.ndarray:
    """The rows of the training images that a model is trained on.

    scores: the array [candidate, step, query, train] of a score. Returns int64 [n].

    Raises: ConfigError if nothing is left, or, of a class, nothing.
    """
    everything = np.arange(len(images))
    match keep:
        case All():
            return everything
        case RandomSubset():
            return np.flatnonzero(mask(images.labels, keep))
        case Without():
            return np.setdiff1d(everything, ranked(scores(keep.score), keep))
        case WithoutRandom():
            return np.setdiff1d(everything, random_rows(images.labels, keep))


def mask(labels: np.ndarray, subset: RandomSubset) -> np.ndarray:
    """Which examples a subset keeps: the same number of every class in every subset. bool [N]

    Depends on no other subset, so that more of them can be added later.

    >>> mask(np.array([0, 0, 0, 0, 1, 1]), RandomSubset(index=0, fraction=0.5, seed=0)).sum()
    np.int64(3)

    Raises: ConfigError if the fraction keeps none or all of a class.
    """
    kept = np.zeros(len(labels), bool)
    random = numpy_generator(subset.seed, "subset", subset.index)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(subset.fraction * len(members))
        allowed = f"such that some but not all of the {len(members)} images of class {label} are kept"
        require(0 < count < len(members), "retraining.fraction", subset.fraction, allowed)
        kept[random.permutation(members)[:count]] = True
    return kept


def ranked(scores: np.ndarray, without: Without) -> np.ndarray:
    """The rows that a score ranks first for a query at a step; or last. [count]

    scores: [candidate, step, query, train]. Equal scores are ranked by row.
    """
    require(0 < without.count < scores.shape[-1], "count", without.count, f"in 1…{scores.shape[-1] - 1}")
    step = 0 if scores.shape[1] == 1 else without.score.steps.index(without.step)
    tau = scores[without.candidate, step, without.query]  # [N]
    return np.argsort(tau if without.opponents else -tau, kind="stable")[: without.count]


def random_rows(labels: np.ndarray, without: WithoutRandom) -> np.ndarray:
    """The rows that a random removal leaves out. [count]"""
    require_removable("count", without.count, labels)
    return proportional_order(labels, entropy(without.seed, "removal", without.index))[: without.count]


def require_removable(name: str, count: int, labels: np.ndarray) -> None:
    """Refuse a number of images without which a class would be gone. Raises: ConfigError."""
    rarest = np.bincount(labels)
    rarest = int(rarest[rarest > 0].min())
    most = len(labels) * (rarest - 1) // rarest
    require(0 < count <= most, name, count, f"in 1…{most}: some of every class, of which the rarest has {rarest}, must be left")
