"""Generate the queries and keep their journeys.

Payload: timesteps.npy [S]; x_t.npy, x0_hat.npy and noise.npy, float32 [S, Q, …], at every sampled step; final.npy [Q, …].
"""

from pathlib import Path

import numpy as np
import torch

from journey import data
from journey.config import visited_timesteps
from journey.diffusion import network, sampling, schedule
from journey.diffusion.examples import Examples, encode
from journey.specs import Sample
from journey.stages import Workspace, get
from journey.store import Artifact, new_array
from journey.tracking import track


def run(spec: Sample, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if a journey stops being finite."""
    device = network.device_of(workspace.compute)
    model = spec.model.model
    denoiser = network.load(model, get(spec.model, workspace).path, device)
    shape = encode(data.load(spec.model.dataset)[0], model).shape
    noise_schedule = schedule.schedule_of(model, device)
    timesteps = visited_timesteps(noise_schedule.num_timesteps, spec.num_inference_steps)

    full_shape = (len(timesteps), spec.num_queries, *shape)
    names = ("x_t", "x0_hat", "noise")
    x_t, x0_hat, noise = (new_array(partial / f"{n}.npy", full_shape) for n in names)
    predict = network.bind(denoiser, spec.model.precision)
    queries = sampling.QueryNoise(spec.num_queries, shape, spec.seed)
    with track(spec, partial, workspace) as log:
        for i, step in enumerate(sampling.sample(predict, noise_schedule, spec.sampler, timesteps, queries, device)):
            x_t[i], x0_hat[i], noise[i] = step.x_t.cpu(), step.x0_hat.cpu(), step.z.cpu()
            if not np.isfinite(x0_hat[i]).all():
                raise FloatingPointError(f"sampling at t={step.t}: x̂0 is not finite")
            log(i, t=step.t, x0_hat_std=float(x0_hat[i].std()))
    for array in (x_t, x0_hat, noise):
        array.flush()
    np.save(partial / "final.npy", step.x_next.cpu().numpy())
    np.save(partial / "timesteps.npy", np.array(timesteps))


def estimates(journeys: Artifact, steps: tuple[int, ...]) -> list[Examples]:
    """x̂0_t of every query, at each of some sampled steps."""
    position = {int(t): i for i, t in enumerate(journeys.array("timesteps.npy"))}
    x0_hat = journeys.array("x0_hat.npy")
    return [Examples(torch.from_numpy(np.array(x0_hat[position[t]]))) for t in steps]


def destinations(journeys: Artifact) -> Examples:
    """The final example of every query."""
    return Examples(torch.from_numpy(np.array(journeys.array("final.npy"))))
