"""Sets of images with their labels, captions and ids, in memory and on disk.

N  images;  C, H, W  channels, height and width of one
"""

import hashlib
import itertools
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

WRITE_BYTES = 2**26  # pixels in memory at once while images are written


@dataclass(frozen=True)
class ImageFiles:
    """Image files in place of an array uint8 [N, C, H, W]. Indexing decodes them, uncached."""

    files: Sequence[str]
    image_shape: tuple[int, int, int]  # C, H, W
    decode: Callable[[str], np.ndarray]  # file name → uint8 [C, H, W]
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return N, C, H, W."""
        return len(self), *self.image_shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Return the images of a slice, a mask or an array of rows, decoded by several threads."""
        rows = np.arange(len(self))[index]
        images = np.empty((len(rows), *self.image_shape), self.dtype)
        with ThreadPoolExecutor() as threads:
            for i, image in enumerate(threads.map(lambda row: self.decode(self.files[row]), rows)):
                images[i] = image
        return images


@dataclass(frozen=True)
class ImageSet:
    """Images as they are on disk, with their labels, texts and names.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], indices into class_names.
        captions: The captions of every image, equally many for all; or None.
        ids: N distinct names, which stay the same whatever the split.
        class_names: The name of every label.
        identity: A hash that replaces the pixels in the content hash of `ImageFiles`; otherwise "".
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray
    captions: tuple[tuple[str, ...], ...] | None
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    identity: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: np.ndarray) -> "ImageSet":
        """Return the images of an index [n], in its order, in memory."""
        captions = None if self.captions is None else tuple(self.captions[i] for i in index)
        ids = tuple(self.ids[i] for i in index)
        return ImageSet(self.images[index], self.labels[index], captions, ids, self.class_names)

    def describe(self, index: int) -> str:
        """Return a short title of one image: the beginning of its first caption, or its class."""
        if self.captions is None:
            return self.class_names[self.labels[index]]
        return self.captions[index][0][:24]


def check_several_classes(where: str, value: str, images: ImageSet) -> None:
    """Check that training images have classes, which a classifier can distinguish.

    Raises:
        ConfigError: They have one.
    """
    num_classes = len(np.unique(images.labels))
    if num_classes < 2:
        allowed = f"left out: the training images are of {num_classes} class"
        raise ConfigError(f"{where}={value}: must be {allowed}")


def check_images(images: ImageSet, name: str) -> None:
    """Check that the parts of an image set fit together.

    Raises:
        ConfigError: They do not. The message begins with `name`.
    """
    n, pixels, captions = len(images), images.images, images.captions or ()
    texts = itertools.chain(images.ids, images.class_names, *captions)
    named = np.isin(images.labels, np.arange(len(images.class_names))).all()
    rules = {
        "images must be uint8 [N, C, H, W]": pixels.dtype == np.uint8 and pixels.ndim == 4,
        f"there must be {n} labels, whole numbers": len(images.labels) == n
        and images.labels.dtype.kind in "iu",
        f"there must be {n} ids, each once": len(set(images.ids)) == len(images.ids) == n,
        f"there must be captions of all {n}": images.captions is None or len(captions) == n,
        "there must be as many captions of each, one or more": len(set(map(len, captions))) <= 1
        and () not in captions,
        "captions, ids and class names must be texts": all(isinstance(text, str) for text in texts),
        "every label must have a name, of its own": named
        and len(set(images.class_names)) == len(images.class_names),
    }
    for rule, holds in rules.items():
        if not holds:
            raise ConfigError(f"{name}: {rule}")


def content_hash(*parts: ImageSet) -> str:
    """Return a hash of texts, labels and pixels (or the identity in place of pixels)."""
    digest = hashlib.sha256()
    for part in parts:
        texts = json.dumps([part.captions, part.ids, part.class_names, part.images.shape])
        digest.update(texts.encode())
        pixels = part.identity.encode() or np.ascontiguousarray(part.images).data
        digest.update(pixels)
        digest.update(np.ascontiguousarray(part.labels).data)
    return digest.hexdigest()


def write_images(images: ImageSet, directory: Path, num_written: int = 0) -> Iterator[int]:
    """Write labels.npy, texts.json and images.npy, a block of images at a time, into a directory.

    Yields the number of images on disk. It begins after `num_written`, which an earlier call wrote.
    """
    directory.mkdir(exist_ok=True)
    np.save(directory / "labels.npy", images.labels)
    texts = {"captions": images.captions, "ids": images.ids, "class_names": images.class_names}
    (directory / "texts.json").write_text(json.dumps(texts))
    path, shape = directory / "images.npy", images.images.shape
    if num_written == 0:
        new_array(path, shape, np.uint8)
    block = max(1, WRITE_BYTES // math.prod(shape[1:]))
    for first in range(num_written, len(images), block):
        last = min(first + block, len(images))
        pixels = images.images[first:last]
        # Anew for each block: pages stay in memory while they are mapped.
        array = open_memmap(path, "r+")
        array[first:last] = pixels
        array.flush()
        del array
        yield last


def read_images(directory: Path) -> ImageSet:
    """Return the image set that `write_images` wrote, its pixels mapped from disk."""
    texts = json.loads((directory / "texts.json").read_text())
    captions = None if texts["captions"] is None else tuple(map(tuple, texts["captions"]))
    images = np.load(directory / "images.npy", mmap_mode="r")
    labels = np.load(directory / "labels.npy")
    return ImageSet(images, labels, captions, tuple(texts["ids"]), tuple(texts["class_names"]))


def as_pixels(images: np.ndarray) -> "torch.Tensor":
    """Return images uint8 in 0…255 as float32 in −1…1."""
    import torch  # here: plans read labels alone

    return torch.from_numpy(np.array(images)).float() / 127.5 - 1


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Return square images uint8 [N, C, H, H] as [N, C, size, size].

    Pixels are averaged where the new size is smaller. A black border is added where it is larger.
    """
    margin = size - images.shape[-1]
    if margin >= 0:
        border = (margin // 2, margin - margin // 2)
        return np.pad(images, ((0, 0), (0, 0), border, border))
    import torch  # here: a size that fits needs none
    from torch.nn.functional import interpolate

    resized = np.empty((*images.shape[:2], size, size), np.uint8)
    for first in range(0, len(images), 1000):  # as floats, images take four times the memory
        pixels = torch.from_numpy(np.ascontiguousarray(images[first : first + 1000])).float()
        averaged = interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        resized[first : first + 1000] = averaged.round().clamp(0, 255).numpy()
    return resized
