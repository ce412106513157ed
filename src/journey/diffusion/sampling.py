"""Journeys: sampling that keeps what happened at every step."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from journey.config.groups import Sampler
from journey.diffusion.network import Predict
from journey.diffusion.schedule import Schedule, ddim_step, ddpm_step, estimate_x0, predicted_noise
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
    """The noise of some queries: one generator per query, so that a query does not depend on its companions."""

    def __init__(self, queries: Iterable[int], shape: tuple[int, ...], seed: int) -> None:
        self.generators = [generator(seed, "journey", query) for query in queries]
        self.shape = shape

    def draw(self) -> Tensor:
        """The next noise of every query. [Q, …]"""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])


def sample(
    predict: Predict,
    schedule: Schedule,
    sampler: Sampler,
    timesteps: list[int],
    noise: QueryNoise,
    device: torch.device,
    context: Tensor | None = None,
) -> Iterator[Step]:
    """Generate all queries side by side, yielding every step of their journeys, from pure noise to the last."""
    x_t = noise.draw().to(device)  # [Q, …]
    yield from _walk(predict, schedule, sampler, timesteps, x_t, noise, device, context)


def continued(
    predict: Predict,
    schedule: Schedule,
    sampler: Sampler,
    timesteps: list[int],
    t: int,
    x_t: Tensor,
    noise: QueryNoise,
    device: torch.device,
    context: Tensor | None = None,
) -> Iterator[Step]:
    """Enter journeys at an x_t that was kept and go on with the noise they had, under any model: with the model that made
    them, bit for bit what happened.

    timesteps: all that the journeys visit; noise: new generators of the queries, whose draws before t are made and dropped.
    """
    first = timesteps.index(t)
    noise.draw()  # the beginning
    for _ in range(first if sampler is Sampler.ddpm else 0):
        noise.draw()
    yield from _walk(predict, schedule, sampler, timesteps[first:], x_t.to(device), noise, device, context)


@torch.no_grad()
def _walk(
    predict: Predict,
    schedule: Schedule,
    sampler: Sampler,
    timesteps: list[int],
    x_t: Tensor,
    noise: QueryNoise,
    device: torch.device,
    context: Tensor | None,
) -> Iterator[Step]:
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        t_batch = torch.full((len(x_t),), t, device=device)
        eps = predicted_noise(schedule, x_t, t_batch, predict(x_t, t_batch, context))
        x0_hat = estimate_x0(schedule, x_t, t_batch, eps)
        match sampler:
            case Sampler.ddpm:
                z = noise.draw().to(device)
                x_next = ddpm_step(schedule, x_t, x0_hat, t, t_next, z)
            case Sampler.ddim:
                z = torch.zeros_like(x_t)
                x_next = ddim_step(schedule, x0_hat, eps, t, t_next)
        yield Step(t, x_t, x0_hat, z, x_next)
        x_t = x_next
