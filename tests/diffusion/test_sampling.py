"""Sampling against the loop of diffusers, and what the stage stores."""

import json

import numpy as np
import pytest
import torch
from conftest import small_run
from diffusers import DDPMScheduler

from journey.diffusion import sampling
from journey.diffusion.network import Denoiser, bind, load_denoiser
from journey.diffusion.sampling import (
    CLEAN,
    QueryNoise,
    continue_trajectories,
    noise_generator_at,
    sample_trajectories,
    trajectory_noise,
)
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.evaluation.lds import LDS
from journey.experiment import load_experiment
from journey.pipeline.settings import Sampler, Sampling, Training, visited_timesteps

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
TIMESTEPS = visited_timesteps(1000, 50)


@pytest.fixture
def denoiser(net, linear_schedule):
    return Denoiser(net, bind(net, Precision.fp32), linear_schedule, None, CPU)


def trajectories(denoiser, num_queries, sampler=Sampler.ddpm):
    noise = trajectory_noise(range(num_queries), SHAPE, seed=0)
    return list(sample_trajectories(denoiser, sampler, TIMESTEPS, noise))


@pytest.mark.parametrize("sampler", Sampler)
def test_a_query_does_not_depend_on_the_others(denoiser, sampler):
    alone, together = (trajectories(denoiser, count, sampler) for count in (1, 4))
    assert torch.equal(alone[0].x_t[0], together[0].x_t[0])
    one, four = (trajectory_noise(range(count), SHAPE, seed=0) for count in (1, 4))
    assert all(torch.equal(one.draw()[0], four.draw()[0]) for _ in TIMESTEPS)
    # Rounding depends on the batch size and is amplified; another query is at a distance of ~ 1.
    assert alone[10].t == 780
    torch.testing.assert_close(alone[10].x_t[0], together[10].x_t[0], rtol=0, atol=0.01)


def test_a_trajectory_is_the_loop_of_diffusers(net, denoiser):
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(50)
    generators = trajectory_noise(range(2), SHAPE, seed=0).generators
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in generators])
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, generator=generators).prev_sample
    final = trajectories(denoiser, 2)[-1].x_next
    torch.testing.assert_close(final, x, rtol=1e-3, atol=1e-3)


def sampled(workspace, **settings):
    """Return the spec and the artifact of trajectories after a short training."""
    settings = {"num_queries": 4, "steps": [980, 600, 300, 0], **settings}
    run = small_run(
        training=Training(num_steps=20, batch_size=16, warmup_steps=4),
        sampling=Sampling(num_inference_steps=50, **settings),
        evaluation=LDS(paired_steps=settings["steps"][:1]),
    )
    spec = load_experiment(run, workspace.store).trajectories
    return spec, get(spec, workspace)


def stored(artifact, name, *index):
    return torch.from_numpy(np.array(artifact.array(f"{name}.npy")[index]))


def continued(spec, artifact, workspace, t, queries):
    """Return the steps from a stored x_t on, with the noise of these queries."""
    generators = [
        noise_generator_at(t, query, spec.sampler, TIMESTEPS, SHAPE, spec.seed) for query in queries
    ]
    x_t = stored(artifact, "x_t", spec.steps.index(t))
    visited = [*TIMESTEPS[TIMESTEPS.index(t) :], CLEAN]
    denoiser = load_denoiser(spec.checkpoint, workspace)
    noise = QueryNoise(generators, SHAPE)
    return list(continue_trajectories(denoiser, spec.sampler, visited, x_t, noise))


@pytest.mark.parametrize("sampler", Sampler)
def test_a_trajectory_continued_from_any_stored_step_is_repeated_bit_for_bit(workspace, sampler):
    spec, artifact = sampled(workspace, sampler=sampler)
    for i, t in enumerate(spec.steps):
        steps = continued(spec, artifact, workspace, t, range(4))
        assert [step.t for step in steps] == [s for s in TIMESTEPS if s <= t]
        assert torch.equal(steps[-1].x_next, stored(artifact, "final"))
        by_timestep = {step.t: step for step in steps}
        for j in range(i, len(spec.steps)):
            step = by_timestep[spec.steps[j]]
            assert torch.equal(step.x_t, stored(artifact, "x_t", j))
            assert torch.equal(step.x0_hat, stored(artifact, "x0_hat", j))


def test_the_noise_of_another_query_leads_to_another_sample(workspace):
    spec, artifact = sampled(workspace, sampler=Sampler.ddpm)
    steps = continued(spec, artifact, workspace, 300, (1, 2, 0, 3))
    assert not torch.equal(steps[-1].x_next, stored(artifact, "final"))


def test_only_the_steps_of_the_spec_are_stored(workspace):
    spec, artifact = sampled(workspace, sampler=Sampler.ddpm, steps=[600, 20])
    noise = trajectory_noise(range(4), SHAPE, spec.seed)
    denoiser = load_denoiser(spec.checkpoint, workspace)
    steps = {step.t: step for step in sample_trajectories(denoiser, spec.sampler, TIMESTEPS, noise)}
    files = {"x_t.npy", "x0_hat.npy", "final.npy", "metrics.jsonl"}
    assert set(artifact.manifest["checksums"]) == files
    for name in ("x_t", "x0_hat"):
        expected = torch.stack([getattr(steps[t], name) for t in (600, 20)])
        assert torch.equal(stored(artifact, name), expected)
    assert torch.equal(stored(artifact, "final"), steps[0].x_next)


def test_queries_of_several_batches_have_the_same_noise(workspace, tmp_path, monkeypatch):
    settings = {"sampler": Sampler.ddpm, "num_queries": 5, "steps": [980, 960, 900]}
    _, together = sampled(workspace, **settings)
    monkeypatch.setattr(sampling, "QUERY_BATCH", 2)
    other = Workspace(Store(tmp_path / "other"), workspace.compute, workspace.tracking, "test")
    _, apart = sampled(other, **settings)
    assert torch.equal(stored(together, "x_t", 0), stored(apart, "x_t", 0))
    for name in ("x_t", "x0_hat"):  # rounding depends on the batch size
        torch.testing.assert_close(stored(together, name), stored(apart, name), rtol=0, atol=0.01)
    lines = [json.loads(line) for line in (apart.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    assert [line["t"] for line in lines] == [980, 960, 900] * 3
