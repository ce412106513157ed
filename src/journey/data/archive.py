"""The archives that torchvision reads, as they are distributed: CIFAR-10 (python batches), MNIST and Fashion-MNIST (IDX)."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.engine.checks import ConfigError, require, require_count, require_seed
from journey.pipeline.images import ImageSet, resize
from journey.pipeline.interfaces import Dataset
from journey.pipeline.subsets import balanced_order


class Archive(Enum):
    cifar10 = "cifar10"  # A. Krizhevsky, 2009
    mnist = "mnist"  # Y. LeCun, C. Cortes, C. J. C. Burges
    fashion_mnist = "fashion_mnist"  # H. Xiao, K. Rasul, R. Vollgraf, 2017


FOLDERS = {
    Archive.cifar10: "cifar-10-batches-py",
    Archive.mnist: "MNIST/raw",
    Archive.fashion_mnist: "FashionMNIST/raw",
}


READERS = {
    Archive.cifar10: "CIFAR10",
    Archive.mnist: "MNIST",
    Archive.fashion_mnist: "FashionMNIST",
}  # of torchvision


IDX = tuple(
    f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
)


FILES = {
    Archive.cifar10: (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    Archive.mnist: IDX,
    Archive.fashion_mnist: IDX,
}


@dataclass
class TorchvisionArchive(Dataset):
    name: ClassVar[str] = "archive"
    licence: ClassVar[str] = "as the archive's authors say"
    archive: Archive = Archive.cifar10
    root: str = "data"  # the directory that holds its folder
    download: bool = False
    classes: list[str] = field(default_factory=list)  # by name; none: all
    num_train: int = 0  # class-balanced; 0: all of the training part
    size: int = 32  # of an image: less is averaged, more has a black border
    seed: int = 0  # of which num_train

    @property
    def label(self) -> str:
        return (
            self.archive.value
            + "".join(f"-{name}" for name in self.classes)
            + (f"-{self.num_train}" if self.num_train else "")
        )

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, least=0)
        require_count(f"{where}.size", self.size, least=8, most=256)
        require_seed(f"{where}.seed", self.seed)
        require(
            len(set(self.classes)) == len(self.classes) != 1,
            f"{where}.classes",
            self.classes,
            "distinct, two or more, or none",
        )

    def sources(self) -> list[Path]:
        return [Path(self.root) / FOLDERS[self.archive] / name for name in FILES[self.archive]]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Training images from the archive's training part; the held-out ones are its test part.

        Raises: ConfigError if a file is missing or damaged, or a class unknown.
        """
        missing = [str(path) for path in self.sources() if not path.is_file()]
        if missing and not self.download:
            raise ConfigError(
                f"dataset.root={self.root}: {missing[0]} is missing; {self._remedy()}"
            )
        train, test = self._part(train=True), self._part(train=False)
        if not self.num_train:
            return train, test
        allowed = f"0 (all) or at most the {len(train)} there are"
        require(self.num_train <= len(train), "dataset.num_train", self.num_train, allowed)
        return train.take(np.sort(balanced_order(train.labels, self.seed)[: self.num_train])), test

    def _part(self, train: bool) -> ImageSet:
        from torchvision import datasets

        try:
            read = getattr(datasets, READERS[self.archive])(
                self.root, train=train, download=self.download
            )
        except Exception as error:  # a damaged archive fails in many ways
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"dataset.root={self.root}: {self.archive.value} is damaged ({reason}); {self._remedy()}"
            ) from None
        data, labels = np.asarray(read.data), np.asarray(read.targets, np.int64)
        images = data[:, None] if data.ndim == 3 else data.transpose(0, 3, 1, 2)  # [N, C, H, W]
        ids = tuple(
            f"{self.archive.value}/{'train' if train else 'test'}/{i:05d}"
            for i in range(len(labels))
        )
        return _of_classes(
            ImageSet(images, labels, None, ids, tuple(read.classes)), self.classes, self.size
        )

    def _remedy(self) -> str:
        there = Path(self.root) / FOLDERS[self.archive]
        return f"dataset.download=true gets it, or put the files of the archive into {there}/"


def _of_classes(everything: ImageSet, classes: list[str], size: int) -> ImageSet:
    """The images of some classes, labelled in their order, at a size."""
    names = classes or list(everything.class_names)
    unknown = [name for name in names if name not in everything.class_names]
    require(not unknown, "dataset.classes", unknown, f"among {', '.join(everything.class_names)}")
    label_of = np.full(len(everything.class_names), -1)
    label_of[[everything.class_names.index(name) for name in names]] = np.arange(len(names))
    some = everything.take(np.flatnonzero(label_of[everything.labels] >= 0))
    return ImageSet(resize(some.images, size), label_of[some.labels], None, some.ids, tuple(names))
