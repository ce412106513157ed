"""Datasets: a file for each kind. Every one becomes the same `ImageSet`, and nothing downstream knows which it was."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.format import open_memmap

from journey.artifacts.files import new_array
from journey.artifacts.specs import Images
from journey.artifacts.workspace import Workspace, get
from journey.config.checks import ConfigError
from journey.data.decoded import Decoded

BLOCK = 2**26  # bytes of images that are in memory at once when they are written

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageSet:
    """Images as they are on disk, with what is known of each.

    images: uint8 [N, C, H, W]; labels: int64 [N]; captions: one text or more for each, as many for all, or None; ids: N
    names that are stable across splits; class_names: text of each label; identity: what stands for the bytes of images that
    are decoded when they are indexed, or "".
    """

    images: np.ndarray | Decoded
    labels: np.ndarray
    captions: tuple[tuple[str, ...], ...] | None
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    identity: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: np.ndarray) -> "ImageSet":
        """Some of the images, in the order of the index."""
        captions = None if self.captions is None else tuple(self.captions[i] for i in index)
        ids = tuple(self.ids[i] for i in index)
        return ImageSet(self.images[index], self.labels[index], captions, ids, self.class_names)

    def describe(self, index: int) -> str:
        """What a person calls an image: its class, or the beginning of its first caption."""
        return self.class_names[self.labels[index]] if self.captions is None else self.captions[index][0][:24]


def check(images: ImageSet, what: str) -> None:
    """Raises: ConfigError if the parts of an image set do not belong together."""
    n = len(images)
    problems = {
        "images must be uint8 [N, C, H, W]": images.images.dtype == np.uint8 and images.images.ndim == 4,
        f"there must be {n} labels": len(images.labels) == n,
        f"there must be {n} ids, each once": len(set(images.ids)) == len(images.ids) == n,
        f"there must be captions of all {n}": images.captions is None or len(images.captions) == n,
        "there must be as many captions of each": len({len(texts) for texts in images.captions or ()}) <= 1,
        "every label must have a name": n == 0 or 0 <= images.labels.min() <= images.labels.max() < len(images.class_names),
    }
    for problem, holds in problems.items():
        if not holds:
            raise ConfigError(f"{what}: {problem}")


def content_hash(*parts: ImageSet) -> str:
    """What image sets hold, texts and bytes or what stands for them, and nothing else."""
    digest = hashlib.sha256()
    for part in parts:
        texts = json.dumps([part.captions, part.ids, part.class_names, part.images.shape])
        images = part.identity.encode() or np.ascontiguousarray(part.images)
        for piece in (texts.encode(), images, np.ascontiguousarray(part.labels)):
            digest.update(piece)
    return digest.hexdigest()


def write(images: ImageSet, directory: Path, done: int = 0) -> Iterator[int]:
    """One directory: labels.npy, texts.json and images.npy, a block at a time; yields how many images are on disk.

    done: how many of them an interrupted run has left there.
    """
    directory.mkdir(exist_ok=True)
    np.save(directory / "labels.npy", images.labels)
    texts = {"captions": images.captions, "ids": images.ids, "class_names": images.class_names}
    (directory / "texts.json").write_text(json.dumps(texts))
    path, shape = directory / "images.npy", images.images.shape
    if done == 0:
        new_array(path, shape, np.uint8)
    at_once = max(1, BLOCK // math.prod(shape[1:]))
    for first in range(done, len(images), at_once):
        last = min(first + at_once, len(images))
        _fill(path, slice(first, last), images.images[first:last])
        yield last


def _fill(path: Path, rows: slice, images: np.ndarray) -> None:
    """Some rows of an array on disk, which is mapped for no longer: what is mapped takes memory."""
    array = open_memmap(path, "r+")
    array[rows] = images
    array.flush()


def read(directory: Path) -> ImageSet:
    """What `write` wrote, its images mapped from disk."""
    texts = json.loads((directory / "texts.json").read_text())
    captions = None if texts["captions"] is None else tuple(tuple(of) for of in texts["captions"])
    images = np.load(directory / "images.npy", mmap_mode="r")
    return ImageSet(images, np.load(directory / "labels.npy"), captions, tuple(texts["ids"]), tuple(texts["class_names"]))


def as_pixels(images: np.ndarray) -> "torch.Tensor":
    """uint8 0…255 → float32 −1…1."""
    import torch  # here: planning reads labels alone

    return torch.from_numpy(np.array(images)).float() / 127.5 - 1


def train_images(images: Images, workspace: Workspace) -> ImageSet:
    """The training images, mapped from disk."""
    return read(get(images, workspace).path / "train")
