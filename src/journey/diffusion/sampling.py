"""Journeys: sampling that keeps what happened at every step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from journey import config
from journey.diffusion.network import Predict
from journey.diffusion.schedule import Schedule, ddim_step, ddpm_step, estimate_x0
from journey.seeding import generator


@dataclass(frozen=True)
class Step:
    """One step of all journeys: x_t at t, the estimate x0_hat made there, the noise z used to leave it, and the x after.

    All [Q, …]; DDIM uses no noise, and keeps zeros.
    """

    t: int
    x_t: Tensor
    x0_hat: Tensor
    z: Tensor
    x_next: Tensor


class QueryNoise:
    """The noise of a set of queries: one generator per query, so that a query does not depend on its companions."""

    def __init__(self, num_queries: int, shape: tuple[int, ...], seed: int) -> None:
        self.generators = [generator(seed, "journey", query) for query in range(num_queries)]
        self.shape = shape

    def draw(self) -> Tensor:
        """The next noise of every query. [Q, …]"""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])


@torch.no_grad()
def sample(
    predict: Predict,
    schedule: Schedule,
    sampler: config.Sampler,
    timesteps: list[int],
    noise: QueryNoise,
    device: torch.device,
    context: Tensor | None = None,
) -> Iterator[Step]:
    """Generate all queries side by side, yielding every step of their journeys, from pure noise to the last."""
    x_t = noise.draw().to(device)  # [Q, …]
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        t_batch = torch.full((len(x_t),), t, device=device)
        eps = predict(x_t, t_batch, context)
        x0_hat = estimate_x0(schedule, x_t, t_batch, eps)
        match sampler:
            case config.Sampler.ddpm:
                z = noise.draw().to(device)
                x_next = ddpm_step(schedule, x_t, x0_hat, t, t_next, z)
            case config.Sampler.ddim:
                z = torch.zeros_like(x_t)
                x_next = ddim_step(schedule, x0_hat, eps, t, t_next)
        yield Step(t, x_t, x0_hat, z, x_next)
        x_t = x_next
