"""Scores of regions: constructed ones with a known answer, and a small real run beside loops."""

import json

import numpy as np
import pytest
from conftest import journey_trak, small_run

from journey.attribution.baselines import Pixel, Random
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.localization import RANDOM, Localization
from journey.evaluation.localization.analysis import (
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

SMALL = {
    "step": 300,
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


def constructed(random, shared: float):
    """Return predictions and outputs [R, S, Q, M] of three regions with a common part."""
    labels = np.repeat(np.arange(4), 25)
    common, own = random.standard_normal((1, 2, 5, 100)), random.standard_normal((3, 2, 5, 100))
    masks = np.stack([subsets.subset_mask(labels, RandomSubset(i, 0.5, 0)) for i in range(40)])
    tau = shared * common + own
    predictions = np.stack([predicted_outputs(scores, masks, 2) for scores in tau])
    noise = random.standard_normal((3, 2, 5, 40))
    return predictions, -np.einsum("rsqn,mn->rsqm", tau, masks) + 0.3 * noise


def test_scores_of_a_region_predict_that_region_alone(random):
    predictions, outputs = constructed(random, shared=0.0)
    cells = lds_matrix(predictions, outputs, np.ones((1, 40)))[0].mean((-2, -1))
    np.testing.assert_allclose(np.diagonal(cells), 1, atol=0.03)
    assert np.abs(cells[~np.eye(3, dtype=bool)]).max() < 0.25
    assert contrast(cells) > 0.8


def test_centring_over_regions_reveals_locality_that_a_common_part_hides(random):
    predictions, outputs = constructed(random, shared=3.0)
    weights = bootstrap_with_observed(40, 200, random), bootstrap_with_observed(5, 200, random)
    contrasts = []
    for pair in ((predictions, outputs), (region_centred(predictions), region_centred(outputs))):
        cells = np.moveaxis(lds_matrix(*pair, weights[0]), (1, 2), (-2, -1))  # [B, S, Q, R, R]
        value, low, high = interval(contrast(cells).mean(1), weights[1])
        assert low < value < high
        contrasts.append(value)
    # Above 1, as the centred parts of three regions are negatively correlated.
    assert contrasts[0] < 0.3 < 1 < contrasts[1]
    np.testing.assert_allclose(region_centred(outputs).mean(0), 0, atol=1e-12)


def test_one_score_per_query_predicts_every_step_alike(random):
    masks, tau = random.random((6, 10)) < 0.5, random.standard_normal((1, 3, 10))
    expected = [[-tau[0, q][mask].sum() for mask in masks] for q in range(3)]
    np.testing.assert_allclose(predicted_outputs(tau, masks, 4)[2], expected)


def test_shares_of_a_change_are_those_of_slices_and_add_up_to_1_over_tiles(random):
    change, tiles = random.random((3, 2, 8, 8)), list(quarters(8, 8).values())
    shares = change_shares(change, tiles)
    assert shares[1, 2] == pytest.approx(change[1, :, 4:, :4].sum() / change[1].sum())
    np.testing.assert_allclose(shares.sum(-1), 1)
    box_per_query = (4, 0, 8, 4, 0, 0, 8, 8, 0, 4, 4, 8)
    own = change_shares(change, [box_per_query])[:, 0]
    np.testing.assert_allclose(own, [shares[0, 2], 1, shares[2, 1]])
    with pytest.raises(ValueError, match="change has no location"):
        change_shares(np.zeros((1, 1, 8, 8)), tiles)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The spec of a small run, its result and the workspace with its artifacts."""
    run = small_run(
        training=Training(num_steps=20, batch_size=16, warmup_steps=4),
        method={"journey": journey_trak(damping=[1.0]), "pixel": Pixel()},
        evaluation=Localization(**SMALL),
    )
    store = Store(tmp_path_factory.mktemp("localization"))
    workspace = Workspace(store, run.compute, run.tracking, "test")
    spec = load_experiment(run, store).evaluation(run.evaluation, run.all_methods)
    result = json.loads((get(spec, workspace).path / "result.json").read_text())
    return spec, result, workspace


def final(removal, workspace):
    return get(removal.continuations, workspace).array("final.npy")[0, :, 0].astype(float)


def test_shares_of_the_change_are_those_of_a_loop(evaluated):
    spec, result, workspace = evaluated
    removed, expected = "bottom left", []
    reference = final(spec.inputs.reference, workspace)
    for query, removal in enumerate(spec.inputs.removed[removed]):
        square = (final(removal, workspace)[0] - reference[query]) ** 2
        expected.append(square[:, :4, 4:].sum() / square.sum())
    rows = select(result["rows"], quantity="change_share")
    (row,) = select(rows, removed=removed, output_region="top right")
    assert row["value"] == pytest.approx(np.mean(expected))
    for name in (removed, RANDOM):
        assert sum(row["value"] for row in select(rows, removed=name)) == pytest.approx(1)


def test_the_rise_is_that_of_the_outputs_of_a_region(evaluated):
    spec, result, workspace = evaluated

    def output(removal, region: int, query: int) -> float:
        return get(removal.outputs[region], workspace).array("outputs.npy")[:, 0, query].mean()

    names = list(quarters(8, 8))
    rises = np.empty((4, 4, 2))  # removed, region, query
    for r, s, query in np.ndindex(rises.shape):
        after = output(spec.inputs.removed[names[r]][query], s, query)
        rises[r, s, query] = after / output(spec.inputs.reference, s, query) - 1
    conditions = {"quantity": "output_rise", "removed": names[1], "output_region": names[3]}
    (row,) = select(result["rows"], **conditions)
    assert row["value"] == pytest.approx(rises[1, 3].mean())
    contrasts = [rises[r, r] - np.delete(rises[:, r], r, 0).mean(0) for r in range(4)]
    conditions = {"against": "other regions", "output_region": "all regions"}
    (row,) = select(result["rows"], quantity="output_rise_difference", **conditions)
    assert row["value"] == pytest.approx(np.mean(contrasts))


def test_every_region_has_its_own_scores_and_the_whole_image_those_of_the_run(evaluated):
    spec, result, _ = evaluated
    for query, removal in enumerate(spec.inputs.removed["top left"]):
        subset = removal.continuations.checkpoint.subset
        assert subset.score.method.region == [0, 0, 4, 4]
        assert (subset.query, subset.count) == (query, 5)
        assert removal.continuations.encoder is None
    assert spec.inputs.scores["journey"]["whole image"] == spec.scores["journey"]
    assert len(select(result["rows"], quantity="lds", method="pixel")) == 25
    assert len(select(result["rows"], quantity="region_centred", method="journey")) == 16


def test_figures_and_tables_show_the_result(evaluated):
    result = {**evaluated[1], "experiment": "test"}
    figures = Localization().figures(result)
    assert list(figures) == ["localization.png", "locality_by_step.png", "removal.png"]
    regions = {"score_region": "top left", "output_region": "top right"}
    (row,) = select(result["rows"], quantity="lds", method="journey", **regions)
    shown = figures["localization.png"].axes[0].images[0].get_array()
    assert shown[1, 2] == pytest.approx(100 * row["value"])
    assert len(Localization().tables(result)) == 2
    assert Localization().chosen(result, "journey") == {"damping": 1.0}


TOP = [0, 0, 4, 8]
TRAJECTORY = journey_trak(target=Target.trajectory, damping=[1.0])
OUTSIDE, EMPTY = {"a": TOP, "b": [4, 0, 9, 8]}, {"a": TOP, "b": [4, 4, 4, 8]}
INVALID = [
    ({"regions": OUTSIDE}, r"regions\.b=\[4, 0, 9, 8\]: must be \[first row, .* 8×8"),
    ({"regions": EMPTY}, r"regions\.b=\[4, 4, 4, 8\]: must be \[first row"),
    ({"regions": {"top": TOP}}, r"regions=.*: must be two regions or more"),
    ({"regions": {"whole image": TOP, "b": TOP}}, r"regions=.*or more, none called"),
    ({"step": 200}, r"step=200: must be among sampling\.steps=\[600, 300\]"),
    ({"paired_steps": [500]}, r"paired_steps=\[500\]: must be among sampling\.steps"),
    ({"count": 60}, r"count=60: must be in 1…\d+"),
    ({"num_removals": 5}, r"num_removals=5: must be in 2…4"),
    ({"num_continuations": 2}, r"num_continuations=2: must be 1 with sampling\.sampler=ddim"),
]


@pytest.mark.parametrize(("changes", "message"), INVALID, ids=lambda value: str(value)[:40])
def test_invalid_settings_are_refused_before_any_computation(changes, message, workspace):
    def check():
        run = small_run(evaluation=Localization(**{**SMALL, **changes}))
        check_data(run, *prepare_experiment(run, workspace.store), workspace.store)

    with pytest.raises(ConfigError, match=rf"^evaluation\.{message}"):
        check()
    assert not (workspace.store.root / "models").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Random(), r"method\.a=random: must be one that can attribute a region"),
        (TRAJECTORY, r"method\.a=gram-loss-trajectory: must be one"),
        (journey_trak(), r"evaluation\.candidates\.a=None: must be one of 0\.1, 1: damping of a"),
    ],
)
def test_a_method_without_regions_or_with_a_choice_is_refused(method, message, small):
    with pytest.raises(ConfigError, match=message):
        small.evaluation(Localization(**SMALL), {"a": method})


def test_a_random_sampler_can_have_several_continuations():
    evaluation = Localization(**{**SMALL, "num_continuations": 3})
    sampling = Sampling(Sampler.ddpm, 50, num_queries=4, steps=[600, 300])
    assert small_run(sampling=sampling, evaluation=evaluation).evaluation is evaluation
