"""Which training images a model sees. N: all training images."""

from collections.abc import Callable

import numpy as np

from journey.engine.checks import require
from journey.engine.seeding import entropy, numpy_generator
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    FullData,
    RandomSubset,
    Score,
    Subset,
    WithoutRandom,
    WithoutTop,
)


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of all examples whose every prefix is class-balanced to within one image, while the classes last. [N]

    >>> balanced_order(np.array([7, 7, 7, 9]), seed=0)[:2]
    array([0, 3])
    """
    return np.lexsort((labels, _rank_in_class(labels, seed)))


def proportional_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of all examples whose every prefix has of each class about the share that the whole has. [N]

    >>> balanced_order(np.array([7, 7, 7, 7, 9, 9]), seed=0)[:4], proportional_order(np.array([7, 7, 7, 7, 9, 9]), seed=0)[:3]
    (array([1, 5, 2, 4]), array([1, 5, 2]))
    """
    size = np.bincount(labels)[labels]
    return np.lexsort((labels, (_rank_in_class(labels, seed) + 0.5) / size))


def _rank_in_class(labels: np.ndarray, seed: int) -> np.ndarray:
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = numpy_generator(seed, "split", int(label)).permutation(len(members))
    return rank


def subset_rows(
    keep: Subset, images: ImageSet, scores: Callable[[Score], np.ndarray]
) -> np.ndarray:
    """The rows of the training images that a model is trained on.

    scores: the array [candidate, step, query, train] of a score. Returns int64 [n].

    Raises: ConfigError if nothing is left, or, of a class, nothing.
    """
    everything = np.arange(len(images))
    match keep:
        case FullData():
            return everything
        case RandomSubset():
            return np.flatnonzero(subset_mask(images.labels, keep))
        case WithoutTop():
            return np.setdiff1d(everything, top_rows(scores(keep.score), keep))
        case WithoutRandom():
            return np.setdiff1d(everything, random_removal_rows(images.labels, keep))


def subset_mask(labels: np.ndarray, subset: RandomSubset) -> np.ndarray:
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
        allowed = (
            f"such that some but not all of the {len(members)} images of class {label} are kept"
        )
        require(0 < count < len(members), "retraining.fraction", subset.fraction, allowed)
        kept[random.permutation(members)[:count]] = True
    return kept


def top_rows(scores: np.ndarray, without: WithoutTop) -> np.ndarray:
    """The rows that a score ranks first for a query at a step; or last. [count]

    scores: [candidate, step, query, train]. Equal scores are ranked by row.
    """
    require(
        0 < without.count < scores.shape[-1], "count", without.count, f"in 1…{scores.shape[-1] - 1}"
    )
    step = 0 if scores.shape[1] == 1 else without.score.steps.index(without.step)
    tau = scores[without.candidate, step, without.query]  # [N]
    return np.argsort(tau if without.opponents else -tau, kind="stable")[: without.count]


def random_removal_rows(labels: np.ndarray, without: WithoutRandom) -> np.ndarray:
    """The rows that a random removal leaves out. [count]"""
    require_removable("count", without.count, labels)
    return proportional_order(labels, entropy(without.seed, "removal", without.index))[
        : without.count
    ]


def require_removable(name: str, count: int, labels: np.ndarray) -> None:
    """Refuse a number of images without which a class would be gone. Raises: ConfigError."""
    rarest = np.bincount(labels)
    rarest = int(rarest[rarest > 0].min())
    most = len(labels) * (rarest - 1) // rarest
    require(
        0 < count <= most,
        name,
        count,
        f"in 1…{most}: some of every class, of which the rarest has {rarest}, must be left",
    )
