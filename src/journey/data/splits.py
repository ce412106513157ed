"""Which images are for training and which are held out. N: all images."""

import numpy as np

from journey.data import ImageSet
from journey.seeding import numpy_generator


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


def split(images: ImageSet, num_train: int, order: np.ndarray) -> tuple[ImageSet, ImageSet]:
    """The first `num_train` images of an order, and the rest; each in their old order."""
    return images.take(np.sort(order[:num_train])), images.take(np.sort(order[num_train:]))
