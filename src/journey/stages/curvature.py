"""The Gauss–Newton matrix at a model. Payload: curvature.safetensors."""

import functools
from collections.abc import Iterator
from pathlib import Path

import torch

from journey.artifacts.specs import Curvature
from journey.artifacts.workspace import Workspace, get
from journey.attribution import curvature
from journey.attribution.output import window_draws
from journey.diffusion import network
from journey.diffusion.examples import Examples
from journey.diffusion.journeys import train_examples
from journey.seeding import generator
from journey.tracking import track

FILE = "curvature.safetensors"


def make(spec: Curvature, partial: Path, workspace: Workspace) -> dict:
    """Raises: FloatingPointError if an eigenvalue is not finite."""
    device = network.device_of(workspace.compute)
    model = spec.checkpoint.model
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    noise_schedule = model.schedule(device)
    clean = train_examples(spec.checkpoint, workspace).to(device)

    predict = network.bind(denoiser, spec.precision)
    drawn = functools.partial(batches, clean, noise_schedule.num_timesteps, spec.seed, spec.batch_size)
    estimated = curvature.estimate(denoiser, predict, noise_schedule, drawn)
    fixed = estimated.eigenvalues.isinf()
    if not bool(estimated.eigenvalues[~fixed].isfinite().all()):
        raise FloatingPointError("an eigenvalue of the Gauss–Newton matrix is not finite")
    curvature.save(estimated, partial / FILE)
    with track(spec, partial, workspace) as log:
        log(0, mean_eigenvalue=float(estimated.eigenvalues[~fixed].mean()), held_fixed=int(fixed.sum()))
    return {"gradients": 2 * len(clean)}


def batches(clean: Examples, num_timesteps: int, seed: int, batch_size: int) -> Iterator[curvature.Batch]:
    """Every image once. The draws of a batch are stratified, one for each of its images."""
    device = clean.x0.device
    for first in range(0, len(clean), batch_size):
        some = clean[first : first + batch_size]
        draws = window_draws((0, num_timesteps), len(some), clean.shape, seed, f"curvature {first}").to(device)
        off = torch.randn(draws.eps.shape, generator=generator(seed, "pseudo-targets", first)).to(device)
        x0 = some.x0
        if some.deviation is not None:
            x0 = x0 + some.deviation * torch.randn(x0.shape, generator=generator(seed, "curvature latents", first)).to(device)
        yield x0, draws, off, None if some.context is None else some.context[:, 0]
