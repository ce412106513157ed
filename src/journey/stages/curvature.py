"""The Gauss–Newton matrix at a model. Payload: curvature.safetensors."""

from collections.abc import Iterator
from pathlib import Path

import torch

from journey import data
from journey.attribution import curvature
from journey.attribution.output import window_draws
from journey.diffusion import network, schedule
from journey.diffusion.examples import encode
from journey.seeding import generator
from journey.specs import Curvature
from journey.stages import Workspace, get
from journey.tracking import track

FILE = "curvature.safetensors"


def run(spec: Curvature, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if an eigenvalue is not finite."""
    device = network.device_of(workspace.compute)
    denoiser = network.load(spec.model.model, get(spec.model, workspace).path, device)
    noise_schedule = schedule.schedule_of(spec.model.model, device)
    clean = encode(data.load(spec.model.dataset)[0], spec.model.model).to(device)

    def batches() -> Iterator[curvature.Batch]:
        """An image each, with stratified draws of its own: all images together see every timestep."""
        everywhere = (0, noise_schedule.num_timesteps)
        for i in range(len(clean)):
            example = clean[i]
            draws = window_draws(everywhere, spec.num_draws, clean.shape, spec.seed, f"curvature {i}").to(device)
            off = torch.randn(draws.eps.shape, generator=generator(spec.seed, "pseudo-targets", i)).to(device)
            context = None if example.context is None else example.context.expand(len(draws), *example.context.shape)
            yield example.x0.expand(len(draws), *clean.shape), draws, off, context

    predict = network.bind(denoiser, spec.precision)
    estimated = curvature.estimate(denoiser, predict, noise_schedule, batches)
    fixed = estimated.eigenvalues.isinf()
    if not bool(estimated.eigenvalues[~fixed].isfinite().all()):
        raise FloatingPointError("an eigenvalue of the Gauss–Newton matrix is not finite")
    curvature.save(estimated, partial / FILE)
    with track(spec, partial, workspace) as log:
        log(0, mean_eigenvalue=float(estimated.eigenvalues[~fixed].mean()), held_fixed=int(fixed.sum()))
