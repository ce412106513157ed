"""Which training images a model is trained on. N: all training images."""

from collections.abc import Callable

import numpy as np

from journey.engine.checks import require
from journey.engine.seeding import entropy, numpy_generator
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    FullData,
    ListedSubset,
    RandomSubset,
    Score,
    Subset,
    WithoutRandom,
    WithoutTop,
)


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order [N] whose prefixes have equally many images of each class, ±1.

    A class of which no images remain is skipped.

    >>> balanced_order(np.array([7, 7, 7, 9]), seed=0)[:2]
    array([0, 3])
    """
    return np.lexsort((labels, _rank_in_class(labels, seed)))


def proportional_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order [N] whose prefixes have the class proportions of the whole.

    >>> labels = np.array([7, 7, 7, 7, 9, 9])
    >>> balanced_order(labels, seed=0)[:4], proportional_order(labels, seed=0)[:3]
    (array([1, 5, 2, 4]), array([1, 5, 2]))
    """
    class_size = np.bincount(labels)[labels]
    return np.lexsort((labels, (_rank_in_class(labels, seed) + 0.5) / class_size))


def _rank_in_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a random rank of each image among those of its class. [N]"""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = numpy_generator(seed, "split", int(label)).permutation(len(members))
    return rank


def subset_rows(
    subset: Subset, images: ImageSet, scores: Callable[[Score], np.ndarray]
) -> np.ndarray:
    """Return the rows of the training images in a subset, int64 [n].

    Args:
        subset: Any training subset.
        images: All training images.
        scores: Returns the array [candidate, step, query, train] of a score.
    """
    match subset:
        case FullData():
            removed = np.array([], np.int64)
        case RandomSubset() | ListedSubset():
            return np.flatnonzero(subset_mask(images.labels, subset))
        case WithoutTop():
            array, most = scores(subset.score), len(images) - 1
            require(0 < subset.count <= most, "count", subset.count, f"in 1…{most}")
            step = 0 if array.shape[1] == 1 else subset.score.steps.index(subset.step)
            tau = array[subset.candidate, step, subset.query]  # [N]
            ranked = np.argsort(tau if subset.opponents else -tau, kind="stable")  # ties: by row
            removed = ranked[: subset.count]
        case WithoutRandom():
            require_removable("count", subset.count, images.labels)
            seed = entropy(subset.seed, "removal", subset.index)
            removed = proportional_order(images.labels, seed)[: subset.count]
    return np.setdiff1d(np.arange(len(images)), removed)


def subset_mask(labels: np.ndarray, subset: RandomSubset | ListedSubset) -> np.ndarray:
    """Return which images are in a random or a listed subset, bool [N].

    All random subsets have equally many images of a class. One does not depend on the others.

    >>> subset_mask(np.array([0, 0, 0, 0, 1, 1]), RandomSubset(index=0, fraction=0.5, seed=0)).sum()
    np.int64(3)
    """
    if isinstance(subset, ListedSubset):
        packed = np.frombuffer(subset.mask, np.uint8)
        return np.unpackbits(packed, count=len(labels)).astype(bool)
    mask = np.zeros(len(labels), bool)
    random = numpy_generator(subset.seed, "subset", subset.index)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(subset.fraction * len(members))
        allowed = (
            f"such that some but not all of the {len(members)} images of class {label} are kept"
        )
        require(0 < count < len(members), "retraining.fraction", subset.fraction, allowed)
        mask[random.permutation(members)[:count]] = True
    return mask


def require_removable(name: str, count: int, labels: np.ndarray) -> None:
    """Require that a class-proportional removal of `count` images leaves some of every class."""
    class_sizes = np.bincount(labels)
    rarest = int(class_sizes[class_sizes > 0].min())
    most = len(labels) * (rarest - 1) // rarest
    allowed = f"in 1…{most}: some of every class, of which the rarest has {rarest}, must be left"
    require(0 < count <= most, name, count, allowed)
