"""Forget each query, and ask for the loss of every training image. Payload: rises.npy, float32 [rise, step × query, train]."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from journey import data
from journey.attribution import curvature
from journey.attribution.gradients import Objective
from journey.attribution.methods import unlearning
from journey.attribution.output import Draws, step_draws, window_draws
from journey.diffusion import network, schedule
from journey.diffusion.examples import Examples, encode
from journey.specs import Unlearn
from journey.stages import Workspace, get
from journey.stages.curvature import FILE as CURVATURE
from journey.stages.sample import destinations, estimates
from journey.store import new_array, write_json
from journey.tracking import track

PROGRESS = "resume.json"
ROWS = 128  # examples × draws in one forward pass: few enough for the cache of a CPU


def run(spec: Unlearn, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if a loss is not finite."""
    # Load.
    device = network.device_of(workspace.compute)
    model = spec.model.model
    denoiser = network.load(model, get(spec.model, workspace).path, device)
    noise_schedule = schedule.schedule_of(model, device)
    objective = Objective(denoiser, noise_schedule, spec.precision)
    estimated = curvature.load(get(spec.curvature, workspace).path / CURVATURE, denoiser, device)
    clean = encode(data.load(spec.model.dataset)[0], model).to(device)
    rest = (spec.num_draws, clean.shape, spec.seed, "attribute", False)
    everywhere = window_draws((0, noise_schedule.num_timesteps), *rest).to(device)
    num_queries = spec.journeys.num_queries * (len(spec.steps) if spec.steps else 1)

    # Begin, or continue after the last query an interrupted run finished.
    done = 0
    if (partial / PROGRESS).exists():
        done = json.loads((partial / PROGRESS).read_text())["queries"]
        rises = open_memmap(partial / "rises.npy", "r+")
    else:
        rises = new_array(partial / "rises.npy", (len(spec.rise), num_queries, len(clean)))

    # Compute, a query at a time.
    before = unlearning.losses(objective, None, clean, everywhere, ROWS)
    saved_at = time.monotonic()
    with track(spec, partial, workspace, resume_step=done) as log:
        for i, (query, draws) in enumerate(_queries(spec, everywhere, workspace)):
            if i < done:
                continue
            output, gradient = unlearning.output_and_gradient(objective, query.to(device), draws.to(device))
            towards = unlearning.direction(estimated, gradient, spec.damping)
            for j, rise in enumerate(spec.rise):
                step = unlearning.step_size(gradient, towards, output, rise) * towards
                rises[j, i] = unlearning.losses(objective, step, clean, everywhere, ROWS) - before
            if not np.isfinite(rises[:, i]).all():
                raise FloatingPointError(f"after forgetting query {i}, a loss is not finite; a smaller rise may help")
            log(i + 1, rise=float(rises[-1, i].mean()))
            if time.monotonic() - saved_at >= workspace.compute.checkpoint_seconds:
                rises.flush()
                write_json(partial / PROGRESS, {"queries": i + 1})
                saved_at = time.monotonic()
    rises.flush()


def _queries(spec: Unlearn, everywhere: Draws, workspace: Workspace) -> Iterator[tuple[Examples, Draws]]:
    """Every x̂0_t with draws at its t, or every destination with draws over all t."""
    journeys = get(spec.journeys, workspace)
    if spec.steps is None:
        queries = destinations(journeys)
        yield from ((queries[i : i + 1], everywhere) for i in range(len(queries)))
        return
    for t, queries in zip(spec.steps, estimates(journeys, spec.steps), strict=True):
        draws = step_draws(t, spec.num_draws, queries.shape, spec.seed, "attribute", False)
        yield from ((queries[i : i + 1], draws) for i in range(len(queries)))
