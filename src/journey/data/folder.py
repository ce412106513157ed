"""A folder of images, with classes as subfolders or captions and labels in `metadata.jsonl`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.data.images import read_image, split_images
from journey.engine.checks import ConfigError, require, require_count, require_seed
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Dataset
from journey.pipeline.subsets import balanced_order

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
METADATA = "metadata.jsonl"


@dataclass
class Folder(Dataset):
    """All images below a directory. Those that are not for training are held out.

    A line of `metadata.jsonl` is a JSON object with `file_name` and, optionally, `label` and `text`
    (as in Hugging Face's imagefolder).
    """

    name: ClassVar[str] = "folder"
    reads_all_below: ClassVar[bool] = True
    root: str = "images"  # the directory
    size: int = 32  # height and width of the images: central squares, resized
    channels: int = 3  # 3: colour, 1: grey
    num_train: int = 0  # training images, class-balanced; 0: nine tenths
    seed: int = 0  # of the split

    @property
    def label(self) -> str:
        return f"folder{self.size}px"

    def check(self, where: str) -> None:
        require_count(f"{where}.size", self.size, least=8, most=1024)
        require(self.channels in (1, 3), f"{where}.channels", self.channels, "1 (grey) or 3")
        require_count(f"{where}.num_train", self.num_train, least=0)
        require_seed(f"{where}.seed", self.seed)

    def sources(self) -> list[Path]:
        return [*self._files(), Path(self.root, METADATA)]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return training and held-out images, in the order of their paths."""
        files = self._files()
        allowed = f"a directory with two images or more ({', '.join(SUFFIXES)})"
        require(len(files) >= 2, "dataset.root", self.root, allowed)
        names = [path.relative_to(self.root).as_posix() for path in files]
        metadata = self._read_metadata(names)

        classes, captions = [], []
        for name in names:
            row = metadata.get(name, {})
            classes.append(str(row.get("label", Path(name).parent.as_posix())))
            captions.append(row.get("text"))
        class_names = sorted(set(classes))
        captioned = any(caption is not None for caption in captions)
        if captioned and None in captions:
            name = names[captions.index(None)]
            allowed = f"a directory whose images all have captions or none; {name} has no text"
            require(False, "dataset.root", self.root, allowed)

        everything = ImageSet(
            images=np.stack([read_image(path, self.size, self.channels) for path in files]),
            labels=np.array([class_names.index(name) for name in classes]),
            captions=tuple((str(caption),) for caption in captions) if captioned else None,
            ids=tuple(names),
            class_names=tuple(class_names),
        )
        count = self.num_train or len(files) - max(1, len(files) // 10)
        allowed = f"fewer than the {len(files)} images there are"
        require(count < len(files), "dataset.num_train", count, allowed)
        return split_images(everything, count, balanced_order(everything.labels, self.seed))

    def _files(self) -> list[Path]:
        paths = Path(self.root).rglob("*")
        return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)

    def _read_metadata(self, names: list[str]) -> dict[str, dict]:
        """Return the rows of `metadata.jsonl` by file name.

        Raises:
            ConfigError: A row is not valid, or describes a file that is not among `names`.
        """
        path = Path(self.root, METADATA)
        if not path.exists():
            return {}
        metadata = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                metadata[row["file_name"]] = row
            except (ValueError, KeyError, TypeError):
                problem = f"{path}:{number}: must be a JSON object with a file_name"
                raise ConfigError(problem) from None
        missing = sorted(set(metadata) - set(names))
        if missing:
            such = f"({len(missing)} such)"
            raise ConfigError(f"{path}: describes {missing[0]}, which does not exist {such}")
        return metadata
