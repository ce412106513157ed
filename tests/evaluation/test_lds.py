import itertools

import numpy as np
import pytest
import torch
from dattri.metric import lds as dattri_lds
from scipy.stats import spearmanr

from journey.artifacts.specs import RandomSubset
from journey.config.checks import ConfigError
from journey.data import subsets
from journey.evaluation import datamodeling as lds
from journey.evaluation import rows, statistics
from journey.evaluation.targets import with_aggregates

LABELS = np.repeat(np.arange(4), [30, 20, 40, 10])


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_subsets_are_fixed_size_stratified_and_independent_of_their_number():
    masks = np.stack([subsets.mask(LABELS, RandomSubset(i, 0.5, 0)) for i in range(40)])
    for label, count in enumerate((15, 10, 20, 5)):
        assert (masks[:, label == LABELS].sum(1) == count).all()
    assert len(np.unique(masks, axis=0)) == 40
    assert abs(masks.mean(0) - 0.5).max() < 0.35  # no image is always in, or always out
    with pytest.raises(ConfigError, match=r"retraining\.fraction=0\.01"):
        subsets.mask(LABELS, RandomSubset(0, 0.01, 0))


@pytest.mark.parametrize("levels", [1000, 4])
def test_spearman_is_scipys_ties_and_weights_included(random, levels):
    a, b = random.integers(levels, size=(2, 6, 15)).astype(float)
    weights = np.concatenate([np.ones((1, 15), int), statistics.bootstrap_weights(15, 5, random)])
    ours = statistics.weighted_spearman(a, b, weights)
    for k, w in enumerate(weights):
        expected = [spearmanr(np.repeat(x, w), np.repeat(y, w)).statistic for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(ours[k], expected, atol=1e-12)


def test_spearman_of_a_constant_is_zero():
    assert statistics.weighted_spearman(np.ones((1, 5)), np.arange(5.0)[None], np.ones((1, 5))) == 0


def test_blocks_change_nothing(random, monkeypatch):
    a, b = random.standard_normal((2, 9, 12))
    whole = statistics.weighted_spearman(a, b, np.ones((3, 12)))
    monkeypatch.setattr(statistics, "BLOCK", 400)
    np.testing.assert_array_equal(whole, statistics.weighted_spearman(a, b, np.ones((3, 12))))


def problem(random, num_subsets=20, noise=0.5):
    """Scores [damping 2, step 3, query 6, train 100] of which only damping 1 knows anything; masks; outputs [T, Q, M]."""
    tau = random.standard_normal((3, 6, 100))
    masks = np.stack([subsets.mask(LABELS, RandomSubset(i, 0.5, 0)) for i in range(num_subsets)])
    steps = -(tau @ masks.T) + noise * random.standard_normal((3, 6, num_subsets))
    measured = np.concatenate([steps, steps.mean(0, keepdims=True), steps[:1]])
    scores = np.stack([random.standard_normal(tau.shape), tau]).astype(np.float32)
    return scores, masks, measured


def test_predictions_are_dattris(random):
    scores, masks, measured = problem(random)
    predictions = lds.predict(scores, masks, num_steps=3)
    linear_of_second = 3
    indices = torch.stack([torch.from_numpy(np.flatnonzero(m)) for m in masks])
    for step in range(3):
        truth = torch.from_numpy(-measured[step].T), indices  # dattri: a model's output rises with the scores it holds
        expected, _ = dattri_lds(torch.from_numpy(scores[1, step].T), truth)
        ours = statistics.weighted_spearman(predictions[linear_of_second, step], measured[step], np.ones((1, 20)))[0]
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)


def test_each_cell_is_judged_with_the_choice_of_the_opposite_one(random):
    scores, masks, measured = problem(random)
    resampled = lds.resampling(6, 20, 100, seed=0)
    predictions = lds.predict(scores, masks, 3)
    result = lds.lds(predictions, measured, resampled)
    assert result.chosen["step"] == [3, 3, 3, 3]
    labels = lds.labels([{"damping": 0.1}, {"damping": 1.0}])
    assert labels[3] == {"damping": 1.0, "readout": "linear"}
    assert lds.linear(labels) == [label for label in labels if label["readout"] == "linear"]
    np.testing.assert_array_equal(lds.linear(predictions), predictions[[0, 3]])
    expected = np.zeros((3, 6))
    for q in range(6):
        for half in (0, 1):
            cell = resampled.subset_half == half
            expected[:, q] += [spearmanr(predictions[3, s, q, cell], measured[s, q, cell]).statistic / 2 for s in range(3)]
    np.testing.assert_allclose(result.replicates[0, :3], expected, atol=1e-12)


def test_each_cell_chooses_on_the_opposite_one(random):
    """Candidate i is right in cell i only: so cell i must be judged with the candidate of the cell across."""
    predictions, measured = random.standard_normal((4, 3, 8, 16)), random.standard_normal((3, 8, 16))
    resampled = lds.resampling(8, 16, 100, 0)
    for i, (query_half, subset_half) in enumerate(itertools.product((0, 1), (0, 1))):
        queries = np.flatnonzero(resampled.query_half == query_half)[:, None]
        subsets_of_cell = np.flatnonzero(resampled.subset_half == subset_half)
        predictions[i][:, queries, subsets_of_cell] = measured[:, queries, subsets_of_cell]
    result = lds.lds(predictions, measured, resampled)
    assert result.chosen["step"] == [3, 2, 1, 0]
    assert abs(result.replicates[0].mean()) < 0.3  # where a leak would find 1


def test_interval_covers_the_truth_and_one_score_per_image_is_judged_everywhere(random):
    scores, masks, measured = problem(random, num_subsets=40)
    one_per_image = scores[:, :1]
    predictions = lds.predict(one_per_image, masks, 3)
    assert np.array_equal(predictions[:, 0], predictions[:, 2])
    assert np.array_equal(predictions[:, 0], predictions[:, 4])
    resampled = lds.resampling(6, 40, 200, 0)
    mean = lds.query_mean(lds.lds(predictions, measured, resampled).replicates, resampled.query_weights)
    found = rows.of_targets({"step": mean[:, :3], "trajectory": mean[:, 3]}, [600, 300, 100], quantity="lds", method="a")
    assert [row.get("step", row["target"]) for row in found] == [600, 300, 100, "trajectory"]
    assert found[0]["value"] > 0.9
    assert [row["value"] for row in found] == mean[0, :4].tolist(), "the observed value, not a replicate's"
    assert all(row["low"] <= row["value"] <= row["high"] for row in found)
    assert found[0]["low"] == np.percentile(mean[1:, 0], 2.5)


def test_ceiling(random):
    truth = random.standard_normal((30, 1, 1, 5, 6))
    resampled = lds.resampling(6, 30, 100, 0)
    for shape in ((30, 1, 2, 5, 6), (30, 3, 2, 5, 6)):
        quiet, loud = (truth + noise * random.standard_normal(shape) for noise in (0.01, 10.0))
        assert lds.ceiling(quiet, resampled)[0].mean() > 0.95
        assert abs(lds.ceiling(loud, resampled)[0].mean()) < 0.25


def test_trajectory_is_the_mean_of_the_steps():
    outputs = np.arange(8.0).reshape(4, 2)  # three steps and the destination of two queries
    np.testing.assert_array_equal(with_aggregates(outputs), [[0, 1], [2, 3], [4, 5], [2, 3], [6, 7]])
