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
from journey.diffusion.schedule import Schedule
from journey.tracking import track


def make(spec: Measure, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if an output is not finite."""
    device = network.device_of(workspace.compute)
    model = spec.checkpoint.model
    predict = network.bind(model.load(get(spec.checkpoint, workspace).path, device), spec.checkpoint.precision)
    noise_schedule = model.schedule(device)
    targets = [*estimates(spec.journeys, spec.steps, workspace), destinations(spec.journeys, workspace)]
    draws = _draws(spec, noise_schedule.num_timesteps, targets[0].shape)

    outputs = np.empty((2, len(targets), spec.journeys.num_queries))
    with track(spec, partial, workspace) as log:
        for i, (queries, all_draws) in enumerate(zip(targets, draws, strict=True)):
            for half, some in enumerate(all_draws.halves(spec.antithetic)):
                outputs[half, i] = _outputs(predict, noise_schedule, queries.to(device), some.to(device))
            log(i, output=float(outputs[:, i].mean()))
    if not np.isfinite(outputs).all():
        raise FloatingPointError(f"outputs of {spec.label} are not finite")
    np.save(partial / "outputs.npy", outputs)


@torch.no_grad()
def _outputs(predict: network.Predict, noise_schedule: Schedule, queries: Examples, draws: Draws) -> np.ndarray:
    each = [queries[i] for i in range(len(queries))]
    return torch.stack([output(predict, noise_schedule, q.x0, draws, q.context) for q in each]).cpu().numpy()


def _draws(spec: Measure, num_timesteps: int, shape: tuple[int, ...]) -> list[Draws]:
    """The draws of every step, then those of the destination; none that an attribution uses."""
    rest = (spec.num_draws, shape, spec.seed, "measure", spec.antithetic)
    return [step_draws(t, *rest) for t in spec.steps] + [window_draws((0, num_timesteps), *rest)]
