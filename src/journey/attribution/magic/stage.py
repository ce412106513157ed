"""The gradient of an output after training with respect to the weight of every training image, back through all of the training.

MAGIC (Ilyas and Engstrom 2025), by the metagradients of Engstrom et al. 2025. A step of training takes x = (θ, m, v), parameters
and AdamW's moments, to the next, and on the way sees image i with the weight w_i, which is 1:

    x_{s+1} = h_s(x_s, w),   where the loss of a batch is  Σ_b w_b ℓ_b / Σ_b w_b

    λ_s = λ_{s+1} ∂h_s/∂x,   ∂f/∂w = Σ_s λ_{s+1} ∂h_s/∂w,   from  λ_S = (∂f/∂θ, 0, 0)

With `Batching.shared`, to leave an image out is to give it a weight of 0, which changes f by −∂f/∂w_i, to first order. Where
batches are those of what is kept (`Batching.own`), all of them change, of which the gradient knows nothing.

s  training steps, S in all;  d  parameters;  K  outputs;  N  training images


Go back through the training of a model, from the output of every query. Payload: scores.npy, float32 [query, train]."""

import copy
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from journey.attribution.gradients import Objective, activation_bytes, loop_gradients
from journey.attribution.magic import Metagradient
from journey.attribution.outputs import NoiseSamples, sample_noise, sample_noise_at
from journey.diffusion import network
from journey.diffusion.network import bind
from journey.diffusion.train import start
from journey.diffusion.training import (
    TrainingInputs,
    TrainingState,
    learning_rate,
    step_losses,
    train,
)
from journey.diffusion.trajectories import final_samples, query_estimates
from journey.engine import resume
from journey.engine.checks import require
from journey.engine.metrics import track
from journey.engine.workspace import Workspace, get
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import Schedule
from journey.pipeline.settings import Training

BETAS, EPS = (
    (0.9, 0.999),
    1e-8,
)  # torch.optim.AdamW's, which `training.new_state` leaves as they are


CLIP_EPS = 1e-6  # that of torch.nn.utils.clip_grad_norm_


def milestones(course: TrainingInputs, state: TrainingState) -> list[TrainingState]:
    """Train to the end: the state before every ⌊√S⌋th step, and the last.

    Differs from the paper, whose tree holds some log S states and trains as many times: here it is 2√S and twice.
    """
    num_steps = course.training.num_steps
    stride, kept = math.isqrt(num_steps), []
    for until in (*range(stride, num_steps, stride), num_steps):
        kept.append(copy.deepcopy(state))
        _advance(course, state, until)
    return [*kept, state]


def states_before(
    course: TrainingInputs, kept: list[TrainingState], left: int
) -> Iterator[tuple[int, Tensor]]:
    """The first `left` steps, the last of them first, and the x_s [3, d] before each.

    kept: the milestones, between which it trains once more.
    """
    for first, last in reversed(list(itertools.pairwise(kept))):
        state, stretch = copy.deepcopy(first), []
        for step in range(first.step, min(last.step, left)):
            stretch.append((step, flatten_state(state)))
            _advance(course, state, step + 1)
        yield from reversed(stretch)


def _advance(course: TrainingInputs, state: TrainingState, until: int) -> None:
    for _ in train(state, course, until):
        pass


def flatten_state(state: TrainingState) -> Tensor:
    """x = (θ, m, v), moments being zero before the first step. [3, d]"""
    parameters = list(state.network.parameters())
    theta = flatten(parameters)
    if state.step == 0:
        return torch.stack([theta, torch.zeros_like(theta), torch.zeros_like(theta)])
    m, v = (
        flatten(state.optimizer.state[p][name] for p in parameters)
        for name in ("exp_avg", "exp_avg_sq")
    )
    return torch.stack([theta, m, v])


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Of one for each parameter, all numbers. [d]"""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@dataclass
class BackwardState:
    """Everything that changes on the way back. adjoints: λ after the `left` steps that are left, of every output, [K, 3, d];
    of_weights: what there is of ∂f/∂w, [K, N].
    """

    left: int
    adjoints: Tensor
    of_weights: Tensor


def start_backward(gradients: Tensor, num_steps: int, num_images: int) -> BackwardState:
    """From the end of the training. gradients: ∂f/∂θ, [K, d]"""
    adjoints = torch.stack([gradients, torch.zeros_like(gradients), torch.zeros_like(gradients)], 1)
    return BackwardState(num_steps, adjoints, gradients.new_zeros(len(gradients), num_images))


def backward_through_training(
    way: BackwardState, course: TrainingInputs, kept: list[TrainingState]
) -> Iterator[Tensor]:
    """To the beginning of the training; yields λ_s after every step. kept: the milestones.

    Raises: FloatingPointError naming the step if a gradient is not finite.
    """
    for step, before in states_before(course, kept, way.left):
        before.requires_grad_()
        weights = torch.ones_like(way.of_weights[0], requires_grad=True)
        after = weighted_step(course, kept[0].network, before, weights, step)
        for k in range(len(way.adjoints)):
            way.adjoints[k], further = torch.autograd.grad(
                after, (before, weights), way.adjoints[k], retain_graph=True
            )
            way.of_weights[k] += further
        if not bool(way.adjoints.isfinite().all() and way.of_weights.isfinite().all()):
            raise FloatingPointError(
                f"back through training step {step + 1}, a gradient is not finite"
            )
        way.left = step
        yield way.adjoints


def weighted_step(
    course: TrainingInputs, network: nn.Module, before: Tensor, weights: Tensor, step: int
) -> Tensor:
    """h_s(x_s, w): what `training.train` does, every weight being 1, as a function with derivatives. [3, d], [N] → [3, d]"""
    theta = before[0]
    named = dict(network.named_parameters())
    pieces = theta.split([p.numel() for p in named.values()])
    parameters = {
        name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)
    }
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivatives
        rows, losses = step_losses(bind(network, course.precision, parameters), course, step)
    w = weights[rows]
    (gradient,) = torch.autograd.grad((w * losses).sum() / w.sum(), theta, create_graph=True)
    return adamw(before, gradient, course.training, step)


def adamw(before: Tensor, gradient: Tensor, training: Training, step: int) -> Tensor:
    """A step of AdamW (Loshchilov and Hutter 2019, Algorithm 2), of a gradient whose norm is clipped. [3, d], [d] → [3, d]"""
    theta, m, v = before
    (beta1, beta2), rate = BETAS, learning_rate(training, step)
    g = gradient * (training.clip_norm / (gradient.norm() + CLIP_EPS)).clamp(max=1)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g.square()
    m_hat, v_hat = m / (1 - beta1 ** (step + 1)), v / (1 - beta2 ** (step + 1))
    root = v_hat.clamp(min=torch.finfo(v.dtype).tiny).sqrt()  # of 0, it has no derivative
    theta = (1 - rate * training.weight_decay) * theta - rate * m_hat / (root + EPS)
    return torch.stack([theta, m, v])


SAME = 1e-3  # of the norm of the weights: leaving one digit of a thousand out moves them by 8e-3, rounding by 1e-6


COPIES = (
    6  # of what a forward pass keeps, for second derivatives: 4.5 to 5.5 as measured on two U-Nets
)


def make_metagradients(spec: Metagradient, partial: Path, workspace: Workspace) -> dict:
    """Raises: ConfigError if the memory does not suffice; ValueError if training anew ends in another model than the checkpoint;
    FloatingPointError as `go_back` does.
    """
    # Train anew, and keep some states.
    state, course = start(spec.checkpoint, workspace)
    device = course.examples.x0.device
    denoiser = spec.checkpoint.model.load(get(spec.checkpoint, workspace).path, device)
    _refuse_cramped(spec, denoiser, course, workspace.compute.gradient_memory_gib)
    kept = milestones(course, state)
    _refuse_another(kept[-1].network, denoiser, spec)

    # Begin at the end, or continue where an interrupted run has come to.
    num_steps = spec.checkpoint.training.num_steps
    if (found := resume.load_state(partial)) is not None:
        tensors = safetensors.torch.load_file(partial / found["tensors"], device=str(device))
        way = BackwardState(found["left"], **tensors)
    else:
        gradients = _gradients(spec, denoiser, course.schedule, workspace)
        way = start_backward(gradients, num_steps, len(course.examples))

    # Go back.
    saved_at = time.monotonic()
    with track(spec, partial, workspace, resume_step=num_steps - way.left) as log:
        for adjoints in backward_through_training(way, course, kept):
            log(num_steps - way.left, norm=float(adjoints[:, 0].norm(dim=1).mean()))
            if resume.is_due(saved_at, workspace.compute.checkpoint_seconds):
                _keep(way, partial)
                saved_at = time.monotonic()
    np.save(partial / "scores.npy", -way.of_weights.cpu().numpy())
    return {"gradients": len(way.adjoints) * num_steps * spec.checkpoint.training.batch_size}


def _refuse_cramped(
    spec: Metagradient, denoiser: nn.Module, course: TrainingInputs, memory_gib: float
) -> None:
    """Raises: ConfigError if memory does not hold λ of all queries, the states that are kept, each of 12d bytes, and a step."""
    d, of = sum(p.numel() for p in denoiser.parameters()), course.training
    draws = sample_noise_at(0, 2, course.examples.shape, spec.seed, "memory", antithetic=False).to(
        course.examples.x0.device
    )
    each = activation_bytes(
        Objective(denoiser, course.schedule, course.precision), course.examples, draws
    )
    kept = spec.trajectories.num_queries + 2 * math.isqrt(of.num_steps) + 4
    needed = (12 * d * kept + COPIES * of.batch_size * each) / 2**30
    allowed = f"at least {needed:.2f} for this network, its training and {spec.trajectories.num_queries} queries in magic"
    require(needed <= memory_gib, "compute.gradient_memory_gib", memory_gib, allowed)


def _refuse_another(trained: nn.Module, checkpoint: nn.Module, spec: Metagradient) -> None:
    """Raises: ValueError if weights differ by more than rounding."""
    found, wanted = (flatten(of.parameters()) for of in (trained, checkpoint))
    off = float((found - wanted).norm() / wanted.norm())
    if not off <= SAME:
        where = "trained anew, its weights are off by"
        raise ValueError(
            f"{spec.checkpoint.label}: {where} {off:.2g} of their norm; the device that trained it may do better"
        )


def _gradients(
    spec: Metagradient, denoiser: nn.Module, schedule: Schedule, workspace: Workspace
) -> Tensor:
    """∂f/∂θ of every query's output under the checkpoint. [Q, d]"""
    device = schedule.signal.device
    guidance = network.get_guidance(spec.checkpoint.model, spec.guidance, device)
    objective = Objective(denoiser, schedule, spec.checkpoint.precision, guidance=guidance)
    queries, draws = _asked(spec, schedule.num_timesteps, workspace)
    return loop_gradients(objective, queries.to(device), draws.to(device), len(draws))


def _asked(
    spec: Metagradient, num_timesteps: int, workspace: Workspace
) -> tuple[Examples, NoiseSamples]:
    """Every x̂0_t with draws at its t, or every destination with draws over all t."""
    if spec.step is None:
        queries = final_samples(spec.trajectories, workspace)
        return queries, sample_noise(
            (0, num_timesteps), spec.num_samples, queries.shape, spec.seed, "attribute queries"
        )
    (queries,) = query_estimates(spec.trajectories, (spec.step,), workspace)
    return queries, sample_noise_at(
        spec.step, spec.num_samples, queries.shape, spec.seed, "attribute queries", False
    )


def _keep(way: BackwardState, partial: Path) -> None:
    name = f"resume.{way.left}.safetensors"
    safetensors.torch.save_file(
        {"adjoints": way.adjoints, "of_weights": way.of_weights}, partial / name
    )
    resume.save_state(partial, {"left": way.left, "tensors": name}, [name])
