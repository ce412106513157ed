"""Which training images a model is trained on. N: all training images."""

from collections.abc import Callable
from typing import assert_never

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
    WithoutGroup,
    WithoutRandom,
    WithoutTop,
)
from journey.pipeline.settings import Unit

NEAR = 0.1  # root mean square difference of near-duplicates, where white − black is 1


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
        case RandomSubset() | WithoutGroup() | ListedSubset():
            groups = subset_groups(subset, images)
            return np.flatnonzero(subset_mask(images.labels, subset, groups))
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


def subset_groups(subset: Subset, images: ImageSet) -> np.ndarray | None:
    """Return the group of each image [N] if a subset consists of groups, else None."""
    by = subset.by if isinstance(subset, RandomSubset | WithoutGroup) else Unit.images
    return None if by is Unit.images else image_groups(images, by)


def image_groups(images: ImageSet, by: Unit) -> np.ndarray:
    """Return the group of each image, int64 [N]; groups are numbered by their first image."""
    match by:
        case Unit.images:
            return np.arange(len(images))
        case Unit.classes:
            names = images.labels
        case Unit.sources:
            # Of an id with two parts, such as digits/0001, the first is the dataset.
            sources = [i.rpartition("/")[0] if i.count("/") > 1 else i for i in images.ids]
            names = np.array(sources)
        case Unit.near_duplicates:
            names = _near_duplicates(images)
        case _:
            assert_never(by)
    _, first, groups = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[groups]


def _near_duplicates(images: ImageSet) -> np.ndarray:
    """Return the connected component of each image [N], where near-duplicates are joined."""
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    pixels = images.images[:].reshape(len(images), -1).astype(np.float32) / 255
    squares = np.square(pixels).mean(1)
    pairs = []
    for first in range(0, len(pixels), 1000):
        block = slice(first, first + 1000)
        products = pixels[block] @ pixels.T / pixels.shape[1]
        near = squares[block, None] + squares - 2 * products < NEAR**2
        rows, columns = np.nonzero(near)
        pairs.append(np.stack([rows + first, columns]))
    rows, columns = np.concatenate(pairs, 1)
    joined = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=2 * (len(pixels),))
    return connected_components(joined, directed=False)[1]


def removable_groups(groups: np.ndarray) -> np.ndarray:
    """Return the groups [N] of several images, but not of all of them."""
    sizes = np.bincount(groups)
    return np.flatnonzero((sizes > 1) & (sizes < len(groups)))


def require_groups(name: str, by: Unit, images: ImageSet, least: int = 2) -> None:
    """Require that training images are in groups, of which `least` can be left out.

    Raises:
        ConfigError: They are not.
    """
    if by is Unit.images:
        return
    count = len(removable_groups(image_groups(images, by)))
    allowed = f"a kind of which there are {least} groups of several images, not {count}"
    require(count >= least, name, by.value, allowed)


def subset_mask(
    labels: np.ndarray,
    subset: RandomSubset | WithoutGroup | ListedSubset,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Return which images are in a subset of some kinds, bool [N].

    All random subsets of images have equally many of a class. One does not depend on the others.
    Of groups, the number in a class is rounded up or down at random where it is not whole.

    Args:
        labels: The class of each image. [N]
        subset: The subset.
        groups: The group of each image, if the subset consists of groups. [N]

    Raises:
        ValueError: The subset consists of groups, which are not given.

    >>> subset_mask(np.array([0, 0, 0, 0, 1, 1]), RandomSubset(index=0, fraction=0.5, seed=0)).sum()
    np.int64(3)
    """
    if isinstance(subset, ListedSubset):
        packed = np.frombuffer(subset.mask, np.uint8)
        return np.unpackbits(packed, count=len(labels)).astype(bool)
    if isinstance(subset, WithoutGroup) or subset.by is not Unit.images:
        if groups is None:
            raise ValueError(f"a subset by {subset.by.value} needs the group of each image")
        return _mask_of_groups(labels, subset, groups)
    random = numpy_generator(subset.seed, "subset", subset.index)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(subset.fraction * len(members))
        allowed = (
            f"such that some but not all of the {len(members)} images of class {label} are kept"
        )
        require(0 < count < len(members), "retraining.fraction", subset.fraction, allowed)
        mask[random.permutation(members)[:count]] = True
    return mask


def _mask_of_groups(
    labels: np.ndarray, subset: RandomSubset | WithoutGroup, groups: np.ndarray
) -> np.ndarray:
    """Return which images are in a subset of whole groups, of a stratum in each class. bool [N]"""
    if isinstance(subset, WithoutGroup):
        order = numpy_generator(subset.seed, "groups").permutation(removable_groups(groups))
        return groups != order[subset.index]
    random = numpy_generator(subset.seed, "subset", subset.index)
    _, first = np.unique(groups, return_index=True)
    strata = np.zeros(len(first), int) if subset.by is Unit.classes else labels[first]
    kept = np.zeros(len(first), bool)
    for label in np.unique(strata):
        members = random.permutation(np.flatnonzero(strata == label))
        kept[members[: int(subset.fraction * len(members) + random.random())]] = True
    allowed = f"such that some but not all of the {len(kept)} {subset.by.value} are kept"
    require(bool(0 < kept.sum() < len(kept)), "retraining.fraction", subset.fraction, allowed)
    return kept[groups]


def require_removable(name: str, count: int, labels: np.ndarray) -> None:
    """Require that a class-proportional removal of `count` images leaves some of every class."""
    class_sizes = np.bincount(labels)
    rarest = int(class_sizes[class_sizes > 0].min())
    most = len(labels) * (rarest - 1) // rarest
    allowed = f"in 1…{most}: some of every class, of which the rarest has {rarest}, must be left"
    require(0 < count <= most, name, count, allowed)
