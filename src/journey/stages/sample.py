"""Generate the queries and keep their journeys.

Payload: timesteps.npy [S]; x_t.npy, x0_hat.npy and noise.npy, float32 [S, Q, …], at every sampled step; final.npy [Q, …].
"""

from pathlib import Path

import numpy as np

from journey import data
from journey.config import Sampling
from journey.diffusion import examples, network, sampling, schedule
from journey.specs import Sample
from journey.stages import Workspace, get
from journey.store import new_array


def run(spec: Sample, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if a journey stops being finite."""
    device = network.device_of(workspace.compute)
    model = spec.model.model
    denoiser = network.load(model, get(spec.model, workspace).path, device)
    shape = examples.encode(data.load(spec.model.dataset)[0], model).shape
    noise_schedule = schedule.schedule_of(model)
    timesteps = Sampling.timesteps(spec, noise_schedule.num_timesteps)

    full_shape = (len(timesteps), spec.num_queries, *shape)
    names = ("x_t", "x0_hat", "noise")
    x_t, x0_hat, noise = (new_array(partial / f"{n}.npy", full_shape) for n in names)
    predict = network.bind(denoiser, spec.model.precision)
    queries = sampling.QueryNoise(spec.num_queries, shape, spec.seed)
    for i, step in enumerate(sampling.sample(predict, noise_schedule, spec.sampler, timesteps, queries, device)):
        x_t[i], x0_hat[i], noise[i] = step.x_t.cpu(), step.x0_hat.cpu(), step.z.cpu()
        if not np.isfinite(x0_hat[i]).all():
            raise FloatingPointError(f"sampling at t={step.t}: x̂0 is not finite")
    for array in (x_t, x0_hat, noise):
        array.flush()
    np.save(partial / "final.npy", step.x_next.cpu().numpy())
    np.save(partial / "timesteps.npy", np.array(timesteps))
