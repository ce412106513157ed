"""Scores of regions, judged where the truth is known; and the whole road, beside a loop."""

import json

import numpy as np
import pytest
from conftest import journey_trak, small_run

from journey.attribution.baselines import Pixel, Random
from journey.engine.checks import ConfigError
from journey.engine.workspace import get
from journey.evaluation.localization import RANDOM, Localization
from journey.evaluation.localization.findings import (
    change_shares,
    contrast,
    lds_matrix,
    predicted_outputs,
    region_centred,
)
from journey.evaluation.rows import select
from journey.evaluation.statistics import bootstrap_with_observed, interval
from journey.experiment import check_data, load_experiment, prepare_experiment
from journey.pipeline import subsets
from journey.pipeline.examples import quarters
from journey.pipeline.interfaces import RandomSubset
from journey.pipeline.settings import Sampler, Sampling, Target, Training

LABELS = np.repeat(np.arange(4), 25)
SMALL = {
    "paired_steps": [600],
    "num_removals": 2,
    "count": 5,
    "num_random": 2,
    "num_continuations": 1,
    "num_bootstrap": 100,
}


@pytest.fixture
def random():
    return np.random.default_rng(0)


def world(random, shared: float):
    """Scores [R, S, Q, N] of three regions and outputs [R, S, Q, M] that follow them, with a part that regions share."""
    common, each = random.standard_normal((1, 2, 5, 100)), random.standard_normal((3, 2, 5, 100))
    masks = np.stack([subsets.subset_mask(LABELS, RandomSubset(i, 0.5, 0)) for i in range(40)])
    tau = shared * common + each
    predicted = np.stack([predicted_outputs(of_region, masks, 2) for of_region in tau])
    return predicted, -np.einsum("rsqn,mn->rsqm", tau, masks) + 0.3 * random.standard_normal(
        (3, 2, 5, 40)
    )


def test_scores_of_a_region_predict_that_region_alone(random):
    predicted, outputs = world(random, shared=0.0)
    cells = lds_matrix(predicted, outputs, np.ones((1, 40)))[0].mean((-2, -1))
    np.testing.assert_allclose(np.diagonal(cells), 1, atol=0.03)
    assert np.abs(cells[~np.eye(3, dtype=bool)]).max() < 0.25
    assert contrast(cells) > 0.8


def test_what_regions_share_hides_what_is_their_own(random):
    predicted, outputs = world(random, shared=3.0)
    weights = bootstrap_with_observed(40, 200, random), bootstrap_with_observed(5, 200, random)
    contrasts = []
    for of in ((predicted, outputs), (region_centred(predicted), region_centred(outputs))):
        cells = np.moveaxis(lds_matrix(*of, weights[0]), (1, 2), (-2, -1))  # [B, S, Q, R, R]
        value, low, high = interval(contrast(cells).mean(1), weights[1])
        assert low < value < high
        contrasts.append(value)
    assert (
        contrasts[0] < 0.3 < 1 < contrasts[1]
    )  # beside the diagonal, own parts of three regions oppose each other
    np.testing.assert_allclose(region_centred(outputs).mean(0), 0, atol=1e-12)


def test_one_score_a_query_predicts_every_step_alike(random):
    masks = random.random((6, 10)) < 0.5
    tau = random.standard_normal((1, 3, 10))
    predicted = predicted_outputs(tau, masks, 4)
    np.testing.assert_allclose(
        predicted[2], [[-tau[0, q][mask].sum() for mask in masks] for q in range(3)]
    )


def test_shares_of_a_change_are_those_of_a_loop_and_of_tiles_make_up_all_of_it(random):
    change = random.random((3, 2, 8, 8))
    boxes = list(quarters(8, 8).values())
    found = change_shares(change, boxes)
    assert found[1, 2] == pytest.approx(change[1, :, 4:, :4].sum() / change[1].sum())
    np.testing.assert_allclose(found.sum(-1), 1)
    of_each = change_shares(change, [(4, 0, 8, 4, 0, 0, 8, 8, 0, 4, 4, 8)])
    np.testing.assert_allclose(of_each[:, 0], [found[0, 2], 1, found[2, 1]])
    with pytest.raises(ValueError, match="no change can be placed"):
        change_shares(np.zeros((1, 1, 8, 8)), boxes)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The whole road on 60 digits: the evaluation's spec, its result, and where it was made."""
    from journey.engine.store import Store
    from journey.engine.workspace import Workspace

    run = small_run(
        training=Training(num_steps=20, batch_size=16, warmup_steps=4),
        method={"journey": journey_trak(damping=[1.0]), "pixel": Pixel()},
        evaluation=Localization(step=300, **SMALL),
    )
    workspace = Workspace(
        Store(tmp_path_factory.mktemp("localization")), run.compute, run.tracking, "test"
    )
    spec = load_experiment(run, workspace.store).evaluation(run.evaluation, run.all_methods)
    result = json.loads((get(spec, workspace).path / "result.json").read_text())
    return spec, result, workspace


def final(of, workspace):
    return get(of.ends, workspace).array("final.npy")[0, :, 0].astype(float)


def test_the_change_is_placed_as_a_loop_places_it(judged):
    spec, result, workspace = judged
    left_out, expected = "bottom left", []
    for query, removal in enumerate(spec.inputs.removed[left_out]):
        square = (
            final(removal, workspace)[0] - final(spec.inputs.reference, workspace)[query]
        ) ** 2
        expected.append(square[:, :4, 4:].sum() / square.sum())
    (row,) = select(result["rows"], quantity="share", removed=left_out, outputs="top right")
    assert row["value"] == pytest.approx(np.mean(expected))
    for of in (left_out, RANDOM):
        assert sum(
            r["value"] for r in select(result["rows"], quantity="share", removed=of)
        ) == pytest.approx(1)


def test_the_rise_is_that_of_the_restricted_output(judged):
    spec, result, workspace = judged
    names = list(quarters(8, 8))
    rises = np.empty((4, 4, 2))  # left out, region, query
    for r, left_out in enumerate(names):
        for s in range(4):
            for query, removal in enumerate(spec.inputs.removed[left_out]):
                now, was = (
                    get(of.outputs[s], workspace).array("outputs.npy")[:, 0, query].mean()
                    for of in (removal, spec.inputs.reference)
                )
                rises[r, s, query] = now / was - 1
    (row,) = select(result["rows"], quantity="rise", removed=names[1], outputs=names[3])
    assert row["value"] == pytest.approx(rises[1, 3].mean())
    more = np.mean(
        [rises[r, r] - np.mean([rises[o, r] for o in range(4) if o != r], 0) for r in range(4)]
    )
    (row,) = select(
        result["rows"], quantity="rise_more", against="other regions", outputs="all regions"
    )
    assert row["value"] == pytest.approx(more)


def test_every_region_has_scores_of_its_own_and_models_share_what_they_can(judged):
    spec, result, _ = judged
    keeps = [removal.ends.checkpoint.subset for removal in spec.inputs.removed["top left"]]
    assert [(keep.score.method.region, keep.query, keep.count) for keep in keeps] == [
        ([0, 0, 4, 4], q, 5) for q in (0, 1)
    ]
    assert spec.inputs.scores["journey"]["whole image"] == spec.scores["journey"]
    assert len(select(result["rows"], quantity="lds", method="pixel")) == 25
    assert len(select(result["rows"], quantity="own", method="journey")) == 16


def test_the_pictures_are_drawn_from_the_result_alone(judged):
    import matplotlib.pyplot as plt

    result = {**judged[1], "experiment": "test"}
    pictures = Localization().figures(result)
    assert list(pictures) == ["localization.png", "locality_by_step.png", "removal.png"]
    (row,) = select(
        result["rows"], quantity="lds", method="journey", scores="top left", outputs="top right"
    )
    assert pictures["localization.png"].axes[0].images[0].get_array()[1, 2] == pytest.approx(
        100 * row["value"]
    )
    assert len(Localization().tables(result)) == 2
    plt.close("all")


REFUSED = [
    (
        {"regions": {"top": [0, 0, 4, 8], "low": [4, 0, 9, 8]}},
        r"regions\.low=\[4, 0, 9, 8\]: must be \[first row, .* 8×8",
    ),
    (
        {"regions": {"top": [0, 0, 4, 8], "none": [4, 4, 4, 8]}},
        r"regions\.none=\[4, 4, 4, 8\]: must be \[first row",
    ),
    ({"regions": {"top": [0, 0, 4, 8]}}, r"regions=.*: must be two regions or more"),
    (
        {"regions": {"whole image": [0, 0, 4, 8], "b": [4, 0, 8, 8]}},
        r"regions=.*: must be two regions or more, none called",
    ),
    ({"step": 200}, r"step=200: must be among sampling\.steps=\[600, 300\]"),
    ({"paired_steps": [500]}, r"paired_steps=\[500\]: must be among sampling\.steps"),
    ({"count": 60}, r"count=60: must be in 1…\d+: some of every class"),
    ({"num_removals": 5}, r"num_removals=5: must be in 2…4"),
    ({"num_continuations": 2}, r"num_continuations=2: must be 1 with sampling\.sampler=ddim"),
]


def checked(evaluation, workspace):
    """As a run is before its first job."""
    run = small_run(evaluation=evaluation)
    check_data(run, *prepare_experiment(run, workspace.store))


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_asked_is_refused_before_any_compute(changes, message, workspace):
    with pytest.raises(ConfigError, match=rf"^evaluation\.{message}"):
        checked(Localization(**{"step": 300, **SMALL, **changes}), workspace)
    assert not (workspace.store.root / "models").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Random(), r"method\.a=random: must be one that can be asked about a region"),
        (
            journey_trak(target=Target.trajectory, damping=[1.0]),
            r"method\.a=gram-loss-trajectory: must be one that can be asked",
        ),
        (journey_trak(), r"evaluation\.candidates\.a=None: must be one of 0\.1, 1: damping of a"),
    ],
)
def test_a_method_without_regions_or_with_a_choice_is_refused(method, message, small):
    with pytest.raises(ConfigError, match=message):
        small.evaluation(Localization(step=300, **SMALL), {"a": method})


def test_several_continuations_are_those_of_a_random_sampler():
    several = Localization(step=300, **{**SMALL, "num_continuations": 3})
    sampling = Sampling(Sampler.ddpm, 50, num_queries=4, steps=[600, 300])
    assert small_run(sampling=sampling, evaluation=several).evaluation is several
