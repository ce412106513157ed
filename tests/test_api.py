"""The Python interface: it computes what the stages compute, and refuses in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import journey_trak, python, small_run, succeeds
from diffusers import DDPMScheduler, EDMEulerScheduler
from scipy.stats import spearmanr

import journey
from journey.diffusion.network import load_denoiser
from journey.diffusion.trajectories import train_examples
from journey.engine.checks import ConfigError
from journey.engine.seeding import numpy_generator
from journey.engine.workspace import get
from journey.evaluation.lds import datamodeling
from journey.experiment import load_experiment
from journey.pipeline.settings import (
    Augmentation,
    Kernel,
    Output,
    Projection,
    Scale,
    ScoreTransform,
    Storage,
    Target,
    Training,
)

ROOT = Path(__file__).parents[1]
STEPS = (600, 300)


@pytest.fixture
def experiment(workspace):
    training = Training(num_steps=4, batch_size=16, warmup_steps=1)
    return load_experiment(small_run(training=training), workspace.store)


METHODS = {
    "default": {},
    "ensemble": {"num_checkpoints": 2, "first_checkpoint": 1},
    "noise": {"num_checkpoints": 2, "first_checkpoint": 1, "noise_per_checkpoint": True},
    "final sample": {"target": Target.final_sample, "share_noise": True, "noise_set": 1},
    "EK-FAC": {"kernel": Kernel.ekfac},
    "Kronecker": {"projection": Projection.kronecker, "projection_rank": 4},
    "timesteps": {"train_timesteps": 100, "antithetic": True, "flips": Augmentation.both},
    "D-TRAK": {"output": Output.square, "scale": Scale.influence, "storage": Storage.int8},
    "DAS": {"normalize": True, "score_transform": ScoreTransform.square, "num_checkpoints": 2},
    "region": {"region": [0, 0, 4, 8], "kernel": Kernel.identity},
}


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_scores_are_those_of_the_stages(experiment, workspace, changes):
    method = journey_trak(damping=[0.1], **changes)
    expected = get(experiment.scores(method), workspace).array("scores.npy")[0]
    checkpoints = range(method.first_checkpoint, method.first_checkpoint + method.num_checkpoints)
    denoisers = [load_denoiser(experiment.checkpoint(k), workspace) for k in checkpoints]
    trajectories = get(experiment.trajectories, workspace)
    final = method.target is Target.final_sample
    scores = journey.attribute(
        [denoiser.network for denoiser in denoisers],
        denoisers[0].schedule,
        train_examples(experiment.checkpoint(0), workspace).x0,
        trajectories.array("final.npy" if final else "x0_hat.npy"),
        STEPS,
        method,
    )
    assert scores.shape == ((1 if final else 2), 4, 60)
    # Bases that are read from a file have another memory layout, so EK-FAC rounds otherwise.
    rtol = 1e-6 if method.kernel is Kernel.ekfac else 0
    np.testing.assert_allclose(scores, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.fixture
def arrays(clean):
    return {"train_images": clean.x0[:20].numpy(), "queries": clean.x0[20:24], "steps": [300, 100]}


SMALL = {"num_samples": 4, "projection_dim": 64, "damping": [1.0]}


class Returning(torch.nn.Module):
    """A network that returns a tensor, in training mode, with frozen parameters."""

    def __init__(self, network):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.dropout = torch.nn.Dropout(0.9)

    def forward(self, x_t, t):
        return self.dropout(self.network(x_t, t).sample)


def test_any_network_and_scheduler(net, arrays, linear_schedule):
    method = journey.method(**SMALL)
    expected = journey.attribute(net, linear_schedule, **arrays, method=method)
    wrapped = Returning(net)
    scores = journey.attribute(wrapped, DDPMScheduler(), **arrays, method=method)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert wrapped.training
    assert not any(p.requires_grad for p in wrapped.parameters())


class Conditional(torch.nn.Module):
    """A denoiser that is linear in the embedding of a class label."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.zeros(3, 64))

    def forward(self, x_t, t, label):
        return self.embedding[label].view(x_t.shape)


def test_conditions_reach_the_network(arrays):
    """Examples of one label have equal gradients, those of different labels orthogonal ones."""
    method = journey.method(projection="none", num_samples=4, damping=[0.5])
    labels, query_labels = torch.arange(20) % 3, torch.tensor([0, 1, 2, 0])
    conditions = {"train_conditions": labels, "query_conditions": query_labels}
    scores = journey.attribute(
        Conditional(), DDPMScheduler(), **arrays, method=method, **conditions
    )
    other_label = labels.numpy() != query_labels.numpy()[:, None]
    assert np.abs(scores[:, other_label]).max() < 1e-6
    assert (np.abs(scores[:, ~other_label]) > 1e-4).all()
    for step in scores:  # the noise samples are those of all images
        assert np.ptp(step[0, labels == 0]) < 1e-6


@pytest.mark.parametrize("name", ["journey", "ekfac", "das", "retrac"])
def test_a_method_has_the_settings_of_its_file_and_the_middle_damping(name):
    fields = {
        "journey": {"kernel": Kernel.gram, "damping": [1.0], "target": Target.step},
        "ekfac": {"kernel": Kernel.ekfac, "damping": [0.01]},
        "das": {"score_transform": ScoreTransform.square, "normalize": True},
        "retrac": {"output": Output.absolute, "kernel": Kernel.identity},
    }
    method = journey.method(name)
    assert {field: getattr(method, field) for field in fields[name]} == fields[name]
    assert journey.method(name, target="final_sample").target is Target.final_sample


def test_a_setting_without_effect_is_refused():
    assert journey.method("das", damping=[0.1, 1.0]).damping == [0.1, 1.0]
    with pytest.raises(ConfigError, match=r"retrac\.damping"):
        journey.method("retrac", damping=[0.1, 1.0])


def attributing(**changes):
    return lambda net, arrays: journey.attribute(
        net, **{"scheduler": DDPMScheduler()} | arrays | changes
    )


def with_method(name="journey", **settings):
    return lambda net, arrays: attributing(method=journey.method(name, **settings))(net, arrays)


ERRORS = {
    "method=nothing: must be one of das, dtrak, ekfac,": with_method("nothing"),
    "method.journey.typo=1: must be a setting: num_samples, noise_set, ": with_method(typo=1),
    "method.journey.kernel=nothing: must be one of gram, ekfac, identity": with_method(
        kernel="nothing"
    ),
    "method.journey.damping=0.1: must be a list": with_method(damping=0.1),
    "method.trak.num_samples=0: must be in 1…1000000": with_method("trak", num_samples=0),
    "method.damping=[0.1, 1.0]: must be one value": with_method(damping=[0.1, 1.0]),
    "method.ensemble=run: must be seeds": with_method("tracin"),
    "method.target=trajectory: must be step or final_sample": with_method(target="trajectory"),
    "method.query_example=noisy: must be estimate; pass": with_method(query_example="noisy"),
    "method.num_samples=2000: must be in 1…1000": with_method(num_samples=2000),
    "method.region=[0, 0, 9, 8]: must be": with_method(region=[0, 0, 9, 8]),
    "scheduler=EDMEulerScheduler: EDMEulerScheduler has no known schedule": attributing(
        scheduler=EDMEulerScheduler()
    ),
    "steps=1000: must be in 0…999": attributing(steps=[1000]),
    "steps=[]: must be a non-empty list": attributing(steps=[]),
    "train_images.dtype=torch.uint8: must be floating point": attributing(
        train_images=np.zeros((5, 1, 8, 8), np.uint8)
    ),
    "queries.shape=(4, 8, 8): must be [Q, …] or [2, Q, …]": attributing(
        queries=np.zeros((4, 8, 8))
    ),
    "queries.shape=(3, 4, 1, 8, 8): must be": attributing(queries=np.zeros((3, 4, 1, 8, 8))),
    "conditions of train_images=3: must be 20, one each": attributing(train_conditions=np.zeros(3)),
    "compute.gradient_memory_gib=1e-05: must be at least 0.": attributing(memory_gib=1e-5),
    "device=cuda:99: not available on this machine; use cpu": attributing(device="cuda:99"),
}


@pytest.mark.parametrize("message", ERRORS)
def test_an_error_is_one_line_with_field_value_and_allowed_values(net, arrays, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)) as error:
        ERRORS[message](net, arrays)
    assert "\n" not in str(error.value)


def test_a_network_of_another_shape_is_refused(arrays):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1))
    network.forward = lambda x_t, t: network[0](x_t)
    with pytest.raises(
        ConfigError, match=r"shape of a prediction=\(2, 8, 8\): must be \(1, 8, 8\)"
    ):
        journey.attribute(network, DDPMScheduler(), **arrays)


@pytest.fixture
def retrained():
    """Scores [S, Q, N], masks [M, N], and noisy outputs [M, R, 2, S, Q]."""
    random = np.random.default_rng(0)
    scores, masks = random.normal(size=(2, 6, 30)), random.random((16, 30)) < 0.5
    effects = -np.einsum("sqn,mn->msq", scores, masks)[:, None, None]
    return scores, masks, effects + 4 * random.normal(size=(16, 2, 2, 2, 6))


def test_the_lds_is_a_mean_of_rank_correlations(retrained):
    scores, masks, outputs = retrained
    mean = outputs.mean((1, 2))
    result = journey.lds(scores, masks, mean)
    random = numpy_generator(0, "lds")
    query_half, half = random.permutation(6) % 2, random.permutation(16) % 2
    predicted = -np.einsum("mn,sqn->msq", masks, scores)

    def correlations(predicted, measured):
        rhos = np.zeros((2, 6, 2))
        for step, query, side in np.ndindex(rhos.shape):
            pair = (x[half == side, step, query] for x in (predicted, measured))
            rhos[step, query, side] = spearmanr(*pair).statistic
        return rhos.mean((1, 2))

    assert result.plain.value == pytest.approx(correlations(predicted, mean).mean())
    for outputs in (predicted, mean):
        for side in (0, 1):
            queries = query_half == side
            outputs[..., queries] -= outputs[..., queries].mean(-1, keepdims=True)
    expected = correlations(predicted, mean)
    assert [step.value for step in result.steps] == pytest.approx(expected)
    assert result.value == pytest.approx(expected.mean())
    assert result.low < result.value < result.high
    assert result.ceiling is None


def test_the_lds_is_that_of_the_evaluation(retrained):
    scores, masks, outputs = retrained
    result = journey.lds(torch.tensor(scores), masks, outputs)
    padded = np.moveaxis(outputs.mean((1, 2))[:, [0, 1, 0, 0]], 0, -1)
    predictions = datamodeling.linear(datamodeling.predict(scores[None], masks, np.ones((2, 6))))
    resampled = datamodeling.resampling(6, 16, 200, seed=0)
    assert result.plain == datamodeling.lds(predictions, padded, resampled).interval([0, 1])
    half = resampled.query_half
    centred = (datamodeling.query_centred(x, half) for x in (predictions, padded))
    primary = datamodeling.lds(*centred, resampled).interval([0, 1])
    assert (result.value, result.low, result.high) == primary[:3]
    value, low, high = result.ceiling
    assert low < value < high <= 1
    assert result.low < high

    shifts = 100 * np.random.default_rng(1).normal(size=(16, 1, 1, 2, 1))  # of a model, all queries
    shifted = journey.lds(scores, masks, outputs + shifts)
    assert shifted.value == pytest.approx(result.value)
    assert shifted.plain.value < result.plain.value
    assert journey.lds(-scores, masks, outputs).value < 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": np.zeros((16, 2))}, r"outputs.shape=(16, 2): must be [M, S, Q] or"),
        ({"outputs": np.zeros((16, 2, 6))}, "outputs=constant for a query: must be such that"),
        (
            {"masks": np.zeros((16, 30))},
            "masks=float64 (16, 30): must be [16, N] of true and false",
        ),
        ({"scores": np.zeros((3, 6, 30))}, "scores.shape=(3, 6, 30): must be [2 or 1, 6, 30]"),
        ({"scores": np.full((2, 6, 30), np.nan)}, "scores=NaN or infinite: must be finite"),
    ],
)
def test_arrays_that_the_lds_cannot_be_computed_from_are_refused(retrained, changes, message):
    arguments = dict(zip(("scores", "masks", "outputs"), retrained, strict=True)) | changes
    with pytest.raises(ConfigError, match=re.escape(message)):
        journey.lds(**arguments)


def test_the_example_of_the_readme_runs(tmp_path):
    (example,) = re.findall(
        r"## From Python.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    script = example + "print(scores.shape, scores.std() > 0, list(__import__('os').scandir()))"
    assert succeeds(python(tmp_path, "-c", script)) == "(1, 4, 60) True []\n"


def test_importing_the_package_imports_no_torch(tmp_path):
    script = (
        "import sys, journey; print('torch' in sys.modules, journey.lds, 'torch' in sys.modules)"
    )
    assert re.fullmatch(r"False <function lds .*> True\n", succeeds(python(tmp_path, "-c", script)))
    with pytest.raises(AttributeError, match="module journey has no attribute nothing"):
        journey.nothing  # noqa: B018
