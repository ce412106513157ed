"""Counterfactual evaluations: known distances and effects, all stages of a small run, refusals."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import command, journey_trak, small_run
from scipy import linalg
from sklearn.metrics.pairwise import cosine_similarity

from journey.attribution.baselines import Encoder, Pixel
from journey.engine.checks import ConfigError
from journey.engine.graph import ancestors
from journey.engine.store import Store
from journey.engine.workspace import get
from journey.evaluation.counterfactual import PROPONENTS, RANDOM, SEED, Counterfactual, Removal
from journey.evaluation.counterfactual.changes import (
    RemovalEffects,
    cosine,
    frechet,
    l2,
    principal,
    ssim,
    unpack_pictures,
)
from journey.evaluation.counterfactual.removals import SAME
from journey.evaluation.rows import select
from journey.evaluation.statistics import models_and_queries_interval, query_mean_interval
from journey.experiment import load_experiment
from journey.pipeline.interfaces import RandomSubset, Train, WithoutTop
from journey.pipeline.settings import Batching, Retraining, Sampler, Sampling, Target, Training


@pytest.fixture
def random():
    return np.random.default_rng(0)


def effect(rows, **conditions):
    """The only row with these conditions that is no difference."""
    (row,) = [row for row in select(rows, **conditions) if "against" not in row]
    return row


def test_frechet_distance_is_the_closed_form(random):
    scales = np.array([1.0, 2.0, 0.5])
    a, b = random.normal(size=(2, 200_000, 3)) * [[np.ones(3)], [scales]]
    expected = 1 + np.square(scales - 1).sum()
    assert frechet(a, b + np.array([1, 0, 0])) == pytest.approx(expected, abs=0.02)
    a, b = random.normal(size=(2, 40, 3)) @ random.normal(size=(2, 3, 3))
    covariances = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_distances_of_pairs_are_those_of_loops(random):
    a, b = random.uniform(-1, 1, (2, 5, 3, 8, 8))
    np.testing.assert_allclose(l2(a, b), [np.linalg.norm(x - y) for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(ssim(a, a), 1)
    assert (ssim(a, b) < 0.5).all()
    flat = a.reshape(5, -1), b.reshape(5, -1)
    np.testing.assert_allclose(cosine(*flat), np.diag(cosine_similarity(*flat)))


def test_principal_axes_are_uncorrelated_and_have_unit_variance(random):
    features = random.normal(size=(300, 6)) @ random.normal(size=(6, 6)) + 5
    mean, axes = principal(features, 4)
    np.testing.assert_allclose(np.cov((features - mean) @ axes, rowvar=False), np.eye(4), atol=1e-9)


def test_intervals_cover_the_mean_of_models_and_queries(random):
    covered = {"queries": 0, "both": 0}
    for _ in range(400):
        queries, models = random.normal(0, 1, 12), random.normal(0, 1, (6, 1))
        _, low, high = models_and_queries_interval(queries + models + random.normal(0, 1, (6, 12)))
        covered["both"] += low <= 0 <= high
        _, low, high = query_mean_interval(queries)
        covered["queries"] += low <= 0 <= high
    assert 0.92 <= covered["queries"] / 400 <= 0.98
    assert 0.93 <= covered["both"] / 400 <= 0.99


def test_fewer_than_four_queries_or_models_have_no_interval(random):
    for interval, values in (
        (query_mean_interval, random.normal(size=3)),
        (models_and_queries_interval, random.normal(size=(3, 12))),
        (models_and_queries_interval, random.normal(size=(12, 3))),
    ):
        value, low, high = interval(values)
        assert value == pytest.approx(values.mean())
        assert np.isnan(low)
        assert np.isnan(high)
    assert np.isfinite(query_mean_interval(random.normal(size=4))).all()
    assert np.isfinite(models_and_queries_interval(random.normal(size=(4, 4)))).all()


# ------------------------------------------------------------------------------------ known effects


@pytest.fixture
def known(random):
    """Two methods and a control with l2 of 3, 1 and 0, and half of it where the window is half."""
    noise, effects = random.normal(0, 0.1, (1, 12)), {}
    for name, value in {"journey": 3.0, "pixel": 1.0, RANDOM: 0.0}.items():
        values = np.stack([value / 2 + noise, value + noise], 1)
        effects[Removal(name, PROPONENTS, 5, 400)] = {"l2": values}
    windows = dict.fromkeys(effects, (200, 400))
    return RemovalEffects(effects, windows, {400: np.zeros(0)}, {}, {}, {}, 0)


def test_known_effects_are_compared_query_by_query(known):
    rows = known.rows()
    for name, whole in {"journey": 3.0, "pixel": 1.0}.items():
        for window, expected in ((200, whole / 2), (400, whole)):
            row = effect(rows, method=name, window=window)
            assert row["value"] == pytest.approx(expected, abs=0.1)
            (difference,) = select(rows, method=name, against=RANDOM, window=window)
            assert difference["value"] == pytest.approx(expected, abs=1e-9), "no common noise"
    (between,) = select(rows, method="journey", against="pixel", window=400)
    assert [between[end] for end in ("value", "low", "high")] == pytest.approx([2.0] * 3)
    assert between["p"] < 0.001
    assert not select(rows, method="pixel", against="journey")


@pytest.mark.parametrize(("journey", "expected"), [(0.3, 1.0), (0.1, -1.0)])
def test_tau_is_the_agreement_of_lds_and_removal(known, journey, expected):
    conditions = {"quantity": "lds", "score_transform": "linear", "target": "step", "step": 400}
    lds = []
    for name, value in {"journey": journey, "pixel": 0.2}.items():
        lds.append({**conditions, "method": name, "value": value, "low": 0.0, "high": 1.0})
    (tau,) = select(known.rows_beside_lds(lds, [5]), quantity="tau", method="l2")
    assert [tau[end] for end in ("value", "low", "high")] == [expected] * 3


# ----------------------------------------------------------------------------------- a small run


SETTINGS = {
    "training": Training(num_steps=4, batch_size=16, warmup_steps=1),
    "sampling": Sampling(Sampler.ddpm, 10, num_queries=4, steps=[600, 400]),
    "method": {
        "journey": journey_trak(damping=[1.0]),
        "trak": journey_trak(damping=[1.0], target=Target.final_sample),
    },
    "evaluation": Counterfactual(
        counts=[5, 10], opponents=[10], windows=[200], short_windows=[100], num_queries=2,
        num_continuations=4, num_random=2, num_seeds=1, dimensions=2, encoder=Encoder(side=32),
    ),
}  # fmt: skip


def changed_run(**changes):
    """The small run with other settings of the evaluation."""
    return small_run(**{**SETTINGS, "evaluation": replace(SETTINGS["evaluation"], **changes)})


def evaluation_spec(experiment, run):
    return experiment.evaluation(run.evaluation, run.all_methods)


def read_result(spec, workspace):
    result = json.loads((get(spec, workspace).path / "result.json").read_text())
    return {"experiment": "test", **result}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("counterfactual")


@pytest.fixture
def evaluated(shared, workspace):
    """The evaluation of a few small models, computed once."""
    workspace = replace(workspace, store=Store(shared / "store"))
    experiment = load_experiment(small_run(**SETTINGS), workspace.store)
    spec = evaluation_spec(experiment, small_run(**SETTINGS))
    return experiment, spec, workspace, read_result(spec, workspace)


def test_effects_follow_from_the_artifacts(evaluated):
    experiment, spec, workspace, result = evaluated
    removal = Removal("journey", PROPONENTS, 10, 400)
    changes = [c for c in spec.inputs.changes if c.removal == removal]
    assert [c.queries for c in changes] == [(0,), (1,)]
    largest = {"method": "journey", "count": 10, "side": PROPONENTS}

    # Which images were removed, and how.
    for query, change in enumerate(changes):
        checkpoint = change.continuations[-1].checkpoint
        subset = checkpoint.subset
        assert (subset.query, subset.count, subset.opponents) == (query, 10, False)
        assert checkpoint.batches is Batching.coupled
        assert subset.score is spec.scores["journey"]
    assert get(spec.scores["journey"], workspace).array("scores.npy").shape[:3] == (1, 2, 4)

    # The rise of the output, and the rise minus that of other queries.
    full = get(experiment.outputs(experiment.checkpoint(0)), workspace).array("outputs.npy")
    rises = []
    for change in changes:
        outputs = get(change.measured, workspace).array("outputs.npy")
        rises.append(outputs.mean(0)[1] / full.mean(0)[1] - 1)
    centred = [rise[q] - np.delete(rise, q).mean() for q, rise in enumerate(rises)]
    row = effect(result["rows"], quantity="rise", **largest)
    assert row["value"] == pytest.approx(np.mean([rise[q] for q, rise in enumerate(rises)]))
    row = effect(result["rows"], quantity="centred_rise", **largest)
    assert row["value"] == pytest.approx(np.mean(centred))

    # The images that the same noise leads to.
    final = get(experiment.trajectories, workspace).array("final.npy")
    short, after = (
        [get(change.continuations[part], workspace).array("final.npy") for change in changes]
        for part in (0, 1)
    )
    for window, samples, w in ((100, short, 0), (200, after, 0), (400, after, 1)):
        distances = [np.linalg.norm(x[w, 0, 0] - final[q]) for q, x in enumerate(samples)]
        row = effect(result["rows"], quantity="l2", window=window, **largest)
        # Rounding differs with the batch size.
        assert row["value"] == pytest.approx(np.mean(distances), abs=0.02)
    # The numbers of every query.
    (of_all,) = select(result["per_query"], quantity="rise_of_all_queries", **largest)
    np.testing.assert_allclose(of_all["values"], rises, rtol=1e-5)
    (own,) = select(result["per_query"], quantity="rise", **largest)
    np.testing.assert_allclose(own["values"], [[[rises[0][0], rises[1][1]]]], rtol=1e-5)

    picture = unpack_pictures(result["pictures"]["400"]["journey"])[1]
    np.testing.assert_allclose(picture, after[1][-1, 0, 0].clip(-1, 1), atol=0.01)


def test_controls_and_the_lds_are_beside_the_effects(evaluated):
    _, spec, _, result = evaluated
    rows = result["rows"]
    for name, count in ((RANDOM, 5), (RANDOM, 10), (SEED, 0)):
        for quantity in ("rise", "l2", "ssim", "cosine", "frechet", "class_change"):
            assert select(rows, quantity=quantity, method=name, count=count)
    assert {r["quantity"] for r in select(rows, method=SAME)} == {"frechet"}
    assert {r["method"] for r in select(rows, quantity="lds")} == {"journey", "trak"}
    taus = {(r["method"], r["count"]) for r in select(rows, quantity="tau")}
    assert taus >= {("rise", 5), ("l2", 10)}
    with_interval = {r["quantity"] for r in rows if "low" in r}
    assert with_interval == {"lds"}, "two queries, two random removals and one seed are too few"
    assert {c.removal.method for c in spec.inputs.changes} - set(spec.scores) == {RANDOM, SEED}
    assert Retraining().batches is Batching.independent, "removals are coupled all the same"


def test_every_row_is_the_mean_of_its_numbers_of_queries(evaluated):
    result, num_rows = evaluated[3], 0
    for numbers in result["per_query"]:
        if numbers["quantity"] == "rise_of_all_queries":
            continue
        keys = ("quantity", "method", "side", "count", "step")
        means = np.mean(numbers["values"], axis=(0, 2))
        for window, mean in zip(numbers["windows"], means, strict=True):
            row = effect(result["rows"], window=window, **{key: numbers[key] for key in keys})
            assert row["value"] == pytest.approx(mean, rel=1e-4, abs=1e-6)
            num_rows += 1
    others = [r for r in result["rows"] if "against" in r or r["quantity"] in ("lds", "tau")]
    assert num_rows == len(result["rows"]) - len(others)


def test_a_method_with_one_ranking_is_retrained_once_for_all_steps(evaluated):
    run = changed_run(steps=[600, 400])
    counts = dict.fromkeys(run.method, 0)
    for spec in ancestors(evaluation_spec(evaluated[0], run)):
        if isinstance(spec, Train) and isinstance(spec.subset, WithoutTop):
            method = spec.subset.score.method
            counts["journey" if method == run.method["journey"] else "trak"] += 1
    assert counts == {"journey": 2 * 3 * 2, "trak": 3 * 2}


def test_figures_and_tables_need_only_the_result(evaluated, tmp_path):
    result, evaluation = json.loads(json.dumps(evaluated[3])), Counterfactual()
    figures = evaluation.figures(result)
    for name, figure in figures.items():
        figure.savefig(tmp_path / name)
    of_step = ("effect_by_count", "effect_by_window", "before_after")
    assert {*figures} == {*(f"{name}_t400.png" for name in of_step), "lds_against_removal.png"}
    text = evaluation.texts(result)["counterfactual.md"]
    row = effect(result["rows"], quantity="rise", method="trak", side=PROPONENTS, count=5)
    assert f"{100 * row['value']:.1f}".replace("-", "−") in text
    effects = text[: text.index("## LDS against removal")]
    assert not re.search(r"\d \[", effects), "too few queries for an interval"
    assert len(evaluation.tables(result)) == 3


def test_without_the_lds_no_subset_is_trained_and_the_rest_is_the_same(evaluated):
    experiment, _, workspace, with_lds = evaluated
    run = changed_run(beside_lds=False)
    spec = evaluation_spec(experiment, run)
    models = [s for s in ancestors(spec) if isinstance(s, Train)]
    assert not any(isinstance(model.subset, RandomSubset) for model in models)
    result = read_result(spec, workspace)
    others = [row for row in with_lds["rows"] if row["quantity"] not in ("lds", "tau")]
    assert result["rows"] == others
    figures, all_figures = (set(run.evaluation.figures(r)) for r in (result, with_lds))
    assert all_figures - figures == {"lds_against_removal.png"}
    assert "LDS" not in run.evaluation.texts(result)["counterfactual.md"]


MULTIPLE = "must be a multiple of 100 in"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": [500]}, r"steps=\[500\]: must be among sampling.steps=\[600, 400\]"),
        ({"steps": []}, r"steps=\[\]: must be a non-empty list"),
        ({"counts": [5, 5]}, r"counts=\[5, 5\]: must be distinct"),
        ({"windows": [500]}, f"windows=500: {MULTIPLE} 1…400: trajectories continue from t=400"),
        ({"windows": [50]}, f"windows=50: {MULTIPLE}"),
        ({"windows": [0]}, "windows=0: must be"),
        ({"short_windows": [200]}, f"short_windows=200: {MULTIPLE} 1…199"),
        ({"num_queries": 5}, "num_queries=5: must be in 2…4"),
        ({"dimensions": 4}, "dimensions=4: must be at most 3: num_continuations=4"),
        ({"encoder": Encoder(side=2)}, "encoder.side=2: must be in 32…1024"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=f"^evaluation.{message}"):
        changed_run(**changes)


def test_a_sampler_without_noise_is_refused():
    sampling = replace(SETTINGS["sampling"], sampler=Sampler.ddim)
    with pytest.raises(ConfigError, match=r"^sampling.sampler=ddim: must be ddpm"):
        small_run(**{**SETTINGS, "sampling": sampling})


def test_one_of_several_candidates_must_be_named(workspace):
    run = small_run(**{**SETTINGS, "method": {"pixel": Pixel(), "journey": journey_trak()}})
    experiment = load_experiment(run, workspace.store)
    message = r"^evaluation.candidates.journey=None: must be one of 0.1, 1: damping of journey"
    with pytest.raises(ConfigError, match=message):
        evaluation_spec(experiment, run)
    named = replace(run.evaluation, candidates={"journey": 1.0})
    changes = experiment.evaluation(named, run.all_methods).inputs.changes
    subsets = [change.continuations[-1].checkpoint.subset for change in changes]
    used = {(s.score.method.name, s.candidate) for s in subsets if isinstance(s, WithoutTop)}
    assert used == {("pixel", 0), ("gradient", 1)}


def test_too_large_a_removal_is_refused_before_anything_is_computed(tmp_path):
    small = ("dataset.num_train=60", "training.batch_size=8", "evaluation.counts=[55]")
    process = command(tmp_path, "experiment=counterfactual", *small)
    assert process.returncode == 1
    assert process.stderr.startswith("error: evaluation.counts=55: must be in 1…50")
    assert not (tmp_path / "artifacts").exists()
