import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from journey.diffusion.schedule import ddim_step, ddpm_step
from journey.pipeline.schedule import add_noise, estimate_x0
from journey.pipeline.settings import visited_timesteps


@pytest.mark.parametrize("seed", range(3))
def test_add_noise_is_diffusers(linear_schedule, seed):
    torch.manual_seed(seed)
    x0, eps, t = (
        torch.randn(5, 3, 4, 4),
        torch.randn(5, 3, 4, 4),
        torch.tensor([0, 1, 250, 700, 999]),
    )
    expected = DDPMScheduler(num_train_timesteps=1000).add_noise(x0, eps, t)
    torch.testing.assert_close(add_noise(linear_schedule, x0, t, eps), expected)


@pytest.mark.parametrize("num_inference_steps", [1000, 50, 10])
def test_ddpm_step_is_diffusers(linear_schedule, num_inference_steps):
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(num_inference_steps)
    timesteps = visited_timesteps(1000, num_inference_steps)
    assert timesteps == scheduler.timesteps.tolist()
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        x_t, eps = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
        z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(t))
        expected = scheduler.step(eps, t, x_t, generator=torch.Generator().manual_seed(t))
        x0_hat = estimate_x0(linear_schedule, x_t, torch.tensor([t, t]), eps)
        torch.testing.assert_close(x0_hat, expected.pred_original_sample)
        ours = ddpm_step(linear_schedule, x_t, x0_hat, t, t_next, z)
        torch.testing.assert_close(ours, expected.prev_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_inference_steps", [100, 20])
def test_ddim_step_is_diffusers(linear_schedule, num_inference_steps):
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps.tolist()
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        x_t, eps = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
        x0_hat = estimate_x0(linear_schedule, x_t, torch.tensor([t, t]), eps)
        ours = ddim_step(linear_schedule, x0_hat, eps, t, t_next)
        torch.testing.assert_close(
            ours, scheduler.step(eps, t, x_t).prev_sample, rtol=1e-4, atol=1e-4
        )
