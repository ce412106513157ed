"""Scores of groups beside sums, a dense second-order term, and loops over retrained models."""

import json

import numpy as np
import pytest
from conftest import journey_trak, small_run
from scipy.stats import spearmanr

from journey.attribution.baselines import Pixel
from journey.attribution.gradient import load_features
from journey.data.images import train_images
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds import INTERACTIONS, LDS, datamodeling, with_interactions
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.interfaces import Batching, WithoutGroup
from journey.pipeline.settings import Retraining, Sampler, Sampling, Training, Unit

STEPS = [600, 300]
GROUPS = LDS(
    num_bootstrap=100, paired_steps=STEPS, groups=Unit.classes, num_groups=8, interaction_samples=2
)


def groups_run(**changes):
    settings = {
        "sampling": Sampling(Sampler.ddim, 10, num_queries=4, steps=STEPS),
        "training": Training(num_steps=3, batch_size=16, warmup_steps=1),
        "evaluation": GROUPS,
        "method": {"journey": journey_trak(num_checkpoints=2), "pixel": Pixel()},
        "retraining": Retraining(num_subsets=8, num_seeds=2, num_samples=4),
    }
    return small_run(**{**settings, **changes})


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The result of a small run, its spec and the workspace with its artifacts."""
    run = groups_run()
    store = Store(tmp_path_factory.mktemp("store"))
    workspace = Workspace(store, run.compute, run.tracking, "test")
    spec = load_experiment(run, store).evaluation(run.evaluation, run.all_methods)
    return json.loads((get(spec, workspace).path / "result.json").read_text()), spec, workspace


def members(evaluated):
    """Return whether each group that is left out has an image [G, N]: classes, in some order."""
    _, spec, workspace = evaluated
    labels = train_images(spec.trajectories.checkpoint.images, workspace).labels
    order = []
    for seeds in spec.inputs.outputs:
        subset = seeds[0].checkpoint.subset
        assert isinstance(subset, WithoutGroup)
        kept = np.zeros(60, bool)
        kept[rows_of(subset, spec, workspace)] = True
        (label,) = set(labels[~kept])
        order.append(label)
    assert len(set(order)) == 8
    return labels == np.array(order)[:, None]


def rows_of(subset, spec, workspace):
    from journey.pipeline.subsets import subset_rows

    images = train_images(spec.trajectories.checkpoint.images, workspace)
    return subset_rows(subset, images, lambda score: None)


def outputs(measure, workspace):
    return get(measure, workspace).array("outputs.npy").mean(0)


def test_models_have_coupled_batches_and_differ_by_one_group(evaluated):
    _, spec, _ = evaluated
    for seeds in spec.inputs.outputs:
        assert [measure.checkpoint.training_seed for measure in seeds] == [0, 1]
        assert {measure.checkpoint.batches for measure in seeds} == {Batching.coupled}
        assert len({measure.checkpoint.subset for measure in seeds}) == 1


def test_the_lds_is_the_rank_correlation_of_group_sums_and_changes(evaluated):
    result, spec, workspace = evaluated
    scores = get(spec.scores["pixel"], workspace).array("scores.npy")[0].astype(float)
    sums = scores @ members(evaluated).T  # [S, Q, G]
    full = [outputs(measure, workspace) for measure in spec.inputs.full]
    changes = []
    for seeds in spec.inputs.outputs:
        of_group = [outputs(m, workspace) - before for m, before in zip(seeds, full, strict=True)]
        changes.append(np.mean(of_group, 0)[:2])
    changes = np.stack(changes, -1)  # [S, Q, G]
    resampled = datamodeling.resampling(4, 8, 100, spec.seed)
    half = resampled.query_half
    for quantity in ("lds", "query_centred"):
        a, b = sums, changes
        if quantity == "query_centred":
            a, b = (datamodeling.query_centred(values, half) for values in (a, b))
        for s, t in enumerate(STEPS):
            rhos = []
            for q in range(4):
                for h in (0, 1):
                    cell = resampled.subset_half == h
                    rhos.append(spearmanr(a[s, q, cell], b[s, q, cell]).statistic)
            conditions = {"method": "pixel", "score_transform": "linear", "step": t}
            (row,) = select(result["rows"], quantity=quantity, **conditions)
            assert row["value"] == pytest.approx(np.mean(rhos))
            assert row["low"] <= row["value"] <= row["high"]


def test_changes_are_those_of_loops_beside_those_of_another_seed(evaluated):
    result, spec, workspace = evaluated
    full = [outputs(measure, workspace) for measure in spec.inputs.full]
    for s, t in enumerate(STEPS):
        changes = []
        for seeds in spec.inputs.outputs:
            for measure, before in zip(seeds, full, strict=True):
                changes.append(abs(outputs(measure, workspace)[s] / before[s] - 1).mean())
        (row,) = select(result["rows"], quantity="change", method="without a group", step=t)
        assert row["value"] == pytest.approx(np.mean(changes))
        (row,) = select(result["rows"], quantity="change", method="another seed", step=t)
        assert row["value"] == pytest.approx(abs(full[1][s] / full[0][s] - 1).mean())


def test_second_order_terms_are_those_of_dense_matrices(evaluated):
    _, spec, workspace = evaluated
    score, inputs = spec.scores["journey"], spec.inputs.interactions["journey"]
    groups = members(evaluated)
    terms = score.method.interactions(inputs, score, groups, workspace)  # [C, S, Q, G]
    expected = np.zeros((2, 2, 4, 8))
    for k in (0, 1):  # checkpoints
        phi = load_features(inputs.train[k][0], workspace)[:].astype(float)
        samples = [load_features(f, workspace)[:] for f in inputs.queries[2 * k : 2 * k + 2]]
        assert not np.allclose(*samples), "the noise samples differ"
        a = np.stack(samples, 1).reshape(2, 4, 2, -1).astype(float) / np.sqrt(2)  # [S, Q, n, p]
        for c, damping in enumerate(score.method.damping):
            unit = np.square(phi).sum() / min(phi.shape)
            kernel = phi.T @ phi + damping * unit * np.eye(phi.shape[1])
            u = np.linalg.solve(kernel, phi.T @ groups.T)  # Σ u_i [p, G]
            expected[c] += np.square(a @ u).sum(2) / 2 / 2
    np.testing.assert_allclose(terms, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_only_methods_with_features_have_interactions(evaluated):
    result, spec, _ = evaluated
    assert list(spec.inputs.interactions) == ["journey"]
    for quantity in ("lds_interaction", "query_centred_interaction_gain"):
        rows = select(result["rows"], quantity=quantity)
        assert {row["method"] for row in rows} == {"journey"}
        assert len(rows) == len(STEPS) + 3


def test_interactions_that_matter_are_found_on_held_out_groups():
    """Outputs are sums plus squares: with the right size, predictions are exact."""
    random = np.random.default_rng(0)
    sums, terms = random.standard_normal((1, 2, 6, 20)), random.standard_normal((1, 2, 6, 20)) ** 2
    weights = np.ones((2, 6))
    mean = sums.mean(1, keepdims=True)
    sums = np.concatenate([sums, mean, mean], 1)
    predicted = with_interactions(sums, terms, weights)  # [sizes, T, Q, G]
    np.testing.assert_array_equal(predicted[0], sums[0])
    added = predicted - sums
    for size, of_size in zip(INTERACTIONS, added, strict=True):
        ratio = np.sqrt(of_size.var(-1).mean(-1) / sums[0].var(-1).mean(-1))
        np.testing.assert_allclose(ratio, size, atol=1e-12)
    resampled = datamodeling.resampling(6, 20, 100, seed=0)
    truth = predicted[INTERACTIONS.index(1.0)]
    second = datamodeling.lds(predicted, truth, resampled)
    assert second.chosen["step"] == [3] * 4
    np.testing.assert_allclose(second.values, 1)
    gain = second.minus(datamodeling.lds(sums, truth, resampled)).interval([0, 1])
    assert gain.low > 0


def test_the_report_shows_sums_interactions_and_changes(evaluated):
    result = evaluated[0] | {"experiment": "test", "variants": [], "variant_axes": {}}
    cost = {"seconds": 1, "gradients": 1, "bytes": 1}
    result["cost"] = {"journey": cost, "pixel": cost}
    text = GROUPS.texts(result)["lds.md"]
    assert "with interactions" in text
    assert "another seed" in text
    assert "8 groups (classes) × 2 seeds" in GROUPS.tables(result)[0].title.plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": 12, "groups": Unit.images}, r"evaluation\.num_groups=12: must be left out"),
        ({"num_groups": 7}, r"evaluation\.num_groups=7: must be in 8…"),
        (
            {"interaction_samples": 2, "groups": Unit.images, "num_groups": 10},
            r"evaluation\.interaction_samples=2: must be left out without evaluation\.groups",
        ),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    values = {**vars(GROUPS), **changes}
    with pytest.raises(ConfigError, match=f"^{message}"):
        LDS(**values).check("evaluation")


def test_too_few_groups_are_refused(digits):
    message = r"^evaluation\.groups=classes: must be a kind of which there are 12 groups of several"
    with pytest.raises(ConfigError, match=message):
        LDS(groups=Unit.classes, num_groups=12).check_data("evaluation", None, digits)
    message = r"^evaluation\.groups=sources: must be a kind .*, not 0$"
    with pytest.raises(ConfigError, match=message):
        LDS(groups=Unit.sources).check_data("evaluation", None, digits)
