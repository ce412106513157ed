"""CIFAR-10 (python batches), MNIST and Fashion-MNIST (IDX files), read by torchvision.

They are also read as Parquet files of the hub. These have the images in another order, so that ids
are others.
"""

import functools
import itertools
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.data import parquet
from journey.data.images import decode_image
from journey.engine.checks import MOST, ConfigError, require, require_count, require_seed
from journey.pipeline.images import ImageSet, resize
from journey.pipeline.interfaces import Dataset
from journey.pipeline.subsets import balanced_order


class Archive(Enum):
    """A distributed dataset."""

    cifar10 = "cifar10"  # A. Krizhevsky, 2009
    mnist = "mnist"  # Y. LeCun, C. Cortes, C. J. C. Burges
    fashion_mnist = "fashion_mnist"  # H. Xiao, K. Rasul, R. Vollgraf, 2017


BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
IDX_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
IDX = (*IDX_TRAIN, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SIZES = {Archive.cifar10: (3, 32), Archive.mnist: (1, 28), Archive.fashion_mnist: (1, 28)}
LAYOUTS = {  # class of torchvision, folder, files
    Archive.cifar10: ("CIFAR10", "cifar-10-batches-py", BATCHES),
    Archive.mnist: ("MNIST", "MNIST/raw", IDX),
    Archive.fashion_mnist: ("FashionMNIST", "FashionMNIST/raw", IDX),
}


@dataclass
class TorchvisionArchive(Dataset):
    """All images of an archive, or those of some classes. Its test images are held out."""

    name: ClassVar[str] = "archive"
    licence: ClassVar[str] = "as the archive's authors say"
    archive: Archive = Archive.cifar10
    # The directory that contains the archive's folder, or Parquet files of the hub.
    root: str = field(default="data", metadata={"path": True})
    download: bool = False  # download the archive if it is not there
    classes: list[str] = field(default_factory=list)  # names of the classes to use; none: all
    num_train: int = 0  # training images, class-balanced; 0: all
    size: int = 32  # height and width: pixels are averaged, or a black border is added
    # Of the choice of num_train images.
    seed: int = field(default=0, metadata={"used_if": {"num_train": range(1, MOST + 1)}})

    @property
    def label(self) -> str:
        count = (str(self.num_train),) if self.num_train else ()
        return "-".join((self.archive.value, *self.classes, *count))

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, least=0)
        require_count(f"{where}.size", self.size, least=8, most=256)
        require_seed(f"{where}.seed", self.seed)
        distinct = len(set(self.classes)) == len(self.classes) != 1
        require(distinct, f"{where}.classes", self.classes, "distinct, two or more, or none")

    def sources(self) -> list[Path]:
        _, folder, files = LAYOUTS[self.archive]
        paths = [Path(self.root, folder, name) for name in files]
        if not any(map(Path.is_file, paths)) and (splits := parquet.split_files(Path(self.root))):
            return list(itertools.chain.from_iterable(splits.values()))
        return paths

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return training images from the archive's training part, and its test part.

        Raises:
            ConfigError: A file is missing or damaged, or a setting does not fit the archive.
        """
        sources = self.sources()
        missing = [str(path) for path in sources if not path.is_file()]
        if missing and not self.download:
            raise self._error(f"{missing[0]} is missing")
        if sources[0].suffix == ".parquet":
            train, test = self._read_parquet()
        else:
            train, test = self._read(train=True), self._read(train=False)
        if not self.num_train:
            return train, test
        allowed = f"0 (all) or at most the {len(train)} there are"
        require(self.num_train <= len(train), "dataset.num_train", self.num_train, allowed)
        return train.take(np.sort(balanced_order(train.labels, self.seed)[: self.num_train])), test

    def _read(self, train: bool) -> ImageSet:
        """Return one part of the archive: its images of `classes`."""
        from torchvision import datasets

        reader = getattr(datasets, LAYOUTS[self.archive][0])
        try:
            part = reader(self.root, train=train, download=self.download)
        except Exception as error:  # a damaged archive raises many types of errors
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self._error(f"{self.archive.value} is damaged ({reason})") from None
        pixels, labels = np.asarray(part.data), np.asarray(part.targets, np.int64)
        valid = len(pixels) == len(labels) > 0 and pixels.shape[1] == pixels.shape[2]
        if not valid or not np.isin(labels, np.arange(len(part.classes))).all():
            sizes = f"images of shape {pixels.shape}, labels {labels.min(initial=0)}…"
            sizes += f"{labels.max(initial=0)} of shape {labels.shape}"
            raise self._error(f"{self.archive.value} is damaged ({sizes})")
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)  # NCHW
        folder = "train" if train else "test"
        ids = tuple(f"{self.archive.value}/{folder}/{row:05d}" for row in range(len(pixels)))
        return self._chosen(ImageSet(pixels, labels, None, ids, tuple(part.classes)))

    def _read_parquet(self) -> tuple[ImageSet, ImageSet]:
        """Return both parts from the Parquet files of the hub."""
        splits = parquet.split_files(Path(self.root))
        lacking = [split for split in ("train", "test") if split not in splits]
        if lacking:
            raise ConfigError(f"dataset.root={self.root}: has no Parquet files of {lacking[0]}")
        parts = {split: splits[split] for split in ("train", "test")}
        channels, side = SIZES[self.archive]
        decode = functools.partial(decode_image, size=side, channels=channels, exact=True)
        sets = parquet.read_splits(parts, decode, f"{self.archive.value}/hub-")
        return self._chosen(sets["train"]), self._chosen(sets["test"])

    def _chosen(self, part: ImageSet) -> ImageSet:
        """Return the images of `classes`, labelled in their order, at the size of the setting."""
        there = list(part.class_names)
        names = self.classes or there
        unknown = [name for name in names if name not in there]
        require(not unknown, "dataset.classes", unknown, f"among {', '.join(there)}")
        new_label = np.full(len(there), -1)
        new_label[[there.index(name) for name in names]] = np.arange(len(names))
        rows = np.flatnonzero(new_label[part.labels] >= 0)
        images = resize(part.images[rows], self.size)
        ids = tuple(part.ids[row] for row in rows)
        return ImageSet(images, new_label[part.labels[rows]], None, ids, tuple(names))

    def _error(self, problem: str) -> ConfigError:
        """Return an error that names a problem and both ways to solve it."""
        folder = Path(self.root, LAYOUTS[self.archive][1])
        remedy = f"set dataset.download=true, or put the files of the archive into {folder}/"
        return ConfigError(f"dataset.root={self.root}: {problem}; {remedy}")
