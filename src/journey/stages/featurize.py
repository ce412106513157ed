"""Projected per-example gradients under one model.

Payload: features.npy, float32 [rows, p] or, whitened by a curvature, [rows, damping, p]: the training images, or the queries
[step × query] or [query].
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
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
from journey.attribution import curvature
from journey.attribution.gradients import Objective, Plan, choose
from journey.attribution.output import Draws, step_draws, window_draws, with_views
from journey.attribution.projection import Project, projection
from journey.config.groups import Asked, Projection
from journey.diffusion import network
from journey.diffusion.examples import Examples
from journey.diffusion.journeys import at_steps, conditions, continued, destinations, estimates, train_examples
from journey.diffusion.schedule import noise_between
from journey.stages.curvature import FILE as CURVATURE
from journey.tracking import track

WAITING = 0.25  # of the memory budget, for gradients that wait for a dense projection
CACHED = 4  # gradients whitened and projected at once: few enough for the cache of a CPU


@dataclass(frozen=True)
class Batch:
    """Examples that share their draws."""

    examples: Examples
    draws: Draws


def make(spec: Featurize, partial: Path, workspace: Workspace) -> dict:
    """Raises: FloatingPointError if a feature is not finite."""
    # Load.
    device = network.device_of(workspace.compute)
    compute = workspace.compute
    model = spec.trained.model
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    noise_schedule = model.schedule(device)
    together = batches(spec, noise_schedule.num_timesteps, workspace, device)
    d = sum(p.numel() for p in denoiser.parameters())
    p = spec.projection_dim or d
    project = projection(spec.projection, d, p, spec.seed, f"checkpoint {spec.trained.repeat}", device)
    at_once = _at_once(spec, d, compute.gradient_memory_gib)
    if spec.curvature is not None:
        estimated = curvature.load(get(spec.curvature, workspace).path / CURVATURE, denoiser, device)
        project = whitened(project, estimated, spec.damping, max(at_once, CACHED))
    guidance = network.guidance_of(model, spec.guidance, device)
    objective = Objective(denoiser, noise_schedule, spec.precision, spec.output, spec.normalize, guidance, spec.region)

    # Begin, or continue where an interrupted run stopped.
    left = compute.gradient_memory_gib * (1 if at_once == 1 else 1 - WAITING)
    plan = choose(objective, together[0].examples, together[0].draws, left)
    if (kept := resume.resumed(partial)) is not None:
        done, features = kept["rows"], open_memmap(partial / "features.npy", "r+")
    else:
        done, shape = 0, (spec.num_rows, *([len(spec.damping)] if spec.damping else []), p)
        features = new_array(partial / "features.npy", shape)

    # Compute, some rows at a time.
    row, saved_at = done, time.monotonic()
    with track(spec, partial, workspace, resume_step=done) as log:
        for gradients in joined(_gradients(objective, together, plan, done), at_once):
            block = project(gradients).cpu().numpy()
            if not np.isfinite(block).all():
                raise FloatingPointError(f"features of rows {row}…{row + len(block) - 1} are not finite")
            features[row : row + len(block)] = block
            row += len(block)
            log(row, norm=float(np.linalg.norm(block, axis=-1).mean()))
            if resume.due(saved_at, compute.checkpoint_seconds):
                features.flush()
                resume.keep(partial, {"rows": row})
                saved_at = time.monotonic()
    features.flush()
    return {"gradients": spec.num_rows * spec.num_draws, "plan": vars(plan)}


def _gradients(objective: Objective, batches: list[Batch], plan: Plan, done: int) -> Iterator[Tensor]:
    """All gradients, in blocks, after the rows that are done (whole blocks)."""
    for batch in batches:
        skip = min(done, len(batch.examples))
        done -= skip
        yield from objective.gradients(batch.examples[skip:], batch.draws, plan)


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
    return [Batch(some.to(device), its.to(device)) for some, its in zip(examples, draws, strict=True)]


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
            yield Batch(finals[one], Draws(timesteps[one], eps[one]))


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
