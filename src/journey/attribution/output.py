"""The outputs f(x0; θ): what is attributed, and what judges retrained models (always the loss that trains them).

draw   one (t, ε); draw d of timestep t is the same for every example and model that is asked for the same purpose
K      number of draws;  x0  a clean example […]
"""

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from journey.config.groups import Output
from journey.diffusion.network import Predict
from journey.diffusion.schedule import Schedule, add_noise
from journey.diffusion.training import denoising_loss
from journey.seeding import generator


@dataclass(frozen=True)
class Draws:
    """t: int64 [K]; eps: float32 [K, …]."""

    t: Tensor
    eps: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: torch.device) -> "Draws":
        return Draws(self.t.to(device), self.eps.to(device))

    def halves(self, antithetic: bool) -> tuple["Draws", "Draws"]:
        """Every other draw (or antithetic pair of draws), and the rest."""
        second = torch.arange(len(self)) // (2 if antithetic else 1) % 2 == 1
        return Draws(self.t[~second], self.eps[~second]), Draws(self.t[second], self.eps[second])

    def split(self, size: int) -> list["Draws"]:
        """The same draws in chunks of at most `size`."""
        return [Draws(t, eps) for t, eps in zip(self.t.split(size), self.eps.split(size), strict=True)]


def output(
    predict: Predict,
    schedule: Schedule,
    x0: Tensor,
    draws: Draws,
    context: Tensor | None = None,
    kind: Output = Output.loss,
) -> Tensor:
    """f(x0; θ) of one example, averaged over draws and elements. Scalar.

    loss      the denoising loss (Georgiev et al. 2023, Section 3)
    square    mean of ε_θ² (Zheng et al. 2024, "D-TRAK")
    mean      mean of ε_θ (Lin et al. 2025, "DAS")
    absolute  mean of |ε − ε_θ| (Xie et al. 2024, "Diffusion-ReTrac")

    Draws at one t give the output of a step, draws over all t that of a training example or a destination.
    """
    repeated = None if context is None else context.expand(len(draws), *context.shape)
    x0 = x0.expand(len(draws), *x0.shape)  # [K, …]
    if kind is Output.loss:
        return denoising_loss(predict, schedule, x0, draws.t, draws.eps, repeated).mean()
    predicted = predict(add_noise(schedule, x0, draws.t, draws.eps), draws.t, repeated)
    match kind:
        case Output.square:
            return predicted.square().mean()
        case Output.mean:
            return predicted.mean()
        case Output.absolute:
            return (draws.eps - predicted).abs().mean()
        case _:
            assert_never(kind)


def step_draws(t: int, num_draws: int, shape: tuple[int, ...], seed: int, purpose: str, antithetic: bool) -> Draws:
    """K draws of one timestep; antithetic: pairs (ε, −ε)."""
    return _draws([t] * (num_draws // 2 if antithetic else num_draws), shape, seed, purpose, antithetic)


def window_draws(
    window: tuple[int, int],
    num_draws: int,
    shape: tuple[int, ...],
    seed: int,
    purpose: str,
    antithetic: bool = False,
    stratified: bool = True,
) -> Draws:
    """K draws over the timesteps first … end − 1: one t, uniform, from each of K equal parts, or K independent ones.

    Differs from the paper, which draws t independently: stratification lowers the variance at no cost.
    """
    first, end = window
    unique = num_draws // 2 if antithetic else num_draws
    edges = [k * (end - first) // unique for k in range(unique + 1)]
    parts = list(itertools.pairwise(edges)) if stratified else [(0, end - first)] * unique
    random = generator(seed, purpose, "timesteps", end - first, unique)
    t = [first + int(torch.randint(low, high, (), generator=random)) for low, high in parts]
    return _draws(t, shape, seed, purpose, antithetic)


def _draws(timesteps: list[int], shape: tuple[int, ...], seed: int, purpose: str, antithetic: bool) -> Draws:
    """Draw d of a timestep is the same wherever it comes up. Antithetic partners stand side by side, so that every
    even-sized chunk is balanced.
    """
    seen: Counter[int] = Counter()
    noise = []
    for t in timesteps:
        noise.append(torch.randn(shape, generator=generator(seed, purpose, t, seen[t])))
        seen[t] += 1
    t, eps = torch.tensor(timesteps), torch.stack(noise)
    if not antithetic:
        return Draws(t, eps)
    return Draws(t.repeat_interleave(2), torch.stack([eps, -eps], 1).flatten(0, 1))
