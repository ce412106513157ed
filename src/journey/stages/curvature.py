"""The Gauss–Newton matrix at a model. Payload: curvature.safetensors."""

import functools
from collections.abc import Iterator
from pathlib import Path

import torch

from journey import data
from journey.attribution import curvature
from journey.attribution.output import window_draws
from journey.diffusion import network, schedule
from journey.diffusion.examples import Examples, encode
from journey.seeding import generator
from journey.specs import Curvature
from journey.stages import Workspace, get
from journey.tracking import track

FILE = "curvature.safetensors"
BATCH = 16  # images, each with a draw of its own


def run(spec: Curvature, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if an eigenvalue is not finite."""
    device = network.device_of(workspace.compute)
    denoiser = network.load(spec.model.model, get(spec.model, workspace).path, device)
    noise_schedule = schedule.schedule_of(spec.model.model, device)
    clean = encode(data.load(spec.model.dataset)[0], spec.model.model).to(device)

    predict = network.bind(denoiser, spec.precision)
    drawn = functools.partial(batches, clean, noise_schedule.num_timesteps, spec.seed)
    estimated = curvature.estimate(denoiser, predict, noise_schedule, drawn)
    fixed = estimated.eigenvalues.isinf()
    if not bool(estimated.eigenvalues[~fixed].isfinite().all()):
        raise FloatingPointError("an eigenvalue of the Gauss–Newton matrix is not finite")
    curvature.save(estimated, partial / FILE)
    with track(spec, partial, workspace) as log:
        log(0, mean_eigenvalue=float(estimated.eigenvalues[~fixed].mean()), held_fixed=int(fixed.sum()))


def batches(clean: Examples, num_timesteps: int, seed: int) -> Iterator[curvature.Batch]:
    """Every image once. The draws of a batch are stratified, one for each of its images."""
    device = clean.x0.device
    for first in range(0, len(clean), BATCH):
        some = clean[first : first + BATCH]
        draws = window_draws((0, num_timesteps), len(some), clean.shape, seed, f"curvature {first}").to(device)
        off = torch.randn(draws.eps.shape, generator=generator(seed, "pseudo-targets", first)).to(device)
        yield some.x0, draws, off, some.context
