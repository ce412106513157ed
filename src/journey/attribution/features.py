"""Projected per-example gradients under one model.

Payload: features.npy, float32 [rows, p] or, whitened by a curvature, [rows, damping, p]: the training images, or the queries
[step × query] or [query]. Stored in fewer bytes, these are codes, and scales.npy, float32 […, 1], is what they are multiplied by.
"""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from journey.attribution import kronecker
from journey.attribution.ekfac import EKFAC, load_ekfac
from journey.attribution.ekfac import EKFAC_FILE as CURVATURE
from journey.attribution.gradient import Featurize
from journey.attribution.gradients import GradientPlan, Objective, choose_plan
from journey.attribution.kronecker import project_layers_kfac
from journey.attribution.logra import feature_dimension, project_layers
from journey.attribution.outputs import (
    NoiseSamples,
    sample_noise,
    sample_noise_at,
    with_augmentations,
)
from journey.attribution.projections import DTYPES, Projector, make_projection, quantize
from journey.diffusion import network
from journey.diffusion.trajectories import (
    continuation_samples,
    final_samples,
    query_contexts,
    query_estimates,
    train_examples,
    trajectory_at,
)
from journey.engine import resume
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.workspace import Workspace, get
from journey.pipeline.examples import Examples, Region, boxes, of_query
from journey.pipeline.schedule import noise_between
from journey.pipeline.settings import Projection, QueryExample, Storage

WAITING = 0.25  # of the memory budget, for gradients that wait for a dense projection


CACHED = 4  # gradients whitened and projected at once: few enough for the cache of a CPU


@dataclass(frozen=True)
class Batch:
    """Examples that share their draws, and the region of their output."""

    examples: Examples
    draws: NoiseSamples
    region: Region


def make_features(spec: Featurize, partial: Path, workspace: Workspace) -> dict:
    """Raises: FloatingPointError if a feature is not finite."""
    # Load.
    device = network.get_device(workspace.compute)
    compute = workspace.compute
    model = spec.trained.model
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    noise_schedule = model.schedule(device)
    together = batches(spec, noise_schedule.num_timesteps, workspace, device)
    guidance = network.get_guidance(model, spec.guidance, device)
    objective = Objective(
        denoiser, noise_schedule, spec.precision, spec.output, spec.normalize, guidance
    )
    way = within_layers if spec.projection is Projection.kronecker else projected
    source = way(spec, objective, together, workspace)

    # Begin, or continue where an interrupted run stopped.
    names = ["features.npy"] if spec.storage is Storage.fp32 else ["features.npy", "scales.npy"]
    if (kept := resume.load_state(partial)) is not None:
        done, arrays = kept["rows"], [open_memmap(partial / name, "r+") for name in names]
    else:
        done, shape = (
            0,
            (spec.num_rows, *([len(spec.damping)] if spec.damping else []), source.dimension),
        )
        shapes, dtypes = (shape, (*shape[:-1], 1)), (DTYPES[spec.storage], np.float32)
        arrays = [
            new_array(partial / name, *of) for name, *of in zip(names, shapes, dtypes, strict=False)
        ]

    # Compute, some rows at a time.
    row, saved_at = done, time.monotonic()
    with track(spec, partial, workspace, resume_step=done) as log:
        for some in source.blocks(done):
            block = some.cpu().numpy()
            if not np.isfinite(block).all():
                raise FloatingPointError(
                    f"features of rows {row}…{row + len(block) - 1} are not finite"
                )
            parts = (block,) if spec.storage is Storage.fp32 else quantize(block, spec.storage)
            for array, part in zip(arrays, parts, strict=True):
                array[row : row + len(block)] = part
            row += len(block)
            log(row, norm=float(np.linalg.norm(block, axis=-1).mean()))
            if resume.is_due(saved_at, compute.checkpoint_seconds):
                for array in arrays:
                    array.flush()
                resume.save_state(partial, {"rows": row})
                saved_at = time.monotonic()
    for array in arrays:
        array.flush()
    return {"gradients": spec.num_rows * spec.num_samples, "plan": vars(source.plan)}


Compute = Callable[[Objective, Examples, NoiseSamples, GradientPlan], Iterator[Tensor]]


@dataclass(frozen=True)
class Source:
    """Features of `dimension` numbers. blocks: all of them in order, after so many rows that are done (whole blocks)."""

    dimension: int
    plan: GradientPlan
    blocks: Callable[[int], Iterator[Tensor]]


def projected(
    spec: Featurize, objective: Objective, batches: list[Batch], workspace: Workspace
) -> Source:
    """Gradients, one for each example, and then their projection. Raises: ConfigError if memory does not hold them."""
    device, memory_gib = (
        network.get_device(workspace.compute),
        workspace.compute.gradient_memory_gib,
    )
    d = sum(p.numel() for p in objective.network.parameters())
    p = spec.projection_dim or d
    project = make_projection(spec.projection, d, p, spec.seed, _key(spec), device)
    at_once = _at_once(spec, d, memory_gib)
    if spec.curvature is not None:
        estimated = _estimated(spec, objective, workspace)
        project = whitened(project, estimated, spec.damping, max(at_once, CACHED))
    left = memory_gib * (1 if at_once == 1 else 1 - WAITING)
    plan = choose_plan(objective, batches[0].examples, batches[0].draws, left)
    gradients = functools.partial(_rest, objective, batches, Objective.gradients, plan)
    return Source(p, plan, lambda done: map(project, joined(gradients(done), at_once)))


def within_layers(
    spec: Featurize, objective: Objective, batches: list[Batch], workspace: Workspace
) -> Source:
    """Features in stead of gradients. Raises: ConfigError if memory does not hold a draw, or a layer is of no known kind."""
    how = (spec.projection_rank, spec.seed, _key(spec))
    if spec.curvature is None:
        networks = [project_layers(objective.network, *how)]
    else:
        estimated = _estimated(spec, objective, workspace)
        networks = [
            project_layers_kfac(objective.network, estimated, relative, *how)
            for relative in spec.damping
        ]
    each = [replace(objective, network=adapted) for adapted in networks]
    plan = kronecker.choose_kronecker_plan(
        each[0], batches[0].examples, batches[0].draws, workspace.compute.gradient_memory_gib
    )

    def blocks(done: int) -> Iterator[Tensor]:
        found = (_rest(one, batches, kronecker.kronecker_features, plan, done) for one in each)
        return (
            parts[0] if spec.curvature is None else torch.stack(parts, 1)
            for parts in zip(*found, strict=True)
        )

    return Source(feature_dimension(networks[0]), plan, blocks)


def _estimated(spec: Featurize, objective: Objective, workspace: Workspace) -> EKFAC:
    path = get(spec.curvature, workspace).path / CURVATURE
    return load_ekfac(path, objective.network, network.get_device(workspace.compute))


def _key(spec: Featurize) -> str:
    """Of a projection: one for each checkpoint."""
    return f"checkpoint {spec.trained.training_seed}"


def _rest(
    objective: Objective, batches: list[Batch], compute: Compute, plan: GradientPlan, done: int
) -> Iterator[Tensor]:
    """What is computed of all examples, in blocks, after the rows that are done (whole blocks)."""
    for batch in batches:
        skip = min(done, len(batch.examples))
        done -= skip
        yield from compute(
            replace(objective, region=batch.region), batch.examples[skip:], batch.draws, plan
        )


def _at_once(spec: Featurize, d: int, memory_gib: float) -> int:
    """How many gradients a dense projection, which draws its matrix anew each time, should have at once; else 1.

    Joined, they are in memory twice; whitened, four times.
    """
    if spec.projection in (Projection.none, Projection.sparse):
        return 1
    copies = 2 if spec.curvature is None else 4
    return max(1, int(WAITING * memory_gib * 2**30 / (4 * copies * d)))


def joined(blocks: Iterator[Tensor], num_rows: int) -> Iterator[Tensor]:
    """Blocks [B, d] joined to at most so many rows; a block that is larger comes by itself. 1: as they are."""
    if num_rows == 1:
        yield from blocks
        return
    waiting: list[Tensor] = []
    for block in blocks:
        if waiting and sum(map(len, waiting)) + len(block) > num_rows:
            yield torch.cat(waiting)
            waiting.clear()
        waiting.append(block)
    if waiting:
        yield torch.cat(waiting)


def batches(
    spec: Featurize, num_timesteps: int, workspace: Workspace, device: torch.device
) -> list[Batch]:
    """Clean images or destinations, with draws over all t or in the window; or what is asked at each step, with draws at it."""
    if spec.query_example is QueryExample.noisy:
        return list(_journeys_own(spec, workspace, device))
    if spec.trajectories is None:
        examples = [train_examples(spec.trained, workspace)]
    elif spec.steps is None:
        examples = [final_samples(spec.trajectories, workspace)]
    else:
        examples = _asked(spec, workspace)
    rest = (spec.num_samples, examples[0].shape, spec.seed, _purpose(spec), spec.antithetic)
    if spec.steps is None:
        draws = [sample_noise(spec.window or (0, num_timesteps), *rest, spec.stratified)]
        if spec.trajectories is None:
            views = (spec.flips, spec.captions, spec.antithetic, spec.seed, _purpose(spec))
            draws = [with_augmentations(draws[0], examples[0], *views)]
    else:
        draws = [sample_noise_at(t, *rest) for t in spec.steps]
    return [
        batch
        for some, its in zip(examples, draws, strict=True)
        for batch in _by_region(some, its, spec.region, device)
    ]


def _by_region(
    examples: Examples, draws: NoiseSamples, region: Region, device: torch.device
) -> list[Batch]:
    """Examples that are asked about the same box, together."""
    return [
        Batch(examples[some].to(device), draws.to(device), box)
        for some, box in boxes(region, len(examples))
    ]


def _asked(spec: Featurize, workspace: Workspace) -> list[Examples]:
    """What is asked of every query, for each step."""
    match spec.query_example:
        case QueryExample.estimate:
            return query_estimates(spec.trajectories, spec.steps, workspace)
        case QueryExample.mean:
            context = query_contexts(spec.trajectories, workspace)
            means = [
                torch.from_numpy(continuation_samples(of, workspace).mean(1))
                for of in spec.continuations
            ]
            return [Examples(mean, context=context) for mean in means]
        case QueryExample.continuation | QueryExample.noisy:
            return [final_samples(spec.trajectories, workspace)] * len(spec.steps)
        case _:
            assert_never(spec.query_example)


def _journeys_own(spec: Featurize, workspace: Workspace, device: torch.device) -> Iterator[Batch]:
    """Every final example by itself, for each step, with the one draw that makes it the x_t that its journey was at."""
    noise_schedule = spec.trained.model.schedule(device)
    visited = trajectory_at("x_t", spec.trajectories, spec.steps, workspace).to(
        device
    )  # [step, query, …]
    for t, x_t, finals in zip(spec.steps, visited, _asked(spec, workspace), strict=True):
        finals = finals.to(device)
        timesteps = torch.full((len(finals),), t, device=device)
        eps = noise_between(noise_schedule, finals.x0, timesteps, x_t)
        for q in range(len(finals)):
            one = slice(q, q + 1)
            yield Batch(
                finals[one], NoiseSamples(timesteps[one], eps[one]), of_query(spec.region, q)
            )


def _purpose(spec: Featurize) -> str:
    """Queries have other draws than training images, or what they share would be taken for influence."""
    asked = "attribute" if spec.trajectories is None or spec.share_noise else "attribute queries"
    return f"{asked} again {spec.noise_set}" if spec.noise_set else asked


def whitened(
    project: Projector, estimated: EKFAC, damping: tuple[float, ...], num_rows: int
) -> Projector:
    """Projections of (G + λI)^{−1/2} g, in the eigenbasis of G, for every λ: their inner products are those of EK-FAC.

    damping: λ relative to the mean eigenvalue; num_rows: how many gradients to project at once.
    Gradients [B, d] → features [B, damping, p].
    """
    factors = [estimated.damped(relative).rsqrt() for relative in damping]

    def whiten(gradients: Tensor) -> Tensor:
        parts = estimated.rotate(gradients).split(num_rows)
        return torch.cat(
            [torch.stack([project(part * factor) for factor in factors], 1) for part in parts]
        )

    return whiten
