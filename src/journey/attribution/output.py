"""The outputs f(x0; θ): what is attributed, and what judges retrained models: means of the loss that trains them.

draw   one (t, ε); draw d of timestep t is the same for every example, query and model
K      number of draws;  x0  a clean example […]
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from journey.diffusion.network import Predict
from journey.diffusion.schedule import Schedule
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


def output(predict: Predict, schedule: Schedule, x0: Tensor, draws: Draws, context: Tensor | None = None) -> Tensor:
    """f(x0; θ): the denoising loss of one example, averaged over draws (Georgiev et al. 2023, Section 3). Scalar.

    Draws at one t give the output of a step, draws over all t that of a training example or a destination.
    """
    repeated = None if context is None else context.expand(len(draws), *context.shape)
    x0 = x0.expand(len(draws), *x0.shape)  # [K, …]
    return denoising_loss(predict, schedule, x0, draws.t, draws.eps, repeated).mean()


def step_draws(t: int, num_draws: int, shape: tuple[int, ...], seed: int, purpose: str, antithetic: bool) -> Draws:
    """K draws of one timestep; antithetic: pairs (ε, −ε)."""
    unique = num_draws // 2 if antithetic else num_draws
    eps = torch.stack([_noise(shape, seed, purpose, t, d) for d in range(unique)])
    return _draws(torch.full((unique,), t), eps, antithetic)


def all_timestep_draws(
    num_timesteps: int, num_draws: int, shape: tuple[int, ...], seed: int, purpose: str, antithetic: bool
) -> Draws:
    """K draws over all timesteps, stratified: one t, uniform, from each of K equal parts of 0 … T − 1.

    Differs from the paper, which draws t independently: stratification lowers the variance at no cost.
    """
    strata = num_draws // 2 if antithetic else num_draws
    edges = [k * num_timesteps // strata for k in range(strata + 1)]
    random = generator(seed, purpose, "timesteps", num_timesteps, strata)
    t = [int(torch.randint(low, high, (), generator=random)) for low, high in itertools.pairwise(edges)]
    return _draws(torch.tensor(t), torch.stack([_noise(shape, seed, purpose, t_k, 0) for t_k in t]), antithetic)


def _noise(shape: tuple[int, ...], seed: int, purpose: str, t: int, draw: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed, purpose, t, draw))


def _draws(t: Tensor, eps: Tensor, antithetic: bool) -> Draws:
    """Antithetic partners stand side by side, so that every even-sized chunk is balanced."""
    if not antithetic:
        return Draws(t, eps)
    return Draws(t.repeat_interleave(2), torch.stack([eps, -eps], 1).flatten(0, 1))
