"""Attribution by unlearning (Wang et al. 2024): unlearn a query, and see whose loss increases.

    θ' = θ + η (G + λI)⁻¹ g,   τ_i = L(x_i; θ') − L(x_i; θ)

g is the gradient of the query's output f. η raises f by a given fraction, to first order.
Differs from the paper: the Fisher matrix is G, the Gauss–Newton matrix by EK-FAC, not a diagonal.
Differs from the paper: η follows from the rise of f instead of being tuned.

N  examples;  d  parameters
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from journey.attribution.ekfac import EKFAC_FILE, load_ekfac
from journey.attribution.gradients import Objective, loop_gradients
from journey.attribution.outputs import (
    NoiseSamples,
    sample_losses,
    sample_noise,
    sample_noise_at,
    with_augmentations,
)
from journey.attribution.unlearning import LossIncreases
from journey.diffusion.network import load_denoiser, trained_parameters
from journey.diffusion.trajectories import query_examples, train_examples
from journey.engine import resume
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.workspace import Workspace, get
from journey.pipeline.examples import Examples
from journey.pipeline.settings import Augmentation

LOSSES_AT_ONCE = 128  # examples × noise samples per forward pass: few enough for a CPU's cache


def step_size(gradient: Tensor, direction: Tensor, output: float, rise: float) -> float:
    """Return η with η gᵀ (G + λI)⁻¹ g = rise × f, from g, (G + λI)⁻¹ g, f and the rise.

    Raises:
        FloatingPointError: The direction does not raise the output.
    """
    slope = float(gradient @ direction)
    if not slope > 0:
        raise FloatingPointError(
            f"the ascent direction has slope {slope}: the query's gradient is zero or not finite"
        )
    return rise * output / slope


def mean_losses(
    objective: Objective,
    change: Tensor | None,
    examples: Examples,
    noise: NoiseSamples,
    batch_size: int,
) -> np.ndarray:
    """Return the loss of every example, averaged over the same noise samples [N].

    The parameters are changed by `change` [d]. A forward pass has at most `batch_size` examples ×
    noise samples.
    """
    parameters = None
    if change is not None:
        named, parameters = trained_parameters(objective.network), {}
        pieces = change.split([p.numel() for p in named.values()])
        for (name, p), piece in zip(named.items(), pieces, strict=True):
            parameters[name] = p.detach() + piece.view_as(p)
    predict, losses = objective.predict(parameters), []
    num_examples = max(1, batch_size // len(noise))
    for first in range(0, len(examples), num_examples):
        block = examples[first : first + num_examples]
        by_sample = sample_losses(predict, objective.schedule, block, [noise] * len(block))
        losses.append(by_sample.mean(1))
    return torch.cat(losses).cpu().numpy()


def make_loss_increases(spec: LossIncreases, partial: Path, workspace: Workspace) -> dict:
    """Unlearn each query, and compute the loss of every training image.

    Payload: increases.npy, float32 [rise, step × query, train].

    Returns:
        The number of gradients.

    Raises:
        FloatingPointError: A loss is not finite.
    """
    # Load the model, its Gauss–Newton matrix, and the training images with their noise samples.
    denoiser = load_denoiser(spec.checkpoint, workspace, spec.guidance)
    device, num_timesteps = denoiser.device, denoiser.schedule.num_timesteps
    train_objective = Objective(denoiser.network, denoiser.schedule, spec.precision)
    query_objective = replace(train_objective, guidance=denoiser.guidance)
    ekfac_path = get(spec.curvature, workspace).path / EKFAC_FILE
    ekfac = load_ekfac(ekfac_path, denoiser.network, device)
    train = train_examples(spec.checkpoint, workspace).to(device)
    shared = (spec.num_samples, train.shape, spec.seed)
    noise = sample_noise((0, num_timesteps), *shared, "attribute")
    plain = Augmentation.none
    noise = with_augmentations(noise, train, plain, plain, False, spec.seed, "attribute")
    train_noise = noise.to(device)

    # Pair each query with the noise samples of its step.
    queries = []
    for t, examples in query_examples(spec.trajectories, spec.steps, workspace):
        if t is None:
            noise = sample_noise((0, num_timesteps), *shared, "attribute queries")
        else:
            noise = sample_noise_at(t, *shared, "attribute queries", antithetic=False)
        for i in range(len(examples)):
            queries.append((examples[i : i + 1], noise))

    # Begin, or continue after the last query that an interrupted run finished.
    path = partial / "increases.npy"
    if (saved := resume.load_state(partial)) is not None:
        done, increases = saved["queries"], open_memmap(path, "r+")
    else:
        done, increases = 0, new_array(path, (len(spec.rise), len(queries), len(train)))

    # Unlearn one query at a time.
    before = mean_losses(train_objective, None, train, train_noise, LOSSES_AT_ONCE)
    clock = resume.Clock(partial, workspace.compute.checkpoint_seconds)
    with track(spec, partial, workspace) as log:
        for row in range(done, len(queries)):
            query, noise = queries[row]
            output_of = (query.to(device), noise.to(device), len(noise))
            output = float(mean_losses(query_objective, None, *output_of)[0])
            g = loop_gradients(query_objective, *output_of)
            direction = ekfac.rotate(ekfac.rotate(g) / ekfac.damped(spec.damping), back=True)[0]
            for i, rise in enumerate(spec.rise):
                change = step_size(g[0], direction, output, rise) * direction
                after = mean_losses(train_objective, change, train, train_noise, LOSSES_AT_ONCE)
                increases[i, row] = after - before
            if not np.isfinite(increases[:, row]).all():
                raise FloatingPointError(
                    f"a loss is not finite after unlearning query {row}; use a smaller rise"
                )
            log(row + 1, increase=float(increases[-1, row].mean()))
            if clock.due():
                increases.flush()
                clock.save({"queries": row + 1}, filled={path.name: row + 1}, axis=1)
    increases.flush()
    return {"gradients": len(queries) * spec.num_samples}
