"""MS COCO 2017 (Lin et al. 2014; captions: Chen et al. 2015): photographs, five captions each."""

import contextlib
import functools
import hashlib
import io
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
from journey.pipeline.images import ImageFiles, ImageSet
from journey.pipeline.interfaces import Dataset

YEAR = 2017
TRAIN, VAL = f"train{YEAR}", f"val{YEAR}"
NUM_CAPTIONS = 5  # used of each image, which has five to seven
DECODING = 1  # version of the decoding: increase it when the same files give other pixels


@dataclass
class COCO(Dataset):
    """All images of the captions files: train2017 for training, val2017 held out.

    Images are identified by captions, file names and file lengths, so that none is decoded early.
    A file that is replaced by another one of the same length is not noticed.
    """

    name: ClassVar[str] = "coco"
    licence: ClassVar[str] = "CC BY 4.0 (captions) and Flickr's terms of use (images)"
    # The directory with train2017/, val2017/ and annotations/.
    root: str = field(default="coco", metadata={"path": True})
    size: int = 128  # height and width of the images: central squares, resized

    @property
    def label(self) -> str:
        return f"coco{self.size}px"

    def check(self, where: str) -> None:
        require_count(f"{where}.size", self.size, least=8, most=1024)

    def sources(self) -> list[Path]:
        paths = []
        for part in (TRAIN, VAL):  # a directory's time changes when a file is added or removed
            paths += [self._captions_path(part), Path(self.root, part)]
        return paths

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return train2017 and val2017, in the order of file names. No image is decoded yet."""
        missing = next((path for path in self.sources() if not path.exists()), None)
        layout = f"{TRAIN}/, {VAL}/ and annotations/captions_{{train,val}}{YEAR}.json"
        allowed = f"a directory with {layout}; {missing} is missing"
        require(missing is None, "dataset.root", self.root, allowed)
        return self._read(TRAIN), self._read(VAL)

    def _captions_path(self, part: str) -> Path:
        return Path(self.root, "annotations", f"captions_{part}.json")

    def _read(self, part: str) -> ImageSet:
        folder, path = Path(self.root, part), self._captions_path(part)
        captions = _read_captions(path)
        lengths = _file_lengths(folder, captions, path)
        files = [f"{folder}/{name}" for name in captions]
        decode = functools.partial(read_image, size=self.size)
        return ImageSet(
            images=ImageFiles(files, (3, self.size, self.size), decode),
            labels=np.zeros(len(captions), np.int64),
            captions=tuple(captions.values()),
            ids=tuple(f"{part}/{name}" for name in captions),
            class_names=("coco",),
            identity=hashlib.sha256(json.dumps([DECODING, lengths]).encode()).hexdigest(),
        )


def _read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the captions of every image, those of the lowest ids, by file name, in order.

    Raises:
        ConfigError: The file is not readable, of another year, or lacks captions.
    """
    from pycocotools.coco import COCO as Annotations

    captions = {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its timing
            file = Annotations(path)
        year = file.dataset["info"]["year"]
        for image_id, image in file.imgs.items():
            rows = sorted(file.imgToAnns[image_id], key=itemgetter("id"))[:NUM_CAPTIONS]
            captions[image["file_name"]] = tuple(row["caption"].strip() for row in rows)
    except Exception as error:  # another kind of file raises many types of errors
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path}: not a captions file of COCO ({reason})") from None
    require(year == YEAR, f"{path}: info.year", year, str(YEAR))
    if not captions:
        raise ConfigError(f"{path}: lists no images")
    few = [name for name, texts in captions.items() if len(texts) < NUM_CAPTIONS]
    if few:
        count = len(captions[few[0]])
        such = f"({len(few)} such)"
        raise ConfigError(f"{path}: {few[0]} has {count} captions, not {NUM_CAPTIONS} {such}")
    return dict(sorted(captions.items()))


def _file_lengths(folder: Path, names: Collection[str], captions: Path) -> list[int]:
    """Return the lengths in bytes of files in a folder, which a captions file lists.

    Raises:
        ConfigError: One of them does not exist, or is empty.
    """
    with os.scandir(folder) as entries:
        lengths = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    missing = [name for name in names if name not in lengths]
    if missing:
        such = f"({len(missing)} of {len(names)} such)"
        raise ConfigError(f"{captions}: {missing[0]} is not in {folder} {such}")
    empty = [name for name in names if lengths[name] == 0]
    if empty:
        raise ConfigError(f"{folder / empty[0]}: the file is empty ({len(empty)} such)")
    return [lengths[name] for name in names]
