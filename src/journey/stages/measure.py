"""Ask one model about every query: the outputs that attributions are judged by.

Payload: outputs.npy, float64 [2 halves of the draws, steps + destination, Q].
"""

from pathlib import Path

import numpy as np
import torch

from journey.artifacts.specs import Measure
from journey.artifacts.workspace import Workspace, get
from journey.attribution.output import Draws, output, step_draws, window_draws
from journey.diffusion import network
from journey.diffusion.examples import Examples
from journey.diffusion.journeys import destinations, estimates
from journey.diffusion.regions import Region, of_query
from journey.diffusion.schedule import Schedule
from journey.tracking import track


def make(spec: Measure, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if an output is not finite."""
    device = network.device_of(workspace.compute)
    model = spec.checkpoint.model
    guidance = network.guidance_of(model, spec.guidance, device)
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    predict = network.bind(denoiser, spec.checkpoint.precision, guidance=guidance)
    noise_schedule = model.schedule(device)
    targets = [*estimates(spec.journeys, spec.steps, workspace), destinations(spec.journeys, workspace)]

    outputs = np.empty((2, len(targets), spec.journeys.num_queries))
    with track(spec, partial, workspace) as log:
        for i, (t, queries) in enumerate(zip([*spec.steps, None], targets, strict=True)):
            for q in range(len(queries)):
                draws = draws_of(spec, t, q, noise_schedule.num_timesteps, queries.shape).to(device)
                halves = draws.halves(spec.antithetic)
                outputs[:, i, q] = _outputs(predict, noise_schedule, queries[q].to(device), halves, of_query(spec.region, q))
            log(i, output=float(outputs[:, i].mean()))
    if not np.isfinite(outputs).all():
        raise FloatingPointError(f"outputs of {spec.label} are not finite")
    np.save(partial / "outputs.npy", outputs)


@torch.no_grad()
def _outputs(
    predict: network.Predict, noise_schedule: Schedule, query: Examples, halves: tuple[Draws, Draws], region: Region
) -> tuple[float, float]:
    """A query's output by either half of its draws."""
    first, second = (output(predict, noise_schedule, query, half, region=region) for half in halves)
    return first.item(), second.item()


def draws_of(spec: Measure, t: int | None, query: int, num_timesteps: int, shape: tuple[int, ...]) -> Draws:
    """A query's own draws of a step, or of the destination: noise that queries shared would look like an effect of the subset on
    all of them. No attribution uses these.
    """
    rest = (spec.num_draws, shape, spec.seed, f"measure {query}", spec.antithetic)
    return window_draws((0, num_timesteps), *rest) if t is None else step_draws(t, *rest)
