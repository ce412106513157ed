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
    return (
        np.random.default_rng(0).integers(0, 12, (STEPS, QUERIES, TRAIN)).astype(np.float32)
    )  # with ties


def test_rank_correlations_are_scipys(scores):
    own, others = rank_correlations(scores)
    for s in range(STEPS):
        for u in range(STEPS):
            for q in range(QUERIES):
                assert own[s, u, q] == pytest.approx(
                    spearmanr(scores[s, q], scores[u, q]).statistic
                )
                rest = [
                    spearmanr(scores[s, q], scores[u, r]).statistic
                    for r in range(QUERIES)
                    if r != q
                ]
                assert others[s, u, q] == pytest.approx(np.mean(rest))


def test_the_top_its_classes_and_what_is_kept_of_it(scores):
    labels, classes = np.arange(TRAIN) % 3, np.array([0, 1, 2, 0])
    of_top = top_images(scores, K)
    shares, kept = class_share(of_top, labels, classes), top_overlap(of_top)
    for q in range(QUERIES):
        ranked = [
            sorted(range(TRAIN), key=lambda i, s=s: (-scores[s, q, i], i))[:K] for s in range(STEPS)
        ]
        for s in range(STEPS):
            assert of_top[s, q].tolist() == ranked[s]
            assert shares[s, q] == np.mean([labels[i] == classes[q] for i in ranked[s]])
            assert s == 0 or kept[s - 1, q] == len({*ranked[s]} & {*ranked[s - 1]}) / K
    np.testing.assert_allclose(base_rate(labels, classes), 1 / 3)


def test_distances_are_those_of_a_world_whose_means_are_known():
    """x_0 | x_t is normal around a known mean, and x̂0 is beside it by a known offset."""
    random = np.random.default_rng(0)
    num, count, shape, scale, offset = 4000, 5, (1, 3, 4), 0.5, 0.3
    mean = random.normal(size=(num, *shape))
    draws = mean[:, None] + scale * random.normal(size=(num, count, *shape))
    final = mean + scale * random.normal(size=(num, *shape))
    found = {
        name: values.mean()
        for name, values in estimate_distances(mean + offset, draws, final).items()
    }
    assert found == pytest.approx(
        {
            "estimate_to_mean": offset**2,
            "monte_carlo": scale**2 / count,
            "spread": scale**2,
            "mean_to_final": scale**2,
            "estimate_to_final": offset**2 + scale**2,
        },
        rel=0.02,
    )
