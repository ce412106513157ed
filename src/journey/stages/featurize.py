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

from journey.artifacts import resume
from journey.artifacts.files import new_array
from journey.artifacts.specs import Featurize
from journey.artifacts.workspace import Workspace, get
from journey.attribution import adapters, curvature, kfac, kronecker
from journey.attribution.gradients import Objective, Plan, choose
from journey.attribution.output import Draws, step_draws, window_draws, with_views
from journey.attribution.projection import Project, projection
from journey.attribution.stored import DTYPES, encoded
from journey.config.groups import Asked, Projection, Storage
from journey.diffusion import network
from journey.diffusion.examples import Examples
from journey.diffusion.journeys import at_steps, conditions, continued, destinations, estimates, train_examples
from journey.diffusion.regions import Region, boxes, of_query
from journey.diffusion.schedule import noise_between
from journey.stages.curvature import FILE as CURVATURE
from journey.tracking import track

WAITING = 0.25  # of the memory budget, for gradients that wait for a dense projection
CACHED = 4  # gradients whitened and projected at once: few enough for the cache of a CPU


@dataclass(frozen=True)
class Batch:
    """Examples that share their draws, and the region of their output."""

    examples: Examples
    draws: Draws
    region: Region


def make(spec: Featurize, partial: Path, workspace: Workspace) -> dict:
    """Raises: FloatingPointError if a feature is not finite."""
    # Load.
    device = network.device_of(workspace.compute)
    compute = workspace.compute
    model = spec.trained.model
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    noise_schedule = model.schedule(device)
    together = batches(spec, noise_schedule.num_timesteps, workspace, device)
    guidance = network.guidance_of(model, spec.guidance, device)
    objective = Objective(denoiser, noise_schedule, spec.precision, spec.output, spec.normalize, guidance)
    way = within_layers if spec.projection is Projection.kronecker else projected
    source = way(spec, objective, together, workspace)

    # Begin, or continue where an interrupted run stopped.
    names = ["features.npy"] if spec.storage is Storage.fp32 else ["features.npy", "scales.npy"]
    if (kept := resume.resumed(partial)) is not None:
        done, arrays = kept["rows"], [open_memmap(partial / name, "r+") for name in names]
    else:
        done, shape = 0, (spec.num_rows, *([len(spec.damping)] if spec.damping else []), source.dimension)
        shapes, dtypes = (shape, (*shape[:-1], 1)), (DTYPES[spec.storage], np.float32)
        arrays = [new_array(partial / name, *of) for name, *of in zip(names, shapes, dtypes, strict=False)]

    # Compute, some rows at a time.
    row, saved_at = done, time.monotonic()
    with track(spec, partial, workspace, resume_step=done) as log:
        for some in source.blocks(done):
            block = some.cpu().numpy()
            if not np.isfinite(block).all():
                raise FloatingPointError(f"features of rows {row}…{row + len(block) - 1} are not finite")
            parts = (block,) if spec.storage is Storage.fp32 else encoded(block, spec.storage)
            for array, part in zip(arrays, parts, strict=True):
                array[row : row + len(block)] = part
            row += len(block)
            log(row, norm=float(np.linalg.norm(block, axis=-1).mean()))
            if resume.due(saved_at, compute.checkpoint_seconds):
                for array in arrays:
                    array.flush()
                resume.keep(partial, {"rows": row})
                saved_at = time.monotonic()
    for array in arrays:
        array.flush()
    return {"gradients": spec.num_rows * spec.num_draws, "plan": vars(source.plan)}


# ---------------------------------------------------------------------------------------------- where they come from


Compute = Callable[[Objective, Examples, Draws, Plan], Iterator[Tensor]]


@dataclass(frozen=True)
class Source:
    """Features of `dimension` numbers. blocks: all of them in order, after so many rows that are done (whole blocks)."""

    dimension: int
    plan: Plan
    blocks: Callable[[int], Iterator[Tensor]]


def projected(spec: Featurize, objective: Objective, batches: list[Batch], workspace: Workspace) -> Source:
    """Gradients, one for each example, and then their projection. Raises: ConfigError if memory does not hold them."""
    device, memory_gib = network.device_of(workspace.compute), workspace.compute.gradient_memory_gib
    d = sum(p.numel() for p in objective.network.parameters())
    p = spec.projection_dim or d
    project = projection(spec.projection, d, p, spec.seed, _key(spec), device)
    at_once = _at_once(spec, d, memory_gib)
    if spec.curvature is not None:
        estimated = _estimated(spec, objective, workspace)
        project = whitened(project, estimated, spec.damping, max(at_once, CACHED))
    left = memory_gib * (1 if at_once == 1 else 1 - WAITING)
    plan = choose(objective, batches[0].examples, batches[0].draws, left)
    gradients = functools.partial(_rest, objective, batches, Objective.gradients, plan)
    return Source(p, plan, lambda done: map(project, joined(gradients(done), at_once)))


def within_layers(spec: Featurize, objective: Objective, batches: list[Batch], workspace: Workspace) -> Source:
    """Features in stead of gradients. Raises: ConfigError if memory does not hold a draw, or a layer is of no known kind."""
    how = (spec.projection_rows, spec.seed, _key(spec))
    if spec.curvature is None:
        networks = [adapters.adapted(objective.network, *how)]
    else:
        estimated = _estimated(spec, objective, workspace)
        networks = [kfac.adapted(objective.network, estimated, relative, *how) for relative in spec.damping]
    each = [replace(objective, network=adapted) for adapted in networks]
    plan = kronecker.choose(each[0], batches[0].examples, batches[0].draws, workspace.compute.gradient_memory_gib)

    def blocks(done: int) -> Iterator[Tensor]:
        found = (_rest(one, batches, kronecker.features, plan, done) for one in each)
        return (parts[0] if spec.curvature is None else torch.stack(parts, 1) for parts in zip(*found, strict=True))

    return Source(adapters.dimension(networks[0]), plan, blocks)


def _estimated(spec: Featurize, objective: Objective, workspace: Workspace) -> curvature.Curvature:
    path = get(spec.curvature, workspace).path / CURVATURE
    return curvature.load(path, objective.network, network.device_of(workspace.compute))


def _key(spec: Featurize) -> str:
    """Of a projection: one for each checkpoint."""
    return f"checkpoint {spec.trained.repeat}"


def _rest(objective: Objective, batches: list[Batch], compute: Compute, plan: Plan, done: int) -> Iterator[Tensor]:
    """What is computed of all examples, in blocks, after the rows that are done (whole blocks)."""
    for batch in batches:
        skip = min(done, len(batch.examples))
        done -= skip
        yield from compute(replace(objective, region=batch.region), batch.examples[skip:], batch.draws, plan)


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


def batches(spec: Featurize, num_timesteps: int, workspace: Workspace, device: torch.device) -> list[Batch]:
    """Clean images or destinations, with draws over all t or in the window; or what is asked at each step, with draws at it."""
    if spec.asked is Asked.noisy:
        return list(_journeys_own(spec, workspace, device))
    if spec.journeys is None:
        examples = [train_examples(spec.trained, workspace)]
    elif spec.steps is None:
        examples = [destinations(spec.journeys, workspace)]
    else:
        examples = _asked(spec, workspace)
    rest = (spec.num_draws, examples[0].shape, spec.seed, _purpose(spec), spec.antithetic)
    if spec.steps is None:
        draws = [window_draws(spec.window or (0, num_timesteps), *rest, spec.stratified)]
        if spec.journeys is None:
            views = (spec.flips, spec.captions, spec.antithetic, spec.seed, _purpose(spec))
            draws = [with_views(draws[0], examples[0], *views)]
    else:
        draws = [step_draws(t, *rest) for t in spec.steps]
    return [batch for some, its in zip(examples, draws, strict=True) for batch in _by_region(some, its, spec.region, device)]


def _by_region(examples: Examples, draws: Draws, region: Region, device: torch.device) -> list[Batch]:
    """Examples that are asked about the same box, together."""
    return [Batch(examples[some].to(device), draws.to(device), box) for some, box in boxes(region, len(examples))]


def _asked(spec: Featurize, workspace: Workspace) -> list[Examples]:
    """What is asked of every query, for each step."""
    match spec.asked:
        case Asked.estimate:
            return estimates(spec.journeys, spec.steps, workspace)
        case Asked.mean:
            context = conditions(spec.journeys, workspace)
            means = [torch.from_numpy(continued(of, workspace).mean(1)) for of in spec.continued]
            return [Examples(mean, context=context) for mean in means]
        case Asked.continuation | Asked.noisy:
            return [destinations(spec.journeys, workspace)] * len(spec.steps)
        case _:
            assert_never(spec.asked)


def _journeys_own(spec: Featurize, workspace: Workspace, device: torch.device) -> Iterator[Batch]:
    """Every final example by itself, for each step, with the one draw that makes it the x_t that its journey was at."""
    noise_schedule = spec.trained.model.schedule(device)
    visited = at_steps("x_t", spec.journeys, spec.steps, workspace).to(device)  # [step, query, …]
    for t, x_t, finals in zip(spec.steps, visited, _asked(spec, workspace), strict=True):
        finals = finals.to(device)
        timesteps = torch.full((len(finals),), t, device=device)
        eps = noise_between(noise_schedule, finals.x0, timesteps, x_t)
        for q in range(len(finals)):
            one = slice(q, q + 1)
            yield Batch(finals[one], Draws(timesteps[one], eps[one]), of_query(spec.region, q))


def _purpose(spec: Featurize) -> str:
    """Queries have other draws than training images, or what they share would be taken for influence."""
    asked = "attribute" if spec.journeys is None or spec.shared_draws else "attribute queries"
    return f"{asked} again {spec.redraw}" if spec.redraw else asked


def whitened(project: Project, estimated: curvature.Curvature, damping: tuple[float, ...], num_rows: int) -> Project:
    """Projections of (G + λI)^{−1/2} g, in the eigenbasis of G, for every λ: their inner products are those of EK-FAC.

    damping: λ relative to the mean eigenvalue; num_rows: how many gradients to project at once.
    Gradients [B, d] → features [B, damping, p].
    """
    factors = [estimated.damped(relative).rsqrt() for relative in damping]

    def whiten(gradients: Tensor) -> Tensor:
        parts = estimated.rotate(gradients).split(num_rows)
        return torch.cat([torch.stack([project(part * factor) for factor in factors], 1) for part in parts])

    return whiten
