"""The images of a dataset as an artifact, and the functions that datasets share.

Payload: train/, held_out/ and, with injected duplicates, injected/ (their originals), each of which
contains images.npy, labels.npy and texts.json; metrics.jsonl.
"""

import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from journey.data.duplicates import split_parts
from journey.engine.checks import ConfigError
from journey.engine.metrics import track
from journey.engine.resume import load_state, save_state
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import ImageSet, content_hash, read_images, write_images
from journey.pipeline.interfaces import Dataset, Images

if TYPE_CHECKING:
    from PIL import Image


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


def describe_images(dataset: Dataset, train: ImageSet) -> list[str]:
    """Return lines that say what there is to train on, and what the dataset passed over."""
    num_classes = len(train.class_names)
    counts = f"{len(train):,} images of {num_classes:,} class" + "es" * (num_classes > 1)
    if train.captions is None:
        captions = "without captions"
    else:
        num_captions = len(train.captions[0])
        captions = f"{num_captions} caption{'s' * (num_captions > 1)} each"
    lines = [f"training: {counts}, {captions}"]
    try:
        return lines + dataset.notes()
    except ConfigError as error:  # the images come from a bundle, and the files are others
        return [*lines, f"not as it was read: {error}"]


def split_images(images: ImageSet, num_train: int, order: np.ndarray) -> tuple[ImageSet, ImageSet]:
    """Return the first `num_train` images of an order [N], and the others; both sorted by row."""
    return images.take(np.sort(order[:num_train])), images.take(np.sort(order[num_train:]))


def read_image(path: Path | str, size: int, channels: int = 3) -> np.ndarray:
    """Return the central square of an image file as viewers show it, resized.

    It is turned by its EXIF orientation, converted from its colour profile to sRGB, and laid over
    white where it is transparent.

    Args:
        path: A file of any format that PIL reads.
        size: Height and width of the result, uint8 [channels, size, size].
        channels: 3 for RGB, 1 for grey.

    Raises:
        ConfigError: The file cannot be decoded to its end, or does not determine what is shown.
    """
    return decode_image(path, str(path), size, channels)


def decode_image(
    file: "Path | str | io.BytesIO", name: str, size: int, channels: int, exact: bool = False
) -> np.ndarray:
    """Return the same of a file, or of the content of one; `name` is that in messages.

    With `exact`, an image of another size is refused.

    Raises:
        ConfigError: As for `read_image`.
    """
    from PIL import Image, ImageOps

    # PIL refuses very large images; its warning of large ones would be printed for each.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        with Image.open(file) as image:
            width, height = image.size
            rgb = _turn(image, _displayed_colours(image))
    except Exception as error:  # a damaged image raises many types of errors
        reason = re.sub(r" <_io\..*>", "", str(error))  # the name of bytes in memory
        raise ConfigError(f"{name}: not a readable image ({reason})") from None
    if exact and (width, height) != (size, size):
        raise ConfigError(f"{name}: has {width}×{height} pixels, not {size}×{size}")
    square = ImageOps.fit(rgb, (size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(square if channels == 3 else square.convert("L"))
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def _displayed_colours(image: "Image.Image") -> "Image.Image":
    """Return an image as sRGB over white; refuse several frames, and numbers without a white."""
    from PIL import Image

    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and image.format != "MPO":  # the JPEG of phones, with depths or gains
        raise ValueError(f"it has {num_frames} frames or pages; save one of them")
    image.load()
    if image.mode.startswith("I;16") and image.format == "PNG" and "transparency" not in image.info:
        grey = (np.asarray(image) >> 8).astype(np.uint8)  # as PIL reads colour images of 16 bits
        profile = image.info.get("icc_profile")
        image = Image.fromarray(grey)
        image.info["icc_profile"] = profile
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(f"its numbers ({image.mode}) have no defined white; save it with 8 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        colours = _to_srgb(image).convert("RGBA")
        colours.putalpha(rgba.getchannel("A"))
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return _to_srgb(image).convert("RGB")


def _to_srgb(image: "Image.Image") -> "Image.Image":
    """Return an image converted from its colour profile to sRGB; as it is if that is its profile.

    A profile that is damaged, or of other colours than the image, is ignored, as viewers do.
    """
    from PIL import ImageCms

    if not image.info.get("icc_profile"):
        return image
    colours = {"1": "GRAY", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}.get(image.mode, "RGB")
    mode = {"GRAY": "L", "CMYK": "CMYK", "RGB": "RGB"}[colours]
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        if profile.profile.xcolor_space.strip() != colours:
            return image
        if "sRGB" in (profile.profile.profile_description or ""):
            return image
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(
            image.convert(mode), profile, srgb, intent, outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    assert converted is not None, "only a conversion in place returns nothing"
    return converted


def _turn(image: "Image.Image", displayed: "Image.Image") -> "Image.Image":
    """Return an image turned or mirrored by the EXIF orientation of the file it comes from."""
    from PIL import ExifTags, Image

    flips = Image.Transpose
    turns = {
        2: flips.FLIP_LEFT_RIGHT,
        3: flips.ROTATE_180,
        4: flips.FLIP_TOP_BOTTOM,
        5: flips.TRANSPOSE,
        6: flips.ROTATE_270,
        7: flips.TRANSVERSE,
        8: flips.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data raise many types of errors; viewers ignore them
        orientation = 1
    return displayed.transpose(turns[orientation]) if orientation in turns else displayed
