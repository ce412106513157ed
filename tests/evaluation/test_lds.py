import dataclasses
import itertools

import numpy as np
import pytest
import torch
from dattri.metric import lds as dattri_lds
from scipy.stats import spearmanr

from journey.attribution.targets import with_aggregates
from journey.engine.checks import ConfigError
from journey.evaluation import rows, statistics
from journey.evaluation.lds import datamodeling, reliability
from journey.pipeline import subsets
from journey.pipeline.interfaces import RandomSubset

LABELS = np.repeat(np.arange(4), [30, 20, 40, 10])
WEIGHTS = np.ones((3, 6))  # of steps in the trajectory


@pytest.fixture
def random():
    return np.random.default_rng(0)


def subset_masks(num):
    return np.stack([subsets.subset_mask(LABELS, RandomSubset(i, 0.5, 0)) for i in range(num)])


def test_subsets_have_a_fixed_size_are_stratified_and_independent_of_their_number():
    masks = subset_masks(40)
    for label, count in enumerate((15, 10, 20, 5)):
        assert (masks[:, label == LABELS].sum(1) == count).all()
    assert len(np.unique(masks, axis=0)) == 40
    assert abs(masks.mean(0) - 0.5).max() < 0.35, "every image is in some subsets, not in others"
    with pytest.raises(ConfigError, match=r"retraining\.fraction=0\.01"):
        subsets.subset_mask(LABELS, RandomSubset(0, 0.01, 0))


@pytest.mark.parametrize("levels", [1000, 4])
def test_weighted_spearman_is_scipys_of_repeated_observations(random, levels):
    a, b = random.integers(levels, size=(2, 6, 15)).astype(float)
    weights = statistics.bootstrap_with_observed(15, 5, random)
    ours = statistics.weighted_spearman(a, b, weights)
    for k, w in enumerate(weights):
        repeated = zip(np.repeat(a, w, 1), np.repeat(b, w, 1), strict=True)
        expected = [spearmanr(x, y).statistic for x, y in repeated]
        np.testing.assert_allclose(ours[k], expected, atol=1e-12)


def test_spearman_of_a_constant_is_zero():
    assert statistics.weighted_spearman(np.ones((1, 5)), np.arange(5.0)[None], np.ones((1, 5))) == 0


@pytest.mark.parametrize("levels", [1000, 4])
def test_derivatives_are_those_of_the_weighted_correlation(random, levels):
    a, b = random.integers(levels, size=(3, 5, 12)).astype(float), random.standard_normal((5, 12))
    a[1, 2] = 7
    rho, derivatives = statistics.spearman_derivatives(a, b)
    h = 1e-6
    weights = np.concatenate([np.ones((1, 12)), np.ones((12, 12)) + h * np.eye(12)])
    for x, value, slopes in zip(a, rho, derivatives, strict=True):
        numeric = statistics.weighted_spearman(x, b, weights)
        np.testing.assert_allclose(value, numeric[0], atol=1e-12)
        differences = ((numeric[1:] - numeric[0]) / h).T
        differences -= differences.mean(-1, keepdims=True)
        np.testing.assert_allclose(slopes, differences, atol=1e-4)
    assert (rho[1, 2], *derivatives[1, 2]) == (0,) * 13, "of a constant"


def test_the_variance_of_derivatives_is_that_of_the_correlation(random):
    x, noise = random.standard_normal((2, 3000, 16))
    for correlation in (0.0, 0.6):
        y = correlation * x + np.sqrt(1 - correlation**2) * noise
        rho, derivatives = statistics.spearman_derivatives(x[None], y)
        assert np.square(derivatives).sum(-1).mean() == pytest.approx(rho.var(), rel=0.12)


def test_block_size_does_not_change_spearman(random, monkeypatch):
    a, b = random.standard_normal((2, 9, 12))
    whole = statistics.weighted_spearman(a, b, np.ones((3, 12)))
    monkeypatch.setattr(statistics, "BLOCK", 400)
    np.testing.assert_array_equal(whole, statistics.weighted_spearman(a, b, np.ones((3, 12))))


def problem(random, num_subsets=20, noise=0.5):
    """Scores [damping 2, step 3, query 6, train 100], masks, outputs [T, Q, M].

    Scores with the first damping are noise, those with the second are the true ones.
    """
    tau = random.standard_normal((3, 6, 100))
    masks = subset_masks(num_subsets)
    steps = -(tau @ masks.T) + noise * random.standard_normal((3, 6, num_subsets))
    measured = np.concatenate([steps, steps.mean(0, keepdims=True), steps[:1]])
    scores = np.stack([random.standard_normal(tau.shape), tau]).astype(np.float32)
    return scores, masks, measured


def test_predictions_are_dattris(random):
    scores, masks, measured = problem(random)
    predictions = datamodeling.linear(datamodeling.predict(scores, masks, WEIGHTS))[1]
    indices = torch.stack([torch.from_numpy(np.flatnonzero(m)) for m in masks])
    for step in range(3):
        # dattri's outputs rise with the scores of the images in a subset.
        truth = torch.from_numpy(-measured[step].T), indices
        expected, _ = dattri_lds(torch.from_numpy(scores[1, step].T), truth)
        ours = statistics.weighted_spearman(predictions[step], measured[step], np.ones((1, 20)))
        np.testing.assert_allclose(ours[0], expected.numpy(), atol=1e-6)


def test_lds_is_the_mean_over_halves_of_the_best_candidates_correlation(random):
    scores, masks, measured = problem(random)
    resampled = datamodeling.resampling(6, 20, 100, seed=0)
    predictions = datamodeling.predict(scores, masks, WEIGHTS)
    result = datamodeling.lds(predictions, measured, resampled, 4)
    assert result.chosen["step"] == [4] * 12, "the four cells × three steps"
    assert result.chosen["trajectory"] == [4] * 4
    labels = datamodeling.labels([{"damping": 0.1}, {"damping": 1.0}])
    assert labels[4] == {"damping": 1.0, "score_transform": "linear"}
    linear = [label for label in labels if label["score_transform"] == "linear"]
    assert datamodeling.linear(labels) == linear
    np.testing.assert_array_equal(datamodeling.linear(predictions), predictions[[0, 4]])
    of_linear = datamodeling.lds(datamodeling.linear(predictions), measured, resampled)
    assert of_linear.chosen["step"] == [1] * 4
    expected = np.zeros((3, 6))
    for s, q, half in itertools.product(range(3), range(6), (0, 1)):
        cell = resampled.subset_half == half
        rho = spearmanr(predictions[4, s, q, cell], measured[s, q, cell]).statistic
        expected[s, q] += rho / 2
    for lds in (result, of_linear):
        np.testing.assert_allclose(lds.values[:3], expected, atol=1e-12)
    assert of_linear.interval([0, 1]).value == pytest.approx(expected[:2].mean())


def test_the_head_of_scores_is_their_largest_twentieth(random):
    tau = random.standard_normal((2, 3, 100))
    kept = datamodeling.head(tau)
    assert (np.count_nonzero(kept, axis=-1) == 5).all()
    for row, whole in zip(kept.reshape(-1, 100), tau.reshape(-1, 100), strict=True):
        largest = np.argsort(-abs(whole))[:5]
        assert set(np.flatnonzero(row)) == set(largest)
        np.testing.assert_array_equal(row[largest], whole[largest])


def test_transforms_are_chosen_per_step_and_hyper_parameters_for_all_steps():
    """Two λ × two transforms: the second λ of the first transform is best on average."""
    means = np.zeros((4, 5))  # (λ 0, a), (λ 0, b), (λ 1, a), (λ 1, b); three steps and two targets
    means[0, :3], means[2, :3] = (0.9, 0.0, 0.0), (0.5, 0.5, 0.5)
    means[1, :3], means[3, :3] = (0.1, 0.8, 0.1), (0.2, 0.2, 0.2)
    means[1, 3], means[3, 4] = 1, 1
    assert datamodeling.choose(means, 2).tolist() == [2, 1, 2, 1, 3]
    assert datamodeling.choose(means[::2], 1).tolist()[:3] == [1, 1, 1]
    both = np.stack([means, means[::-1]])
    assert datamodeling.choose(both, 2)[0].tolist() == [2, 1, 2, 1, 3]


def test_each_cell_chooses_its_candidate_on_the_opposite_cell(random):
    """Candidate i is right in cell i only: cell i must use the candidate of the opposite cell."""
    predictions = random.standard_normal((4, 3, 8, 16))
    measured = random.standard_normal((3, 8, 16))
    resampled = datamodeling.resampling(8, 16, 100, 0)
    for i, (query_half, subset_half) in enumerate(itertools.product((0, 1), (0, 1))):
        queries = np.flatnonzero(resampled.query_half == query_half)[:, None]
        of_cell = np.flatnonzero(resampled.subset_half == subset_half)
        predictions[i][:, queries, of_cell] = measured[:, queries, of_cell]
    result = datamodeling.lds(predictions, measured, resampled)
    assert result.chosen["step"] == [3, 2, 1, 0]
    assert abs(result.values.mean()) < 0.3, "choosing on the same cell would give 1"


def test_one_score_per_image_predicts_every_step_and_the_interval_holds_the_lds(random):
    scores, masks, measured = problem(random, num_subsets=40)
    predictions = datamodeling.predict(scores[:, :1], masks, WEIGHTS)
    assert np.array_equal(predictions[:, 0], predictions[:, 2])
    np.testing.assert_allclose(predictions[:, 0], predictions[:, 4])
    resampled = datamodeling.resampling(6, 40, 200, 0)
    lds = datamodeling.lds(datamodeling.linear(predictions), measured, resampled)
    ends = lds.interval([0])
    assert ends.value == pytest.approx(lds.values[0].mean())
    assert ends.value > 0.9
    assert ends.low < ends.low_90 < ends.value < ends.high_90 < ends.high


def test_the_interval_of_a_fixed_candidate_is_that_of_exact_replicates(random):
    """Of many exact bootstrap replicates, with the interaction of queries and subsets once."""
    scores, masks, measured = problem(random, num_subsets=40, noise=4.0)
    predictions = datamodeling.linear(datamodeling.predict(scores[1:], masks, WEIGHTS))
    resampled = datamodeling.resampling(6, 40, 2000, 0)
    ends = datamodeling.lds(predictions, measured, resampled).interval([1])
    weights = np.concatenate([np.ones((1, 40), int), resampled.subset_weights])
    replicates = np.zeros((2001, 6))
    for half in (0, 1):
        members = resampled.subset_half == half
        pair = predictions[0, 1][:, members], measured[1][:, members]
        replicates += statistics.weighted_spearman(*pair, weights[:, members]) / 2
    query_weights = statistics.bootstrap_with_observed(6, 2000, random)
    value, low, high = statistics.interval(replicates, query_weights)
    assert ends.value == pytest.approx(float(value))
    assert ends.high - ends.low == pytest.approx(float(high - low), rel=0.15)


def test_choosing_anew_widens_the_interval_where_candidates_are_alike(random):
    resampled, widths = datamodeling.resampling(12, 32, 200, 0), []
    for _ in range(20):
        measured, predictions = random.standard_normal((4, 12, 32)), []
        for _ in range(6):  # candidates whose errors are common to all queries
            predictions.append(measured[0, 0] + 3 * random.standard_normal((4, 1, 32)))
        measured += 3 * measured[:1, :1]
        predictions = np.broadcast_to(predictions, (6, *measured.shape))
        chosen = datamodeling.lds(predictions, measured, resampled)
        fixed = dataclasses.replace(chosen, rechosen=chosen.fixed)
        assert chosen.interval([0, 1]).value == fixed.interval([0, 1]).value
        ends = (lds.interval([0, 1]) for lds in (chosen, fixed))
        widths.append([interval.high - interval.low for interval in ends])
    wide, narrow = np.mean(widths, 0)
    assert wide > 1.05 * narrow
    clear = predictions.copy()
    clear[2] = measured + 0.1 * clear[2]
    lds = datamodeling.lds(clear, measured, resampled)
    assert lds.chosen["step"] == [2] * 4
    np.testing.assert_allclose(lds.rechosen.var(0)[:2], lds.fixed.var(0)[:2])


def test_a_difference_is_paired_and_its_negative_in_the_other_direction(random):
    measured = random.standard_normal((4, 12, 32))
    resampled = datamodeling.resampling(12, 32, 200, 0)
    base = measured + random.standard_normal(measured.shape)
    a = datamodeling.lds(np.stack([base, random.permuted(base, axis=-1)]), measured, resampled)
    b = datamodeling.lds(base[None] + 0.1 * random.standard_normal(base.shape), measured, resampled)
    there, back = a.minus(b).interval([0]), b.minus(a).interval([0])
    assert (there.value, there.low, there.low_90) == (-back.value, -back.high, -back.high_90)
    assert there.high - there.low < 0.5 * (a.interval([0]).high - a.interval([0]).low)
    assert there.value == pytest.approx(a.interval([0]).value - b.interval([0]).value)


def test_an_interval_counts_the_interaction_of_queries_and_subsets_once(random):
    """The mean of independent cells has variance σ²/(Q M); resampling both counts it thrice."""
    num_queries, num_subsets, widths = 20, 30, []
    for _ in range(40):
        cells = random.standard_normal((num_queries, num_subsets))
        subset_weights = statistics.bootstrap_with_observed(num_subsets, 500, random)
        query_weights = statistics.bootstrap_with_observed(num_queries, 500, random)
        replicates = subset_weights @ cells.T / num_subsets  # [B, Q], the mean over subsets
        _, low, high = statistics.interval(replicates, query_weights)
        widths.append(high - low)
    assert 0.9 < np.mean(widths) / (2 * 1.96 / np.sqrt(num_queries * num_subsets)) < 1.25


def test_rows_name_their_target():
    ends = tuple(np.arange(2.0) + shift for shift in (0.5, 0, 1))
    intervals = {"step": ends, "trajectory": (0.2, 0.1, 0.3)}
    made = rows.rows_of_targets(intervals, [600, 300], quantity="lds", method="a")
    assert [row.get("step", row["target"]) for row in made] == [600, 300, "trajectory"]
    conditions = {"quantity": "lds", "method": "a", "target": "step", "step": 300}
    assert made[1] == {**conditions, "value": 1.5, "low": 1.0, "high": 2.0}


def test_query_centred_outputs_lack_the_mean_of_their_half(random):
    outputs, half = random.standard_normal((3, 6, 20)), np.array([0, 1, 1, 0, 0, 1])
    centred = datamodeling.query_centred(outputs, half)
    for side in (0, 1):
        np.testing.assert_allclose(centred[:, half == side].mean(1), 0, atol=1e-12)
    shifted = outputs + random.standard_normal((3, 1, 20))  # equal effects on all queries
    np.testing.assert_allclose(datamodeling.query_centred(shifted, half), centred, atol=1e-12)


def outputs_of_reliability(random, rho, num_subsets, num_seeds, noise_from):
    """Outputs [M, R, 2, 1, Q] whose mean has reliability rho [Q], with one source of noise."""
    from_seeds = noise_from == "seeds"
    shape = (num_subsets, num_seeds, 1 if from_seeds else 2, 1, len(rho))
    signal = random.standard_normal((num_subsets, 1, 1, 1, len(rho)))
    parts = num_seeds if from_seeds else 2 * num_seeds
    noise = np.sqrt(parts * (1 - rho) / rho) * random.standard_normal(shape)
    return np.broadcast_to(signal + noise, (num_subsets, num_seeds, 2, 1, len(rho)))


@pytest.mark.parametrize(
    ("noise_from", "num_seeds"), [("samples", 1), ("samples", 3), ("seeds", 2), ("seeds", 5)]
)
def test_reliabilities_are_unbiased(random, noise_from, num_seeds):
    shares_of = reliability.given_seed if noise_from == "samples" else reliability.over_seeds
    outputs = outputs_of_reliability(random, np.full(400, 0.6), 20, num_seeds, noise_from)
    assert shares_of(outputs).reliability()[0] == pytest.approx(0.6, abs=0.03)


def test_expected_spearman_is_the_mean_over_normal_samples(random):
    x, noise = random.standard_normal((2, 4000, 16))
    y = 0.7 * x + np.sqrt(1 - 0.49) * noise
    mean = statistics.weighted_spearman(x, y, np.ones((1, 16))).mean()
    assert mean == pytest.approx(float(reliability.expected_spearman(np.array(0.7), 16)), abs=0.01)


def test_the_ceiling_is_the_lds_of_the_true_expectation(random):
    """With queries of unequal reliability it is the mean of √ρ, not √ of the mean."""
    rho = random.beta(0.7, 0.7, 600).clip(0.01, 0.99)
    outputs = outputs_of_reliability(random, rho, 40, 1, "samples")
    ceiling = reliability.ceiling(reliability.given_seed(outputs), 20)[0]
    truth = reliability.expected_spearman(np.sqrt(rho), 20).mean()
    naive = reliability.expected_spearman(np.sqrt(rho.mean()), 20)
    assert ceiling == pytest.approx(truth, abs=0.02)
    assert naive - truth > 0.03


def test_the_interval_of_a_ceiling_covers_the_truth_and_nothing_is_clipped(random):
    covered, rho = 0, np.full(12, 0.5)
    truth = reliability.expected_spearman(np.sqrt(0.5), 12)
    for _ in range(40):
        noise = 1e-3 * random.standard_normal((24, 2, 2, 1, 12))
        outputs = outputs_of_reliability(random, rho, 24, 2, "seeds") + noise
        _, low, high = reliability.ceilings(outputs, reliability.over_seeds, 12).interval([0])
        covered += low <= truth <= high
    assert covered >= 34
    pure_noise = random.standard_normal((40, 24, 2, 2, 1, 12))
    ceilings = [reliability.ceiling(reliability.over_seeds(noise), 12)[0] for noise in pure_noise]
    assert min(ceilings) < 0 < max(ceilings)


def test_the_trajectory_is_the_weighted_mean_of_the_steps():
    outputs = np.arange(8.0).reshape(4, 2)  # three steps and the final sample of two queries
    expected = [[0, 1], [2, 3], [4, 5], [2, 3], [6, 7]]
    np.testing.assert_array_equal(with_aggregates(outputs, np.ones((3, 2))), expected)
    weights = np.array([[1.0, 2.0], [0.0, 1.0], [0.5, 0.0]])
    np.testing.assert_allclose(with_aggregates(outputs, weights)[3], [2 / 3, (2 + 3) / 3])
