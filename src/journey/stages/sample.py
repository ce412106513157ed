"""Generate the queries, or begin at images that were planted, and keep what is needed of their journeys.

Payload: x_t.npy and x0_hat.npy, float32 [S, Q, …], at the steps of the spec; final.npy [Q, …]; of prompts, context.npy
[Q, 1, L, E]. The noise of a step is drawn
again from its query's generator (`journey.diffusion.sampling.noise_from`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from journey import data
from journey.artifacts.files import new_array
from journey.artifacts.specs import Sample
from journey.artifacts.workspace import Workspace, get
from journey.config.groups import Start, visited_timesteps
from journey.data import planting
from journey.diffusion import network, sampling
from journey.diffusion.journeys import train_examples
from journey.diffusion.network import Predict
from journey.diffusion.schedule import Schedule
from journey.tracking import track

TOGETHER = 64  # queries that are generated side by side


def make(spec: Sample, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if a journey stops being finite."""
    # Load.
    device = network.device_of(workspace.compute)
    model = spec.checkpoint.model
    guidance = network.guidance_of(model, spec.guidance, device)
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
            for i, step in enumerate(_steps(spec, queries, predict, noise_schedule, shape, prompted, workspace)):
                if not bool(step.x0_hat.isfinite().all()):
                    raise FloatingPointError(f"sampling at t={step.t}: x̂0 is not finite")
                if step.t in spec.steps:
                    kept = spec.steps.index(step.t), slice(queries.start, queries.stop)
                    x_t[kept], x0_hat[kept] = step.x_t.cpu(), step.x0_hat.cpu()
                    log(first * spec.num_inference_steps + i, t=step.t, x0_hat_std=float(step.x0_hat.std()))
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
) -> Iterator[sampling.Step]:
    """The journeys of some queries side by side."""
    device = network.device_of(workspace.compute)
    match spec.start:
        case Start.generated:
            timesteps = visited_timesteps(noise_schedule.num_timesteps, spec.num_inference_steps)
            noise = sampling.journey_noise(queries, shape, spec.seed)
            return sampling.sample(predict, noise_schedule, spec.sampler, timesteps, noise, device, context)
        case Start.planted:
            planted = data.read(get(spec.checkpoint.images, workspace).path / planting.PLANTED)
            x0 = spec.checkpoint.model.encode(planted.take(np.array(queries))).x0.to(device)
            eps = sampling.journey_noise(queries, shape, spec.seed).draw().to(device)
            return sampling.noised(predict, noise_schedule, spec.steps, x0, eps)
        case _:
            assert_never(spec.start)
