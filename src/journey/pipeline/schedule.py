"""The noise schedule, and the quantities that a network can predict.

T          number of timesteps; t = 0 … T − 1, larger = noisier
a, b       signal and noise at a timestep: x_t = a x_0 + b ε; tensors are broadcast against [B, …]
x_t        noisy examples [B, …];  x0, eps  the x_0 and ε that they were made from [B, …]
predicted  the network's output [B, …];  x0_hat  x̂0_t, the estimate of x_0 that it implies [B, …]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from journey.engine.checks import require
from journey.pipeline.settings import Prediction, check_ranges, setting

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
        """Return x̂0 = a x_t − b v, and ε = b x_t + a v."""
        return a * x_t - b * predicted, b * x_t + a * predicted


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


PREDICTION_TYPES = {
    "noise": "epsilon",
    "velocity": "v_prediction",
    "sample": "sample",
    "flow": "flow_prediction",
}
"""The names of prediction types in diffusers."""


class BetaSchedule(Enum):
    """How β_t, the variance that timestep t adds, grows with t; the names are those of diffusers.

    The first two and the last one go from `beta_start` to `beta_end`.
    """

    linear = "linear"  # in equal steps (Ho et al. 2020, Section 4)
    scaled_linear = "scaled_linear"  # √β in equal steps (Rombach et al. 2022)
    squaredcos_cap_v2 = "squaredcos_cap_v2"  # by a cosine (Nichol and Dhariwal 2021, Equation 17)
    sigmoid = "sigmoid"


@dataclass
class NoiseSchedule:
    """The noise of a model, with the settings that a scheduler of diffusers has for it.

    A flow uses none of them: its noise grows in equal steps, and x̂0_t is not clipped.
    """

    beta_schedule: BetaSchedule = setting(BetaSchedule.linear, "Let β grow in this way.")
    beta_start: float = setting(1e-4, "Begin with this β, at t = 0.", above=0, below=1)
    beta_end: float = setting(0.02, "End with this β, at t = T − 1.", above=0, below=1)
    rescale_betas_zero_snr: bool = setting(
        False, "Rescale β such that no signal is left at t = T − 1."
    )
    clip_sample: bool = setting(True, "Clip x̂0_t to ±clip_sample_range.")
    clip_sample_range: float = setting(
        1.0, "Clip x̂0_t to this absolute value, with clip_sample=true.", above=0, most=1e6
    )

    def has_effect(self, name: str) -> bool:
        """Return whether a setting has an effect, all others being as they are."""
        if name in ("beta_start", "beta_end"):
            return self.beta_schedule is not BetaSchedule.squaredcos_cap_v2
        return name != "clip_sample_range" or self.clip_sample

    def check(self, where: str, default: NoiseSchedule, prediction: Prediction) -> None:
        """Check the settings.

        Args:
            where: Their name, such as `model.noise_schedule`.
            default: The settings of the model by default.
            prediction: What the network predicts.

        Raises:
            ConfigError: A setting is not allowed, or has no effect.
        """
        check_ranges(self, where)
        if prediction is Prediction.flow:
            for f in fields(self):
                value = getattr(self, f.name)
                shown = value.value if isinstance(value, Enum) else value
                allowed = "left as it is with model.prediction=flow, which has no such noise"
                require(value == getattr(default, f.name), f"{where}.{f.name}", shown, allowed)
        for name in ("beta_start", "beta_end", "clip_sample_range"):
            value, initial = getattr(self, name), getattr(default, name)
            cause = f"clip_sample={str(self.clip_sample).lower()}"
            if name != "clip_sample_range":
                cause = f"beta_schedule={self.beta_schedule.value}"
            allowed = f"left as it is, {initial}, with {cause}"
            require(self.has_effect(name) or value == initial, f"{where}.{name}", value, allowed)
        allowed = f"at least beta_start={self.beta_start}"
        require(self.beta_end >= self.beta_start, f"{where}.beta_end", self.beta_end, allowed)
        name = f"{where}.rescale_betas_zero_snr"
        determined = prediction is not Prediction.noise or not self.rescale_betas_zero_snr
        allowed = f"false with model.prediction={prediction.value}: at t = T − 1, x_t has no signal"
        require(determined, name, self.rescale_betas_zero_snr, allowed)


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
    clip: bool  # whether x̂0 is clipped to ±clip_range: pixels are, latents mostly are not
    prediction: PredictionType = PREDICTIONS["noise"]
    clip_range: float = 1.0

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
    bound = schedule.clip_range
    return x0_hat.clamp(-bound, bound) if schedule.clip else x0_hat, eps
