"""Ask one model about every query: the outputs that attributions are judged by.

Payload: outputs.npy, float64 [2 halves of the draws, steps + destination, Q].
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from journey.artifacts.specs import Measure
from journey.artifacts.workspace import Workspace, get
from journey.attribution.output import Draws, halves, losses, step_draws, window_draws
from journey.diffusion import network
from journey.diffusion.journeys import destinations, estimates
from journey.diffusion.regions import Region, boxes
from journey.tracking import track

TOGETHER = 128  # draws of one batch, or those of one query


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
            for some, region in batches(spec.region, len(queries), spec.num_draws):
                draws = [draws_of(spec, t, q, noise_schedule.num_timesteps, queries.shape).to(device) for q in some]
                asked = queries[some.start : some.stop].to(device)
                found = halves(losses(predict, noise_schedule, asked, draws, region), spec.antithetic)
                outputs[:, i, some] = found.cpu()
            log(i, output=float(outputs[:, i].mean()))
    if not np.isfinite(outputs).all():
        raise FloatingPointError(f"outputs of {spec.label} are not finite")
    np.save(partial / "outputs.npy", outputs)


def batches(region: Region, num_queries: int, num_draws: int) -> Iterator[tuple[range, Region]]:
    """Queries that are one batch, and the box they are asked about: few draws at a time are slow, many fill the memory.

    >>> list(batches((), num_queries=5, num_draws=64))
    [(range(0, 2), ()), (range(2, 4), ()), (range(4, 5), ())]
    """
    size = max(1, TOGETHER // num_draws)
    for rows, box in boxes(region, num_queries):
        for first in range(rows.start, rows.stop, size):
            yield range(first, min(first + size, rows.stop)), box


def draws_of(spec: Measure, t: int | None, query: int, num_timesteps: int, shape: tuple[int, ...]) -> Draws:
    """A query's own draws of a step, or of the destination: noise that queries shared would look like an effect of the subset on
    all of them. No attribution uses these.
    """
    rest = (spec.num_draws, shape, spec.seed, f"measure {query}", spec.antithetic)
    return window_draws((0, num_timesteps), *rest) if t is None else step_draws(t, *rest)
