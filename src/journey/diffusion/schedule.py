"""Noise schedules, and one step of sampling (Ho et al. 2020, "DDPM"; Song et al. 2021, "DDIM").

t, t_next  timesteps, t_next < t; t_next = −1 is the clean example
a, b       signal and noise at t: x_t = a x_0 + b ε;  a_next, b_next  at t_next; 1 and 0 at −1
x0_hat     x̂0_t, the estimate of x_0 [B, …];  eps  that of ε [B, …];  z  fresh noise [B, …]
"""

from typing import assert_never

import torch
from torch import Tensor

from journey.pipeline.schedule import PREDICTIONS, BetaSchedule, NoiseSchedule, Schedule
from journey.pipeline.settings import Prediction


def make_schedule(
    noise: NoiseSchedule, num_timesteps: int, prediction: Prediction, device: torch.device
) -> Schedule:
    """Return the variance-preserving schedule with ᾱ_t = Π (1 − β_s) over s ≤ t; or a flow's.

    A rectified flow (Liu et al. 2022; Lipman et al. 2023) has x_t = (1 − s) x_0 + s ε with
    s = (t + 1) / T, and nothing of `noise`.
    """
    if prediction is Prediction.flow:
        s = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
        return Schedule((1 - s) ** 2, s**2, device, False, PREDICTIONS[prediction.value])
    alpha_bar = torch.cumprod(1 - _betas(noise, num_timesteps), 0)
    if noise.rescale_betas_zero_snr:  # Lin et al. 2024, Algorithm 1
        root = alpha_bar.sqrt()
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    predicted, bound = PREDICTIONS[prediction.value], noise.clip_sample_range
    return Schedule(alpha_bar, 1 - alpha_bar, device, noise.clip_sample, predicted, bound)


def _betas(noise: NoiseSchedule, num_timesteps: int) -> Tensor:
    """Return β_t, float64 [T]."""
    start, end = noise.beta_start, noise.beta_end
    match noise.beta_schedule:
        case BetaSchedule.linear:
            return torch.linspace(start, end, num_timesteps, dtype=torch.float64)
        case BetaSchedule.scaled_linear:
            return torch.linspace(start**0.5, end**0.5, num_timesteps, dtype=torch.float64) ** 2
        case BetaSchedule.squaredcos_cap_v2:
            t = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
            alpha_bar = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
            return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
        case BetaSchedule.sigmoid:
            x = torch.linspace(-6, 6, num_timesteps, dtype=torch.float64)
            return x.sigmoid() * (end - start) + start
        case _:
            assert_never(noise.beta_schedule)


def ddpm_step(
    schedule: Schedule, x_t: Tensor, x0_hat: Tensor, t: int, t_next: int, z: Tensor
) -> Tensor:
    """Return a sample of q(x_{t_next} | x_t, x̂0) (DDPM, Equations 6 and 7, for any a and b).

    With r = a / a_next and v = b² − r² b_next², the variance of x_t given x_{t_next}, its mean is
    (r b_next² x_t + a_next v x̂0) / b², and its variance b_next² v / b².
    """
    a_squared, b_squared = schedule.squares(t)
    a_next_squared, b_next_squared = schedule.squares(t_next)
    r_squared = a_squared / a_next_squared
    # As a² = r² a_next², this is v; where a² + b² = 1, it is 1 − r² without a further rounding.
    v = (a_squared + b_squared) - r_squared * (a_next_squared + b_next_squared)
    mean_x0 = a_next_squared**0.5 * v / b_squared
    mean_x_t = r_squared**0.5 * b_next_squared / b_squared
    variance = b_next_squared / b_squared * v
    return mean_x0 * x0_hat + mean_x_t * x_t + variance**0.5 * z


def ddim_step(schedule: Schedule, x0_hat: Tensor, eps: Tensor, t_next: int) -> Tensor:
    """Return a_next x̂0 + b_next ε, the deterministic step (DDIM, Equation 12 with σ = 0).

    Of a flow, it is Euler's: x_t + (s_next − s) u.
    """
    a_squared, b_squared = schedule.squares(t_next)
    return a_squared**0.5 * x0_hat + b_squared**0.5 * eps
