"""Sampling trajectories, and continuations of them from a step under another model.

Q     queries;  S  stored steps;  W  windows;  n  continuations of each query
x_t   noisy examples at t [Q, …];  x0_hat  x̂0_t, the estimate of the clean example [Q, …]
z     the sampler's fresh noise [Q, …]

`make_trajectories` writes x_t.npy and x0_hat.npy, float32 [S, Q, …], final.npy [Q, …], and of
conditions condition.npy [Q, 1, L, E] or [Q, 1]. `noise_generator_at` gives the noise z again.
`make_continuations` writes final.npy, float32 [W, Q, n, …], and of an encoder features.npy
[W, Q, n, E].
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
from journey.data.folder import QUERIES
from journey.data.images import train_images
from journey.diffusion.network import Denoiser, load_denoiser, send
from journey.diffusion.schedule import ddim_step, ddpm_step
from journey.diffusion.trajectories import (
    decode_pictures,
    query_conditions,
    query_prompts,
    trajectory_at,
)
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.seeding import generator
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import ImageSet, read_images
from journey.pipeline.interfaces import Continuations, Sample
from journey.pipeline.schedule import add_noise, denoise
from journey.pipeline.settings import Sampler, Start

CLEAN = -1  # the timestep after the last
QUERY_BATCH = 64  # queries that are sampled together
CONTINUATION_BATCH = 256  # continuations that are sampled together


@dataclass(frozen=True)
class Step:
    """One step of all trajectories, from x_t at t to x_next [Q, …]."""

    t: int
    x_t: Tensor
    x0_hat: Tensor
    x_next: Tensor


@dataclass(frozen=True)
class QueryNoise:
    """Noise of examples, each from its own generator, so that none depends on the others."""

    generators: list[torch.Generator]
    shape: tuple[int, ...]  # of an example

    def draw(self) -> Tensor:
        """Return the next noise of every example [B, …]."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])


def trajectory_noise(queries: Iterable[int], shape: tuple[int, ...], seed: int) -> QueryNoise:
    """Return the noise of queries: the first x_t of their trajectories, then z at each step."""
    return QueryNoise([generator(seed, "journey", query) for query in queries], shape)


def noise_generator_at(
    t: int, query: int, sampler: Sampler, timesteps: list[int], shape: tuple[int, ...], seed: int
) -> torch.Generator:
    """Return a query's generator in its state at t, one of the timesteps its trajectory visits."""
    noise = trajectory_noise([query], shape, seed)
    steps = timesteps.index(t) if sampler is Sampler.ddpm else 0
    for _ in range(1 + steps):
        noise.draw()
    return noise.generators[0]


def sample_trajectories(
    denoiser: Denoiser,
    sampler: Sampler,
    timesteps: list[int],
    noise: QueryNoise,
    condition: Tensor | None = None,
) -> Iterator[Step]:
    """Sample queries together, from pure noise, under conditions [Q, L, E] or [Q].

    Yields:
        The step from each timestep.
    """
    x = noise.draw().to(denoiser.device)
    visited = [*timesteps, CLEAN]
    yield from continue_trajectories(denoiser, sampler, visited, x, noise, condition)


@torch.no_grad()
def continue_trajectories(
    denoiser: Denoiser,
    sampler: Sampler,
    timesteps: list[int],
    x_t: Tensor,
    noise: QueryNoise,
    condition: Tensor | None = None,
) -> Iterator[Step]:
    """Continue trajectories from x_t at the first timestep to the last.

    With the model and the noise that made them, trajectories are repeated bit for bit.

    Yields:
        The step from each timestep but the last.
    """
    for t, t_next in pairwise(timesteps):
        t_batch = torch.full((len(x_t),), t, device=x_t.device)
        predicted = denoiser.predict(x_t, t_batch, condition)
        x0_hat, eps = denoise(denoiser.schedule, x_t, t_batch, predicted)
        match sampler:
            case Sampler.ddpm:
                z = send(noise.draw(), x_t.device)
                x_next = ddpm_step(denoiser.schedule, x_t, x0_hat, t, t_next, z)
            case Sampler.ddim:
                x_next = ddim_step(denoiser.schedule, x0_hat, eps, t_next)
            case _:
                assert_never(sampler)
        yield Step(t, x_t, x0_hat, x_next)
        x_t = x_next


@torch.no_grad()
def noised_steps(
    denoiser: Denoiser, timesteps: Iterable[int], x0: Tensor, eps: Tensor
) -> Iterator[Step]:
    """Add the same noise ε to images x0 [Q, …] at each timestep, in place of sampling.

    Yields:
        A step from each timestep, with x_next = x0.
    """
    for t in timesteps:
        t_batch = torch.full((len(x0),), t, device=x0.device)
        x_t = add_noise(denoiser.schedule, x0, t_batch, eps)
        predicted = denoiser.predict(x_t, t_batch, None)
        x0_hat, _ = denoise(denoiser.schedule, x_t, t_batch, predicted)
        yield Step(t, x_t, x0_hat, x0)


def make_trajectories(spec: Sample, partial: Path, workspace: Workspace) -> None:
    """Sample the queries, or add noise to given images, and store the steps of the spec.

    Raises:
        FloatingPointError: An estimate x̂0_t is not finite.
    """
    # Load.
    model = spec.checkpoint.model
    denoiser = load_denoiser(spec.checkpoint, workspace, spec.guidance)
    shape = model.example_shape(spec.checkpoint.images.shape)
    conditions = None
    if model.is_conditional:
        class_names: tuple[str, ...] = ()
        if model.num_classes:
            class_names = train_images(spec.checkpoint.images, workspace).class_names
        prompts = query_prompts(spec, class_names)
        prompt = torch.arange(spec.num_queries) % len(prompts)  # [Q]
        conditions = model.read(prompts, class_names)[prompt].to(denoiser.device)
        np.save(partial / "condition.npy", conditions[:, None].cpu().numpy())

    # Sample, some queries at a time.
    stored_shape = (len(spec.steps), spec.num_queries, *shape)
    x_t = new_array(partial / "x_t.npy", stored_shape)
    x0_hat = new_array(partial / "x0_hat.npy", stored_shape)
    final = new_array(partial / "final.npy", stored_shape[1:])
    given = None if spec.start is Start.generated else given_images(spec, workspace)
    with track(spec, partial, workspace) as log:
        for first in range(0, spec.num_queries, QUERY_BATCH):
            queries = range(first, min(first + QUERY_BATCH, spec.num_queries))
            rows = slice(queries.start, queries.stop)
            noise = trajectory_noise(queries, shape, spec.seed)
            match spec.start:
                case Start.generated:
                    condition = None if conditions is None else conditions[rows]
                    steps = sample_trajectories(
                        denoiser, spec.sampler, spec.visited, noise, condition
                    )
                case Start.injected | Start.images:
                    assert given is not None
                    x0 = model.encode(given.take(np.array(queries))).x0.to(denoiser.device)
                    eps = noise.draw().to(denoiser.device)
                    steps = noised_steps(denoiser, spec.steps, x0, eps)
                case _:
                    assert_never(spec.start)
            finite: dict[int, Tensor] = {}  # read where an accelerator is waited for anyway
            for i, step in enumerate(steps):
                finite[step.t] = step.x0_hat.isfinite().all()
                if step.t in spec.steps:
                    require_finite(finite)
                    index = spec.steps.index(step.t)
                    x_t[index, rows], x0_hat[index, rows] = step.x_t.cpu(), step.x0_hat.cpu()
                    std = float(step.x0_hat.std())
                    log(first * spec.num_inference_steps + i, t=step.t, x0_hat_std=std)
            require_finite(finite)
            final[rows] = step.x_next.cpu()
    for array in (x_t, x0_hat, final):
        array.flush()


def given_images(spec: Sample, workspace: Workspace) -> ImageSet:
    """Return the images that are the final samples of trajectories which are not sampled."""
    if spec.images is not None:
        return read_images(get(spec.images, workspace).path / QUERIES)
    return read_images(get(spec.checkpoint.images, workspace).path / INJECTED)


def require_finite(finite: dict[int, Tensor]) -> None:
    """Check the estimates x̂0_t, given whether those of each timestep are finite.

    Raises:
        FloatingPointError: One is not.
    """
    for t, is_finite in zip(finite, torch.stack(list(finite.values())).tolist(), strict=True):
        if not is_finite:
            raise FloatingPointError(f"sampling at t={t}: x̂0 is not finite")


def make_continuations(spec: Continuations, partial: Path, workspace: Workspace) -> None:
    """Continue trajectories under another model for a window of timesteps, then under their own.

    Raises:
        FloatingPointError: A continuation is not finite.
    """
    # Load.
    trajectories = spec.trajectories
    other = load_denoiser(spec.checkpoint, workspace, trajectories.guidance)
    own = other
    if min(spec.windows) < spec.step:
        own = load_denoiser(trajectories.checkpoint, workspace, trajectories.guidance)
    timesteps = trajectories.visited
    remaining = [*timesteps[timesteps.index(spec.step) :], CLEAN]
    shape = trajectories.checkpoint.model.example_shape(trajectories.checkpoint.images.shape)
    if spec.step in trajectories.steps:
        x_t = trajectory_at("x_t", trajectories, (spec.step,), workspace)[0].to(own.device)
    else:  # the whole generation: from the first noise, which is not stored
        queries = range(trajectories.num_queries)
        x_t = trajectory_noise(queries, shape, trajectories.seed).draw().to(own.device)
    conditions = query_conditions(trajectories, workspace)
    encode = None if spec.encoder is None else spec.encoder.load()

    def random_of(query: int, j: int) -> torch.Generator:
        """Return the noise generator of a continuation: for j = 0, that of the trajectory."""
        if j > 0:
            return generator(spec.seed, "continuation", query, spec.step, j)
        sampler, seed = trajectories.sampler, trajectories.seed
        return noise_generator_at(spec.step, query, sampler, timesteps, shape, seed)

    # Sample, some continuations at a time.
    pairs = [(query, j) for query in spec.queries for j in range(spec.count)]
    finals: list[Tensor] = []
    features: list[Tensor] = []
    with track(spec, partial, workspace) as log:
        for i, window in enumerate(spec.windows):
            handover = len(remaining) - 1
            if window < spec.step:
                handover = remaining.index(spec.step - window)
            for first in range(0, len(pairs), CONTINUATION_BATCH):
                batch = pairs[first : first + CONTINUATION_BATCH]
                rows = torch.tensor([query for query, _ in batch])
                noise = QueryNoise([random_of(query, j) for query, j in batch], shape)
                condition = None if conditions is None else conditions[rows, 0].to(own.device)
                x = x_t[rows]
                segments = (other, remaining[: handover + 1]), (own, remaining[handover:])
                for denoiser, visited in segments:
                    steps = continue_trajectories(
                        denoiser, trajectories.sampler, visited, x, noise, condition
                    )
                    for step in steps:
                        x = step.x_next
                if not bool(x.isfinite().all()):
                    raise FloatingPointError(f"continuations of {spec.label} are not finite")
                finals.append(x.cpu())
                if encode is not None:
                    pixels = decode_pictures(finals[-1].numpy(), trajectories, workspace)
                    features.append(encode(torch.from_numpy(pixels)))
            log(i, window=window)

    # Save.
    axes = (len(spec.windows), len(spec.queries), spec.count)
    for name, parts in (("final", finals), ("features", features)):
        if parts:
            values = torch.cat(parts).unflatten(0, axes).numpy()
            new_array(partial / f"{name}.npy", values.shape)[:] = values
