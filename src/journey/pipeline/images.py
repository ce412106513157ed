"""Images that stay in their files until they are asked for. N: all of them.

Square images of another size."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.lib.format import open_memmap

from journey.engine.checks import ConfigError
from journey.engine.files import new_array

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Decoded:
    """In place of an array uint8 [N, C, H, W]: what is indexed is decoded, by threads, and nothing is kept."""

    files: Sequence[str]
    image_shape: tuple[int, int, int]  # C, H, W
    decode: Callable[[str], np.ndarray]  # one file, as uint8 [C, H, W]
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.image_shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """The images of a slice, a mask or an array of rows. Raises: what decoding the first bad one of them raises."""
        rows = np.arange(len(self))[index]
        images = np.empty((len(rows), *self.image_shape), self.dtype)

        def fill(place: int) -> None:
            images[place] = self.decode(self.files[rows[place]])

        with ThreadPoolExecutor() as threads:
            for _ in threads.map(fill, range(len(rows))):  # raises what a thread raised
                pass
        return images


BLOCK = 2**26  # bytes of images that are in memory at once when they are written


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
        return (
            self.class_names[self.labels[index]]
            if self.captions is None
            else self.captions[index][0][:24]
        )


def check_images(images: ImageSet, what: str) -> None:
    """Raises: ConfigError if the parts of an image set do not belong together."""
    n = len(images)
    problems = {
        "images must be uint8 [N, C, H, W]": images.images.dtype == np.uint8
        and images.images.ndim == 4,
        f"there must be {n} labels": len(images.labels) == n,
        f"there must be {n} ids, each once": len(set(images.ids)) == len(images.ids) == n,
        f"there must be captions of all {n}": images.captions is None or len(images.captions) == n,
        "there must be as many captions of each": len(
            {len(texts) for texts in images.captions or ()}
        )
        <= 1,
        "every label must have a name": n == 0
        or 0 <= images.labels.min() <= images.labels.max() < len(images.class_names),
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


def write_images(images: ImageSet, directory: Path, done: int = 0) -> Iterator[int]:
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


def read_images(directory: Path) -> ImageSet:
    """What `write` wrote, its images mapped from disk."""
    texts = json.loads((directory / "texts.json").read_text())
    captions = None if texts["captions"] is None else tuple(tuple(of) for of in texts["captions"])
    images = np.load(directory / "images.npy", mmap_mode="r")
    return ImageSet(
        images,
        np.load(directory / "labels.npy"),
        captions,
        tuple(texts["ids"]),
        tuple(texts["class_names"]),
    )


def as_pixels(images: np.ndarray) -> "torch.Tensor":
    """uint8 0…255 → float32 −1…1."""
    import torch  # here: planning reads labels alone

    return torch.from_numpy(np.array(images)).float() / 127.5 - 1


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Images uint8 [N, C, H, H] as [N, C, size, size]: with a black border where they are smaller, averaged where larger."""
    old = images.shape[-1]
    if old <= size:
        before = (size - old) // 2
        border = (before, size - old - before)
        return np.pad(images, ((0, 0), (0, 0), border, border))
    import torch  # here: a size that fits needs none
    from torch.nn.functional import interpolate

    found = [
        interpolate(torch.from_numpy(some).float(), (size, size), mode="bilinear", antialias=True)
        for some in _resize_blocks(images)
    ]
    return torch.cat(found).round().clamp(0, 255).to(torch.uint8).numpy()


def _resize_blocks(images: np.ndarray) -> list[np.ndarray]:
    """A thousand at a time: as floats, they are four times as large."""
    return [
        np.ascontiguousarray(images[first : first + 1000]) for first in range(0, len(images), 1000)
    ]
