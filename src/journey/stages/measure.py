"""Ask one model about every query: the outputs that attributions are judged by.

Payload: outputs.npy, float64 [2 halves of the draws, steps + destination, Q].
"""

from pathlib import Path

import numpy as np
import torch

from journey.attribution.output import Draws, all_timestep_draws, output, step_draws
from journey.diffusion import network, schedule
from journey.specs import Measure
from journey.stages import Workspace, get
from journey.store import Artifact


def run(spec: Measure, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if an output is not finite."""
    device = network.device_of(workspace.compute)
    model = spec.model.model
    predict = network.bind(network.load(model, get(spec.model, workspace).path, device), spec.model.precision)
    noise_schedule = schedule.schedule_of(model)
    queries = get(spec.journeys, workspace)
    estimates = estimates_at(queries, spec.steps)  # [steps, Q, …]
    examples = torch.from_numpy(np.concatenate([estimates, queries.array("final.npy")[None]])).to(device)

    outputs = np.empty((2, *examples.shape[:2]))
    for target, draws in enumerate(_draws(spec, noise_schedule.num_timesteps, tuple(examples.shape[2:]))):
        for half, some in enumerate(draws.halves(spec.antithetic)):
            outputs[half, target] = _outputs(predict, noise_schedule, examples[target], some.to(device))
    if not np.isfinite(outputs).all():
        raise FloatingPointError(f"outputs of {spec.label} are not finite")
    np.save(partial / "outputs.npy", outputs)


@torch.no_grad()
def _outputs(predict: network.Predict, noise_schedule: schedule.Schedule, queries: torch.Tensor, draws: Draws) -> np.ndarray:
    return torch.stack([output(predict, noise_schedule, x0, draws) for x0 in queries]).cpu().numpy()


def _draws(spec: Measure, num_timesteps: int, shape: tuple[int, ...]) -> list[Draws]:
    """The draws of every step, then those of the destination; none that an attribution uses."""
    rest = (spec.num_draws, shape, spec.seed, "measure", spec.antithetic)
    return [step_draws(t, *rest) for t in spec.steps] + [all_timestep_draws(num_timesteps, *rest)]


def estimates_at(journeys: Artifact, steps: tuple[int, ...]) -> np.ndarray:
    """x̂0_t of every query at some of the sampled steps. [steps, Q, …]"""
    position = {int(t): i for i, t in enumerate(journeys.array("timesteps.npy"))}
    return journeys.array("x0_hat.npy")[[position[t] for t in steps]]
