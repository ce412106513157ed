"""Which images are for training and which are held out. N: all images.

Keep the images of a dataset. Payload: train/, held_out/ and, if any are planted, planted/, each images.npy, labels.npy
and texts.json; metrics.jsonl.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from journey.data.duplicates import split_parts
from journey.engine import resume
from journey.engine.metrics import track
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import ImageSet, content_hash, read_images, write_images
from journey.pipeline.interfaces import Images

if TYPE_CHECKING:
    pass


def train_images(images: Images, workspace: Workspace) -> ImageSet:
    """The training images, mapped from disk."""
    return read_images(get(images, workspace).path / "train")


def split_images(images: ImageSet, num_train: int, order: np.ndarray) -> tuple[ImageSet, ImageSet]:
    """The first `num_train` images of an order, and the rest; each in their old order."""
    return images.take(np.sort(order[:num_train])), images.take(np.sort(order[num_train:]))


def make_images(spec: Images, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if the dataset no longer holds what the address says; ConfigError if an image cannot be decoded."""
    # Load.
    parts = split_parts(spec.dataset)
    found = content_hash(*parts.values())
    if found != spec.content:
        raise ValueError(
            f"the images of {spec.label} have changed: sha256 {found[:12]}, expected {spec.content[:12]}"
        )

    # Begin, or continue where an interrupted run stopped.
    done = resume.load_state(partial) or dict.fromkeys(parts, 0)

    # Keep, some images at a time.
    total = sum(map(len, parts.values()))
    with track(spec, partial, workspace, resume_step=sum(done.values())) as log:
        for name, images in parts.items():
            for count in write_images(images, partial / name, done[name]):
                done[name] = count
                log(sum(done.values()), of=total)
                resume.save_state(partial, done)
