"""Datasets: a file for each kind. Every one becomes the same `ImageSet`, and nothing downstream knows which it was."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from journey.artifacts.specs import Images
from journey.artifacts.workspace import Workspace, get
from journey.config.checks import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageSet:
    """Images as they are on disk, with what is known of each.

    images: uint8 [N, C, H, W]; labels: int64 [N]; captions: one text or more for each, as many for all, or None; ids: N
    names that are stable across splits; class_names: text of each label.
    """

    images: np.ndarray
    labels: np.ndarray
    captions: tuple[tuple[str, ...], ...] | None
    ids: tuple[str, ...]
    class_names: tuple[str, ...]

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
    """What image sets hold, bytes and texts, and nothing else."""
    digest = hashlib.sha256()
    for part in parts:
        texts = json.dumps([part.captions, part.ids, part.class_names, part.images.shape])
        for piece in (texts.encode(), np.ascontiguousarray(part.images), np.ascontiguousarray(part.labels)):
            digest.update(piece)
    return digest.hexdigest()


def write(images: ImageSet, directory: Path) -> None:
    """One directory: images.npy, labels.npy, texts.json."""
    directory.mkdir(exist_ok=True)
    np.save(directory / "images.npy", images.images)
    np.save(directory / "labels.npy", images.labels)
    texts = {"captions": images.captions, "ids": images.ids, "class_names": images.class_names}
    (directory / "texts.json").write_text(json.dumps(texts))


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
