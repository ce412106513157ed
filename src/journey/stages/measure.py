"""Ask one model about every query: the outputs that attributions are judged by.

Payload: outputs.npy, float64 [2 halves of the draws, steps + destination, Q].
"""

from pathlib import Path

import numpy as np
import torch

from journey.attribution.output import Draws, output, step_draws, window_draws
from journey.diffusion import network, schedule
from journey.diffusion.examples import Examples
from journey.specs import Measure
from journey.stages import Workspace, get
from journey.stages.sample import destinations, estimates
from journey.tracking import track


def run(spec: Measure, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if an output is not finite."""
    device = network.device_of(workspace.compute)
    model = spec.model.model
    predict = network.bind(network.load(model, get(spec.model, workspace).path, device), spec.model.precision)
    noise_schedule = schedule.schedule_of(model, device)
    journeys = get(spec.journeys, workspace)
    targets = [*estimates(journeys, spec.steps), destinations(journeys)]
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
def _outputs(predict: network.Predict, noise_schedule: schedule.Schedule, queries: Examples, draws: Draws) -> np.ndarray:
    each = [queries[i] for i in range(len(queries))]
    return torch.stack([output(predict, noise_schedule, q.x0, draws, q.context) for q in each]).cpu().numpy()


def _draws(spec: Measure, num_timesteps: int, shape: tuple[int, ...]) -> list[Draws]:
    """The draws of every step, then those of the destination; none that an attribution uses."""
    rest = (spec.num_draws, shape, spec.seed, "measure", spec.antithetic)
    return [step_draws(t, *rest) for t in spec.steps] + [window_draws((0, num_timesteps), *rest)]
