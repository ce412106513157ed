"""Counterfactual evaluations: numbers whose truth is known, the road from a ranking to a row, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import command, journey_trak, small_run
from scipy import linalg
from sklearn.metrics.pairwise import cosine_similarity

from journey.attribution.baselines import Encoder, Pixel
from journey.engine.checks import ConfigError
from journey.engine.graph import ancestors
from journey.engine.workspace import get
from journey.evaluation.counterfactual import (
    PROPONENTS,
    RANDOM,
    SAME,
    SEED,
    Counterfactual,
    changes,
)
from journey.evaluation.counterfactual.changes import (
    cosine,
    frechet,
    l2,
    principal,
    ssim,
    unpack_pictures,
)
from journey.evaluation.rows import select
from journey.evaluation.statistics import models_and_queries_interval, query_mean_interval
from journey.experiment import load_experiment
from journey.pipeline.interfaces import RandomSubset, Train, WithoutTop
from journey.pipeline.settings import Batching, Retraining, Sampler, Sampling, Target, Training


@pytest.fixture
def random():
    return np.random.default_rng(0)


# ---------------------------------------------------------------------------------------------------- distances


def test_distance_of_normal_samples_is_that_of_the_closed_form(random):
    scales = np.array([1.0, 2.0, 0.5])
    a, b = random.normal(size=(2, 200_000, 3)) * [[np.ones(3)], [scales]]
    assert frechet(a, b + np.array([1, 0, 0])) == pytest.approx(
        1 + np.square(scales - 1).sum(), abs=0.02
    )
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


def test_intervals_hold_the_mean_of_models_and_queries(random):
    held = {"queries": 0, "both": 0}
    for _ in range(400):
        of_queries, of_draws = random.normal(0, 1, 12), random.normal(0, 1, (6, 1))
        _, low, high = models_and_queries_interval(
            of_queries + of_draws + random.normal(0, 1, (6, 12))
        )
        held["both"] += low <= 0 <= high
        _, low, high = query_mean_interval(of_queries)
        held["queries"] += low <= 0 <= high
    assert 0.92 <= held["queries"] / 400 <= 0.98
    assert 0.93 <= held["both"] / 400 <= 0.99


# -------------------------------------------------------------------------------------------------- known effects


@pytest.fixture
def planted(random):
    """Two methods and a floor whose effects are known: 3, 1 and 0 of l2, and half of it where the window is half."""
    noise = random.normal(0, 0.1, (1, 12))
    of = {"journey": 3.0, "pixel": 1.0, RANDOM: 0.0}
    found = {
        (name, PROPONENTS, 5, 400): {"l2": np.stack([value / 2 + noise, value + noise], 1)}
        for name, value in of.items()
    }
    return changes.RemovalEffects(
        dict.fromkeys(found, (200, 400)), found, {400: np.zeros(0)}, {}, {}, 0
    )


def test_known_effects_are_stated_and_compared_query_by_query(planted):
    rows = planted.stated()
    for name, whole in {"journey": 3.0, "pixel": 1.0}.items():
        for window, expected in ((200, whole / 2), (400, whole)):
            (row,) = [r for r in select(rows, method=name, window=window) if "against" not in r]
            assert row["value"] == pytest.approx(expected, abs=0.1)
            (less_random,) = select(rows, method=name, against=RANDOM, window=window)
            assert less_random["value"] == pytest.approx(expected, abs=1e-9), (
                "what queries share is taken off"
            )
    (between,) = select(rows, method="journey", against="pixel", window=400)
    assert [between[end] for end in ("value", "low", "high")] == pytest.approx([2.0] * 3)
    assert between["p"] < 0.001
    assert not select(rows, method="pixel", against="journey")


@pytest.mark.parametrize(
    ("lds", "expected"),
    [({"journey": 0.3, "pixel": 0.1}, 1.0), ({"journey": 0.1, "pixel": 0.3}, -1.0)],
)
def test_agreement_with_lds_is_that_of_the_two_rankings(planted, lds, expected):
    about = {
        "quantity": "lds",
        "readout": "linear",
        "target": "step",
        "step": 400,
        "low": 0.0,
        "high": 1.0,
    }
    rows = planted.against_lds(
        [{**about, "method": name, "value": value} for name, value in lds.items()]
    )
    (tau,) = select(rows, quantity="tau", method="l2")
    assert [tau[end] for end in ("value", "low", "high")] == [expected] * 3


# ------------------------------------------------------------------------------------------------- the whole road


SETTINGS = {
    "training": Training(num_steps=4, batch_size=16, warmup_steps=1),
    "sampling": Sampling(Sampler.ddpm, 10, num_queries=4, steps=[600, 400]),
    "method": {"journey": journey_trak(damping=[1.0]), "trak": journey_trak(damping=[1.0], target=Target.final_sample)},
    "evaluation": Counterfactual(
        counts=[5, 10], opponents=[10], windows=[200], short_windows=[100], num_queries=2, num_continuations=4, num_random=2,
        num_seeds=1, dimensions=2, encoder=Encoder(side=32),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("counterfactual")


@pytest.fixture
def judged(shared, workspace):
    """A judgement of a few small models, made once."""
    from journey.engine.store import Store

    workspace = replace(workspace, store=Store(shared / "store"))
    run = small_run(**SETTINGS)
    of = load_experiment(run, workspace.store)
    target = of.evaluation(run.evaluation, run.all_methods)
    result = json.loads((get(target, workspace).path / "result.json").read_text())
    return of, target, workspace, {"experiment": "test", **result}


def test_what_is_stated_follows_from_the_artifacts(judged):
    of, target, workspace, result = judged
    rows = result["rows"]
    own = [c for c in target.inputs.changes if c.what == ("journey", PROPONENTS, 10, 400)]
    assert [c.queries for c in own] == [(0,), (1,)]

    # Which images were left out, and how.
    tau = get(target.scores["journey"], workspace).array("scores.npy")
    for query, change in enumerate(own):
        keep = change.continuations[-1].checkpoint.subset
        assert (keep.query, keep.count, keep.opponents) == (query, 10, False)
        assert change.continuations[-1].checkpoint.batches is Batching.coupled
        assert keep.score is target.scores["journey"]
    assert tau.shape[:3] == (1, 2, 4)

    # The rise of the output, and of the output less that of other queries.
    full = get(of.outputs(of.checkpoint(0)), workspace).array("outputs.npy").mean(0)
    rise = [get(c.measured, workspace).array("outputs.npy").mean(0)[1] / full[1] - 1 for c in own]
    expected = {"rise": [r[q] for q, r in enumerate(rise)]}
    expected["own rise"] = [r[q] - np.delete(r, q).mean() for q, r in enumerate(rise)]
    for quantity, values in expected.items():
        (row,) = [
            r
            for r in select(rows, quantity=quantity, method="journey", count=10, side=PROPONENTS)
            if "against" not in r
        ]
        assert row["value"] == pytest.approx(np.mean(values))

    # Where the same noise leads to.
    final = get(of.trajectories, workspace).array("final.npy")
    after = [get(c.continuations[-1], workspace).array("final.npy") for c in own]
    short = [get(c.continuations[0], workspace).array("final.npy") for c in own]
    for window, (ends, w) in {100: (short, 0), 200: (after, 0), 400: (after, 1)}.items():
        apart = [np.linalg.norm(some[w, 0, 0] - final[q]) for q, some in enumerate(ends)]
        found = select(
            rows, quantity="l2", method="journey", count=10, side=PROPONENTS, window=window
        )
        (row,) = [r for r in found if "against" not in r]
        assert row["value"] == pytest.approx(
            np.mean(apart), abs=0.02
        )  # rounding differs with the batch size
    np.testing.assert_allclose(
        unpack_pictures(result["pictures"]["400"]["journey"])[1],
        after[1][-1, 0, 0].clip(-1, 1),
        atol=0.01,
    )


def test_every_floor_is_stated_and_the_lds_of_the_same_scores(judged):
    _, _, _, result = judged
    rows = result["rows"]
    for name, count in ((RANDOM, 5), (RANDOM, 10), (SEED, 0)):
        for quantity in ("rise", "l2", "ssim", "cosine", "frechet", "class"):
            assert select(rows, quantity=quantity, method=name, count=count)
    assert {r["quantity"] for r in select(rows, method=SAME)} == {"frechet"}
    assert {r["method"] for r in select(rows, quantity="lds")} == {"journey", "trak"}
    assert {(r["method"], r["count"]) for r in select(rows, quantity="tau")} >= {
        ("rise", 5),
        ("l2", 10),
    }
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows if r["quantity"] != "tau")


def test_a_method_with_one_ranking_is_retrained_once_for_all_steps(judged):
    of, _, _, _ = judged
    run = small_run(**{**SETTINGS, "evaluation": replace(SETTINGS["evaluation"], steps=[600, 400])})
    models = [
        s
        for s in ancestors(of.evaluation(run.evaluation, run.all_methods))
        if isinstance(s, Train) and isinstance(s.subset, WithoutTop)
    ]
    by = {
        name: sum(s.subset.score.method == method for s in models)
        for name, method in run.method.items()
    }
    assert by == {"journey": 2 * 3 * 2, "trak": 3 * 2}


def test_pictures_and_tables_are_drawn_from_the_result_alone(judged, tmp_path):
    result = json.loads(json.dumps(judged[3]))
    evaluation = Counterfactual()
    for name, figure in evaluation.figures(result).items():
        figure.savefig(tmp_path / name)
    assert {p.name for p in tmp_path.iterdir()} == {
        "effect_by_count_t400.png", "effect_by_window_t400.png", "before_after_t400.png", "lds_against_removal.png",
    }  # fmt: skip
    text = evaluation.texts(result)["counterfactual.md"]
    (row,) = [
        r
        for r in select(result["rows"], quantity="rise", method="trak", side=PROPONENTS, count=5)
        if "against" not in r
    ]
    assert f"{100 * row['value']:.1f}".replace("-", "−") in text
    assert len(evaluation.tables(result)) == 3


def test_without_an_lds_no_subset_is_trained_and_the_rest_is_the_same(judged):
    of, _, workspace, beside = judged
    run = small_run(**{**SETTINGS, "evaluation": replace(SETTINGS["evaluation"], beside_lds=False)})
    target = of.evaluation(run.evaluation, run.all_methods)
    assert not [
        s for s in ancestors(target) if isinstance(s, Train) and isinstance(s.subset, RandomSubset)
    ]
    result = {
        "experiment": "test",
        **json.loads((get(target, workspace).path / "result.json").read_text()),
    }
    assert result["rows"] == [
        row for row in beside["rows"] if row["quantity"] not in ("lds", "tau")
    ]
    assert set(run.evaluation.figures(result)) == set(run.evaluation.figures(beside)) - {
        "lds_against_removal.png"
    }
    assert "LDS" not in run.evaluation.texts(result)["counterfactual.md"]


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": [500]}, r"evaluation.steps=\[500\]: must be among sampling.steps=\[600, 400\]"),
        ({"steps": []}, r"evaluation.steps=\[\]: must be a non-empty list"),
        ({"counts": [5, 5]}, r"evaluation.counts=\[5, 5\]: must be distinct"),
        (
            {"windows": [500]},
            "evaluation.windows=500: must be a multiple of 100 in 1…400: journeys are entered at t=400",
        ),
        ({"windows": [50]}, "evaluation.windows=50: must be a multiple of 100"),
        ({"windows": [0]}, "evaluation.windows=0: must be"),
        (
            {"short_windows": [200]},
            "evaluation.short_windows=200: must be a multiple of 100 in 1…199",
        ),
        ({"num_queries": 5}, "evaluation.num_queries=5: must be in 2…4"),
        ({"dimensions": 4}, "evaluation.dimensions=4: must be at most 3: num_continuations=4"),
        ({"encoder": Encoder(side=2)}, "evaluation.encoder.side=2: must be in 32…1024"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(changed, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        small_run(**{**SETTINGS, "evaluation": replace(SETTINGS["evaluation"], **changed)})


def test_journeys_without_noise_are_refused():
    with pytest.raises(ConfigError, match=r"^sampling.sampler=ddim: must be ddpm"):
        small_run(
            **{**SETTINGS, "sampling": Sampling(Sampler.ddim, 10, num_queries=4, steps=[600, 400])}
        )


def test_of_several_candidates_one_must_be_named(workspace):
    run = small_run(**{**SETTINGS, "method": {"pixel": Pixel(), "journey": journey_trak()}})
    with pytest.raises(
        ConfigError,
        match=r"^evaluation.candidates.journey=None: must be one of 0.1, 1: damping of journey",
    ):
        load_experiment(run, workspace.store).evaluation(run.evaluation, run.all_methods)
    named = replace(run.evaluation, candidates={"journey": 1.0})
    changed = [
        c.continuations[-1].checkpoint.subset
        for c in load_experiment(run, workspace.store)
        .evaluation(named, run.all_methods)
        .inputs.changes
    ]
    assert {(k.score.method.name, k.candidate) for k in changed if isinstance(k, WithoutTop)} == {
        ("pixel", 0),
        ("gradient", 1),
    }


def test_more_than_can_be_left_out_is_refused_before_anything_is_made(tmp_path):
    words = (
        "experiment=counterfactual",
        "dataset.num_train=60",
        "training.batch_size=8",
        "evaluation.counts=[55]",
    )
    done = command(tmp_path, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: evaluation.counts=55: must be in 1…50: some of every class, of which the rarest has 6"
    )
    assert not (tmp_path / "artifacts").exists()


def test_retraining_draws_of_a_floor_are_no_methods(judged):
    _, target, _, _ = judged
    floors = {c.method for c in target.inputs.changes} - set(target.scores)
    assert floors == {RANDOM, SEED}
    assert isinstance(target.inputs.lds.inputs, dict)
    assert Retraining().batches is Batching.independent, "removals are coupled all the same"
