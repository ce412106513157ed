"""Schedules and sampling steps against diffusers and closed forms, also of a flow."""

from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from journey.diffusion.ddpm import DDPM
from journey.diffusion.latent import SCALED_LINEAR
from journey.diffusion.network import Denoiser
from journey.diffusion.sampling import CLEAN, sample_trajectories, trajectory_noise
from journey.diffusion.schedule import ddim_step, ddpm_step, make_schedule
from journey.engine.checks import ConfigError
from journey.pipeline.schedule import (
    PREDICTIONS,
    NoiseSchedule,
    Schedule,
    add_noise,
    denoise,
    regression_target,
)
from journey.pipeline.settings import Prediction, Sampler, visited_timesteps

CPU = torch.device("cpu")
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def flow_schedule() -> Schedule:
    return make_schedule(NoiseSchedule(), 1000, Prediction.flow, CPU)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


SCHEDULES = {
    "linear": make_schedule(NoiseSchedule(clip_sample=False), 1000, Prediction.noise, CPU),
    "flow": flow_schedule(),
}


def test_add_noise_is_that_of_diffusers(linear_schedule):
    x0, eps = torch.randn(2, 5, 3, 4, 4)
    t = torch.tensor([0, 1, 250, 700, 999])
    expected = DDPMScheduler(num_train_timesteps=1000).add_noise(x0, eps, t)
    torch.testing.assert_close(add_noise(linear_schedule, x0, t, eps), expected)


@pytest.mark.parametrize("num_inference_steps", [1000, 50, 10])
def test_ddpm_step_is_that_of_diffusers(linear_schedule, num_inference_steps):
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(num_inference_steps)
    timesteps = visited_timesteps(1000, num_inference_steps)
    assert timesteps == scheduler.timesteps.tolist()
    for t, t_next in pairwise([*timesteps, CLEAN]):
        x_t, eps = torch.randn(2, 2, 1, 4, 4)
        z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(t))
        expected = scheduler.step(eps, t, x_t, generator=torch.Generator().manual_seed(t))
        x0_hat, _ = denoise(linear_schedule, x_t, torch.tensor([t, t]), eps)
        # diffusers has float32 ᾱ, whose rounding is divided by a_t ≥ 0.006.
        torch.testing.assert_close(x0_hat, expected.pred_original_sample, rtol=1e-5, atol=2e-5)
        x_next = ddpm_step(linear_schedule, x_t, x0_hat, t, t_next, z)
        torch.testing.assert_close(x_next, expected.prev_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_inference_steps", [100, 20])
def test_ddim_step_is_that_of_diffusers(linear_schedule, num_inference_steps):
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(num_inference_steps)
    for t, t_next in pairwise([*scheduler.timesteps.tolist(), CLEAN]):
        x_t, eps = torch.randn(2, 2, 1, 4, 4)
        x0_hat, _ = denoise(linear_schedule, x_t, torch.tensor([t, t]), eps)
        x_next = ddim_step(linear_schedule, x0_hat, eps, t_next)
        expected = scheduler.step(eps, t, x_t).prev_sample
        torch.testing.assert_close(x_next, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", [Prediction.noise, Prediction.velocity])
def test_the_schedule_of_latents_is_that_of_diffusers(prediction):
    schedule = make_schedule(SCALED_LINEAR, 1000, prediction, CPU)
    name = {Prediction.noise: "epsilon", Prediction.velocity: "v_prediction"}[prediction]
    scheduler = DDIMScheduler(**LATENT, prediction_type=name, clip_sample=False, steps_offset=0)
    scheduler.set_timesteps(50)
    expected = scheduler.alphas_cumprod.sqrt()
    torch.testing.assert_close(schedule.signal, expected, rtol=1e-4, atol=0)
    x0, eps, predicted = torch.randn(3, 2, 4, 4, 4)
    t = torch.tensor([0, 980])
    x_t = add_noise(schedule, x0, t, eps)
    torch.testing.assert_close(x_t, scheduler.add_noise(x0, eps, t), rtol=1e-4, atol=1e-5)
    if prediction is Prediction.velocity:
        expected = DDPMScheduler(**LATENT, prediction_type=name).get_velocity(x0, eps, t)
        target = regression_target(schedule, x0, t, eps)
        torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-5)
    x0_hat, eps_hat = denoise(schedule, x_t, t, predicted)
    for i, (at, after) in enumerate([(0, CLEAN), (980, 960)]):
        expected = scheduler.step(predicted[i], at, x_t[i])
        torch.testing.assert_close(x0_hat[i], expected.pred_original_sample, rtol=1e-3, atol=1e-4)
        x_next = ddim_step(schedule, x0_hat[i], eps_hat[i], after)
        torch.testing.assert_close(x_next, expected.prev_sample, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_perfect_prediction_gives_x0_and_the_noise_back(kind, name):
    prediction = PREDICTIONS[name]
    squares = SCHEDULES[kind].signal_squared, SCHEDULES[kind].noise_squared
    if (kind, name) == ("flow", "velocity"):
        with pytest.raises(ValueError, match="VelocityPrediction needs signal² \\+ noise² = 1"):
            Schedule(*squares, CPU, clip=False, prediction=prediction)
        return
    schedule = Schedule(*squares, CPU, clip=False, prediction=prediction)
    x0, eps = torch.randn(2, 4, 3, 4, 4)
    t = torch.tensor([1, 10, 500, 900])
    x_t = add_noise(schedule, x0, t, eps)
    x0_hat, eps_hat = denoise(schedule, x_t, t, regression_target(schedule, x0, t, eps))
    torch.testing.assert_close(x0_hat, x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(eps_hat, eps, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_ancestral_step_is_the_conditional_of_a_joint_normal(kind):
    schedule = SCHEDULES[kind]
    a, b = (squared.sqrt() for squared in (schedule.signal_squared, schedule.noise_squared))
    x_t, x0 = torch.randn(2, 6, dtype=torch.float64)
    for t, t_next in [(999, 998), (999, 500), (500, 499), (500, 20), (20, 0)]:
        covariance = a[t] / a[t_next] * b[t_next] ** 2  # of x_t and x_{t_next}, given x_0
        gain = covariance / b[t] ** 2
        mean = a[t_next] * x0 + gain * (x_t - a[t] * x0)
        std = (b[t_next] ** 2 - gain * covariance).sqrt()
        for z in torch.tensor([0.0, 1.0], dtype=torch.float64):
            x_next = ddpm_step(schedule, x_t, x0, t, t_next, z)
            torch.testing.assert_close(x_next, mean + z * std, rtol=1e-9, atol=1e-9)
        eps = torch.randn(6, dtype=torch.float64)
        expected = a[t_next] * x0 + b[t_next] * eps
        torch.testing.assert_close(ddim_step(schedule, x0, eps, t_next), expected)


@pytest.mark.parametrize("num_inference_steps", [1000, 50])
def test_a_flow_is_that_of_diffusers(num_inference_steps):
    schedule = flow_schedule()
    timesteps = visited_timesteps(1000, num_inference_steps, from_end=True)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[(t + 1) / 1000 for t in timesteps])  # as its pipelines do
    assert timesteps[0] == 999, "pure noise"
    x0, eps = torch.randn(2, 1, 3, 4, 4)
    for i, (t, t_next) in enumerate(pairwise([*timesteps, CLEAN])):
        t_batch, sigma = torch.tensor([t]), scheduler.timesteps[i : i + 1]
        x_t = add_noise(schedule, x0, t_batch, eps)
        torch.testing.assert_close(x_t, scheduler.scale_noise(x0, sigma, eps))
        torch.testing.assert_close(regression_target(schedule, x0, t_batch, eps), eps - x0)
        u = torch.randn_like(x_t)
        x0_hat, eps_hat = denoise(schedule, x_t, t_batch, u)
        x_next = ddim_step(schedule, x0_hat, eps_hat, t_next)
        expected = scheduler.step(u, scheduler.timesteps[i], x_t).prev_sample
        torch.testing.assert_close(x_next, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", Sampler)
def test_the_exact_flow_of_a_gaussian_has_its_samples(sampler):
    """Of x_0 ~ N(m, σ²), E[x_0 | x_t] is linear, and Euler's method leads from ε to m + σ ε."""
    schedule, m, sigma = flow_schedule(), 0.3, 0.5

    def predict(x_t, t, condition):
        a, b = schedule.signal_and_noise(t, x_t)
        x0_hat = m + a * sigma**2 / (a**2 * sigma**2 + b**2) * (x_t - a * m)
        return (x_t - a * x0_hat) / b - x0_hat

    denoiser = Denoiser(torch.nn.Identity(), predict, schedule, None, CPU)
    timesteps = visited_timesteps(1000, 500, from_end=True)
    noise = trajectory_noise(range(2), (1, 64, 64), seed=0)
    steps = list(sample_trajectories(denoiser, sampler, timesteps, noise))
    if sampler is Sampler.ddim:
        expected = m + sigma * steps[0].x_t
        torch.testing.assert_close(steps[-1].x_next, expected, rtol=0, atol=0.01)
    assert float(steps[-1].x_next.mean()) == pytest.approx(m, abs=0.03)
    # The ancestral step of a finite size takes x̂0 for x_0, whose variance it lacks.
    assert float(steps[-1].x_next.std()) == pytest.approx(sigma, abs=0.03)


def test_the_deterministic_step_of_a_flow_is_eulers():
    schedule = flow_schedule()
    x_t, u = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    for t, t_next in [(999, 900), (500, 499), (100, CLEAN)]:
        x0_hat, eps = denoise(schedule, x_t, torch.full((3,), t), u)
        x_next = ddim_step(schedule, x0_hat, eps, t_next)
        torch.testing.assert_close(x_next, x_t + (t_next - t) / 1000 * u, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("sampler", Sampler)
def test_noisy_examples_have_the_noise_of_the_schedule_at_every_step(kind, sampler):
    schedule = SCHEDULES[kind]
    x0 = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def predict(x_t, t, condition):  # the prediction of a network that knows x_0
        a, b = schedule.signal_and_noise(t, x_t)
        return regression_target(schedule, x0, t, (x_t - a * x0) / b)

    denoiser = Denoiser(torch.nn.Identity(), predict, schedule, None, CPU)
    noise = trajectory_noise(range(4), x0.shape[1:], seed=0)
    steps = list(sample_trajectories(denoiser, sampler, [999, 900, 500, 100, 0], noise))
    for step in steps:
        a, b = schedule.signal[step.t], schedule.noise[step.t]
        assert float(((step.x_t - a * x0) / b).std()) == pytest.approx(1, abs=0.02), step.t
    torch.testing.assert_close(steps[-1].x_next, x0, rtol=1e-3, atol=1e-3)


def test_a_sampler_that_is_not_right_for_a_model_is_refused_by_name():
    class Deterministic(DDPM):
        samplers: ClassVar = (Sampler.ddim,)

    Deterministic().check_sampler("sampling.sampler", Sampler.ddim)
    allowed = r"sampling\.sampler=ddpm: must be one of ddim with model=ddpm"
    with pytest.raises(ConfigError, match=allowed):
        Deterministic().check_sampler("sampling.sampler", Sampler.ddpm)
