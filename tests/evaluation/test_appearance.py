"""What pictures look like, against pictures that were made to."""

import colorsys

import numpy as np
import pytest

from journey.evaluation.emergence.findings import appearance_numbers


def sheared(shear: float) -> np.ndarray:
    """An upright blob that was sheared: [1, 65, 65], y downwards."""
    y, x = np.mgrid[-32:33, -32:33]
    blob = np.exp(-((x + shear * y) ** 2) / 18 - y**2 / 50)
    return 2 * blob[None] - 1


@pytest.mark.parametrize("shear", [-0.5, 0.0, 0.3, 1.0])
def test_slant_is_the_shear(shear):
    """A blob whose every row is moved by −shear · y leans to the right by as much."""
    assert appearance_numbers(sheared(shear))["slant"] == pytest.approx(shear, abs=1e-3)


def test_slant_does_not_depend_on_place_and_strength():
    moved = np.roll(sheared(0.3), (4, -6), (1, 2))
    assert appearance_numbers(0.5 * (moved + 1) - 1)["slant"] == pytest.approx(0.3, abs=1e-2)


def test_symmetry_is_the_correlation_with_the_mirror_image():
    picture = np.random.default_rng(0).uniform(-1, 1, (5, 1, 6, 7))
    found = appearance_numbers(picture)["symmetry"]
    for one, value in zip(picture, found, strict=True):
        assert value == pytest.approx(np.corrcoef(one[0].ravel(), one[0, :, ::-1].ravel())[0, 1])
    assert appearance_numbers(picture + picture[..., ::-1])["symmetry"] == pytest.approx(1)


def test_a_blank_picture_has_numbers():
    blank = appearance_numbers(-np.ones((1, 4, 4)))
    assert {name: float(value) for name, value in blank.items()} == {
        "ink": 0,
        "slant": 0,
        "symmetry": 1,
    }


def test_colours_are_those_of_every_pixel():
    pixels = np.random.default_rng(0).uniform(0, 1, (3, 4, 5))
    found = appearance_numbers((2 * pixels - 1)[None])
    np.testing.assert_allclose(
        [found[name][0] for name in ("red", "green", "blue")], pixels.mean((1, 2))
    )
    by_hand = [colorsys.rgb_to_hsv(*pixel)[1] for pixel in pixels.reshape(3, -1).T]
    assert found["saturation"][0] == pytest.approx(np.mean(by_hand))


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="4 channels"):
        appearance_numbers(np.zeros((4, 8, 8)))
