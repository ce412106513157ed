"""The noise schedule, and the quantities that a network can predict.

T          number of timesteps; t = 0 … T − 1, larger = noisier
a, b       signal and noise at a timestep: x_t = a x_0 + b ε; tensors are broadcast against [B, …]
x_t        noisy examples [B, …];  x0, eps  the x_0 and ε that they were made from [B, …]
predicted  the network's output [B, …];  x0_hat  x̂0_t, the estimate of x_0 that it implies [B, …]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Pair = tuple[Tensor, Tensor]


class PredictionType(ABC):
    """A quantity that a network predicts."""

    needs_unit_variance: ClassVar[bool] = False  # whether it is defined for a² + b² = 1 only

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the regression target of training [B, …]."""

    @abstractmethod
    def estimates(self, predicted: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Pair:
        """Return the estimates of x_0 and of ε that a prediction implies, each [B, …]."""


class NoisePrediction(PredictionType):
    """ε (Ho et al. 2020, Equations 14 and 15)."""

    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return ε."""
        return eps

    def estimates(self, predicted: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Pair:
        """Return x̂0 = (x_t − b ε) / a, and ε."""
        return (x_t - b * predicted) / a, predicted


class VelocityPrediction(PredictionType):
    """v = a ε − b x_0 (Salimans and Ho 2022, Appendix D)."""

    needs_unit_variance: ClassVar[bool] = True

    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return v."""
        return a * eps - b * x0

    def estimates(self, predicted: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Pair:
        """Return x̂0 = (x_t − b ε) / a, and ε = b x_t + a v."""
        eps = b * x_t + a * predicted
        return (x_t - b * eps) / a, eps


class SamplePrediction(PredictionType):
    """x_0."""

    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return x_0."""
        return x0

    def estimates(self, predicted: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Pair:
        """Return x̂0, and ε = (x_t − a x̂0) / b."""
        return predicted, (x_t - a * predicted) / b


class FlowPrediction(PredictionType):
    """u = ε − x_0, the velocity of a straight path (1 − s) x_0 + s ε (Lipman et al. 2023)."""

    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return u."""
        return eps - x0

    def estimates(self, predicted: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Pair:
        """Return x̂0 = (x_t − b u) / (a + b), and ε = (x_t + a u) / (a + b)."""
        return (x_t - b * predicted) / (a + b), (x_t + a * predicted) / (a + b)


PREDICTIONS: dict[str, PredictionType] = {
    "noise": NoisePrediction(),
    "velocity": VelocityPrediction(),
    "sample": SamplePrediction(),
    "flow": FlowPrediction(),
}
"""The prediction type of each value of the setting `model.prediction`."""


PREDICTION_TYPES = {"noise": "epsilon", "velocity": "v_prediction", "sample": "sample"}
"""The names of prediction types in diffusers, where it has them."""


@dataclass(frozen=True)
class Schedule:
    """The distribution of x_t given x_0, N(a_t x_0, b_t² I), at every timestep.

    It holds the squares: those of a variance-preserving schedule sum to 1 without a rounding error.

    Raises:
        ValueError: The prediction type is not defined for this schedule.
    """

    signal_squared: Tensor  # a_t², float64 [T]
    noise_squared: Tensor  # b_t², float64 [T]
    device: torch.device  # of `signal` and `noise`
    clip: bool  # whether x̂0 is clipped to [−1, 1]: pixels are, latents are not
    prediction: PredictionType = PREDICTIONS["noise"]

    def __post_init__(self) -> None:
        deviation = float((self.signal_squared + self.noise_squared - 1).abs().max())
        if self.prediction.needs_unit_variance and deviation > 1e-6:
            raise ValueError(
                f"{type(self.prediction).__name__} needs signal² + noise² = 1, not "
                f"1 ± {deviation:.2g}; use another prediction type, such as FlowPrediction"
            )

    @property
    def num_timesteps(self) -> int:
        """Return T."""
        return len(self.signal_squared)

    @cached_property
    def signal(self) -> Tensor:
        """Return a_t, float32 [T], on the device."""
        return self.signal_squared.sqrt().float().to(self.device)

    @cached_property
    def noise(self) -> Tensor:
        """Return b_t, float32 [T], on the device."""
        return self.noise_squared.sqrt().float().to(self.device)

    def signal_and_noise(self, t: Tensor, like: Tensor) -> Pair:
        """Return a and b at timesteps t [B], as [B, 1, …] with as many axes as `like`."""
        shape = (-1, *[1] * (like.ndim - 1))
        return self.signal[t].view(shape), self.noise[t].view(shape)

    def squares(self, t: int) -> tuple[float, float]:
        """Return a² and b² in double precision; t = −1 is the clean example, with 1 and 0."""
        return (float(self.signal_squared[t]), float(self.noise_squared[t])) if t >= 0 else (1, 0)


def add_noise(schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return x_t = a x_0 + b ε (DDPM, Equation 4)."""
    a, b = schedule.signal_and_noise(t, x0)
    return a * x0 + b * eps


def noise_between(schedule: Schedule, x0: Tensor, t: Tensor, x_t: Tensor) -> Tensor:
    """Return the ε with which `add_noise` makes x_t of x_0, (x_t − a x_0) / b."""
    a, b = schedule.signal_and_noise(t, x0)
    return (x_t - a * x0) / b


def regression_target(schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return what the network should predict at the x_t made of x_0 and ε."""
    return schedule.prediction.target(x0, eps, *schedule.signal_and_noise(t, x0))


def denoise(schedule: Schedule, x_t: Tensor, t: Tensor, predicted: Tensor) -> Pair:
    """Return x̂0_t, the stand-in for E[x_0 | x_t], clipped if the schedule says so; and ε."""
    x0_hat, eps = schedule.prediction.estimates(predicted, x_t, *schedule.signal_and_noise(t, x_t))
    return x0_hat.clamp(-1, 1) if schedule.clip else x0_hat, eps
