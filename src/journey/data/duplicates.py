"""Planting: some held-out images are put among the training images, as often as one likes. What should be found is then known."""

import numpy as np

from journey.engine.checks import require, require_count
from journey.engine.seeding import numpy_generator
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Dataset
from journey.pipeline.subsets import balanced_order

TRAIN, HELD_OUT, INJECTED = "train", "held_out", "injected"


def split_parts(dataset: Dataset) -> dict[str, ImageSet]:
    """The images of a dataset, as they are kept: for training, held out and, if any are planted, the originals of these.

    Originals leave the held-out part, class-balanced; their copies follow the training images, so that these keep their rows.

    Raises: ConfigError if the dataset gives no such images.
    """
    train, held_out = dataset.load()
    count = dataset.num_injected
    if not count:
        return {TRAIN: train, HELD_OUT: held_out}
    in_memory = not train.identity and not held_out.identity
    require(
        in_memory,
        "dataset.num_injected",
        count,
        f"0 with dataset={dataset.name}, whose images stay in their files",
    )
    require_count("dataset.num_injected", count, most=len(held_out))
    order = balanced_order(held_out.labels, seed=0)
    originals, rest = held_out.take(np.sort(order[:count])), held_out.take(np.sort(order[count:]))
    return {
        TRAIN: _concatenate(train, make_duplicates(originals, dataset.copies, dataset.jitter)),
        HELD_OUT: rest,
        INJECTED: originals,
    }


def make_duplicates(originals: ImageSet, count: int, jitter: float) -> ImageSet:
    """So many copies of every image, each with noise of its own. jitter: its standard deviation, 1 being white less black"""
    of = originals.take(np.repeat(np.arange(len(originals)), count))
    ids = tuple(duplicate_id(name, j) for name in originals.ids for j in range(count))
    images = of.images
    if jitter:
        noise = np.stack(
            [numpy_generator(0, "jitter", name).standard_normal(images.shape[1:]) for name in ids]
        )
        images = np.rint(images + 255 * jitter * noise).clip(0, 255).astype(np.uint8)
    return ImageSet(images, of.labels, of.captions, ids, of.class_names)


def duplicate_id(name: str, copy: int) -> str:
    """What a copy of an image is called."""
    return f"{name}/copy{copy}"


def _concatenate(first: ImageSet, second: ImageSet) -> ImageSet:
    captions = None if first.captions is None else first.captions + second.captions
    images = np.concatenate([first.images, second.images])
    labels = np.concatenate([first.labels, second.labels])
    return ImageSet(images, labels, captions, first.ids + second.ids, first.class_names)
