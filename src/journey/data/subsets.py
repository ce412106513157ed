"""Which training images a model sees. N: all training images."""

from collections.abc import Callable

import numpy as np

from journey.artifacts.keep import All, Keep, Planted, RandomSubset, Without
from journey.artifacts.specs import Score
from journey.config.checks import ConfigError, require
from journey.data import ImageSet
from journey.seeding import numpy_generator


def rows(keep: Keep, images: ImageSet, scores: Callable[[Score], np.ndarray]) -> np.ndarray:
    """The rows of the training images that a model is trained on, planted copies last; a copy is its original's row again.

    scores: the array [candidate, step, query, train] of a score. Returns int64 [n].

    Raises: ConfigError if nothing is left, or an id is unknown.
    """
    everything = np.arange(len(images))
    match keep:
        case All():
            return everything
        case RandomSubset():
            return np.flatnonzero(mask(images.labels, keep))
        case Without():
            return np.setdiff1d(everything, ranked(scores(keep.score), keep))
        case Planted():
            return np.concatenate([everything, np.repeat(_rows_of(keep.images, images), keep.copies)])


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


def _rows_of(ids: tuple[str, ...], images: ImageSet) -> np.ndarray:
    row = {name: i for i, name in enumerate(images.ids)}
    unknown = [name for name in ids if name not in row]
    if unknown:
        raise ConfigError(f"planted image {unknown[0]}: no such training image; the first is {images.ids[0]}")
    return np.array([row[name] for name in ids])
