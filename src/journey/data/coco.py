"""MS COCO 2017 (T.-Y. Lin et al. 2014; captions: X. Chen et al. 2015): photographs, and five captions of each."""

import contextlib
import functools
import hashlib
import io
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.engine.checks import ConfigError, require, require_count
from journey.pipeline.images import Decoded, ImageSet
from journey.pipeline.interfaces import Dataset

YEAR = 2017


TRAIN, VAL = f"train{YEAR}", f"val{YEAR}"


LAYOUT = f"{TRAIN}/, {VAL}/ and annotations/captions_{{train,val}}{YEAR}.json"


NUM_CAPTIONS = 5  # of each image: there are five to seven


DECODING = 1  # rises when the same files give other pixels


@dataclass
class COCO(Dataset):
    """All images that the captions files list. They are known by their captions, names and lengths in bytes, so that none is
    decoded before it is kept; a file that is replaced by one of the same length is not seen.
    """

    name: ClassVar[str] = "coco"
    licence: ClassVar[str] = "CC BY 4.0 (captions) and Flickr's terms of use (images)"
    root: str = "coco"  # the directory that holds train2017/, val2017/ and annotations/
    size: int = 128  # the middle square of every image, at this size

    @property
    def label(self) -> str:
        return f"coco{self.size}px"

    def check(self, where: str) -> None:
        require_count(f"{where}.size", self.size, least=8, most=1024)

    def sources(self) -> list[Path]:
        """The captions, and the directories of the images: their times tell what is added or removed, without a look at each."""
        return [
            path for part in (TRAIN, VAL) for path in (self._captions(part), Path(self.root, part))
        ]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Training images from train2017 and held-out ones from val2017, in the order of their names. None is decoded yet.

        Raises: ConfigError naming the file that is missing, empty, of another year or without five captions of each image.
        """
        missing = next((path for path in self.sources() if not path.exists()), None)
        require(
            missing is None,
            "dataset.root",
            self.root,
            f"a directory with {LAYOUT}; {missing} is missing",
        )
        return self._part(TRAIN), self._part(VAL)

    def _captions(self, part: str) -> Path:
        return Path(self.root, "annotations", f"captions_{part}.json")

    def _part(self, part: str) -> ImageSet:
        path, folder = self._captions(part), Path(self.root, part)
        captions = _captions(path)
        lengths = _lengths(folder, captions, path)
        identity = hashlib.sha256(json.dumps([DECODING, lengths]).encode()).hexdigest()
        files = [f"{folder}/{name}" for name in captions]
        images = Decoded(
            files, (3, self.size, self.size), functools.partial(_decode, size=self.size)
        )
        ids = tuple(f"{part}/{name}" for name in captions)
        return ImageSet(
            images, np.zeros(len(ids), np.int64), tuple(captions.values()), ids, ("coco",), identity
        )


def _captions(path: Path) -> dict[str, tuple[str, ...]]:
    """The first five captions of every image, by its file name, in order.

    Raises: ConfigError if they are no captions, of another year, or fewer.
    """
    year, captions = _read(path)
    require(year == YEAR, f"{path}: info.year", year, str(YEAR))
    if not captions:
        raise ConfigError(f"{path}: lists no image")
    few = [name for name, texts in captions.items() if len(texts) < NUM_CAPTIONS]
    if few:
        raise ConfigError(
            f"{path}: {few[0]} has {len(captions[few[0]])} captions, not {NUM_CAPTIONS} ({len(few)} such)"
        )
    return captions


def _read(path: Path) -> tuple[int, dict[str, tuple[str, ...]]]:
    """The year of a captions file, and the first captions of every image, by its file name, in order.

    Raises: ConfigError if it cannot be read.
    """
    from pycocotools.coco import COCO as Annotations

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it tells how long it takes
            read = Annotations(path)
        captions = {
            image["file_name"]: _first(read.imgToAnns[key]) for key, image in read.imgs.items()
        }
        return read.dataset["info"]["year"], dict(sorted(captions.items()))
    except Exception as error:  # what is no such file fails in many ways
        raise ConfigError(
            f"{path}: no captions of COCO ({type(error).__name__}: {error})"
        ) from None


def _first(annotations: list[dict]) -> tuple[str, ...]:
    """The captions of an image that have the lowest ids, without the white space around some."""
    ordered = sorted(annotations, key=itemgetter("id"))
    return tuple(annotation["caption"].strip() for annotation in ordered[:NUM_CAPTIONS])


def _lengths(folder: Path, names: Collection[str], captions: Path) -> list[int]:
    """How many bytes each of some files in a folder has. Raises: ConfigError naming one that is not there, or empty."""
    with os.scandir(folder) as entries:
        there = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    missing = [name for name in names if name not in there]
    if missing:
        raise ConfigError(
            f"{captions}: {missing[0]} is not in {folder} ({len(missing)} of {len(names)} such)"
        )
    empty = [name for name in names if not there[name]]
    if empty:
        raise ConfigError(f"{folder / empty[0]}: an empty file ({len(empty)} such)")
    return [there[name] for name in names]


def _decode(file: str, size: int) -> np.ndarray:
    """The middle square at a size, in colour, uint8 [3, size, size].

    Raises: ConfigError if the file cannot be read to its end.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    except Exception as error:  # a damaged image fails in many ways
        raise ConfigError(f"{file}: no readable image ({error})") from None
    return np.asarray(fitted).transpose(2, 0, 1)
