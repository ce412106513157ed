"""Optical recognition of handwritten digits (E. Alpaydin, C. Kaynak, 1998), as packaged by scikit-learn: 1,797 8×8 images."""

import numpy as np
from sklearn.datasets import load_digits

from journey import config
from journey.data import ImageSet
from journey.seeding import numpy_generator


def load(dataset: config.Digits) -> tuple[ImageSet, ImageSet]:
    """A seeded, class-balanced split: `num_train` images for training, the rest held out. The grey levels 0…16 become 0…255."""
    raw = load_digits()
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None]  # [1797, 1, 8, 8]
    order = balanced_order(raw.target, dataset.seed)
    train, held_out = np.sort(order[: dataset.num_train]), np.sort(order[dataset.num_train :])
    return _subset(images, raw.target, train), _subset(images, raw.target, held_out)


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of all examples whose every prefix is class-balanced to within one image, while the classes last. [N]"""
    rank_in_class = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank_in_class[members] = numpy_generator(seed, "split", int(label)).permutation(len(members))
    return np.lexsort((labels, rank_in_class))


def _subset(images: np.ndarray, labels: np.ndarray, index: np.ndarray) -> ImageSet:
    ids = tuple(f"digits/{i:04d}" for i in index)
    return ImageSet(images[index], labels[index].astype(np.int64), None, ids, tuple("0123456789"))
