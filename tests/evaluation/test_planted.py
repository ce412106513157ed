"""Recall of injected duplicates: closed forms, constructed ranks, and a small real run."""

import json

import numpy as np
import pytest
import torch
from conftest import journey_trak, small_run

from journey.attribution.baselines import Pixel, Random
from journey.data.duplicates import INJECTED
from journey.data.embedded import Digits
from journey.diffusion.latent import LatentDiffusion
from journey.diffusion.network import bind
from journey.engine.checks import ConfigError
from journey.engine.seeding import generator
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.evaluation.planted import Planted, chance_recall, recall
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.images import as_pixels, read_images
from journey.pipeline.settings import Sampler, Sampling, Start

DATASET = {"num_train": 60, "num_injected": 4, "copies": 3}
SAMPLING = {
    "sampler": Sampler.ddim,
    "num_inference_steps": 50,
    "num_queries": 4,
    "steps": [600, 20],
    "start": Start.injected,
}


def planted_run(**changes):
    settings = {
        "dataset": Digits(**DATASET),
        "sampling": Sampling(**SAMPLING),
        "method": {"pixel": Pixel(), "journey": journey_trak(damping=[1.0]), "random": Random()},
        "evaluation": Planted(num_bootstrap=100),
    }
    return small_run(**{**settings, **changes})


def test_recall_is_a_share_of_the_duplicates_that_could_be_first():
    ranks = np.array([[2, 6], [2, 1]])  # of two duplicates of two queries
    np.testing.assert_array_equal(recall(ranks, 2), [0.5, 1.0])
    np.testing.assert_array_equal(recall(ranks, 1), [0.0, 1.0])


@pytest.mark.parametrize(("k", "num_copies"), [(5, 5), (10, 1), (10, 20), (1, 1)])
def test_chance_is_the_recall_of_random_orders(k, num_copies):
    orders = np.argsort(np.random.default_rng(0).standard_normal((20_000, 50)))
    expected = recall(1 + orders[:, :num_copies], k).mean()
    assert expected == pytest.approx(chance_recall(k, num_copies, 50), abs=0.01)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The experiment of a small run, its result and the workspace with its artifacts."""
    run = planted_run()
    store = Store(tmp_path_factory.mktemp("planted"))
    workspace = Workspace(store, run.compute, run.tracking, "test")
    experiment = load_experiment(run, store)
    spec = experiment.evaluation(run.evaluation, run.all_methods)
    result = json.loads((get(spec, workspace).path / "result.json").read_text())
    return experiment, result, workspace


def test_pixels_find_every_exact_duplicate_near_the_final_image(evaluated):
    rows = select(evaluated[1]["rows"], step=20)
    pixel = select(rows, method="pixel")
    (row,) = select(pixel, quantity="recall")
    assert (row["value"], row["low"], row["high"]) == (1, 1, 1)
    (rank,) = select(pixel, quantity="median_rank")
    assert rank["value"] == 2  # of three duplicates on the first places
    (few,) = select(pixel, quantity="recall_10")
    assert few["value"] == 1
    (journey,) = select(rows, quantity="recall", method="journey")
    (difference,) = select(rows, quantity="difference", against="pixel", method="journey")
    assert difference["value"] == pytest.approx(journey["value"] - 1)
    (chance,) = select(rows, quantity="recall", method="chance")
    assert chance["value"] == pytest.approx(3 / 72)


def test_queries_are_noisy_injected_images_and_their_estimates(evaluated):
    experiment, _, workspace = evaluated
    trajectories = get(experiment.trajectories, workspace)
    originals = read_images(get(experiment.images, workspace).path / INJECTED)
    x0 = as_pixels(originals.images)
    np.testing.assert_array_equal(trajectories.array("final.npy"), x0)
    device = torch.device("cpu")
    schedule = experiment.model.schedule(device)
    weights = get(experiment.checkpoint(0), workspace).path
    network = bind(experiment.model.load(weights, device), Precision.fp32)
    for step, t in enumerate((600, 20)):
        alpha_bar = float(schedule.signal_squared[t])
        for q in range(4):
            eps = torch.randn(1, 8, 8, generator=generator(experiment.seed, "journey", q))
            x_t = alpha_bar**0.5 * x0[q] + (1 - alpha_bar) ** 0.5 * eps
            np.testing.assert_allclose(trajectories.array("x_t.npy")[step, q], x_t, atol=1e-5)
            with torch.no_grad():
                predicted = network(x_t[None], torch.tensor([t]))[0]
            x0_hat = ((x_t - (1 - alpha_bar) ** 0.5 * predicted) / alpha_bar**0.5).clamp(-1, 1)
            np.testing.assert_allclose(trajectories.array("x0_hat.npy")[step, q], x0_hat, atol=1e-3)


def test_the_headline_the_figure_and_the_table_show_every_method(evaluated):
    result = {**evaluated[1], "experiment": "test"}
    methods = {"pixel", "journey", "random"}
    assert {row["method"] for row in Planted().headline(result)} == methods
    assert all(Planted().chosen(result, name) is not None for name in methods)
    axes = Planted().figures(result)["recall_by_step.png"].axes[0]
    shown = {c.get_label(): c.lines[0].get_ydata().astype(float) for c in axes.containers}
    rows = select(result["rows"], quantity="recall", method="journey", target="step")
    np.testing.assert_allclose(shown["journey"], [row["value"] for row in rows])
    (table,) = Planted().tables(result)
    assert str(next(iter(table.columns[2].cells))) == "100 ± 0; 2"  # pixels at t = 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": Digits(num_train=60)}, r"sampling\.start=injected: must be generated unless"),
        (
            {"sampling": Sampling(**{**SAMPLING, "num_queries": 5})},
            r"sampling\.num_queries=5: must be dataset\.num_injected=4",
        ),
        (
            {"sampling": Sampling(**{**SAMPLING, "start": Start.generated})},
            r"sampling\.start=generated: must be injected with evaluation=planted",
        ),
        ({"model": LatentDiffusion()}, r"sampling\.start=injected: must be generated with model"),
    ],
)
def test_runs_without_injected_duplicates_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        planted_run(**changes)


def test_a_method_with_several_candidates_is_refused(tmp_path):
    run = planted_run(method={"a": journey_trak()})
    message = r"evaluation\.candidates\.a=None: must be one of 0\.1, 1: damping of a"
    with pytest.raises(ConfigError, match=message):
        load_experiment(run, Store(tmp_path)).evaluation(run.evaluation, run.all_methods)
