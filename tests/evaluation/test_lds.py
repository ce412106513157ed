import itertools

import numpy as np
import pytest
import torch
from dattri.metric import lds as dattri_lds
from scipy.stats import spearmanr

from journey.attribution.targets import with_aggregates
from journey.engine.checks import ConfigError
from journey.evaluation import rows, statistics
from journey.evaluation.lds import datamodeling as lds
from journey.evaluation.lds import reliability
from journey.pipeline import subsets
from journey.pipeline.interfaces import RandomSubset

LABELS = np.repeat(np.arange(4), [30, 20, 40, 10])
WEIGHTS = np.ones((3, 6))  # of steps in the trajectory


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_subsets_are_fixed_size_stratified_and_independent_of_their_number():
    masks = np.stack([subsets.subset_mask(LABELS, RandomSubset(i, 0.5, 0)) for i in range(40)])
    for label, count in enumerate((15, 10, 20, 5)):
        assert (masks[:, label == LABELS].sum(1) == count).all()
    assert len(np.unique(masks, axis=0)) == 40
    assert abs(masks.mean(0) - 0.5).max() < 0.35  # no image is always in, or always out
    with pytest.raises(ConfigError, match=r"retraining\.fraction=0\.01"):
        subsets.subset_mask(LABELS, RandomSubset(0, 0.01, 0))


@pytest.mark.parametrize("levels", [1000, 4])
def test_spearman_is_scipys_ties_and_weights_included(random, levels):
    a, b = random.integers(levels, size=(2, 6, 15)).astype(float)
    weights = np.concatenate([np.ones((1, 15), int), statistics.bootstrap_weights(15, 5, random)])
    ours = statistics.weighted_spearman(a, b, weights)
    for k, w in enumerate(weights):
        expected = [
            spearmanr(np.repeat(x, w), np.repeat(y, w)).statistic for x, y in zip(a, b, strict=True)
        ]
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
    masks = np.stack(
        [subsets.subset_mask(LABELS, RandomSubset(i, 0.5, 0)) for i in range(num_subsets)]
    )
    steps = -(tau @ masks.T) + noise * random.standard_normal((3, 6, num_subsets))
    measured = np.concatenate([steps, steps.mean(0, keepdims=True), steps[:1]])
    scores = np.stack([random.standard_normal(tau.shape), tau]).astype(np.float32)
    return scores, masks, measured


def test_predictions_are_dattris(random):
    scores, masks, measured = problem(random)
    predictions = lds.predict(scores, masks, WEIGHTS)
    linear_of_second = 3
    indices = torch.stack([torch.from_numpy(np.flatnonzero(m)) for m in masks])
    for step in range(3):
        truth = (
            torch.from_numpy(-measured[step].T),
            indices,
        )  # dattri: a model's output rises with the scores it holds
        expected, _ = dattri_lds(torch.from_numpy(scores[1, step].T), truth)
        ours = statistics.weighted_spearman(
            predictions[linear_of_second, step], measured[step], np.ones((1, 20))
        )[0]
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)


def test_each_cell_is_judged_with_the_choice_of_the_opposite_one(random):
    scores, masks, measured = problem(random)
    resampled = lds.resampling(6, 20, 100, seed=0)
    predictions = lds.predict(scores, masks, WEIGHTS)
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
            expected[:, q] += [
                spearmanr(predictions[3, s, q, cell], measured[s, q, cell]).statistic / 2
                for s in range(3)
            ]
    np.testing.assert_allclose(result.replicates[0, :3], expected, atol=1e-12)


def test_each_cell_chooses_on_the_opposite_one(random):
    """Candidate i is right in cell i only: so cell i must be judged with the candidate of the cell across."""
    predictions, measured = (
        random.standard_normal((4, 3, 8, 16)),
        random.standard_normal((3, 8, 16)),
    )
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
    predictions = lds.predict(one_per_image, masks, WEIGHTS)
    assert np.array_equal(predictions[:, 0], predictions[:, 2])
    np.testing.assert_allclose(predictions[:, 0], predictions[:, 4])
    resampled = lds.resampling(6, 40, 200, 0)
    replicates = lds.lds(predictions, measured, resampled).replicates
    value, low, high = statistics.interval(replicates, resampled.query_weights)
    np.testing.assert_allclose(
        value, replicates[0].mean(-1), atol=1e-12
    )  # the observed one, not a replicate's
    assert value[0] > 0.9
    assert (low <= value).all()
    assert (value <= high).all()


def test_an_interval_counts_what_a_query_and_a_subset_have_together_once(random):
    """Of independent cells, the variance of the mean is σ²/(Q M), where resampling both at once would say three times that."""
    num_queries, num_subsets, trials = 20, 30, 40
    widths = []
    for _ in range(trials):
        cells = random.standard_normal((num_queries, num_subsets))
        subset_weights = np.concatenate(
            [np.ones((1, 30)), statistics.bootstrap_weights(30, 500, random)]
        )
        query_weights = np.concatenate(
            [np.ones((1, 20)), statistics.bootstrap_weights(20, 500, random)]
        )
        replicates = subset_weights @ cells.T / num_subsets  # [B, Q], the mean over subsets
        _, low, high = statistics.interval(replicates, query_weights)
        widths.append(high - low)
    assert 0.9 < np.mean(widths) / (2 * 1.96 / np.sqrt(num_queries * num_subsets)) < 1.25


def test_rows_name_their_target():
    ends = tuple(np.arange(2.0) + shift for shift in (0.5, 0, 1))
    found = rows.rows_of_targets(
        {"step": ends, "trajectory": (0.2, 0.1, 0.3)}, [600, 300], quantity="lds", method="a"
    )
    assert [row.get("step", row["target"]) for row in found] == [600, 300, "trajectory"]
    assert found[1] == {
        "quantity": "lds",
        "method": "a",
        "target": "step",
        "step": 300,
        "value": 1.5,
        "low": 1.0,
        "high": 2.0,
    }


def test_what_is_specific_to_a_query_is_less_the_mean_of_its_half(random):
    outputs, half = random.standard_normal((3, 6, 20)), np.array([0, 1, 1, 0, 0, 1])
    own = lds.specific(outputs, half)
    for side in (0, 1):
        np.testing.assert_allclose(own[:, half == side].mean(1), 0, atol=1e-12)
    shifted = outputs + random.standard_normal((3, 1, 20))  # what a subset does to every query
    np.testing.assert_allclose(lds.specific(shifted, half), own, atol=1e-12)


# --------------------------------------------------------------------------------------------------- ceilings


def measured_by(random, rho, num_subsets, num_seeds, kind):
    """Outputs [M, R, 2, 1, Q] whose mean has reliability rho [Q], by one kind of noise alone."""
    shape = (num_subsets, num_seeds, 1 if kind == "seeds" else 2, 1, len(rho))
    signal = random.standard_normal((num_subsets, 1, 1, 1, len(rho)))
    parts = num_seeds if kind == "seeds" else 2 * num_seeds
    noise = np.sqrt(parts * (1 - rho) / rho) * random.standard_normal(shape)
    return np.broadcast_to(signal + noise, (num_subsets, num_seeds, 2, 1, len(rho)))


@pytest.mark.parametrize(
    ("kind", "num_seeds"), [("draws", 1), ("draws", 3), ("seeds", 2), ("seeds", 5)]
)
def test_reliabilities_are_unbiased(random, kind, num_seeds):
    shares_of = reliability.given_seed if kind == "draws" else reliability.over_seeds
    rho = np.full(400, 0.6)
    found = shares_of(measured_by(random, rho, 20, num_seeds, kind)).reliability()
    assert found[0] == pytest.approx(0.6, abs=0.03)


def test_spearman_of_normal_variables_is_what_is_expected(random):
    x, noise = random.standard_normal((2, 4000, 16))
    y = 0.7 * x + np.sqrt(1 - 0.49) * noise
    found = statistics.weighted_spearman(x, y, np.ones((1, 16))).mean()
    assert found == pytest.approx(float(reliability.expected_spearman(np.array(0.7), 16)), abs=0.01)


def test_the_ceiling_is_what_the_truth_itself_reaches(random):
    """Queries of unequal reliability: the mean of √ρ, not √ of the mean."""
    rho = random.beta(0.7, 0.7, 600).clip(0.01, 0.99)
    outputs = measured_by(random, rho, 40, 1, "draws")
    found = reliability.ceiling(reliability.given_seed(outputs), 20)[0]
    truth = reliability.expected_spearman(np.sqrt(rho), 20).mean()
    naive = reliability.expected_spearman(np.sqrt(rho.mean()), 20)
    assert found == pytest.approx(truth, abs=0.02)
    assert naive - truth > 0.03


def test_the_interval_of_a_ceiling_holds_the_truth_and_nothing_is_clipped(random):
    holds, rho = 0, np.full(12, 0.5)
    truth = reliability.expected_spearman(np.sqrt(0.5), 12)
    for _ in range(40):
        outputs = measured_by(random, rho, 24, 2, "seeds") + 1e-3 * random.standard_normal(
            (24, 2, 2, 1, 12)
        )
        _, low, high = (
            reliability.ceilings(outputs, reliability.over_seeds, 12).mean([0]).interval()
        )
        holds += low[0] <= truth <= high[0]
    assert holds >= 34
    loud = random.standard_normal((40, 24, 2, 2, 1, 12))
    found = [reliability.ceiling(reliability.over_seeds(outputs), 12)[0] for outputs in loud]
    assert min(found) < 0 < max(found)


def test_trajectory_is_the_weighted_mean_of_the_steps():
    outputs = np.arange(8.0).reshape(4, 2)  # three steps and the destination of two queries
    np.testing.assert_array_equal(
        with_aggregates(outputs, np.ones((3, 2))), [[0, 1], [2, 3], [4, 5], [2, 3], [6, 7]]
    )
    weights = np.array([[1.0, 2.0], [0.0, 1.0], [0.5, 0.0]])
    np.testing.assert_allclose(with_aggregates(outputs, weights)[3], [2 / 3, (2 + 3) / 3])
