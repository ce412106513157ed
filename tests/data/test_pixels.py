"""An image file becomes what viewers show of it, or is refused."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from journey.data.images import read_image
from journey.engine.checks import ConfigError

SIDE = 16
ORIENTATION = 0x0112


@pytest.fixture
def picture() -> Image.Image:
    """An image of four quarters: no two of its eight orientations are the same."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[: SIDE // 2, : SIDE // 2] = (250, 20, 20)
    pixels[: SIDE // 2, SIDE // 2 :] = (20, 250, 20)
    pixels[SIDE // 2 :, : SIDE // 2] = (20, 20, 250)
    return Image.fromarray(pixels)


def shown(path: Path, channels: int = 3) -> np.ndarray:
    """Return what is read, height × width × channels."""
    return read_image(path, SIDE, channels).transpose(1, 2, 0)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        read_image(path, SIDE)
    assert str(caught.value).startswith(f"{path}: not a readable image (")
    assert "\n" not in str(caught.value)


# What has to be done to an upright image so that the orientation makes it upright again.
INVERSES = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_a_photograph_is_turned_by_its_orientation(picture, tmp_path, suffix):
    path, pixels = tmp_path / f"x.{suffix}", np.asarray(picture).astype(int)
    for orientation, inverse in INVERSES.items():
        stored = picture if inverse is None else picture.transpose(inverse)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored.save(path, exif=exif, quality=95)
        assert abs(shown(path) - pixels).mean() < 12, orientation
        with Image.open(path) as image:  # PIL, and with it `datasets`, agrees
            expected = ImageOps.exif_transpose(image).convert("RGB")
        assert abs(shown(path).astype(int) - np.asarray(expected)).max() == 0


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b""])
def test_damaged_or_odd_exif_data_change_nothing(picture, tmp_path, exif):
    picture.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(shown(tmp_path / "x.png"), np.asarray(picture))
    odd = Image.Exif()
    odd[ORIENTATION] = 9
    picture.save(tmp_path / "x.png", exif=odd)
    np.testing.assert_array_equal(shown(tmp_path / "x.png"), np.asarray(picture))


def test_transparency_is_white_in_every_mode(picture, tmp_path):
    path = tmp_path / "x.png"
    rgba = picture.convert("RGBA")
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[:, : SIDE // 2] = 255
    rgba.putalpha(Image.fromarray(alpha))
    expected = np.asarray(picture).copy()
    expected[:, SIDE // 2 :] = 255
    rgba.save(path)
    np.testing.assert_array_equal(shown(path), expected)
    rgba.quantize(16).save(path)  # a palette with transparent colours
    assert abs(shown(path).astype(int) - expected).mean() < 12
    rgba.convert("LA").save(path)
    grey = np.asarray(picture.convert("L")).copy()
    grey[:, SIDE // 2 :] = 255
    np.testing.assert_array_equal(shown(path), np.repeat(grey[:, :, None], 3, 2))
    np.testing.assert_array_equal(shown(path, channels=1)[:, :, 0], grey)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB"])
def test_other_modes_are_converted(picture, tmp_path, mode):
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    stored = picture.convert(mode)
    stored.save(path)
    np.testing.assert_array_equal(shown(path), np.asarray(stored.convert("RGB")))


def test_sixteen_bits_are_scaled_or_refused(tmp_path):
    levels = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    Image.fromarray(levels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(shown(tmp_path / "x.png", channels=1)[:, :, 0], levels >> 8)
    Image.fromarray(levels).save(tmp_path / "x.tif")  # of twelve bits, perhaps
    refused(tmp_path / "x.tif", r"its numbers \(I;16\) have no defined white")
    Image.fromarray(levels.astype(np.int32)).save(tmp_path / "x.tif")
    refused(tmp_path / "x.tif", r"its numbers \(I\) have no defined white")
    Image.fromarray(levels.astype(np.float32)).save(tmp_path / "x.tif")
    refused(tmp_path / "x.tif", r"its numbers \(F\) have no defined white")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif", "avif"])
def test_animations_and_pages_are_refused(picture, tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    picture.save(path, save_all=True, append_images=[ImageOps.invert(picture)])
    refused(path, "it has 2 frames or pages; save one of them")
    picture.save(path, save_all=True)
    assert abs(shown(path).astype(int) - np.asarray(picture)).mean() < 12


def test_the_picture_of_a_phones_jpeg_with_several_is_the_first(picture, tmp_path):
    path = tmp_path / "x.jpg"
    picture.save(path, "MPO", save_all=True, append_images=[ImageOps.invert(picture)], quality=95)
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    assert abs(shown(path).astype(int) - np.asarray(picture)).mean() < 12


def swapped_profile() -> bytes:
    """Return a profile whose red is the green of sRGB, and the reverse."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    swap = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    for place in range(132, 132 + 12 * count, 12):
        tag = bytes(profile[place : place + 4])
        profile[place : place + 4] = swap.get(tag, tag)
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_applied(picture, tmp_path, mode):
    path = tmp_path / "x.png"
    stored = picture.convert(mode)
    stored.save(path, icc_profile=swapped_profile())
    expected = np.asarray(stored.convert("RGB"))[:, :, [1, 0, 2]].astype(int)
    assert abs(shown(path) - expected).max() <= 3


def test_srgb_and_profiles_that_do_not_fit_change_nothing(picture, tmp_path):
    path = tmp_path / "x.png"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (srgb, lab, b"nonsense", srgb[:200]):
        picture.save(path, icc_profile=profile)
        np.testing.assert_array_equal(shown(path), np.asarray(picture))
    picture.convert("L").save(path, icc_profile=swapped_profile())
    np.testing.assert_array_equal(shown(path, 1)[:, :, 0], np.asarray(picture.convert("L")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_a_damaged_file_is_refused(picture, tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"text", bytes(1000)):
        path.write_bytes(damaged)
        refused(path, r"\(.+\)")


def test_a_very_large_image_is_refused_and_a_large_one_read_without_a_warning(
    picture, tmp_path, monkeypatch
):
    picture.save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE // 3)
    refused(tmp_path / "x.png", r"Image size \(256 pixels\) exceeds limit")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE - 1)
    with warnings.catch_warnings(record=True) as caught:
        np.testing.assert_array_equal(shown(tmp_path / "x.png"), np.asarray(picture))
    assert caught == []


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (7, 5)])
def test_an_image_of_any_size_has_the_size_that_is_set(tmp_path, size):
    Image.new("RGB", size, (7, 100, 200)).save(tmp_path / "x.png")
    assert (shown(tmp_path / "x.png") == (7, 100, 200)).all()


def test_a_file_is_read_by_its_content_and_not_by_its_suffix(picture, tmp_path):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(shown(tmp_path / "x.jpg"), np.asarray(picture))
