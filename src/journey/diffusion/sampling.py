"""Journeys: sampling that keeps what happened at every step.

Generate the queries, or begin at images that were planted, and keep what is needed of their journeys.

Payload: x_t.npy and x0_hat.npy, float32 [S, Q, …], at the steps of the spec; final.npy [Q, …]; of prompts, context.npy
[Q, 1, L, E]. The noise of a step is drawn
again from its query's generator (`journey.diffusion.sampling.noise_from`).


Enter journeys at a step and go on under a model. Payload, of every window, query and continuation: final.npy, float32
[W, Q, n, …], the examples they end in; with an encoder, features.npy, float32 [W, Q, n, E], what it sees in their pictures.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from journey.data.duplicates import INJECTED
from journey.diffusion import network
from journey.diffusion.network import Predict
from journey.diffusion.schedule import ddim_step, ddpm_step
from journey.diffusion.trajectories import (
    decode_pictures,
    query_contexts,
    train_examples,
    trajectory_at,
)
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.seeding import generator
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import read_images
from journey.pipeline.interfaces import Continuations, Sample, Train
from journey.pipeline.schedule import Schedule, add_noise, estimate_x0, predicted_noise
from journey.pipeline.settings import Sampler, Start, visited_timesteps

CLEAN = -1  # the timestep after the last


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
    """The noise of some examples, each from a generator of its own, so that none depends on its companions."""

    def __init__(self, generators: list[torch.Generator], shape: tuple[int, ...]) -> None:
        self.generators = generators
        self.shape = shape

    def draw(self) -> Tensor:
        """The next noise of every example. [B, …]"""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])


def trajectory_noise(queries: Iterable[int], shape: tuple[int, ...], seed: int) -> QueryNoise:
    """The noise that some queries begin with and go on with."""
    return QueryNoise([generator(seed, "journey", query) for query in queries], shape)


def noise_generator_at(
    t: int, query: int, sampler: Sampler, timesteps: list[int], shape: tuple[int, ...], seed: int
) -> torch.Generator:
    """The generator of a query's noise as it is when its journey comes to t. timesteps: all that the journey visits"""
    noise = trajectory_noise([query], shape, seed)
    drawn = timesteps.index(t) if sampler is Sampler.ddpm else 0
    for _ in range(1 + drawn):  # the beginning, and a step each
        noise.draw()
    return noise.generators[0]


def sample_trajectories(
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
    yield from continue_trajectories(
        predict, schedule, sampler, [*timesteps, CLEAN], x_t, noise, device, context
    )


@torch.no_grad()
def noised_steps(
    predict: Predict, schedule: Schedule, timesteps: Iterable[int], x0: Tensor, eps: Tensor
) -> Iterator[Step]:
    """In place of journeys: images x0 [Q, …], noised at each timestep by the same ε, and the estimate made of them there. Where
    they end is the images themselves.
    """
    for t in timesteps:
        t_batch = torch.full((len(x0),), t, device=x0.device)
        x_t = add_noise(schedule, x0, t_batch, eps)
        predicted = predicted_noise(schedule, x_t, t_batch, predict(x_t, t_batch, None))
        yield Step(t, x_t, estimate_x0(schedule, x_t, t_batch, predicted), eps, x0)


@torch.no_grad()
def continue_trajectories(
    predict: Predict,
    schedule: Schedule,
    sampler: Sampler,
    timesteps: list[int],
    x_t: Tensor,
    noise: QueryNoise,
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


TOGETHER = 64  # queries that are generated side by side


def make_trajectories(spec: Sample, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if a journey stops being finite."""
    # Load.
    device = network.get_device(workspace.compute)
    model = spec.checkpoint.model
    guidance = network.get_guidance(model, spec.guidance, device)
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    predict = network.bind(denoiser, spec.checkpoint.precision, guidance=guidance)
    shape = train_examples(spec.checkpoint, workspace).shape
    context = None
    if spec.prompts:
        of_prompts = model.read(spec.prompts).to(device)
        context = torch.stack([of_prompts[q % len(of_prompts)] for q in range(spec.num_queries)])
        np.save(partial / "context.npy", context[:, None].cpu().numpy())
    noise_schedule = model.schedule(device)

    # Sample, some queries at a time.
    kept_shape = (len(spec.steps), spec.num_queries, *shape)
    x_t, x0_hat = (new_array(partial / f"{name}.npy", kept_shape) for name in ("x_t", "x0_hat"))
    final = new_array(partial / "final.npy", kept_shape[1:])
    with track(spec, partial, workspace) as log:
        for first in range(0, spec.num_queries, TOGETHER):
            queries = range(first, min(first + TOGETHER, spec.num_queries))
            prompted = None if context is None else context[queries.start : queries.stop]
            for i, step in enumerate(
                _steps(spec, queries, predict, noise_schedule, shape, prompted, workspace)
            ):
                if not bool(step.x0_hat.isfinite().all()):
                    raise FloatingPointError(f"sampling at t={step.t}: x̂0 is not finite")
                if step.t in spec.steps:
                    kept = spec.steps.index(step.t), slice(queries.start, queries.stop)
                    x_t[kept], x0_hat[kept] = step.x_t.cpu(), step.x0_hat.cpu()
                    log(
                        first * spec.num_inference_steps + i,
                        t=step.t,
                        x0_hat_std=float(step.x0_hat.std()),
                    )
            final[queries.start : queries.stop] = step.x_next.cpu()
    for array in (x_t, x0_hat, final):
        array.flush()


def _steps(
    spec: Sample,
    queries: range,
    predict: Predict,
    noise_schedule: Schedule,
    shape: tuple[int, ...],
    context: Tensor | None,
    workspace: Workspace,
) -> Iterator[Step]:
    """The journeys of some queries side by side."""
    device = network.get_device(workspace.compute)
    match spec.start:
        case Start.generated:
            timesteps = visited_timesteps(noise_schedule.num_timesteps, spec.num_inference_steps)
            noise = trajectory_noise(queries, shape, spec.seed)
            return sample_trajectories(
                predict, noise_schedule, spec.sampler, timesteps, noise, device, context
            )
        case Start.injected:
            planted = read_images(get(spec.checkpoint.images, workspace).path / INJECTED)
            x0 = spec.checkpoint.model.encode(planted.take(np.array(queries))).x0.to(device)
            eps = trajectory_noise(queries, shape, spec.seed).draw().to(device)
            return noised_steps(predict, noise_schedule, spec.steps, x0, eps)
        case _:
            assert_never(spec.start)


TOGETHER_CONTINUATIONS = 256  # continuations that are made side by side


def make_continuations(spec: Continuations, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if a continuation is not finite."""
    # Load.
    device = network.get_device(workspace.compute)
    trajectories = spec.trajectories
    noise_schedule = trajectories.checkpoint.model.schedule(device)
    timesteps = visited_timesteps(noise_schedule.num_timesteps, trajectories.num_inference_steps)
    inside, outside = (
        _predict(checkpoint, spec, workspace)
        for checkpoint in (spec.checkpoint, trajectories.checkpoint)
    )
    entered = trajectory_at("x_t", trajectories, (spec.step,), workspace)[0].to(
        device
    )  # [query, …]
    context = query_contexts(trajectories, workspace)
    encode = None if spec.encoder is None else spec.encoder.load()

    # Go on, some continuations at a time.
    shape = (len(spec.windows), len(spec.queries), spec.count)
    pairs = [(query, j) for query in spec.queries for j in range(spec.count)]
    made = {"final": [], "features": []}
    with track(spec, partial, workspace) as log:
        for place, window in enumerate(spec.windows):
            for first in range(0, len(pairs), TOGETHER_CONTINUATIONS):
                some = pairs[first : first + TOGETHER_CONTINUATIONS]
                rows = torch.tensor([query for query, _ in some])
                noise = _noise(spec, some, timesteps, tuple(entered.shape[1:]))
                prompted = None if context is None else context[rows, 0].to(device)
                x = _driven(
                    inside,
                    outside,
                    noise_schedule,
                    spec,
                    window,
                    timesteps,
                    entered[rows],
                    noise,
                    prompted,
                )
                if not bool(x.isfinite().all()):
                    raise FloatingPointError(f"continuations of {spec.label} are not finite")
                made["final"].append(x.cpu())
                if encode is not None:
                    made["features"].append(
                        encode(
                            torch.from_numpy(
                                decode_pictures(x.cpu().numpy(), trajectories, workspace)
                            )
                        )
                    )
            log(place, window=window)

    # Save.
    for name, parts in made.items():
        if parts:
            together = torch.cat(parts)
            new_array(partial / f"{name}.npy", (*shape, *together.shape[1:]))[:] = (
                together.unflatten(0, shape).numpy()
            )


def _predict(checkpoint: Train, spec: Continuations, workspace: Workspace) -> Predict:
    device = network.get_device(workspace.compute)
    guidance = network.get_guidance(checkpoint.model, spec.trajectories.guidance, device)
    denoiser = checkpoint.model.load(get(checkpoint, workspace).path, device)
    return network.bind(denoiser, checkpoint.precision, guidance=guidance)


def _noise(
    spec: Continuations, pairs: list[tuple[int, int]], timesteps: list[int], shape: tuple[int, ...]
) -> QueryNoise:
    """Of some (query, continuation): what its journey went on with, or noise of its own, the same under every model."""
    of = spec.trajectories

    def each(query: int, j: int) -> torch.Generator:
        if j == 0:
            return noise_generator_at(spec.step, query, of.sampler, timesteps, shape, of.seed)
        return generator(spec.seed, "continuation", query, spec.step, j)

    return QueryNoise([each(query, j) for query, j in pairs], shape)


def _driven(
    inside: Predict,
    outside: Predict,
    noise_schedule: Schedule,
    spec: Continuations,
    window: int,
    timesteps: list[int],
    x: Tensor,
    noise: QueryNoise,
    context: Tensor | None,
) -> Tensor:
    """Where continuations end: one model drives for a window, another from there."""
    left = [*timesteps[timesteps.index(spec.step) :], CLEAN]
    handed_over = left.index(spec.step - window) if window < spec.step else len(left) - 1
    for predict, visited in ((inside, left[: handed_over + 1]), (outside, left[handed_over:])):
        for step in continue_trajectories(
            predict, noise_schedule, spec.trajectories.sampler, visited, x, noise, x.device, context
        ):
            x = step.x_next
    return x
