"""Projected per-example gradients under one model.

Payload: features.npy, float32 [rows, p]: the training images, or the queries [step × query] or [query]; plan.json, how
the gradients were computed.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from journey import data
from journey.attribution.gradients import Objective, Plan, choose
from journey.attribution.output import Draws, all_timestep_draws, step_draws
from journey.attribution.projection import projection
from journey.diffusion import network, schedule
from journey.diffusion.examples import Examples, encode
from journey.specs import Featurize
from journey.stages import Workspace, get
from journey.stages.measure import estimates_at
from journey.store import new_array, replace_text, write_json

PLAN, PROGRESS = "plan.json", "progress.json"


@dataclass(frozen=True)
class Batch:
    """Examples that share their draws."""

    examples: Examples
    draws: Draws


def run(spec: Featurize, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if a feature is not finite."""
    # Load.
    device = network.device_of(workspace.compute)
    model, compute = spec.model.model, workspace.compute
    denoiser = network.load(model, get(spec.model, workspace).path, device)
    noise_schedule = schedule.schedule_of(model)
    batches = _batches(spec, noise_schedule.num_timesteps, workspace, device)
    d = sum(p.numel() for p in denoiser.parameters())
    p = spec.projection_dim or d
    project = projection(spec.projection, d, p, spec.seed, f"checkpoint {spec.model.seed}", device)
    objective = Objective(denoiser, noise_schedule, spec.model.precision)

    # Begin, or continue where an interrupted run stopped, in the same way.
    num_rows = sum(len(batch.examples) for batch in batches)
    if (partial / PROGRESS).exists():
        plan = Plan(**json.loads((partial / PLAN).read_text()))
        done = json.loads((partial / PROGRESS).read_text())["rows"]
        features = open_memmap(partial / "features.npy", "r+")
    else:
        plan = choose(objective, batches[0].examples, batches[0].draws, compute.gradient, compute.gradient_memory_gib)
        replace_text(partial / PLAN, plan.to_json())
        done, features = 0, new_array(partial / "features.npy", (num_rows, p))

    # Compute, a block of rows at a time.
    row, saved_at = 0, time.monotonic()
    for batch in batches:
        skip = max(0, min(done - row, len(batch.examples)))  # whole blocks
        row += skip
        for gradients in objective.gradients(batch.examples[skip:], batch.draws, plan):
            block = project(gradients).cpu().numpy()
            if not np.isfinite(block).all():
                raise FloatingPointError(f"features of rows {row}…{row + len(block) - 1} are not finite")
            features[row : row + len(block)] = block
            row += len(block)
            if time.monotonic() - saved_at >= compute.checkpoint_seconds:
                features.flush()
                write_json(partial / PROGRESS, {"rows": row})
                saved_at = time.monotonic()
    features.flush()
    (partial / PROGRESS).unlink(missing_ok=True)


def _batches(spec: Featurize, num_timesteps: int, workspace: Workspace, device: torch.device) -> list[Batch]:
    """The training images, or the queries' destinations, with draws over all t; or x̂0_t of each step with draws at it."""
    if spec.journeys is None:
        examples = encode(data.load(spec.model.dataset)[0], spec.model.model)
    else:
        journeys = get(spec.journeys, workspace)
        examples = Examples(torch.from_numpy(np.array(journeys.array("final.npy"))))
    rest = (spec.num_draws, examples.shape, spec.seed, "attribute", spec.antithetic)
    if spec.steps is None:
        draws = all_timestep_draws(num_timesteps, *rest)
        return [Batch(examples.to(device), draws.to(device))]
    estimates = torch.from_numpy(estimates_at(journeys, spec.steps)).to(device)
    return [Batch(Examples(x0), step_draws(t, *rest).to(device)) for t, x0 in zip(spec.steps, estimates, strict=True)]
