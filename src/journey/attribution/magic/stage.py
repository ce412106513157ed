"""Gradient of an output after training by the weight of every training image.

MAGIC (Ilyas and Engstrom 2025), by the metagradients of Engstrom et al. 2025. A training step maps
x = (θ, m, v), the parameters and AdamW's moments. It weights image i by w_i, which is 1:

    x_{s+1} = h_s(x_s, w),   where the loss of a batch is  Σ_b w_b ℓ_b / Σ_b w_b
    λ_s = λ_{s+1} ∂h_s/∂x,   ∂f/∂w = Σ_s λ_{s+1} ∂h_s/∂w,   from  λ_S = (∂f/∂θ, 0, 0)

With coupled mini-batches, to remove image i is to set w_i = 0, which changes f by −∂f/∂w_i to first
order. With independent mini-batches, all batches change, which the gradient ignores.

s  training steps, S in all;  d  parameters;  K  outputs;  N  training images
"""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from journey.attribution.gradients import Objective, activation_bytes, loop_gradients
from journey.attribution.magic import MagicScores
from journey.attribution.outputs import sample_noise, sample_noise_at
from journey.diffusion.network import (
    Denoiser,
    bind,
    gradient_memory,
    load_denoiser,
    num_trained,
    trained_parameters,
)
from journey.diffusion.train import start
from journey.diffusion.training import (
    TrainingInputs,
    TrainingState,
    learning_rate,
    step_losses,
    train,
)
from journey.diffusion.trajectories import query_examples
from journey.engine import resume
from journey.engine.checks import require
from journey.engine.metrics import track
from journey.engine.workspace import Workspace
from journey.pipeline.settings import Training

BETAS = (0.9, 0.999)  # the defaults of torch.optim.AdamW, which `new_optimizer` keeps
CLIP_EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_

# Largest relative difference between the weights of the checkpoint and of the repeated training:
# rounding moves them by 1e-6, and the removal of one of a thousand digits by 8e-3.
TOLERANCE = 1e-3
ACTIVATION_COPIES = 6  # for second derivatives; measured: 4.5 to 5.5 on two U-Nets


def training_states(inputs: TrainingInputs, state: TrainingState) -> list[TrainingState]:
    """Return the states before every ⌊√S⌋th step of the training, and the last.

    Differs from the paper, whose tree keeps about log S states and trains as many times: this keeps
    2√S states and trains twice.
    """
    num_steps = inputs.training.num_steps
    stride, states = math.isqrt(num_steps), []
    for step in (*range(stride, num_steps, stride), num_steps):
        states.append(copy.deepcopy(state))
        for _ in train(state, inputs, step):
            pass
    return [*states, state]


def states_before(
    inputs: TrainingInputs, states: list[TrainingState], num_steps: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield (s, x_s [3, d]) for the first `num_steps` training steps, from the last to the first.

    Between the states of `training_states`, the training is repeated once more.
    """
    for first, last in reversed(list(itertools.pairwise(states))):
        state, stretch = copy.deepcopy(first), []
        for step in range(first.step, min(last.step, num_steps)):
            stretch.append((step, flatten_state(state)))
            for _ in train(state, inputs, step + 1):
                pass
        yield from reversed(stretch)


def vector(tensors: Iterable[Tensor]) -> Tensor:
    """Return all numbers of tensors, whose memory may have any layout, as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def flatten_state(state: TrainingState) -> Tensor:
    """Return x = (θ, m, v) [3, d]. The moments are zero before the first step."""
    parameters = list(trained_parameters(state.network).values())
    theta = vector(parameters).detach()
    if state.step == 0:
        return torch.stack([theta, torch.zeros_like(theta), torch.zeros_like(theta)])
    moments = [state.optimizer.state[p] for p in parameters]
    m = vector([moment["exp_avg"] for moment in moments])
    v = vector([moment["exp_avg_sq"] for moment in moments])
    return torch.stack([theta, m, v])


@dataclass
class BackwardState:
    """Everything that changes on the way back."""

    num_steps: int  # training steps that are still to go back through
    adjoints: Tensor  # λ after these steps, for every output [K, 3, d]
    weight_gradients: Tensor  # ∂f/∂w of the later steps, for every output [K, N]


def start_backward(gradients: Tensor, num_steps: int, num_images: int) -> BackwardState:
    """Return the state at the end of the training, from ∂f/∂θ of every output [K, d]."""
    zeros = torch.zeros_like(gradients)
    adjoints = torch.stack([gradients, zeros, zeros], 1)
    return BackwardState(num_steps, adjoints, gradients.new_zeros(len(gradients), num_images))


def backward_through_training(
    backward: BackwardState, inputs: TrainingInputs, states: list[TrainingState]
) -> Iterator[Tensor]:
    """Go back to the beginning of the training, updating `backward`; yield λ_s [K, 3, d] each step.

    Raises:
        FloatingPointError: A gradient is not finite. The message names the training step.
    """
    adjoints, weight_gradients = backward.adjoints, backward.weight_gradients
    for step, before in states_before(inputs, states, backward.num_steps):
        before.requires_grad_()
        weights = torch.ones_like(weight_gradients[0], requires_grad=True)
        after = weighted_step(inputs, states[0].network, before, weights, step)
        for k in range(len(adjoints)):
            adjoints[k], gradient = torch.autograd.grad(
                after, (before, weights), adjoints[k], retain_graph=True
            )
            weight_gradients[k] += gradient
        if not bool(adjoints.isfinite().all() and weight_gradients.isfinite().all()):
            raise FloatingPointError(
                f"back through training step {step + 1}, a gradient is not finite"
            )
        backward.num_steps = step
        yield adjoints


def weighted_step(
    inputs: TrainingInputs, network: nn.Module, before: Tensor, weights: Tensor, step: int
) -> Tensor:
    """Return x_{s+1} = h_s(x_s, w) [3, d] from x_s [3, d] and w [N].

    This is a step of `train` as a differentiable function. The weights of `network` are not used.
    """
    theta, named = before[0], trained_parameters(network)
    pieces, parameters = theta.split([p.numel() for p in named.values()]), {}
    for (name, p), piece in zip(named.items(), pieces, strict=True):
        parameters[name] = piece.view_as(p)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivatives
        batch = inputs.batch(step).to(before.device)
        losses = step_losses(bind(network, inputs.precision, parameters), inputs, batch, step)
    w = weights[batch.rows]
    (gradient,) = torch.autograd.grad((w * losses).sum() / w.sum(), theta, create_graph=True)
    return adamw(before, gradient, inputs.training, step)


def adamw(before: Tensor, gradient: Tensor, training: Training, step: int) -> Tensor:
    """Return x_{s+1} [3, d] from x_s and the gradient of the loss [d], whose norm is clipped first.

    This is AdamW (Loshchilov and Hutter 2019, Algorithm 2).
    """
    theta, m, v = before
    (beta1, beta2), rate = BETAS, learning_rate(training, step)
    g = gradient * (training.clip_norm / (gradient.norm() + CLIP_EPS)).clamp(max=1)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g.square()
    m_hat, v_hat = m / (1 - beta1 ** (step + 1)), v / (1 - beta2 ** (step + 1))
    root = v_hat.clamp(min=torch.finfo(v.dtype).tiny).sqrt()  # at 0, sqrt has no derivative
    update = m_hat / (root + training.adam_epsilon)
    theta = (1 - rate * training.weight_decay) * theta - rate * update
    return torch.stack([theta, m, v])


def make_magic_scores(spec: MagicScores, partial: Path, workspace: Workspace) -> dict:
    """Go back through a training from the output of every query.

    Payload: scores.npy, float32 [query, train].

    Returns:
        The number of per-example gradients.

    Raises:
        ValueError: The repeated training ends in another model than the checkpoint.
    """
    # Repeat the training, and keep some of its states.
    compute = replace(workspace.compute, compile=False)  # each stretch has a network of its own
    state, inputs = start(spec.checkpoint, replace(workspace, compute=compute))
    denoiser = load_denoiser(spec.checkpoint, workspace, spec.guidance)
    memory_gib = gradient_memory(workspace.compute, denoiser.device)
    _require_memory(spec, denoiser, inputs, memory_gib)
    states = training_states(inputs, state)
    repeated = vector(trained_parameters(states[-1].network).values()).detach()
    weights = vector(trained_parameters(denoiser.network).values()).detach()
    difference = float((repeated - weights).norm() / weights.norm())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{spec.checkpoint.label}: the repeated training ends {difference:.2g} away, relative"
            " to the norm of the weights; use the device that trained the checkpoint"
        )

    # Begin at the end of the training, or continue where an interrupted run stopped.
    num_steps = spec.checkpoint.training.num_steps
    if (saved := resume.load_state(partial)) is not None:
        path = partial / saved["file"]
        tensors = safetensors.torch.load_file(path, device=str(denoiser.device))
        backward = BackwardState(saved["num_steps"], **tensors)
    else:
        gradients = _query_gradients(spec, denoiser, workspace)
        backward = start_backward(gradients, num_steps, len(inputs.examples))

    # Go back.
    clock = resume.Clock(partial, workspace.compute.checkpoint_seconds)
    with track(spec, partial, workspace) as log:
        for adjoints in backward_through_training(backward, inputs, states):
            log(num_steps - backward.num_steps, norm=float(adjoints[:, 0].norm(dim=1).mean()))
            if clock.due():
                file = f"resume.{backward.num_steps}.safetensors"
                tensors = {name: vars(backward)[name] for name in ("adjoints", "weight_gradients")}
                safetensors.torch.save_file(tensors, partial / file)
                clock.save({"num_steps": backward.num_steps, "file": file}, [file])
    np.save(partial / "scores.npy", -backward.weight_gradients.cpu().numpy())
    return {"gradients": len(backward.adjoints) * num_steps * spec.checkpoint.training.batch_size}


def _require_memory(
    spec: MagicScores, denoiser: Denoiser, inputs: TrainingInputs, memory_gib: float
) -> None:
    """Refuse a memory without room for λ of all queries, the states of the training, and a step."""
    d, training = num_trained(denoiser.network), inputs.training
    noise = sample_noise_at(0, 2, inputs.examples.shape, spec.seed, "memory", antithetic=False)
    objective = Objective(denoiser.network, inputs.schedule, inputs.precision)
    activations = activation_bytes(objective, inputs.examples, noise.to(denoiser.device))
    num_vectors = spec.trajectories.num_queries + 2 * math.isqrt(training.num_steps) + 4  # [3, d]
    num_bytes = 12 * d * num_vectors + ACTIVATION_COPIES * training.batch_size * activations
    allowed = f"at least {num_bytes / 2**30:.2f} for this network, training and queries in magic"
    fits = num_bytes <= memory_gib * 2**30
    require(fits, "compute.gradient_memory_gib", memory_gib, allowed)


def _query_gradients(spec: MagicScores, denoiser: Denoiser, workspace: Workspace) -> Tensor:
    """Return ∂f/∂θ of every query's output under the checkpoint [Q, d]."""
    steps = None if spec.step is None else (spec.step,)
    ((t, queries),) = query_examples(spec.trajectories, steps, workspace)
    shared = (spec.num_samples, queries.shape, spec.seed, "attribute queries")
    if t is None:
        noise = sample_noise((0, denoiser.schedule.num_timesteps), *shared)
    else:
        noise = sample_noise_at(t, *shared, antithetic=False)
    precision, device = spec.checkpoint.precision, denoiser.device
    objective = Objective(
        denoiser.network, denoiser.schedule, precision, guidance=denoiser.guidance
    )
    return loop_gradients(objective, queries.to(device), noise.to(device), len(noise))
