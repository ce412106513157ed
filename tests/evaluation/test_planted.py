"""Are planted copies found? Closed forms, constructed scores, and a planted truth through the whole road."""

import json

import numpy as np
import pytest
import torch
from conftest import journey_trak, small_run

from journey.attribution.baselines import Pixel, Random
from journey.data.embedded import Digits
from journey.diffusion.latent import LatentDiffusion
from journey.diffusion.network import bind
from journey.engine.checks import ConfigError
from journey.engine.seeding import generator
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.evaluation.planted import Planted, chance_recall, ranks, recall
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.images import as_pixels, read_images
from journey.pipeline.settings import Sampler, Sampling, Start

DATASET = {"num_train": 60, "num_injected": 4, "copies": 3}
SAMPLING = {
    "num_inference_steps": 50,
    "num_queries": 4,
    "steps": [600, 20],
    "start": Start.injected,
}


def planted_run(**changes):
    settings = {
        "dataset": Digits(**DATASET),
        "sampling": Sampling(Sampler.ddim, **SAMPLING),
        "method": {"pixel": Pixel(), "journey": journey_trak(damping=[1.0]), "random": Random()},
        "evaluation": Planted(num_bootstrap=100),
    }
    return small_run(**{**settings, **changes})


def test_recall_of_constructed_scores():
    scores = np.array(
        [[9.0, 5.0, 4.0, 3.0, 8.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    )  # two queries; copies are the last two
    of_copies = ranks(scores)[:, 4:]
    np.testing.assert_array_equal(of_copies, [[2, 6], [2, 1]])
    np.testing.assert_array_equal(recall(of_copies, 2), [0.5, 1.0])
    np.testing.assert_array_equal(
        recall(of_copies, 1), [0.0, 1.0]
    )  # of the one that could be first
    np.testing.assert_array_equal(ranks(np.zeros(4)), [1, 2, 3, 4])


@pytest.mark.parametrize(("k", "num_copies"), [(5, 5), (10, 1), (10, 20), (1, 1)])
def test_chance_is_what_random_orders_find(k, num_copies):
    drawn = ranks(np.random.default_rng(0).standard_normal((20_000, 50)))[:, :num_copies]
    assert recall(drawn, k).mean() == pytest.approx(chance_recall(k, num_copies, 50), abs=0.01)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    run = planted_run()
    workspace = Workspace(
        Store(tmp_path_factory.mktemp("planted")), run.compute, run.tracking, "test"
    )
    experiment = load_experiment(run, workspace.store)
    spec = experiment.evaluation(run.evaluation, run.all_methods)
    return (
        experiment,
        json.loads((get(spec, workspace).path / "result.json").read_text()),
        workspace,
    )


def test_pixels_find_every_exact_copy_near_the_image(judged):
    """The answer is in the query; so it is found, or the road is broken."""
    rows = judged[1]["rows"]
    (found,) = select(rows, quantity="recall_copies", method="pixel", step=20)
    assert (found["value"], found["low"], found["high"]) == (1, 1, 1)
    (rank,) = select(rows, quantity="median_rank", method="pixel", step=20)
    assert rank["value"] == 2  # of three copies that share the first places
    (few,) = select(rows, quantity="recall_10", method="pixel", step=20)
    assert few["value"] == 1
    (trajectories,) = select(rows, quantity="recall_copies", method="journey", step=20)
    (less,) = select(rows, quantity="difference", method="pixel", against="journey", step=20)
    assert less["value"] == pytest.approx(1 - trajectories["value"])
    (chance,) = select(rows, quantity="recall_copies", method="chance", step=20)
    assert chance["value"] == pytest.approx(3 / 72)


def test_queries_are_noisy_planted_images_and_what_the_model_makes_of_them(judged):
    experiment, _, workspace = judged
    trajectories = get(experiment.trajectories, workspace)
    originals = read_images(get(experiment.images, workspace).path / "planted")
    x0 = as_pixels(originals.images)
    np.testing.assert_array_equal(trajectories.array("final.npy"), x0)
    schedule = experiment.model.schedule(torch.device("cpu"))
    denoiser = experiment.model.load(
        get(experiment.checkpoint(0), workspace).path, torch.device("cpu")
    )
    for step, t in enumerate((600, 20)):
        alpha_bar = float(schedule.alpha_bar[t])
        for q in range(4):
            eps = torch.randn(1, 8, 8, generator=generator(experiment.seed, "journey", q))
            x_t = alpha_bar**0.5 * x0[q] + (1 - alpha_bar) ** 0.5 * eps
            np.testing.assert_allclose(trajectories.array("x_t.npy")[step, q], x_t, atol=1e-5)
            with torch.no_grad():
                predicted = bind(denoiser, Precision.fp32)(x_t[None], torch.tensor([t]))[0]
            x0_hat = ((x_t - (1 - alpha_bar) ** 0.5 * predicted) / alpha_bar**0.5).clamp(-1, 1)
            np.testing.assert_allclose(trajectories.array("x0_hat.npy")[step, q], x0_hat, atol=1e-3)


def test_every_method_is_judged_and_the_picture_drawn_from_the_result_alone(judged):
    import matplotlib.pyplot as plt

    result = {**judged[1], "experiment": "test"}
    assert {row["method"] for row in Planted().headline(result)} == {"pixel", "journey", "random"}
    figure = Planted().figures(result)["recall_by_step.png"]
    drawn = {c.get_label(): c.lines[0].get_ydata() for c in figure.axes[0].containers}
    expected = [
        row["value"]
        for row in select(result["rows"], quantity="recall_copies", method="journey", target="step")
    ]
    np.testing.assert_allclose(drawn["journey"].astype(float), expected)
    (shown,) = Planted().tables(result)
    assert next(iter(shown.columns[2].cells)) == "100 ± 0; 2"  # pixels at t = 20
    plt.close("all")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": Digits(num_train=60)},
            r"sampling\.start=injected: must be generated unless dataset\.num_injected",
        ),
        (
            {"sampling": Sampling(**{**SAMPLING, "num_queries": 5})},
            r"sampling\.num_queries=5: must be dataset\.num_injected=4",
        ),
        (
            {"sampling": Sampling(**{**SAMPLING, "start": Start.generated})},
            r"sampling\.start=generated: must be planted with eval",
        ),
        (
            {"model": LatentDiffusion()},
            r"sampling\.start=injected: must be generated with model=ldm",
        ),
    ],
)
def test_what_has_no_known_answer_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        planted_run(**changes)


def test_a_method_with_a_choice_is_refused(tmp_path):
    run = planted_run(method={"a": journey_trak()})
    with pytest.raises(
        ConfigError, match=r"evaluation\.candidates\.a=None: must be one of 0\.1, 1: damping of a"
    ):
        load_experiment(run, Store(tmp_path)).evaluation(run.evaluation, run.all_methods)
