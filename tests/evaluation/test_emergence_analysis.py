"""Appearance against constructed pictures; curves against closed forms and a known posterior."""

import colorsys

import numpy as np
import pytest
from scipy import stats
from sklearn.isotonic import isotonic_regression

from journey.evaluation import statistics
from journey.evaluation.emergence.analysis import (
    appearance,
    centre,
    crossing,
    explained_variance,
    halfway,
    monotone,
    steepest,
    width,
)

FINE = np.arange(1000, -1, -1.0)  # steps


def sheared(shear: float) -> np.ndarray:
    """Return an upright blob whose every row is moved by −shear · y. [1, 65, 65], y downwards."""
    y, x = np.mgrid[-32:33, -32:33]
    blob = np.exp(-((x + shear * y) ** 2) / 18 - y**2 / 50)
    return 2 * blob[None] - 1


@pytest.mark.parametrize("shear", [-0.5, 0.0, 0.3, 1.0])
def test_slant_is_the_shear(shear):
    assert appearance(sheared(shear))["slant"] == pytest.approx(shear, abs=1e-3)


def test_slant_does_not_depend_on_position_and_intensity():
    moved = np.roll(sheared(0.3), (4, -6), (1, 2))
    assert appearance(0.5 * (moved + 1) - 1)["slant"] == pytest.approx(0.3, abs=1e-2)


def test_symmetry_is_the_correlation_with_the_mirror_image():
    pictures = np.random.default_rng(0).uniform(-1, 1, (5, 1, 6, 7))
    for picture, value in zip(pictures, appearance(pictures)["symmetry"], strict=True):
        mirrored = picture[0, :, ::-1]
        assert value == pytest.approx(np.corrcoef(picture[0].ravel(), mirrored.ravel())[0, 1])
    assert appearance(pictures + pictures[..., ::-1])["symmetry"] == pytest.approx(1)


def test_a_blank_picture_has_finite_statistics():
    blank = appearance(-np.ones((1, 4, 4)))
    assert {name: float(value) for name, value in blank.items()} == {
        "ink": 0,
        "slant": 0,
        "symmetry": 1,
    }


def test_colours_and_saturation_are_those_of_a_loop_over_pixels():
    pixels = np.random.default_rng(0).uniform(0, 1, (3, 4, 5))
    result = appearance((2 * pixels - 1)[None])
    colours = [result[name][0] for name in ("red", "green", "blue")]
    np.testing.assert_allclose(colours, pixels.mean((1, 2)))
    expected = [colorsys.rgb_to_hsv(*pixel)[1] for pixel in pixels.reshape(3, -1).T]
    assert result["saturation"][0] == pytest.approx(np.mean(expected))


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="4 channels"):
        appearance(np.zeros((4, 8, 8)))


def test_the_nearest_non_decreasing_curve_is_that_of_isotonic_regression():
    curves = np.random.default_rng(0).normal(size=(120, 10)).cumsum(-1)
    expected = [isotonic_regression(curve) for curve in curves]
    np.testing.assert_allclose(monotone(curves), expected, atol=1e-12)


@pytest.mark.parametrize(("middle", "scale"), [(500.0, 20.0), (300.0, 5.0)])
def test_landmarks_of_a_logistic_curve_are_those_of_its_closed_form(middle, scale):
    curve = 0.1 + 0.9 / (1 + np.exp((FINE - middle) / scale))
    assert crossing(curve, FINE, 0.5) == pytest.approx(middle, abs=0.1)
    logits = 2 * np.log(3)  # logit 3/4 − logit 1/4
    assert width(curve, FINE) == pytest.approx(scale * logits, abs=0.05)
    assert steepest(curve, FINE) == pytest.approx(middle, abs=0.6)


def test_curves_are_linear_between_unevenly_spaced_steps():
    steps, curve = np.array([900.0, 500.0, 400.0, 20.0]), np.array([0.0, 0.2, 0.8, 1.0])
    assert crossing(curve, steps, 0.25) == pytest.approx(500 - 100 * 0.05 / 0.6)
    assert width(curve, steps) == pytest.approx(100 * 0.5 / 0.6)
    assert steepest(curve, steps) == 450


def test_a_flat_curve_has_no_halfway_step_and_does_not_affect_others():
    curves = np.array([[0.3, 0.3, 0.3], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(crossing(curves, np.array([300, 200, 100]), 0.5), [np.nan, 150])


def test_the_centre_of_a_bump_is_its_middle_and_zero_has_none():
    bumps = [np.exp(-(((FINE - middle) / 30) ** 2)) for middle in (700, 250)]
    centres = centre(np.array([*bumps, 0 * FINE]), FINE)
    np.testing.assert_allclose(centres, [700, 250, np.nan], atol=1e-6)


def mixture(num_queries: int, count: int, random: np.random.Generator):
    """Sample x_0 = ±1, x_t at each ᾱ, and continuations from the exact posterior.

    P(1 | x_t) = σ(2 √ᾱ x_t / (1 − ᾱ)). Returns ᾱ [S], x_0 [Q] and continuations [S, Q, n].
    """
    alpha_bar = np.array([0.01, 0.1, 0.3, 0.6, 0.9])
    signal = np.sqrt(alpha_bar)[:, None]
    x0 = random.choice([-1.0, 1.0], num_queries)
    noise = random.normal(size=(5, num_queries))
    x_t = signal * x0 + np.sqrt(1 - alpha_bar)[:, None] * noise
    p = 1 / (1 + np.exp(-2 * signal * x_t / (1 - alpha_bar)[:, None]))
    return alpha_bar, x0, np.where(random.random((5, num_queries, count)) < p[..., None], 1.0, -1.0)


def expected_square(alpha_bar: np.ndarray) -> np.ndarray:
    """Return E[E[x_0 | x_t]²] by quadrature: E[x_0 | x_t] = tanh(√ᾱ x_t / (1 − ᾱ))."""
    z, signal = np.linspace(-8, 8, 4001), np.sqrt(alpha_bar)[:, None]
    x_t = signal + np.sqrt(1 - alpha_bar)[:, None] * z
    mean = np.tanh(signal * x_t / (1 - alpha_bar)[:, None])
    return np.trapezoid(mean**2 * stats.norm.pdf(z), z, axis=1)


def test_both_curves_of_a_mixture_of_two_points_are_its_posterior():
    """Var(x_0) = 1: x_t explains E[E[x_0 | x_t]²], and P(right sign) = (1 + that) / 2."""
    alpha_bar, x0, samples = mixture(6000, 8, np.random.default_rng(0))
    expected, once = expected_square(alpha_bar), np.ones((1, len(x0)), int)
    np.testing.assert_allclose(explained_variance(samples, once)[0], expected, atol=0.02)
    correct = (samples == x0[:, None]).mean(-1)
    probability = statistics.mean_over_queries(correct, once)[0]
    np.testing.assert_allclose(probability, (1 + expected) / 2, atol=0.01)


def test_explained_variance_is_unbiased_with_few_queries_and_continuations():
    random = np.random.default_rng(1)
    once = np.ones((1, 24), int)
    worlds = [explained_variance(mixture(24, 4, random)[2], once)[0] for _ in range(400)]
    expected = expected_square(mixture(2, 2, random)[0])
    np.testing.assert_allclose(np.mean(worlds, 0), expected, atol=0.03)


def test_each_query_emerges_where_its_own_curve_rises():
    shares = 1 / (1 + np.exp((FINE[:, None] - np.array([700.0, 400.0])) / 10))  # [S, Q]
    np.testing.assert_allclose(halfway(shares, FINE), [700, 400], atol=0.1)


def test_rank_correlation_is_that_of_scipy_and_its_null_is_that_of_independent_values():
    random = np.random.default_rng(2)
    a = random.normal(size=24)
    b = a + random.normal(size=24)
    weights = statistics.bootstrap_with_observed(24, 1000, random)
    (value, low, high), null = statistics.rank_correlation(a, b, weights, random)
    assert value == pytest.approx(stats.spearmanr(a, b).statistic)
    assert low < value < high
    limit = 1.96 / np.sqrt(23)  # the variance of ρ of shuffled queries is 1 / (Q − 1)
    assert null == pytest.approx((-limit, limit), abs=0.06)


def test_means_over_queries_exclude_those_without_a_value():
    values = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    means = statistics.mean_over_queries(values, np.array([[1, 1, 1], [3, 5, 1]]))
    np.testing.assert_allclose(means, [[2.0, np.nan], [1.5, np.nan]])
