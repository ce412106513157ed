"""When something is decided, against closed forms: logistic curves, and a mixture whose posterior is known."""

import numpy as np
import pytest
from scipy import stats
from sklearn.isotonic import isotonic_regression

from journey.evaluation import statistics
from journey.evaluation.emergence.findings import (
    centre,
    crossing,
    decided,
    halfway,
    monotone,
    steepest,
    width,
)

FINE = np.arange(1000, -1, -1.0)  # steps


def test_the_nearest_rising_curve_is_that_of_isotonic_regression():
    curves = np.random.default_rng(0).normal(size=(3, 40, 10)).cumsum(-1)
    expected = [[isotonic_regression(curve) for curve in of] for of in curves]
    np.testing.assert_allclose(monotone(curves), expected, atol=1e-12)


@pytest.mark.parametrize(("middle", "scale"), [(500.0, 20.0), (300.0, 5.0)])
def test_a_logistic_curve_is_halfway_at_its_middle_and_as_wide_as_it_is(middle, scale):
    curve = 0.1 + 0.9 / (1 + np.exp((FINE - middle) / scale))
    assert crossing(curve, FINE, 0.5) == pytest.approx(middle, abs=0.1)
    assert width(curve, FINE) == pytest.approx(
        2 * scale * np.log(3), abs=0.05
    )  # logit 3/4 − logit 1/4
    assert steepest(curve, FINE) == pytest.approx(middle, abs=0.6)


def test_unevenly_spaced_steps_are_joined_by_lines():
    steps, curve = np.array([900.0, 500.0, 400.0, 20.0]), np.array([0.0, 0.2, 0.8, 1.0])
    assert crossing(curve, steps, 0.25) == pytest.approx(500 - 100 * 0.05 / 0.6)
    assert width(curve, steps) == pytest.approx(100 * 0.5 / 0.6)
    assert steepest(curve, steps) == 450


def test_a_flat_curve_is_halfway_nowhere_and_its_neighbour_is_not_moved():
    curves = np.array([[0.3, 0.3, 0.3], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(crossing(curves, np.array([300, 200, 100]), 0.5), [np.nan, 150])


def test_the_centre_of_a_bump_is_its_middle_and_of_nothing_nowhere():
    bumps = [np.exp(-(((FINE - middle) / 30) ** 2)) for middle in (700, 250)]
    found = centre(np.array([*bumps, 0 * FINE]), FINE)
    np.testing.assert_allclose(found, [700, 250, np.nan], atol=1e-6)


def mixture(num_queries: int, count: int, random: np.random.Generator):
    """x_0 = ±1 alike; at each ᾱ, x_t, and continuations drawn from the exact posterior, P(1 | x_t) = σ(2 √ᾱ x_t / (1 − ᾱ)).

    Returns ᾱ [S], x_0 [Q], continuations [S, Q, n].
    """
    alpha_bar = np.array([0.01, 0.1, 0.3, 0.6, 0.9])
    x0 = random.choice([-1.0, 1.0], num_queries)
    x_t = np.sqrt(alpha_bar)[:, None] * x0 + np.sqrt(1 - alpha_bar)[:, None] * random.normal(
        size=(5, num_queries)
    )
    p = 1 / (1 + np.exp(-2 * np.sqrt(alpha_bar)[:, None] * x_t / (1 - alpha_bar)[:, None]))
    return alpha_bar, x0, np.where(random.random((5, num_queries, count)) < p[..., None], 1.0, -1.0)


def expected_square(alpha_bar: np.ndarray) -> np.ndarray:
    """E[E[x_0 | x_t]²], by quadrature: E[x_0 | x_t] = tanh(√ᾱ x_t / (1 − ᾱ)), and x_t given either x_0 is normal."""
    z = np.linspace(-8, 8, 4001)
    x_t = np.sqrt(alpha_bar)[:, None] + np.sqrt(1 - alpha_bar)[:, None] * z
    return np.trapezoid(
        np.tanh(np.sqrt(alpha_bar)[:, None] * x_t / (1 - alpha_bar)[:, None]) ** 2
        * stats.norm.pdf(z),
        z,
        axis=1,
    )


def test_of_a_mixture_of_two_points_both_curves_are_the_posterior():
    """Var(x_0) = 1, so that E[E[x_0 | x_t]²] is decided; and the sign of a continuation is right with (1 + that) / 2."""
    random = np.random.default_rng(0)
    alpha_bar, x0, ends = mixture(6000, 8, random)
    decided = expected_square(alpha_bar)
    once = np.ones((1, len(x0)), int)
    np.testing.assert_allclose(decided(ends, once)[0], decided, atol=0.02)
    right = (ends == x0[:, None]).mean(-1)
    np.testing.assert_allclose(
        statistics.mean_over_queries(right, once)[0], (1 + decided) / 2, atol=0.01
    )


def test_the_variance_that_is_decided_is_unbiased_with_few_queries_and_continuations():
    random = np.random.default_rng(1)
    worlds = [mixture(24, 4, random)[2] for _ in range(400)]
    found = np.mean([decided(ends, np.ones((1, 24), int))[0] for ends in worlds], 0)
    np.testing.assert_allclose(found, expected_square(mixture(2, 2, random)[0]), atol=0.03)


def test_a_query_emerges_where_its_own_curve_does():
    shares = 1 / (1 + np.exp((FINE[:, None] - np.array([700.0, 400.0])) / 10))  # [S, Q]
    np.testing.assert_allclose(halfway(shares, FINE), [700, 400], atol=0.1)


def test_rank_correlation_over_queries_is_scipys_and_nothing_is_related_to_what_is_shuffled():
    random = np.random.default_rng(2)
    a = random.normal(size=24)
    b = a + random.normal(size=24)
    weights = statistics.bootstrap_with_observed(24, 1000, random)
    (value, low, high), (null_low, null_high) = statistics.rank_correlation(a, b, weights, random)
    assert value == pytest.approx(stats.spearmanr(a, b).statistic)
    assert low < value < high
    assert null_low == pytest.approx(
        -1.96 / np.sqrt(23), abs=0.06
    )  # ρ of shuffled queries has variance 1 / (Q − 1)
    assert null_high == pytest.approx(1.96 / np.sqrt(23), abs=0.06)


def test_queries_without_a_value_do_not_count():
    values = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    found = statistics.mean_over_queries(values, np.array([[1, 1, 1], [3, 5, 1]]))
    np.testing.assert_allclose(found, [[2.0, np.nan], [1.5, np.nan]])
