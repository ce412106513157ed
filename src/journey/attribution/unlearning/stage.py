"""Attribution by unlearning (Wang et al. 2024, "AbU"): forget a query, and see whose loss rises.

    θ' = θ + η (G + λI)⁻¹ g,   τ_i = L(x_i; θ') − L(x_i; θ)

g is the gradient of the query's output; η is such that, to first order, the step raises the output by a given share of it.
Differs from the paper: the Fisher matrix is the Gauss–Newton matrix by EK-FAC instead of a diagonal, and η follows from
the rise asked for instead of being tuned.

B  examples;  K  draws;  d  parameters


Forget each query, and ask for the loss of every training image. Payload: rises.npy, float32 [rise, step × query, train]."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from journey.attribution.ekfac import EKFAC, load_ekfac
from journey.attribution.ekfac import EKFAC_FILE as CURVATURE
from journey.attribution.gradients import Objective, loop_gradients
from journey.attribution.outputs import (
    NoiseSamples,
    augmented,
    sample_noise,
    sample_noise_at,
    with_augmentations,
)
from journey.attribution.unlearning import Unlearn
from journey.diffusion import network
from journey.diffusion.training import denoising_loss
from journey.diffusion.trajectories import final_samples, query_estimates, train_examples
from journey.engine import resume
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.workspace import Workspace, get
from journey.pipeline.examples import Examples
from journey.pipeline.settings import Augmentation


def output_and_gradient(
    objective: Objective, query: Examples, draws: NoiseSamples
) -> tuple[float, Tensor]:
    """f and g of a single query. g: [d]"""
    gradient = loop_gradients(objective, query, draws, len(draws))[0]
    return float(mean_losses(objective, None, query, draws, len(draws))[0]), gradient


def ascent_direction(curvature: EKFAC, gradient: Tensor, damping: float) -> Tensor:
    """(G + λI)⁻¹ g in the original coordinates, with λ relative to the mean eigenvalue. [d] → [d]"""
    rotated = curvature.rotate(gradient[None]) / curvature.damped(damping)
    return curvature.rotate(rotated, back=True)[0]


def step_size(gradient: Tensor, direction: Tensor, output: float, rise: float) -> float:
    """η with η gᵀ(G + λI)⁻¹g = rise × output.

    Raises: FloatingPointError if the direction does not raise the output.
    """
    slope = float(gradient @ direction)
    if not slope > 0:
        raise FloatingPointError(
            f"the ascent direction has slope {slope}: the query's gradient is zero or not finite"
        )
    return rise * output / slope


@torch.no_grad()
def mean_losses(
    objective: Objective, change: Tensor | None, examples: Examples, draws: NoiseSamples, rows: int
) -> np.ndarray:
    """Loss of every example, averaged over draws, of the network with its parameters changed. [N]

    `rows` examples × draws are computed at once.
    """
    parameters = None if change is None else _changed(objective, change)
    predict = objective.predict(parameters)
    batch, means = max(1, rows // len(draws)), []
    for first in range(0, len(examples), batch):
        some = examples[first : first + batch]
        x0, contexts = zip(*(augmented(some[i], draws) for i in range(len(some))), strict=True)
        context = None if some.context is None else torch.cat(contexts)
        t, eps = draws.t.repeat(len(some)), draws.eps.repeat(len(some), *[1] * len(some.shape))
        loss = denoising_loss(predict, objective.schedule, torch.cat(x0), t, eps, context)
        means.append(loss.view(len(some), len(draws)).mean(1))
    return torch.cat(means).cpu().numpy()


def _changed(objective: Objective, change: Tensor) -> dict[str, Tensor]:
    named = dict(objective.network.named_parameters())
    pieces = change.split([p.numel() for p in named.values()])
    return {
        name: p.detach() + piece.view_as(p)
        for (name, p), piece in zip(named.items(), pieces, strict=True)
    }


ROWS = 128  # examples × draws in one forward pass: few enough for the cache of a CPU


def make_unlearning(spec: Unlearn, partial: Path, workspace: Workspace) -> dict:
    """Raises: FloatingPointError if a loss is not finite."""
    # Load.
    device = network.get_device(workspace.compute)
    model = spec.checkpoint.model
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    noise_schedule = model.schedule(device)
    objective = Objective(denoiser, noise_schedule, spec.precision)
    asked = replace(objective, guidance=network.get_guidance(model, spec.guidance, device))
    estimated = load_ekfac(get(spec.curvature, workspace).path / CURVATURE, denoiser, device)
    clean = train_examples(spec.checkpoint, workspace).to(device)
    rest = (spec.num_samples, clean.shape, spec.seed)
    all_t = (0, noise_schedule.num_timesteps)
    everywhere = sample_noise(all_t, *rest, "attribute")
    everywhere = with_augmentations(
        everywhere, clean, Augmentation.none, Augmentation.none, False, spec.seed, "attribute"
    ).to(device)
    of_destinations = sample_noise(all_t, *rest, "attribute queries")

    # Begin, or continue after the last query an interrupted run finished.
    if (kept := resume.load_state(partial)) is not None:
        done, rises = kept["queries"], open_memmap(partial / "rises.npy", "r+")
    else:
        done, rises = (
            0,
            new_array(partial / "rises.npy", (len(spec.rise), spec.num_queries, len(clean))),
        )

    # Compute, a query at a time.
    before = mean_losses(objective, None, clean, everywhere, ROWS)
    saved_at = time.monotonic()
    with track(spec, partial, workspace, resume_step=done) as log:
        for i, (query, draws) in enumerate(_queries(spec, of_destinations, workspace)):
            if i < done:
                continue
            output, gradient = output_and_gradient(asked, query.to(device), draws.to(device))
            towards = ascent_direction(estimated, gradient, spec.damping)
            for j, rise in enumerate(spec.rise):
                step = step_size(gradient, towards, output, rise) * towards
                rises[j, i] = mean_losses(objective, step, clean, everywhere, ROWS) - before
            if not np.isfinite(rises[:, i]).all():
                raise FloatingPointError(
                    f"after forgetting query {i}, a loss is not finite; a smaller rise may help"
                )
            log(i + 1, rise=float(rises[-1, i].mean()))
            if resume.is_due(saved_at, workspace.compute.checkpoint_seconds):
                rises.flush()
                resume.save_state(partial, {"queries": i + 1})
                saved_at = time.monotonic()
    rises.flush()
    return {"gradients": spec.num_queries * spec.num_samples}


def _queries(
    spec: Unlearn, of_destinations: NoiseSamples, workspace: Workspace
) -> Iterator[tuple[Examples, NoiseSamples]]:
    """Every x̂0_t with draws at its t, or every destination with draws over all t."""
    if spec.steps is None:
        queries = final_samples(spec.trajectories, workspace)
        yield from ((queries[i : i + 1], of_destinations) for i in range(len(queries)))
        return
    for t, queries in zip(
        spec.steps, query_estimates(spec.trajectories, spec.steps, workspace), strict=True
    ):
        draws = sample_noise_at(
            t, spec.num_samples, queries.shape, spec.seed, "attribute queries", False
        )
        yield from ((queries[i : i + 1], draws) for i in range(len(queries)))
