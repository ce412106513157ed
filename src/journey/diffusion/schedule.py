"""The noise schedule and one step of sampling (Ho et al. 2020, "DDPM"; Song et al. 2021, "DDIM").

T          number of timesteps; t = 0 … T − 1, larger = noisier
alpha_bar  ᾱ_t [T], the fraction of the clean example's variance left at t
x_t        noisy examples [B, …]; x0_hat  x̂0_t, the one-step estimate of the clean example [B, …]
eps        ε or what the network makes of it [B, …]; z  the sampler's fresh noise [B, …]
predicted  the network's output: an estimate of ε, or of the velocity v = √ᾱ_t ε − √(1 − ᾱ_t) x_0 [B, …]
"""

import torch
from torch import Tensor

from journey.pipeline.schedule import Schedule
from journey.pipeline.settings import Prediction


def linear_schedule(num_timesteps: int, clip: bool, device: torch.device) -> Schedule:
    """β from 1e-4 to 0.02 in equal steps (Ho et al. 2020, Section 4)."""
    return _schedule(
        torch.linspace(1e-4, 0.02, num_timesteps, dtype=torch.float64),
        clip,
        Prediction.noise,
        device,
    )


def scaled_linear_schedule(
    num_timesteps: int, prediction: Prediction, device: torch.device
) -> Schedule:
    """√β from √0.00085 to √0.012 in equal steps (Rombach et al. 2022, as released), for latents."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, num_timesteps, dtype=torch.float64) ** 2
    return _schedule(beta, False, prediction, device)


def _schedule(beta: Tensor, clip: bool, prediction: Prediction, device: torch.device) -> Schedule:
    alpha_bar = torch.cumprod(1 - beta, 0)
    signal, noise = (root.sqrt().float().to(device) for root in (alpha_bar, 1 - alpha_bar))
    return Schedule(alpha_bar, signal, noise, clip, prediction)


def ddpm_step(
    schedule: Schedule, x_t: Tensor, x0_hat: Tensor, t: int, t_next: int, z: Tensor
) -> Tensor:
    """A draw from q(x_{t_next} | x_t, x̂0) (DDPM, Equations 6 and 7); t_next = −1 is the clean example, noise-free."""
    alpha_bar, alpha_bar_next = _alpha_bars(schedule, t, t_next)
    alpha = alpha_bar / alpha_bar_next
    beta = 1 - alpha
    mean_x0 = alpha_bar_next**0.5 * beta / (1 - alpha_bar)
    mean_x_t = alpha**0.5 * (1 - alpha_bar_next) / (1 - alpha_bar)
    variance = (1 - alpha_bar_next) / (1 - alpha_bar) * beta
    return mean_x0 * x0_hat + mean_x_t * x_t + variance**0.5 * z


def ddim_step(schedule: Schedule, x0_hat: Tensor, eps: Tensor, t: int, t_next: int) -> Tensor:
    """The deterministic step, x_{t_next} = √ᾱ x̂0 + √(1 − ᾱ) ε (DDIM, Equation 12 with σ = 0)."""
    _, alpha_bar_next = _alpha_bars(schedule, t, t_next)
    return alpha_bar_next**0.5 * x0_hat + (1 - alpha_bar_next) ** 0.5 * eps


def _alpha_bars(schedule: Schedule, t: int, t_next: int) -> tuple[float, float]:
    return float(schedule.alpha_bar[t]), float(schedule.alpha_bar[t_next]) if t_next >= 0 else 1.0
