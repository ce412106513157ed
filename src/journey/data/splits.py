"""Which images are for training and which are held out. N: all images."""

import numpy as np

from journey.data import ImageSet
from journey.seeding import numpy_generator


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of all examples whose every prefix is class-balanced to within one image, while the classes last. [N]

    >>> balanced_order(np.array([7, 7, 7, 9]), seed=0)[:2]
    array([0, 3])
    """
    rank_in_class = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank_in_class[members] = numpy_generator(seed, "split", int(label)).permutation(len(members))
    return np.lexsort((labels, rank_in_class))


def split(images: ImageSet, num_train: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """`num_train` images, class-balanced, and the rest; each in their old order."""
    order = balanced_order(images.labels, seed)
    return images.take(np.sort(order[:num_train])), images.take(np.sort(order[num_train:]))
