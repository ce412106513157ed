"""What a method ranks first, against loops."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from journey.evaluation.path import estimate_distances
from journey.evaluation.ranking import (
    base_rate,
    class_share,
    rank_correlations,
    top_images,
    top_overlap,
)

STEPS, QUERIES, TRAIN, K = 3, 4, 30, 7


@pytest.fixture
def scores():
    random = np.random.default_rng(0)
    return random.integers(0, 12, (STEPS, QUERIES, TRAIN)).astype(np.float32)  # with ties


def test_rank_correlations_are_scipys(scores):
    same, others = rank_correlations(scores)
    for s, u, q in np.ndindex(STEPS, STEPS, QUERIES):
        rhos = [spearmanr(scores[s, q], scores[u, r]).statistic for r in range(QUERIES)]
        assert same[s, u, q] == pytest.approx(rhos[q])
        assert others[s, u, q] == pytest.approx(np.mean(np.delete(rhos, q)))


def test_top_images_their_classes_and_overlap_are_those_of_loops(scores):
    labels, classes = np.arange(TRAIN) % 3, np.array([0, 1, 2, 0])
    top = top_images(scores, K)
    shares, overlap = class_share(top, labels, classes), top_overlap(top)
    for s, q in np.ndindex(STEPS, QUERIES):
        ranked = sorted(range(TRAIN), key=lambda i, s=s, q=q: (-scores[s, q, i], i))[:K]
        assert top[s, q].tolist() == ranked
        assert shares[s, q] == np.mean([labels[i] == classes[q] for i in ranked])
        assert s == 0 or overlap[s - 1, q] == len({*ranked} & {*top[s - 1, q]}) / K
    np.testing.assert_allclose(base_rate(labels, classes), 1 / 3)


def test_distances_are_those_of_normal_distributions_with_known_means():
    """x_0 | x_t is normal around a known mean; x̂0 differs from it by a known offset."""
    random = np.random.default_rng(0)
    num, count, shape, scale, offset = 4000, 5, (1, 3, 4), 0.5, 0.3
    mean = random.normal(size=(num, *shape))
    samples = mean[:, None] + scale * random.normal(size=(num, count, *shape))
    final = mean + scale * random.normal(size=(num, *shape))
    distances = estimate_distances(mean + offset, samples, final)
    expected = {
        "estimate_to_mean": offset**2,
        "monte_carlo": scale**2 / count,
        "spread": scale**2,
        "mean_to_final": scale**2,
        "estimate_to_final": offset**2 + scale**2,
    }
    means = {name: values.mean() for name, values in distances.items()}
    assert means == pytest.approx(expected, rel=0.02)
