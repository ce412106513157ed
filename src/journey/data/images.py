"""The images of a dataset as an artifact, and the functions that datasets share.

Payload: train/, held_out/ and, with injected duplicates, injected/ (their originals), each of which
contains images.npy, labels.npy and texts.json; metrics.jsonl.
"""

from pathlib import Path

import numpy as np

from journey.data.duplicates import split_parts
from journey.engine.checks import ConfigError
from journey.engine.metrics import track
from journey.engine.resume import load_state, save_state
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import ImageSet, content_hash, read_images, write_images
from journey.pipeline.interfaces import Images


def make_images(spec: Images, partial: Path, workspace: Workspace) -> None:
    """Write the images of a dataset.

    Raises:
        ValueError: The dataset no longer has the content that the cache key names.
    """
    parts = split_parts(spec.dataset)
    content = content_hash(*parts.values())
    if content != spec.content:
        hashes = f"sha256 {content[:12]}, expected {spec.content[:12]}"
        raise ValueError(f"the images of {spec.label} have changed: {hashes}")

    num_written = load_state(partial) or dict.fromkeys(parts, 0)
    total = sum(map(len, parts.values()))
    with track(spec, partial, workspace) as log:
        for name, images in parts.items():
            for count in write_images(images, partial / name, num_written[name]):
                num_written[name] = count
                log(sum(num_written.values()), total=total)
                filled = {f"{part}/images.npy": n for part, n in num_written.items() if n}
                save_state(partial, num_written, filled=filled)


def train_images(images: Images, workspace: Workspace) -> ImageSet:
    """Return the training images, mapped from disk."""
    return read_images(get(images, workspace).path / "train")


def split_images(images: ImageSet, num_train: int, order: np.ndarray) -> tuple[ImageSet, ImageSet]:
    """Return the first `num_train` images of an order [N], and the others; both sorted by row."""
    return images.take(np.sort(order[:num_train])), images.take(np.sort(order[num_train:]))


def read_image(path: Path | str, size: int, channels: int = 3) -> np.ndarray:
    """Return the central square of an image file, resized, with transparency over white.

    Args:
        path: A file of any format that PIL reads.
        size: Height and width of the result, uint8 [channels, size, size].
        channels: 3 for RGB, 1 for grey.

    Raises:
        ConfigError: The file cannot be decoded to its end.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                rgb = Image.alpha_composite(white, rgba).convert("RGB")
            else:
                rgb = image.convert("RGB")
    except Exception as error:  # a damaged image raises many types of errors
        raise ConfigError(f"{path}: not a readable image ({error})") from None
    square = ImageOps.fit(rgb, (size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(square if channels == 3 else square.convert("L"))
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)
