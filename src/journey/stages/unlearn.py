"""Forget each query, and ask for the loss of every training image. Payload: rises.npy, float32 [rise, step × query, train]."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from journey.artifacts import resume
from journey.artifacts.files import new_array
from journey.artifacts.specs import Unlearn
from journey.artifacts.workspace import Workspace, get
from journey.attribution import curvature, forgetting
from journey.attribution.gradients import Objective
from journey.attribution.output import Draws, step_draws, window_draws, with_views
from journey.config.groups import Views
from journey.diffusion import network
from journey.diffusion.examples import Examples
from journey.diffusion.journeys import destinations, estimates, train_examples
from journey.stages.curvature import FILE as CURVATURE
from journey.tracking import track

ROWS = 128  # examples × draws in one forward pass: few enough for the cache of a CPU


def make(spec: Unlearn, partial: Path, workspace: Workspace) -> dict:
    """Raises: FloatingPointError if a loss is not finite."""
    # Load.
    device = network.device_of(workspace.compute)
    model = spec.checkpoint.model
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    noise_schedule = model.schedule(device)
    objective = Objective(denoiser, noise_schedule, spec.precision)
    asked = replace(objective, guidance=network.guidance_of(model, spec.guidance, device))
    estimated = curvature.load(get(spec.curvature, workspace).path / CURVATURE, denoiser, device)
    clean = train_examples(spec.checkpoint, workspace).to(device)
    rest = (spec.num_draws, clean.shape, spec.seed)
    all_t = (0, noise_schedule.num_timesteps)
    everywhere = window_draws(all_t, *rest, "attribute")
    everywhere = with_views(everywhere, clean, Views.none, Views.none, False, spec.seed, "attribute").to(device)
    of_destinations = window_draws(all_t, *rest, "attribute queries")

    # Begin, or continue after the last query an interrupted run finished.
    if (kept := resume.resumed(partial)) is not None:
        done, rises = kept["queries"], open_memmap(partial / "rises.npy", "r+")
    else:
        done, rises = 0, new_array(partial / "rises.npy", (len(spec.rise), spec.num_queries, len(clean)))

    # Compute, a query at a time.
    before = forgetting.losses(objective, None, clean, everywhere, ROWS)
    saved_at = time.monotonic()
    with track(spec, partial, workspace, resume_step=done) as log:
        for i, (query, draws) in enumerate(_queries(spec, of_destinations, workspace)):
            if i < done:
                continue
            output, gradient = forgetting.output_and_gradient(asked, query.to(device), draws.to(device))
            towards = forgetting.direction(estimated, gradient, spec.damping)
            for j, rise in enumerate(spec.rise):
                step = forgetting.step_size(gradient, towards, output, rise) * towards
                rises[j, i] = forgetting.losses(objective, step, clean, everywhere, ROWS) - before
            if not np.isfinite(rises[:, i]).all():
                raise FloatingPointError(f"after forgetting query {i}, a loss is not finite; a smaller rise may help")
            log(i + 1, rise=float(rises[-1, i].mean()))
            if resume.due(saved_at, workspace.compute.checkpoint_seconds):
                rises.flush()
                resume.keep(partial, {"queries": i + 1})
                saved_at = time.monotonic()
    rises.flush()
    return {"gradients": spec.num_queries * spec.num_draws}


def _queries(spec: Unlearn, of_destinations: Draws, workspace: Workspace) -> Iterator[tuple[Examples, Draws]]:
    """Every x̂0_t with draws at its t, or every destination with draws over all t."""
    if spec.steps is None:
        queries = destinations(spec.journeys, workspace)
        yield from ((queries[i : i + 1], of_destinations) for i in range(len(queries)))
        return
    for t, queries in zip(spec.steps, estimates(spec.journeys, spec.steps, workspace), strict=True):
        draws = step_draws(t, spec.num_draws, queries.shape, spec.seed, "attribute queries", False)
        yield from ((queries[i : i + 1], draws) for i in range(len(queries)))
