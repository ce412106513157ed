import itertools

import pytest
import torch
from diffusers import DDPMScheduler

from journey.config import Precision, Sampler
from journey.diffusion.network import bind
from journey.diffusion.sampling import QueryNoise, sample
from journey.diffusion.schedule import ddpm_step

CPU = torch.device("cpu")
TIMESTEPS = list(range(980, -1, -20))


def journeys(net, schedule, num_queries, sampler=Sampler.ddpm):
    noise = QueryNoise(num_queries, (1, 8, 8), seed=0)
    return list(sample(bind(net, Precision.fp32), schedule, sampler, TIMESTEPS, noise, CPU))


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_query_does_not_depend_on_its_companions(net, linear_schedule, sampler):
    alone, together = journeys(net, linear_schedule, 1, sampler), journeys(net, linear_schedule, 4, sampler)
    assert torch.equal(alone[0].x_t[0], together[0].x_t[0])
    for one, many in zip(alone, together, strict=True):
        assert torch.equal(one.z[0], many.z[0])
    # Rounding differs with the batch size and an untrained network amplifies it; another query is at a distance of ~ 1.
    assert alone[10].t == 780
    torch.testing.assert_close(alone[10].x_t[0], together[10].x_t[0], rtol=0, atol=0.01)


def test_whole_journey_is_diffusers_loop(net, linear_schedule):
    steps = journeys(net, linear_schedule, 2)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(50)
    generators = QueryNoise(2, (1, 8, 8), seed=0).generators
    x = torch.stack([torch.randn(1, 8, 8, generator=g) for g in generators])
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, generator=generators).prev_sample
    torch.testing.assert_close(steps[-1].x_next, x, rtol=1e-3, atol=1e-3)


def test_a_journey_can_be_continued_from_any_step_with_its_own_noise(net, linear_schedule):
    steps = journeys(net, linear_schedule, 2)
    for step, following in itertools.pairwise(steps):
        x = ddpm_step(linear_schedule, step.x_t, step.x0_hat, step.t, following.t, step.z)
        assert torch.equal(x, following.x_t)
