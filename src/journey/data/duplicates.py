"""Injected duplicates: copies of held-out images among the training images.

Which training images influence a generated copy is then known.
"""

import numpy as np

from journey.engine.checks import require, require_count
from journey.engine.seeding import numpy_generator
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Dataset
from journey.pipeline.subsets import balanced_order

TRAIN, HELD_OUT, INJECTED = "train", "held_out", "injected"


def split_parts(dataset: Dataset) -> dict[str, ImageSet]:
    """Return the training and held-out images of a dataset, and the originals of its duplicates.

    The originals are taken from the held-out images, class-balanced. Their duplicates follow the
    training images, whose rows do not change.
    """
    train, held_out = dataset.load()
    count = dataset.num_injected
    if not count:
        return {TRAIN: train, HELD_OUT: held_out}
    allowed = f"0 with dataset={dataset.name}, whose images are decoded from their files"
    in_memory = not train.identity and not held_out.identity
    require(in_memory, "dataset.num_injected", count, allowed)
    require_count("dataset.num_injected", count, most=len(held_out))

    order = balanced_order(held_out.labels, seed=0)
    originals, rest = held_out.take(np.sort(order[:count])), held_out.take(np.sort(order[count:]))
    copies = make_duplicates(originals, dataset.copies, dataset.jitter)
    captions = None if train.captions is None else train.captions + (copies.captions or ())
    combined = ImageSet(
        images=np.concatenate([train.images[:], copies.images[:]]),
        labels=np.concatenate([train.labels, copies.labels]),
        captions=captions,
        ids=train.ids + copies.ids,
        class_names=train.class_names,
    )
    return {TRAIN: combined, HELD_OUT: rest, INJECTED: originals}


def make_duplicates(originals: ImageSet, copies: int, jitter: float) -> ImageSet:
    """Return copies of images, each with noise of its own.

    Args:
        originals: Images in memory.
        copies: How many copies of each.
        jitter: Standard deviation of the noise; the difference between white and black is 1.
    """
    repeated = originals.take(np.repeat(np.arange(len(originals)), copies))
    ids = tuple(duplicate_id(name, copy) for name in originals.ids for copy in range(copies))
    images = repeated.images[:]
    if jitter:
        noise = np.empty(images.shape)
        for i, name in enumerate(ids):
            noise[i] = numpy_generator(0, "jitter", name).standard_normal(images.shape[1:])
        images = np.rint(images + 255 * jitter * noise).clip(0, 255).astype(np.uint8)
    return ImageSet(images, repeated.labels, repeated.captions, ids, repeated.class_names)


def duplicate_id(name: str, copy: int) -> str:
    """Return the id of a copy of an image."""
    return f"{name}/copy{copy}"
