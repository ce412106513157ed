"""The gradient of a number of every final image, back through the sampler.

    x_{t−1} = F(x_t, t; θ)   a DDIM step (Song et al. 2021, Equation 12 with σ = 0)
    λ_{t−1} = ∂s/∂x_{t−1},   λ_t = λ_{t−1}ᵀ ∂F/∂x_t,   g_t = λ_{t−1}ᵀ ∂F/∂θ

Every step is computed again for its backward pass, so that of all steps only x_t is in memory. The
trajectory is the query's own. Under the model that sampled it, Σ g_t is the gradient of s. Under
another model, it is that of the same sampler with a constant correction after each step, which
keeps it on the trajectory.

B  queries of a block;  d  parameters;  p  dimension of the features;  S  steps

Payload: features.npy, float32 [S, Q, p] or, preconditioned by EK-FAC, [S, Q, damping, p]: the sum
of g_t over the window of each step, projected.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from journey.attribution.adjoint import AdjointFeatures
from journey.attribution.ekfac import EKFAC_FILE, load_ekfac
from journey.attribution.features import PRECONDITION_BATCH, precondition
from journey.attribution.gradients import VMAP_BATCHES, VMAP_PARAMETERS
from journey.attribution.image_targets import TargetFunction, target_function
from journey.attribution.projections import make_projection
from journey.diffusion.network import (
    Denoiser,
    Guidance,
    bind,
    load_denoiser,
    num_trained,
    trained_parameters,
)
from journey.diffusion.sampling import CLEAN, QueryNoise, continue_trajectories
from journey.diffusion.schedule import ddim_step
from journey.diffusion.trajectories import query_conditions, trajectory_at
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.resume import Clock, load_state
from journey.engine.workspace import Precision, Workspace, get
from journey.pipeline.schedule import Schedule, denoise
from journey.pipeline.settings import Projection, Sampler

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class SamplerStep:
    """F, one deterministic step of a network, as a function of its parameters."""

    network: nn.Module
    schedule: Schedule
    precision: Precision
    guidance: Guidance | None = None

    def __call__(
        self, parameters: Parameters, x_t: Tensor, t: int, t_next: int, condition: Tensor | None
    ) -> Tensor:
        """Return x at t_next of one example x_t […]."""
        predict = bind(self.network, self.precision, parameters, self.guidance)
        t_batch = torch.full((1,), t, device=x_t.device)
        inputs = None if condition is None else condition[None]
        predicted = predict(x_t[None], t_batch, inputs)
        x0_hat, eps = denoise(self.schedule, x_t[None], t_batch, predicted)
        return ddim_step(self.schedule, x0_hat, eps, t_next)[0]

    def pull_back(
        self, x_t: Tensor, adjoint: Tensor, t: int, t_next: int, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return g_t [B, d] and λ_t [B, …] from x_t and λ at t_next [B, …]."""
        parameters = {n: p.detach() for n, p in trained_parameters(self.network).items()}

        def one(x: Tensor, adjoint: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
            def step(parameters: Parameters, x: Tensor) -> Tensor:
                return self(parameters, x, t, t_next, condition)

            pull = torch.func.vjp(step, parameters, x)[1]
            with torch.no_grad():  # no second derivatives: see `vmap_gradients`
                gradients, adjoint = pull(adjoint)
            return torch.cat([g.flatten() for g in gradients.values()]), adjoint

        if len(x_t) == 1:
            only = None if condition is None else condition[0]
            gradient, adjoint = one(x_t[0], adjoint[0], only)
            return gradient[None], adjoint[None]
        axes = (0, 0, None if condition is None else 0)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
            return torch.func.vmap(one, axes)(x_t, adjoint, condition)


def window_gradients(
    step: SamplerStep,
    own: Denoiser,
    target: Callable[[Tensor], Tensor],
    timesteps: list[int],
    steps: tuple[int, ...],
    x_t: Tensor,
    condition: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of a step and Σ g_t over its window [B, d], the last step first.

    Args:
        step: A step of the sampler under the model that is differentiated.
        own: The model that the trajectories are sampled by.
        target: The numbers [B] of final images [B, …].
        timesteps: Those that the sampler visits, from the first step on.
        steps: The steps at which windows begin, in falling order.
        x_t: Examples at the first step. [B, …]
        condition: Their conditions.
    """
    # 1. The trajectory.
    visited, path = [*timesteps, CLEAN], []
    no_noise = QueryNoise([], tuple(x_t.shape[1:]))
    sampled = continue_trajectories(own, Sampler.ddim, visited, x_t, no_noise, condition)
    for taken in sampled:
        path.append(taken.x_t)
        final = taken.x_next

    # 2. λ of the final image.
    final = final.detach().requires_grad_()
    (adjoint,) = torch.autograd.grad(target(final).sum(), final)

    # 3. Back from step to step.
    total: Tensor | None = None
    for i, (t, t_next) in reversed(list(enumerate(pairwise(visited)))):
        gradient, adjoint = step.pull_back(path[i], adjoint, t, t_next, condition)
        total = gradient if total is None else total + gradient
        if t in steps:
            yield steps.index(t), total
            total = None


def make_adjoint_features(spec: AdjointFeatures, partial: Path, workspace: Workspace) -> dict:
    """Compute the features of all queries, some at a time.

    Returns:
        The number of gradients.

    Raises:
        FloatingPointError: A feature is not finite.
    """
    # Load the two models, the target and the projection.
    trajectories, settings = spec.trajectories, spec.settings
    denoiser = load_denoiser(spec.checkpoint, workspace, trajectories.guidance)
    own = load_denoiser(trajectories.checkpoint, workspace, trajectories.guidance)
    network, device = denoiser.network, denoiser.device
    step = SamplerStep(network, denoiser.schedule, settings.precision, denoiser.guidance)
    function = target_function(spec.image_target, trajectories, workspace, device)
    d = num_trained(network)
    p = d if settings.projection is Projection.none else settings.projection_dim
    key = f"checkpoint {spec.checkpoint.training_seed}"
    project = make_projection(settings.projection, d, p, spec.seed, key, device)
    if spec.curvature is not None:
        ekfac = load_ekfac(get(spec.curvature, workspace).path / EKFAC_FILE, network, device)
        project = precondition(project, ekfac, spec.damping, PRECONDITION_BATCH)
    x_t = trajectory_at("x_t", trajectories, trajectories.steps[:1], workspace)[0].to(device)
    conditions = query_conditions(trajectories, workspace)

    # Begin, or continue after the queries that an interrupted run finished.
    path, num_queries = partial / "features.npy", len(x_t)
    if (state := load_state(partial)) is not None:
        done, features = state["queries"], open_memmap(path, "r+")
    else:
        shape = (len(trajectories.steps), num_queries, *[len(spec.damping)] * bool(spec.damping), p)
        done, features = 0, new_array(path, shape)

    small = d <= VMAP_PARAMETERS and settings.precision is not Precision.bf16
    size = VMAP_BATCHES[0] if small else 1
    clock = Clock(partial, workspace.compute.checkpoint_seconds)
    with track(spec, partial, workspace) as log:
        for first in range(done, num_queries, size):
            rows = slice(first, min(first + size, num_queries))
            condition = None if conditions is None else conditions[rows, 0].to(device)
            target = _target_of(function, torch.arange(rows.start, rows.stop, device=device))
            windows = (spec.timesteps, trajectories.steps, x_t[rows], condition)
            for index, gradients in window_gradients(step, own, target, *windows):
                features[index, rows] = project(gradients).cpu().numpy()
            if not np.isfinite(features[:, rows]).all():
                raise FloatingPointError(f"gradients of queries {first}… are not finite")
            log(rows.stop, norm=float(np.linalg.norm(features[:, rows], axis=-1).mean()))
            if clock.due():
                features.flush()
                clock.save({"queries": rows.stop}, filled={path.name: rows.stop}, axis=1)
    features.flush()
    return {"gradients": num_queries * len(spec.timesteps)}


def _target_of(function: TargetFunction, queries: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the numbers of final images of some queries."""
    return lambda x: function(x, queries)
