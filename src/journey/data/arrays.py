"""Images of a Python program: arrays or tensors, which `journey.add_images` stores by content."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey.engine.checks import ConfigError, require, require_count
from journey.pipeline.images import ImageSet, check_images, content_hash
from journey.pipeline.interfaces import Dataset

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "sha-"  # a hash of digits alone would be read as a number
LABELS = "one for each image: whole numbers or texts"


@dataclass
class Arrays(Dataset):
    """Images that `journey.add_images` stored, by their content."""

    name: ClassVar[str] = "arrays"
    content: str = ""  # as `journey.add_images` returns it
    # What `adding` stores, by content, training and held out.
    in_memory: ClassVar[dict[str, tuple[ImageSet, ImageSet]]] = {}

    @property
    def label(self) -> str:
        return f"arrays{self.content.removeprefix(PREFIX)[:6]}"

    def check(self, where: str) -> None:
        allowed = "what journey.add_images returned, sha-…"
        given = self.content.startswith(PREFIX)
        require(given or not self.content, f"{where}.content", self.content, allowed)
        injected = self.num_injected
        require(injected == 0, f"{where}.num_injected", injected, "0 with dataset=arrays")

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the images, which only the process that adds them has; others read the store.

        Raises:
            ConfigError: The store does not have them.
        """
        allowed = "that of images which journey.add_images stored in this artifacts="
        in_memory = self.content in self.in_memory
        require(in_memory, "dataset.content", self.content or "''", allowed)
        return self.in_memory[self.content]


@contextmanager
def adding(train: ImageSet, held_out: ImageSet) -> Iterator[Arrays]:
    """Yield the dataset of images in memory, which can be loaded inside the `with` block only."""
    dataset = Arrays(content=PREFIX + content_hash(train, held_out)[:16])
    Arrays.in_memory[dataset.content] = (train, held_out)
    try:
        yield dataset
    finally:
        del Arrays.in_memory[dataset.content]


def as_image_set(
    images: "np.ndarray | Tensor",
    labels: "Sequence[int] | Sequence[str] | np.ndarray | Tensor | None",
    captions: Sequence[str] | Sequence[Sequence[str]] | None,
    ids: Sequence[str] | None,
    class_names: Sequence[str] | None,
    value_range: tuple[float, float] | None,
) -> ImageSet:
    """Return arrays as an image set. The arguments are those of `journey.add_images`.

    Raises:
        ConfigError: A type, a value or a number of items is not allowed.
    """
    pixels = _as_pixels(_as_array("images", images), value_range)
    count = len(pixels)
    indices, names = _as_labels(labels, class_names, count)
    if ids is None:
        ids = [f"{row:06d}" for row in range(count)]
    texts = None
    if captions is not None:
        texts = tuple((c,) if isinstance(c, str) else tuple(c) for c in captions)
    result = ImageSet(pixels, indices, texts, tuple(ids), names)
    check_images(result, "add_images")
    return result


def _as_array(name: str, values: "Sequence | np.ndarray | Tensor") -> np.ndarray:
    """Return an array or a tensor as an array; sequences, too."""
    if not isinstance(values, np.ndarray) and hasattr(values, "detach"):
        tensor = values.detach().cpu()
        values = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    try:
        return np.asarray(values)
    except ValueError:  # of sequences of different lengths
        raise ConfigError(f"{name}: must be an array, with rows of equal lengths") from None


def _as_pixels(images: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Return images as uint8; floats between black and white are rounded to the nearest level."""
    shape = tuple(images.shape)
    valid = images.ndim == 4 and shape[1] in (1, 3) and min(shape) > 0 and len(images) >= 2
    allowed = "[N, C, H, W], with 2 images or more of 1 or 3 channels"
    require(valid, "images.shape", shape, allowed)
    if images.dtype == np.uint8:
        allowed = "left out: images are uint8, of 0…255"
        require(value_range is None, "value_range", value_range, allowed)
        return np.ascontiguousarray(images)
    allowed = "uint8, or floating point with value_range"
    require(images.dtype.kind == "f", "images.dtype", images.dtype, allowed)
    given = value_range is not None and len(value_range) == 2 and value_range[0] < value_range[1]
    allowed = "the values of black and white, (-1, 1) or (0, 1), with floating-point images"
    if value_range is None or not given:
        raise ConfigError(f"value_range={value_range}: must be {allowed}")
    black, white = value_range
    for row, image in enumerate(images):
        low, high = float(image.min()), float(image.max())  # NaN if there is one
        allowed = f"in value_range={value_range}, and no NaN"
        require(black <= low <= high <= white, f"images[{row}]", f"{low:g}…{high:g}", allowed)
    pixels = np.empty(shape, np.uint8)
    for row, image in enumerate(images):
        pixels[row] = np.rint((image.astype(np.float64) - black) * (255 / (white - black)))
    return pixels


def _as_labels(
    labels: "Sequence[int] | Sequence[str] | np.ndarray | Tensor | None",
    class_names: Sequence[str] | None,
    count: int,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return each image's index into the names of the classes, and the names."""
    if labels is None:
        require(class_names is None, "class_names", class_names, "left out without labels")
        return np.zeros(count, np.int64), (".",)
    values = _as_array("labels", labels)
    require(values.shape == (count,), "labels.shape", tuple(values.shape), f"({count},): {LABELS}")
    require(values.dtype.kind in "iuU", "labels.dtype", values.dtype, LABELS)
    if values.dtype.kind == "U":
        require(class_names is None, "class_names", class_names, "left out with labels of texts")
    if class_names is None:
        distinct, indices = np.unique(values, return_inverse=True)
        return indices.astype(np.int64), tuple(map(str, distinct))
    low, high, most = int(values.min()), int(values.max()), len(class_names) - 1
    within = 0 <= low <= high <= most
    require(within, "labels", f"{low}…{high}", f"in 0…{most}, rows of class_names")
    return values.astype(np.int64), tuple(class_names)


def split_last(images: ImageSet, num_held_out: int) -> tuple[ImageSet, ImageSet]:
    """Return all images but the last few, and these; each held-out class has a training image.

    Raises:
        ConfigError: There are too few images, or a class has held-out images only.
    """
    count = len(images) - num_held_out
    require_count("num_held_out", num_held_out, least=0, most=len(images) - 2)
    rows = np.arange(len(images))
    train, held_out = images.take(rows[:count]), images.take(rows[count:])
    for label in sorted(set(held_out.labels.tolist()) - set(train.labels.tolist())):
        raise ConfigError(f"no training image has the held-out class {images.class_names[label]}")
    return train, held_out
