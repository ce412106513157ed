"""The LDS of final images against loops over continued trajectories."""

import json

import numpy as np
import pytest
import torch
from conftest import journey_trak, naive_loss, small_run
from rich.console import Console
from scipy.stats import kendalltau, spearmanr

from journey.attribution.baselines import Encoder, Pixel, Random
from journey.attribution.image_targets import linear_classifier, principal_axis, target_function
from journey.data.images import train_images
from journey.diffusion.network import load_denoiser
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.image_lds import ImageLDS
from journey.evaluation.lds import datamodeling
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.images import as_pixels
from journey.pipeline.settings import ImageTarget, Retraining, Sampler, Sampling, Training
from journey.pipeline.subsets import subset_mask

STEPS = [600, 300, 100]
TARGETS = [target for target in ImageTarget if target is not ImageTarget.features]
IMAGES = ImageLDS(steps=[600, 100], targets=TARGETS, windows=True, num_bootstrap=100)
CPU = torch.device("cpu")


def images_run(**changes):
    settings = {
        "sampling": Sampling(Sampler.ddim, 10, num_queries=4, steps=STEPS),
        "training": Training(num_steps=3, batch_size=16, warmup_steps=1),
        "evaluation": IMAGES,
        "method": {"journey": journey_trak(), "pixel": Pixel(), "random": Random()},
        "retraining": Retraining(num_subsets=8, num_seeds=2, num_samples=4),
    }
    return small_run(**{**settings, **changes})


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The result of a small run, its spec and the workspace with its artifacts."""
    run = images_run()
    store = Store(tmp_path_factory.mktemp("store"))
    workspace = Workspace(store, run.compute, run.tracking, "test")
    spec = load_experiment(run, store).evaluation(run.evaluation, run.all_methods)
    return json.loads((get(spec, workspace).path / "result.json").read_text()), spec, workspace


def final_images(evaluated, step, window):
    """Return final samples under all models [M, R, Q, …], and the original ones [Q, …]."""
    _, spec, workspace = evaluated
    images = []
    for by_seed in spec.inputs.continuations:
        for parts in by_seed:
            (part,) = (part for part in parts if part.step == step)
            images.append(get(part, workspace).array("final.npy")[part.windows.index(window), :, 0])
    final = get(spec.trajectories, workspace).array("final.npy")
    return np.reshape(images, (8, 2, *final.shape)), final


def lds_of_pixel(evaluated, numbers, steps):
    """Return the LDS of pixel similarity, a mean over steps, with numbers of the images [M, Q]."""
    _, spec, workspace = evaluated
    scores = get(spec.scores["pixel"], workspace).array("scores.npy")[0]  # [S, Q, N]
    scores = np.mean([scores[STEPS.index(t)].astype(float) for t in steps], axis=0)
    labels = train_images(spec.trajectories.checkpoint.images, workspace).labels
    subsets = [by_seed[0].checkpoint.subset for by_seed in spec.inputs.outputs]
    masks = np.stack([subset_mask(labels, subset) for subset in subsets])
    half = datamodeling.resampling(4, 8, 100, spec.seed).subset_half
    rhos = []
    for q in range(4):
        predicted = -(masks.astype(float) @ scores[q])
        for h in (0, 1):
            rho = spearmanr(predicted[half == h], numbers[half == h, q]).statistic
            rhos.append(rho)
    return np.mean(rhos)


@pytest.mark.parametrize(("step", "window", "span"), [(600, 300, "window"), (100, 100, "rest")])
def test_the_lds_is_that_of_distances_of_continued_trajectories(evaluated, step, window, span):
    images, final = final_images(evaluated, step, window)
    distances = np.square(images - final, dtype=np.float64).mean((1, 3, 4, 5))
    conditions = {"image": "distance", "window": span, "method": "pixel", "target": "step"}
    (row,) = select(evaluated[0]["rows"], quantity="image_lds", **conditions, step=step)
    assert row["value"] == pytest.approx(lds_of_pixel(evaluated, distances, [step]), abs=1e-6)


def test_the_whole_generation_begins_at_the_trajectory_s_noise(evaluated):
    result, _, workspace = evaluated
    images, final = final_images(evaluated, 900, 900)
    distances = np.square(images - final, dtype=np.float64).mean((1, 3, 4, 5))
    conditions = {"image": "distance", "window": "rest", "target": "trajectory"}
    (row,) = select(result["rows"], quantity="image_lds", **conditions, method="pixel")
    assert row["value"] == pytest.approx(lds_of_pixel(evaluated, distances, STEPS), abs=1e-6)
    (moved,) = select(result["rows"], quantity="moved", **conditions, method="retrained")
    expected = np.square(images[:, 0] - final).mean()
    assert moved["value"] == pytest.approx(expected, rel=1e-4)
    experiment = load_experiment(images_run(), workspace.store)
    queries = tuple(range(4))
    own = experiment.continuations(experiment.checkpoint(0), 900, queries, 1, None)
    repeated = get(own, workspace).array("final.npy")[0, :, 0]
    np.testing.assert_allclose(repeated, final, atol=0.02)


def test_the_loss_at_x_t_has_the_noise_that_is_in_it(evaluated):
    _, spec, workspace = evaluated
    measure = spec.inputs.noisy_outputs[3][1]
    outputs = get(measure, workspace).array("outputs.npy")
    trajectories = get(spec.trajectories, workspace)
    denoiser = load_denoiser(measure.checkpoint, workspace)
    for query in range(4):
        x0 = torch.from_numpy(trajectories.array("final.npy")[query].copy())
        x_t = torch.from_numpy(trajectories.array("x_t.npy")[1, query].copy())
        signal = denoiser.schedule.signal_squared[300].float()
        eps = (x_t - signal.sqrt() * x0) / (1 - signal).sqrt()
        args = (denoiser.network, denoiser.schedule, x0, torch.tensor(300), eps)
        expected = naive_loss(*args).item()
        np.testing.assert_allclose(outputs[:, 1, query], expected, rtol=1e-4)


def test_scores_of_windows_predict_the_rest_by_their_sum(evaluated, monkeypatch):
    _, spec, workspace = evaluated
    masks, weights = np.random.default_rng(0).random((8, 60)) < 0.5, np.ones((3, 4))
    monkeypatch.setattr(type(spec.scores["journey"].method), "additive", True)
    monkeypatch.setattr(type(spec.scores["journey"].method), "in_units_of_output", False)
    predicted = IMAGES._predictions("journey", spec, masks, weights, workspace)
    scores = get(spec.scores["journey"], workspace).array("scores.npy").astype(float)
    window = -np.einsum("csqn,mn->csqm", scores, masks)
    np.testing.assert_allclose(predicted["window"][:, :2], window[:, [0, 2]], atol=1e-9)
    np.testing.assert_allclose(predicted["rest"][:, 0], window.sum(1), atol=1e-9)
    np.testing.assert_allclose(predicted["rest"][:, 1], window[:, 2], atol=1e-9)
    np.testing.assert_allclose(predicted["rest"][:, 2], window.mean(1), atol=1e-9)


def test_targets_are_their_formulas(evaluated):
    _, spec, workspace = evaluated
    final = torch.from_numpy(get(spec.trajectories, workspace).array("final.npy").copy())
    train = train_images(spec.trajectories.checkpoint.images, workspace)
    pixels = as_pixels(np.asarray(train.images)).flatten(1)
    x, q = torch.randn(3, 1, 8, 8), torch.tensor([2, 0, 2])
    values = {}
    for target in TARGETS:
        values[target.value] = target_function(target, spec.trajectories, workspace, CPU)(x, q)
    flat, own = x.flatten(1), final[q].flatten(1)
    expected = {
        "distance": (flat - own).square().mean(1),
        "projection": -(flat * (own - pixels.mean(0))).mean(1),
        "direction": flat @ principal_axis(pixels) / 8,
    }
    weight, bias = linear_classifier(spec.trajectories.checkpoint.images, workspace)
    classes = (own @ weight.T + bias).argmax(1)
    log_p = (flat @ weight.T + bias).log_softmax(1)
    expected["class_loss"] = -log_p[torch.arange(3), classes]
    for name, numbers in expected.items():
        torch.testing.assert_close(values[name], numbers, rtol=1e-4, atol=1e-5)
    accuracy = ((pixels @ weight.T + bias).argmax(1).numpy() == train.labels).mean()
    assert accuracy > 0.9
    covariance = np.cov(pixels.numpy().T)
    axis = principal_axis(pixels).double().numpy()
    assert axis @ covariance @ axis == pytest.approx(np.linalg.eigvalsh(covariance)[-1], rel=1e-4)


def test_tau_compares_the_query_centred_lds_of_methods(evaluated):
    result = evaluated[0]
    conditions = {"window": "rest", "target": "paired_steps"}
    (row,) = select(result["rows"], quantity="tau", image="projection", **conditions)
    of_image = {}
    for image in ("loss", "projection"):
        rows = select(result["rows"], quantity="image_query_centred", image=image, **conditions)
        of_image[image] = [row["value"] for row in rows]
    assert len(of_image["loss"]) == 3
    assert row["value"] == pytest.approx(kendalltau(*of_image.values()).statistic)


def test_tables_texts_and_figures_show_every_target(evaluated):
    result = evaluated[0] | {"experiment": "test"}
    figure = IMAGES.figures(result)["image_lds.png"]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 2 + 2 * len(TARGETS)
    console = Console(record=True, width=200)
    console.print(*IMAGES.tables(result))
    text = console.export_text()
    assert "class loss of the image, window" in text
    assert "Kendall's τ" in text
    document = IMAGES.texts(result)["image_lds.md"]
    (row,) = select(
        result["rows"], quantity="moved", method="another seed", target="step", step=600
    )
    assert f"{row['value']:.4f} [" in document
    assert IMAGES.headline(result)[0]["image"] == "distance"


def test_features_are_compared_with_those_of_the_original_image(evaluated):
    _, spec, workspace = evaluated
    experiment = load_experiment(images_run(), workspace.store)
    encoder = Encoder(side=32)
    part = experiment.continuations(experiment.checkpoint(1), 600, (0, 1, 2, 3), 1, encoder)
    images = ImageLDS(targets=[ImageTarget.features], encoder=encoder)
    measure = images._functions(spec, workspace)[ImageTarget.features]
    numbers = measure(get(part, workspace), -1)
    embed, final = encoder.load(), get(spec.trajectories, workspace).array("final.npy")
    changed = get(part, workspace).array("final.npy")[0, :, 0]
    a, b = (embed(torch.from_numpy(np.array(x))).numpy() for x in (changed, final))
    np.testing.assert_allclose(numbers, np.square(a - b).mean(1), rtol=1e-3)


def test_invalid_settings_are_refused(digits):
    messages = {
        r"^evaluation\.steps=\[500\]: must be among sampling\.steps=": ImageLDS(steps=[500]),
        r"^evaluation\.steps=\[100, 600\]: must be distinct, in falling": ImageLDS(
            steps=[100, 600]
        ),
        r"^evaluation\.targets=\[\]: must be a non-empty list": ImageLDS(steps=[600], targets=[]),
        r"^evaluation\.num_continuations=2: must be 1 with sampling\.sampler=ddim": ImageLDS(
            steps=[600], num_continuations=2
        ),
    }
    for message, evaluation in messages.items():
        with pytest.raises(ConfigError, match=message):
            images_run(evaluation=evaluation)
    digits.labels[:], labels = 0, digits.labels.copy()
    message = r"^evaluation\.targets=class_loss: must be left out: the training images are of 1 cl"
    with pytest.raises(ConfigError, match=message):
        ImageLDS().check_data("evaluation", None, digits)
    digits.labels[:] = labels
