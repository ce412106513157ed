"""The gradient of an output after training with respect to the weight of every training image, back through all of the training.

MAGIC (Ilyas and Engstrom 2025), by the metagradients of Engstrom et al. 2025. A step of training takes x = (θ, m, v), parameters
and AdamW's moments, to the next, and on the way sees image i with the weight w_i, which is 1:

    x_{s+1} = h_s(x_s, w),   where the loss of a batch is  Σ_b w_b ℓ_b / Σ_b w_b

    λ_s = λ_{s+1} ∂h_s/∂x,   ∂f/∂w = Σ_s λ_{s+1} ∂h_s/∂w,   from  λ_S = (∂f/∂θ, 0, 0)

With `Batching.shared`, to leave an image out is to give it a weight of 0, which changes f by −∂f/∂w_i, to first order. Where
batches are those of what is kept (`Batching.own`), all of them change, of which the gradient knows nothing.

s  training steps, S in all;  d  parameters;  K  outputs;  N  training images
"""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from journey.config.groups import Training
from journey.diffusion.network import bind
from journey.diffusion.training import Course, State, learning_rate, step_losses, train

BETAS, EPS = (0.9, 0.999), 1e-8  # torch.optim.AdamW's, which `training.new_state` leaves as they are
CLIP_EPS = 1e-6  # that of torch.nn.utils.clip_grad_norm_


# ------------------------------------------------------------------------------------------------ forwards, again


def milestones(course: Course, state: State) -> list[State]:
    """Train to the end: the state before every ⌊√S⌋th step, and the last.

    Differs from the paper, whose tree holds some log S states and trains as many times: here it is 2√S and twice.
    """
    num_steps = course.training.num_steps
    stride, kept = math.isqrt(num_steps), []
    for until in (*range(stride, num_steps, stride), num_steps):
        kept.append(copy.deepcopy(state))
        _advance(course, state, until)
    return [*kept, state]


def states_before(course: Course, kept: list[State], left: int) -> Iterator[tuple[int, Tensor]]:
    """The first `left` steps, the last of them first, and the x_s [3, d] before each.

    kept: the milestones, between which it trains once more.
    """
    for start, end in reversed(list(itertools.pairwise(kept))):
        state, stretch = copy.deepcopy(start), []
        for step in range(start.step, min(end.step, left)):
            stretch.append((step, flattened(state)))
            _advance(course, state, step + 1)
        yield from reversed(stretch)


def _advance(course: Course, state: State, until: int) -> None:
    for _ in train(state, course, until):
        pass


def flattened(state: State) -> Tensor:
    """x = (θ, m, v), moments being zero before the first step. [3, d]"""
    parameters = list(state.network.parameters())
    theta = vector(parameters)
    if state.step == 0:
        return torch.stack([theta, torch.zeros_like(theta), torch.zeros_like(theta)])
    m, v = (vector(state.optimizer.state[p][name] for p in parameters) for name in ("exp_avg", "exp_avg_sq"))
    return torch.stack([theta, m, v])


def vector(tensors: Iterable[Tensor]) -> Tensor:
    """Of one for each parameter, all numbers. [d]"""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


# ------------------------------------------------------------------------------------------------------ backwards


@dataclass
class Way:
    """Everything that changes on the way back. adjoints: λ after the `left` steps that are left, of every output, [K, 3, d];
    of_weights: what there is of ∂f/∂w, [K, N].
    """

    left: int
    adjoints: Tensor
    of_weights: Tensor


def new_way(gradients: Tensor, num_steps: int, num_images: int) -> Way:
    """From the end of the training. gradients: ∂f/∂θ, [K, d]"""
    adjoints = torch.stack([gradients, torch.zeros_like(gradients), torch.zeros_like(gradients)], 1)
    return Way(num_steps, adjoints, gradients.new_zeros(len(gradients), num_images))


def go_back(way: Way, course: Course, kept: list[State]) -> Iterator[Tensor]:
    """To the beginning of the training; yields λ_s after every step. kept: the milestones.

    Raises: FloatingPointError naming the step if a gradient is not finite.
    """
    for step, before in states_before(course, kept, way.left):
        before.requires_grad_()
        weights = torch.ones_like(way.of_weights[0], requires_grad=True)
        after = weighted_step(course, kept[0].network, before, weights, step)
        for k in range(len(way.adjoints)):
            way.adjoints[k], further = torch.autograd.grad(after, (before, weights), way.adjoints[k], retain_graph=True)
            way.of_weights[k] += further
        if not bool(way.adjoints.isfinite().all() and way.of_weights.isfinite().all()):
            raise FloatingPointError(f"back through training step {step + 1}, a gradient is not finite")
        way.left = step
        yield way.adjoints


def weighted_step(course: Course, network: nn.Module, before: Tensor, weights: Tensor, step: int) -> Tensor:
    """h_s(x_s, w): what `training.train` does, every weight being 1, as a function with derivatives. [3, d], [N] → [3, d]"""
    theta = before[0]
    named = dict(network.named_parameters())
    pieces = theta.split([p.numel() for p in named.values()])
    parameters = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
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
