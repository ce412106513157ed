import itertools
import json

import numpy as np
import pytest
import torch
from conftest import small_run
from diffusers import DDPMScheduler

from journey.diffusion import sampling
from journey.diffusion.network import bind
from journey.diffusion.sampling import (
    CLEAN,
    QueryNoise,
    continue_trajectories,
    noise_generator_at,
    sample_trajectories,
    trajectory_noise,
)
from journey.diffusion.schedule import ddpm_step
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.evaluation.lds import LDS
from journey.experiment import load_experiment
from journey.pipeline.settings import Sampler, Sampling, Training, visited_timesteps

CPU = torch.device("cpu")
TIMESTEPS = list(range(980, -1, -20))


def trajectories(net, schedule, num_queries, sampler=Sampler.ddpm):
    noise = trajectory_noise(range(num_queries), (1, 8, 8), seed=0)
    return list(
        sample_trajectories(bind(net, Precision.fp32), schedule, sampler, TIMESTEPS, noise, CPU)
    )


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_query_does_not_depend_on_its_companions(net, linear_schedule, sampler):
    alone, together = (
        trajectories(net, linear_schedule, 1, sampler),
        trajectories(net, linear_schedule, 4, sampler),
    )
    assert torch.equal(alone[0].x_t[0], together[0].x_t[0])
    for one, many in zip(alone, together, strict=True):
        assert torch.equal(one.z[0], many.z[0])
    # Rounding differs with the batch size and an untrained network amplifies it; another query is at a distance of ~ 1.
    assert alone[10].t == 780
    torch.testing.assert_close(alone[10].x_t[0], together[10].x_t[0], rtol=0, atol=0.01)


def test_whole_journey_is_diffusers_loop(net, linear_schedule):
    steps = trajectories(net, linear_schedule, 2)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(50)
    generators = trajectory_noise(range(2), (1, 8, 8), seed=0).generators
    x = torch.stack([torch.randn(1, 8, 8, generator=g) for g in generators])
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, generator=generators).prev_sample
    torch.testing.assert_close(steps[-1].x_next, x, rtol=1e-3, atol=1e-3)


def test_a_journey_can_be_continued_from_any_step_with_its_own_noise(net, linear_schedule):
    steps = trajectories(net, linear_schedule, 2)
    for step, following in itertools.pairwise(steps):
        x = ddpm_step(linear_schedule, step.x_t, step.x0_hat, step.t, following.t, step.z)
        assert torch.equal(x, following.x_t)


# ------------------------------------------------------------------------------------------------- through the stage


def sampled(workspace, **settings):
    """Journeys of a little training, and what they are made from."""
    settings = {
        "num_inference_steps": 50,
        "num_queries": 4,
        "steps": [980, 600, 300, 0],
        **settings,
    }
    quick = Training(num_steps=20, batch_size=16, warmup_steps=4)
    run = small_run(
        training=quick,
        sampling=Sampling(**settings),
        evaluation=LDS(paired_steps=settings["steps"][:1]),
    )
    spec = load_experiment(run, workspace.store).trajectories
    return spec, get(spec, workspace)


def network_of(spec, workspace):
    model = spec.checkpoint.model
    return bind(
        model.load(get(spec.checkpoint, workspace).path, CPU), Precision.fp32
    ), model.schedule(CPU)


def continuations_of(predict, schedule, spec, t, x_t, queries):
    """From t on, with the noise that some queries had."""
    timesteps = visited_timesteps(1000, spec.num_inference_steps)
    generators = [
        noise_generator_at(t, query, spec.sampler, timesteps, (1, 8, 8), spec.seed)
        for query in queries
    ]
    visited = [*timesteps[timesteps.index(t) :], CLEAN]
    return continue_trajectories(
        predict, schedule, spec.sampler, visited, x_t, QueryNoise(generators, (1, 8, 8)), CPU
    )


@pytest.mark.parametrize("sampler", Sampler)
def test_a_journey_entered_at_any_kept_step_is_the_undisturbed_one(workspace, sampler):
    spec, made = sampled(workspace, sampler=sampler)
    predict, schedule = network_of(spec, workspace)
    timesteps = visited_timesteps(1000, 50)
    for kept, t in enumerate(spec.steps):
        x_t = torch.from_numpy(made.array("x_t.npy")[kept].copy())
        steps = list(continuations_of(predict, schedule, spec, t, x_t, range(4)))
        assert [step.t for step in steps] == [s for s in timesteps if s <= t]
        assert torch.equal(steps[-1].x_next, torch.from_numpy(made.array("final.npy").copy()))
        for later, found in zip(
            spec.steps[kept:], (s for s in steps if s.t in spec.steps), strict=True
        ):
            row = spec.steps.index(later)
            assert torch.equal(found.x_t, torch.from_numpy(made.array("x_t.npy")[row].copy()))
            assert torch.equal(found.x0_hat, torch.from_numpy(made.array("x0_hat.npy")[row].copy()))


def test_entering_with_another_querys_noise_leads_elsewhere(workspace):
    spec, made = sampled(workspace, sampler=Sampler.ddpm)
    predict, schedule = network_of(spec, workspace)
    x_t = torch.from_numpy(made.array("x_t.npy")[2].copy())
    other = continuations_of(predict, schedule, spec, 300, x_t, (1, 2, 0, 3))
    assert not torch.equal(list(other)[-1].x_next, torch.from_numpy(made.array("final.npy").copy()))


def test_what_is_kept_are_the_steps_asked_for_and_no_more(workspace):
    spec, made = sampled(workspace, sampler=Sampler.ddpm, steps=[600, 20])
    predict, schedule = network_of(spec, workspace)
    noise = trajectory_noise(range(4), (1, 8, 8), spec.seed)
    steps = {
        s.t: s
        for s in sample_trajectories(
            predict, schedule, Sampler.ddpm, visited_timesteps(1000, 50), noise, CPU
        )
    }
    payload = {
        name: made.array(name) for name in made.manifest["checksums"] if name.endswith(".npy")
    }
    assert {name: array.shape for name, array in payload.items()} == {
        "x_t.npy": (2, 4, 1, 8, 8),
        "x0_hat.npy": (2, 4, 1, 8, 8),
        "final.npy": (4, 1, 8, 8),
    }
    for row, t in enumerate((600, 20)):
        np.testing.assert_array_equal(payload["x_t.npy"][row], steps[t].x_t)
        np.testing.assert_array_equal(payload["x0_hat.npy"][row], steps[t].x0_hat)
    np.testing.assert_array_equal(payload["final.npy"], steps[0].x_next)
    assert set(made.manifest["checksums"]) == {*payload, "metrics.jsonl"}


def test_more_queries_than_go_together_have_the_same_noise(workspace, tmp_path, monkeypatch):
    settings = {"sampler": Sampler.ddpm, "num_queries": 5, "steps": [980, 960, 900]}
    _, together = sampled(workspace, **settings)
    monkeypatch.setattr(sampling, "TOGETHER", 2)
    _, apart = sampled(
        Workspace(Store(tmp_path / "other"), *list(vars(workspace).values())[1:]), **settings
    )
    np.testing.assert_array_equal(together.array("x_t.npy")[0], apart.array("x_t.npy")[0])
    for name in (
        "x_t.npy",
        "x0_hat.npy",
    ):  # rounding differs with the batch size, another query is at a distance of ~ 1
        np.testing.assert_allclose(together.array(name), apart.array(name), atol=0.01)
    lines = [json.loads(line) for line in (apart.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    assert [line["t"] for line in lines] == [980, 960, 900] * 3
