"""Journeys: sampling that keeps what happened at every step."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from journey.config.groups import Sampler
from journey.diffusion.network import Predict
from journey.diffusion.schedule import Schedule, add_noise, ddim_step, ddpm_step, estimate_x0, predicted_noise
from journey.seeding import generator

IMAGE = -1  # the timestep after the last


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


class Noise:
    """The noise of some examples, each from a generator of its own, so that none depends on its companions."""

    def __init__(self, generators: list[torch.Generator], shape: tuple[int, ...]) -> None:
        self.generators = generators
        self.shape = shape

    def draw(self) -> Tensor:
        """The next noise of every example. [B, …]"""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])


def journey_noise(queries: Iterable[int], shape: tuple[int, ...], seed: int) -> Noise:
    """The noise that some queries begin with and go on with."""
    return Noise([generator(seed, "journey", query) for query in queries], shape)


def noise_from(t: int, query: int, sampler: Sampler, timesteps: list[int], shape: tuple[int, ...], seed: int) -> torch.Generator:
    """The generator of a query's noise as it is when its journey comes to t. timesteps: all that the journey visits"""
    noise = journey_noise([query], shape, seed)
    drawn = timesteps.index(t) if sampler is Sampler.ddpm else 0
    for _ in range(1 + drawn):  # the beginning, and a step each
        noise.draw()
    return noise.generators[0]


def sample(
    predict: Predict,
    schedule: Schedule,
    sampler: Sampler,
    timesteps: list[int],
    noise: Noise,
    device: torch.device,
    context: Tensor | None = None,
) -> Iterator[Step]:
    """Generate all queries side by side, yielding every step of their journeys, from pure noise to the last."""
    x_t = noise.draw().to(device)  # [Q, …]
    yield from walk(predict, schedule, sampler, [*timesteps, IMAGE], x_t, noise, device, context)


@torch.no_grad()
def noised(predict: Predict, schedule: Schedule, timesteps: Iterable[int], x0: Tensor, eps: Tensor) -> Iterator[Step]:
    """In place of journeys: images x0 [Q, …], noised at each timestep by the same ε, and the estimate made of them there. Where
    they end is the images themselves.
    """
    for t in timesteps:
        t_batch = torch.full((len(x0),), t, device=x0.device)
        x_t = add_noise(schedule, x0, t_batch, eps)
        predicted = predicted_noise(schedule, x_t, t_batch, predict(x_t, t_batch, None))
        yield Step(t, x_t, estimate_x0(schedule, x_t, t_batch, predicted), eps, x0)


@torch.no_grad()
def walk(
    predict: Predict,
    schedule: Schedule,
    sampler: Sampler,
    timesteps: list[int],
    x_t: Tensor,
    noise: Noise,
    device: torch.device,
    context: Tensor | None = None,
) -> Iterator[Step]:
    """From x_t at the first of some timesteps to the last, where no step is made. Entered at an x_t that was kept, with the noise
    it had, under the model that made it, a journey is bit for bit what happened; any other model can be asked.
    """
    for t, t_next in pairwise(timesteps):
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
