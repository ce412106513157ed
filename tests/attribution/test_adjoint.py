"""Gradients of final images against autograd through the whole sampler, and finite differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import refused, small_run
from diffusers import UNet2DConditionModel

from journey.attribution.adjoint import Adjoint
from journey.attribution.adjoint.stage import SamplerStep, window_gradients
from journey.attribution.ekfac import EKFAC_FILE, load_ekfac
from journey.attribution.image_targets import target_function
from journey.diffusion.network import Denoiser, Guidance, bind, load_denoiser
from journey.diffusion.schedule import ddim_step
from journey.diffusion.trajectories import trajectory_at
from journey.engine.checks import ConfigError
from journey.engine.workspace import Precision, get
from journey.experiment import load_experiment
from journey.pipeline.schedule import denoise
from journey.pipeline.settings import ImageTarget, Kernel, Projection, Sampler, Sampling

TIMESTEPS = [900, 750, 600, 450, 300, 150, 0]
STEPS = (900, 600, 300)
ADJOINT = Adjoint(
    num_checkpoints=1, num_samples=4, projection=Projection.none, kernel=Kernel.identity
)
CPU = torch.device("cpu")


def sampled(predict, schedule, x, timesteps=TIMESTEPS, condition=None):
    """Return final images by a plain loop, through which autograd can differentiate."""
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        t_batch = torch.full((len(x),), t)
        x0_hat, eps = denoise(schedule, x, t_batch, predict(x, t_batch, condition))
        x = ddim_step(schedule, x0_hat, eps, t_next)
    return x


def whole_gradients(network, schedule, target, x, timesteps=TIMESTEPS, condition=None, guide=None):
    """Return the gradient of every query's number by autograd through the sampler. [B, d]"""
    rows = []
    for q in range(len(x)):
        of_query = None if condition is None else condition[q : q + 1]
        predict = bind(network, Precision.fp32, guidance=guide)
        final = sampled(predict, schedule, x[q : q + 1], timesteps, of_query)
        gradients = torch.autograd.grad(
            target(final, torch.tensor([q])).sum(), network.parameters()
        )
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


def adjoint_gradients(network, schedule, target, x, steps=STEPS, condition=None, guide=None):
    """Return Σ g_t over the window of every step. [S, B, d]"""
    predict = bind(network, Precision.fp32, guidance=guide)
    own = Denoiser(network, predict, schedule, guide, CPU)
    step = SamplerStep(network, schedule, Precision.fp32, guide)
    queries = torch.arange(len(x))
    windows = (lambda final: target(final, queries), TIMESTEPS, steps, x, condition)
    by_step = dict(window_gradients(step, own, *windows))
    return torch.stack([by_step[i] for i in range(len(steps))])


@pytest.fixture
def problem(net, linear_schedule):
    """A network, a schedule that clips, noise of three queries, and a curved target."""
    torch.manual_seed(1)
    u = torch.randn(3, 1, 8, 8, dtype=torch.float64)

    def target(x, q):
        return ((x * u[q]).flatten(1).sum(1) - 1).square()

    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    return net.double(), linear_schedule, target, x


def test_windows_add_up_to_autograd_through_the_sampler(problem):
    expected = whole_gradients(*problem)
    windows = adjoint_gradients(*problem)
    scale = expected.abs().max()
    torch.testing.assert_close(windows.sum(0) / scale, expected / scale, rtol=0, atol=1e-5)
    assert (windows.flatten(1).norm(dim=1) > 1e-3 * expected.norm()).all()
    (whole,) = adjoint_gradients(*problem, steps=STEPS[:1])
    torch.testing.assert_close(whole / scale, expected / scale, rtol=0, atol=1e-5)


def test_a_query_does_not_depend_on_the_others(problem):
    network, schedule, target, x = problem
    together = adjoint_gradients(*problem)
    for q in range(3):
        alone = adjoint_gradients(
            network, schedule, lambda final, _, q=q: target(final, torch.tensor([q])), x[q : q + 1]
        )
        torch.testing.assert_close(alone[:, 0], together[:, q], rtol=1e-6, atol=1e-9)


def test_a_window_is_what_the_weights_do_in_it_by_finite_differences(problem):
    """Other weights drive from t = 600 to 450 only, as in a continuation with a window."""
    network, schedule, target, x = problem
    schedule = replace(schedule, clip=False)  # finite differences have no kinks
    torch.manual_seed(2)
    changes = [torch.randn_like(p) for p in network.parameters()]
    middle = adjoint_gradients(network, schedule, target, x)[1]
    expected = middle @ torch.cat([c.flatten() for c in changes])
    predict, queries, size = bind(network, Precision.fp32), torch.arange(3), 1e-5
    values = []
    with torch.no_grad():
        for sign in (1, -1):

            def shifted(x, t, condition, sign=sign):
                inside = int(t[0]) in (600, 450)
                for p, change in zip(network.parameters(), changes, strict=True):
                    p += sign * size * inside * change
                predicted = predict(x, t, condition)
                for p, change in zip(network.parameters(), changes, strict=True):
                    p -= sign * size * inside * change
                return predicted

            values.append(target(sampled(shifted, schedule, x), queries))
    torch.testing.assert_close((values[0] - values[1]) / (2 * size), expected, rtol=1e-4, atol=1e-6)


def test_guidance_and_conditions_are_differentiated(linear_schedule):
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=4, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1, cross_attention_dim=6, attention_head_dim=2,
    ).eval().double()  # fmt: skip
    x, condition = torch.randn(2, 1, 4, 4).double(), torch.randn(2, 5, 6).double()
    guide = Guidance(3.0, torch.randn(5, 6).double())

    def target(final, q):
        return final.flatten(1).sum(1) + 0 * q

    problem = (network, linear_schedule, target, x)
    expected = whole_gradients(*problem, condition=condition, guide=guide)
    windows = adjoint_gradients(*problem, condition=condition, guide=guide)
    scale = expected.abs().max()
    torch.testing.assert_close(windows.sum(0) / scale, expected / scale, rtol=0, atol=1e-5)


def test_the_cost_is_three_sampling_passes(problem, monkeypatch):
    """Each step is evaluated along the trajectory, again, and backward; nothing else is kept."""
    network, _, _, x = problem
    forward, backward = [], []
    network.register_forward_pre_hook(lambda *_: forward.append(1))
    vjp = torch.func.vjp

    def counted(*args):
        assert not x.requires_grad
        value, pull = vjp(*args)
        return value, lambda adjoint: backward.append(1) or pull(adjoint)

    monkeypatch.setattr(torch.func, "vjp", counted)
    adjoint_gradients(*problem)
    assert len(forward) == 2 * len(TIMESTEPS)
    assert len(backward) == len(TIMESTEPS)


def score(method, experiment, workspace):
    return get(experiment.scores(method), workspace).array("scores.npy")


def gradient_of_queries(experiment, workspace, image_target):
    """Return the gradient of all queries' numbers from the first step on, by autograd. [Q, d]"""
    checkpoint = experiment.checkpoint(0)
    denoiser = load_denoiser(checkpoint, workspace)
    function = target_function(image_target, experiment.trajectories, workspace, CPU)
    x = trajectory_at("x_t", experiment.trajectories, (600,), workspace)[0]
    problem = (denoiser.network, denoiser.schedule, function, x, list(range(600, -1, -20)))
    return whole_gradients(*problem).numpy()


def test_scores_of_windows_add_up_to_the_score_of_the_continuation(trained, workspace):
    scores = score(ADJOINT, trained, workspace)
    assert scores.shape == (1, 2, 4, 60)
    (train,) = trained.scores(ADJOINT).inputs.train
    phi = get(train, workspace).array("features.npy")
    expected = gradient_of_queries(trained, workspace, ImageTarget.projection) @ phi.T
    scale = np.abs(expected).max()
    np.testing.assert_allclose(scores[0].sum(0) / scale, expected / scale, atol=1e-3)


def test_ekfac_is_the_kernel_of_the_same_gradients(trained, workspace):
    settings = {"image_target": ImageTarget.class_loss, "kernel": Kernel.ekfac, "damping": [0.1]}
    method = replace(ADJOINT, **settings)
    scores = score(method, trained, workspace)[0].sum(0)
    spec = trained.scores(method).inputs.queries[0]
    denoiser = load_denoiser(spec.checkpoint, workspace)
    path = get(spec.curvature, workspace).path / EKFAC_FILE
    ekfac = load_ekfac(path, denoiser.network, CPU)
    gradients = gradient_of_queries(trained, workspace, ImageTarget.class_loss)
    (train,) = trained.scores(ADJOINT).inputs.train
    phi = torch.from_numpy(get(train, workspace).array("features.npy").copy())
    left = ekfac.rotate(torch.from_numpy(gradients)) / ekfac.damped(0.1)
    expected = (left @ ekfac.rotate(phi).T).numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(scores / scale, expected / scale, atol=1e-3)


def test_training_features_are_those_of_journey_trak(trained):
    (train,) = trained.scores(Adjoint(num_checkpoints=1)).inputs.train
    (expected,) = trained.scores(Adjoint(num_checkpoints=1)._gradient()).inputs.train
    assert (train,) == expected


def test_what_cannot_be_differentiated_is_refused_before_any_compute(workspace):
    messages = {
        "distance: must be projection, class_loss or direction: the gradient of the distance is": {
            "image_target": ImageTarget.distance
        },
        "features: must be projection, class_loss or direction$": {
            "image_target": ImageTarget.features
        },
        "kronecker: must be another with method=adjoint": {"projection": Projection.kronecker},
        "1000: must be 0 with method=adjoint": {"train_timesteps": 1000},
    }
    for message, settings in messages.items():
        with pytest.raises(ConfigError, match=message):
            replace(Adjoint(), **settings).check("method.adjoint")
    sampling = Sampling(Sampler.ddpm, 50, num_queries=4, steps=[600, 300])
    run = small_run(sampling=sampling, method={"adjoint": ADJOINT})
    experiment = load_experiment(run, workspace.store)
    with pytest.raises(ConfigError, match=r"^sampling\.sampler=ddpm: must be ddim with method=adj"):
        experiment.scores(ADJOINT)


def test_a_class_of_latents_is_refused(monkeypatch):
    words = ["method=[adjoint]", "model=ldm_tiny", "sampling.sampler=ddim"]
    line = refused(monkeypatch, *words, "method.adjoint.image_target=class_loss", "task=plan")
    assert "method.adjoint.image_target=class_loss: must be another with model=" in line
