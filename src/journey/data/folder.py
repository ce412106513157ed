"""Images of one's own: in a folder for each class, or with a `metadata.jsonl` of file_name, label and text, or neither."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.data.images import split_images
from journey.engine.checks import ConfigError, require, require_count, require_seed
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Dataset
from journey.pipeline.subsets import balanced_order

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


METADATA = "metadata.jsonl"


@dataclass
class Folder(Dataset):
    name: ClassVar[str] = "folder"
    root: str = "images"
    size: int = 32  # the middle square of every image, at this size
    channels: int = 3  # 1: grey
    num_train: int = 0  # class-balanced; 0: all but a tenth
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
        root = Path(self.root)
        return [*self._files(), root / METADATA]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Raises: ConfigError naming the file that is missing, damaged or not described."""
        files = self._files()
        require(
            len(files) >= 2,
            "dataset.root",
            self.root,
            f"a directory with two images or more ({', '.join(sorted(SUFFIXES))})",
        )
        names = [path.relative_to(self.root).as_posix() for path in files]
        described = self._metadata(names)
        classes = [
            str(described.get(name, {}).get("label", Path(name).parent.as_posix()))
            for name in names
        ]
        class_names = sorted(set(classes))
        texts = [described.get(name, {}).get("text") for name in names]
        captions = (
            tuple((str(text),) for text in texts)
            if any(text is not None for text in texts)
            else None
        )
        without = [
            name for name, text in zip(names, texts, strict=True) if captions and text is None
        ]
        require(
            not without,
            "dataset.root",
            self.root,
            f"captioned throughout: {without[:1]} has no text",
        )
        images = np.stack([read_image(path, self.size, self.channels) for path in files])
        labels = np.array([class_names.index(name) for name in classes])
        everything = ImageSet(images, labels, captions, tuple(names), tuple(class_names))
        count = self.num_train or len(files) - max(1, len(files) // 10)
        require(
            count < len(files),
            "dataset.num_train",
            count,
            f"fewer than the {len(files)} images there are",
        )
        return split_images(everything, count, balanced_order(everything.labels, self.seed))

    def _files(self) -> list[Path]:
        return sorted(
            path for path in Path(self.root).rglob("*") if path.suffix.lower() in SUFFIXES
        )

    def _metadata(self, names: list[str]) -> dict[str, dict]:
        """What is said of each file, by its name."""
        path = Path(self.root) / METADATA
        if not path.exists():
            return {}
        described = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                described[row["file_name"]] = row
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{path}:{number}: no JSON object with a file_name") from None
        missing = sorted(set(described) - set(names))
        if missing:
            raise ConfigError(
                f"{path}: {missing[0]} is described and not there ({len(missing)} such)"
            )
        return described


def read_image(path: Path, size: int, channels: int) -> np.ndarray:
    """The middle square at a size, uint8 [C, H, W]; what is transparent is white.

    Raises: ConfigError if the file cannot be read to its end.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
    except Exception as error:  # a damaged image fails in many ways
        raise ConfigError(f"{path}: no readable image ({error})") from None
    opaque = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    fitted = ImageOps.fit(opaque.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(fitted if channels == 3 else fitted.convert("L")).reshape(
        size, size, channels
    )
    return pixels.transpose(2, 0, 1)
