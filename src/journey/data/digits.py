"""Optical recognition of handwritten digits (E. Alpaydin, C. Kaynak, 1998), as packaged by scikit-learn: 1,797 8×8 images."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.config.checks import require_count, require_seed
from journey.config.contracts import Dataset
from journey.data import ImageSet
from journey.data.splits import balanced_order, split


@dataclass
class Digits(Dataset):
    kind: ClassVar[str] = "digits"
    licence: ClassVar[str] = "CC BY 4.0 (UCI Machine Learning Repository)"
    num_train: int = 1000
    seed: int = 0  # of the split

    @property
    def label(self) -> str:
        return f"digits{self.num_train}"

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, most=1797)
        require_seed(f"{where}.seed", self.seed)

    def sources(self) -> list[Path]:
        package = importlib.util.find_spec("sklearn")  # found, not imported: that takes a second
        return [Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """A seeded, class-balanced split: `num_train` images for training. The grey levels 0…16 become 0…255."""
        from sklearn.datasets import load_digits

        raw = load_digits()
        images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None]  # [1797, 1, 8, 8]
        ids = tuple(f"digits/{i:04d}" for i in range(len(images)))
        everything = ImageSet(images, raw.target.astype(np.int64), None, ids, tuple("0123456789"))
        return split(everything, self.num_train, balanced_order(everything.labels, self.seed))
