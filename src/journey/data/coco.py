"""MS COCO (Lin et al. 2014; captions: Chen et al. 2015): photographs, five captions each."""

import functools
import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.data.images import read_image
from journey.engine.checks import ConfigError, require, require_count
from journey.engine.spec import omitted_default
from journey.pipeline.images import ImageFiles, ImageSet
from journey.pipeline.interfaces import Dataset

YEARS = (2014, 2017)  # the same photographs, split and named in two ways
NUM_CAPTIONS = 5  # used of each image, which has five to seven
DECODING = 2  # version of the decoding: increase it when the same files give other pixels


@dataclass
class COCO(Dataset):
    """All images of the captions files: those of train2017 for training, of val2017 held out.

    Images are identified by captions, file names and file lengths, so that none is decoded early.
    A file that is replaced by another one of the same length is not noticed.
    """

    name: ClassVar[str] = "coco"
    licence: ClassVar[str] = "CC BY 4.0 (captions) and Flickr's terms of use (images)"
    # The directory with train2017/ and val2017/, there or in images/, and annotations/.
    root: str = field(default="coco", metadata={"path": True})
    size: int = 128  # height and width of the images: central squares, resized
    year: int = omitted_default(2017)  # of the split: 2017, or 2014

    @property
    def label(self) -> str:
        return f"coco{self.size}px"

    def check(self, where: str) -> None:
        require_count(f"{where}.size", self.size, least=8, most=1024)
        require(self.year in YEARS, f"{where}.year", self.year, " or ".join(map(str, YEARS)))

    @property
    def _parts(self) -> tuple[str, str]:
        """The names of the parts for training and held out."""
        return f"train{self.year}", f"val{self.year}"

    def sources(self) -> list[Path]:
        paths = []
        for part in self._parts:  # a directory's time changes when a file is added or removed
            paths += [self._captions_path(part), self._folder(part)]
        return paths

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return both parts, each in the order of file names. No image is decoded yet."""
        train, val = self._parts
        missing = next((path for path in self.sources() if not path.exists()), None)
        layout = f"{train}/, {val}/ and annotations/captions_{{train,val}}{self.year}.json"
        allowed = f"a directory with {layout}; {missing} is missing"
        require(missing is None, "dataset.root", self.root, allowed)
        for part in self._parts:
            twice = Path(self.root, part).is_dir() and Path(self.root, "images", part).is_dir()
            allowed = f"a directory with {part}/ or images/{part}/, not both"
            require(not twice, "dataset.root", self.root, allowed)
        return self._read(train), self._read(val)

    def _folder(self, part: str) -> Path:
        """Return the folder of a part: in the root, as COCO's archives have it, or in images/."""
        inner = Path(self.root, "images", part)
        return inner if inner.is_dir() else Path(self.root, part)

    def _captions_path(self, part: str) -> Path:
        return Path(self.root, "annotations", f"captions_{part}.json")

    def _read(self, part: str) -> ImageSet:
        folder, path = self._folder(part), self._captions_path(part)
        captions = _read_captions(path)
        lengths = _file_lengths(folder, captions, path)
        files = ImageFiles(
            files=[f"{folder}/{name}" for name in captions],
            image_shape=(3, self.size, self.size),
            decode=functools.partial(read_image, size=self.size),
        )
        return ImageSet(
            images=files,
            labels=np.zeros(len(captions), np.int64),
            captions=tuple(captions.values()),
            ids=tuple(f"{part}/{name}" for name in captions),
            class_names=("coco",),
            identity=hashlib.sha256(json.dumps([DECODING, lengths]).encode()).hexdigest(),
        )


def _read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the captions of every image, those of the lowest ids, by file name, in order.

    Nothing else in the file is read: `info` and `licenses` may be missing or of any kind.

    Raises:
        ConfigError: The file is not readable, or images or captions are not as COCO has them.
    """
    try:
        contents = json.loads(path.read_bytes())
        names = list(map(itemgetter("id", "file_name"), contents["images"]))
        rows: dict[int, list[dict]] = {image_id: [] for image_id, _ in names}
        for row in contents["annotations"]:
            if row["image_id"] in rows:  # a subset may list all captions
                rows[row["image_id"]].append(row)
        captions = {}
        for image_id, name in names:
            chosen = sorted(rows[image_id], key=itemgetter("id"))[:NUM_CAPTIONS]
            captions[name] = tuple(str.strip(row["caption"]) for row in chosen)
    except Exception as error:  # another kind of file raises many types of errors
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path}: not a captions file of COCO ({reason})") from None
    if not len(rows) == len(captions) == len(names):
        raise ConfigError(f"{path}: lists an image twice, by its id or by its file_name")
    if not captions:
        raise ConfigError(f"{path}: lists no images")
    few = [name for name, texts in captions.items() if len(texts) < NUM_CAPTIONS]
    if few:
        problem = f"{few[0]} has {len(captions[few[0]])} captions, not {NUM_CAPTIONS}"
        raise ConfigError(f"{path}: {problem} ({len(few)} such)")
    return dict(sorted(captions.items()))


def _file_lengths(folder: Path, names: Collection[str], captions: Path) -> list[int]:
    """Return the lengths of files that a captions file lists; refuse missing and empty ones."""
    with os.scandir(folder) as entries:
        lengths = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    missing = [name for name in names if name not in lengths]
    if missing:
        problem = f"{missing[0]} is not in {folder}"
        raise ConfigError(f"{captions}: {problem} ({len(missing)} of {len(names)} such)")
    empty = [name for name in names if lengths[name] == 0]
    if empty:
        raise ConfigError(f"{folder / empty[0]}: the file is empty ({len(empty)} such)")
    return [lengths[name] for name in names]
