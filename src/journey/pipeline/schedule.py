"""The noise schedule and one step of sampling (Ho et al. 2020, "DDPM"; Song et al. 2021, "DDIM").

T          number of timesteps; t = 0 … T − 1, larger = noisier
alpha_bar  ᾱ_t [T], the fraction of the clean example's variance left at t
x_t        noisy examples [B, …]; x0_hat  x̂0_t, the one-step estimate of the clean example [B, …]
eps        ε or what the network makes of it [B, …]; z  the sampler's fresh noise [B, …]
predicted  the network's output: an estimate of ε, or of the velocity v = √ᾱ_t ε − √(1 − ᾱ_t) x_0 [B, …]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from journey.pipeline.settings import Prediction

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """ᾱ_t in float64, √ᾱ_t and √(1 − ᾱ_t) in float32 on the device, whether x̂0 is clipped to [−1, 1], what is predicted.

    Pixels are clipped; latents are not.
    """

    alpha_bar: Tensor
    signal: Tensor
    noise: Tensor
    clip: bool
    prediction: Prediction = Prediction.noise

    @property
    def num_timesteps(self) -> int:
        return len(self.alpha_bar)

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t) for each example of a batch, shaped to multiply it. [B, 1, …]"""
        shape = (-1, *[1] * (like.ndim - 1))
        return self.signal[t].view(shape), self.noise[t].view(shape)


def add_noise(schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε (DDPM, Equation 4)."""
    signal, noise = schedule.signal_and_noise(t, x0)
    return signal * x0 + noise * eps


def noise_between(schedule: Schedule, x0: Tensor, t: Tensor, x_t: Tensor) -> Tensor:
    """The ε with which `add_noise` makes x_t of x_0, (x_t − √ᾱ_t x_0) / √(1 − ᾱ_t)."""
    signal, noise = schedule.signal_and_noise(t, x0)
    return (x_t - signal * x0) / noise


def regression_target(schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """What the network learns to predict: ε, or v = √ᾱ_t ε − √(1 − ᾱ_t) x_0 (Salimans and Ho 2022, Appendix D)."""
    match schedule.prediction:
        case Prediction.noise:
            return eps
        case Prediction.velocity:
            signal, noise = schedule.signal_and_noise(t, x0)
            return signal * eps - noise * x0
        case _:
            assert_never(schedule.prediction)


def predicted_noise(schedule: Schedule, x_t: Tensor, t: Tensor, predicted: Tensor) -> Tensor:
    """ε of the network's output: itself, or √(1 − ᾱ_t) x_t + √ᾱ_t v."""
    match schedule.prediction:
        case Prediction.noise:
            return predicted
        case Prediction.velocity:
            signal, noise = schedule.signal_and_noise(t, x_t)
            return noise * x_t + signal * predicted
        case _:
            assert_never(schedule.prediction)


def estimate_x0(schedule: Schedule, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x̂0_t = (x_t − √(1 − ᾱ_t) ε) / √ᾱ_t (DDPM, Equation 15), the stand-in for E[x_0 | x_t]."""
    signal, noise = schedule.signal_and_noise(t, x_t)
    x0_hat = (x_t - noise * eps) / signal
    return x0_hat.clamp(-1, 1) if schedule.clip else x0_hat
