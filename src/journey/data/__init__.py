"""Datasets. Every one becomes the same `ImageSet`; nothing downstream knows which it was."""

from dataclasses import dataclass

import numpy as np

from journey import config


@dataclass(frozen=True)
class ImageSet:
    """Images as they are on disk, with what is known of each.

    images: uint8 [N, C, H, W]; labels: int64 [N]; captions: N texts, or None; ids: N names that are stable across
    splits; class_names: text of each label.
    """

    images: np.ndarray
    labels: np.ndarray
    captions: tuple[str, ...] | None
    ids: tuple[str, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


def load(dataset: config.Dataset) -> tuple[ImageSet, ImageSet]:
    """The training images and the held-out rest."""
    match dataset:
        case config.Digits():
            from journey.data import digits

            return digits.load(dataset)
        case _:
            raise config.ConfigError(f"dataset.name={dataset.name}: no loader; available: digits")
