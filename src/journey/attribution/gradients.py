"""Per-example gradients g_i = ∇_θ f(x0_i; θ), two ways that agree to rounding.

loop   the K draws of one example are the batch of an ordinary backward pass; memory O(d)
vmap   several examples side by side, their draws inside; for networks so small that overhead rules

B  examples;  K  draws;  d  parameters (of all of `network.parameters()`, flattened in their order)
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from journey import config
from journey.attribution.output import Draws, output
from journey.diffusion.examples import Examples
from journey.diffusion.network import bind
from journey.diffusion.schedule import Schedule

VMAP_COPIES = 2  # peak memory under vmap over what a plain forward pass keeps: 1.5 to 1.9 as measured on two U-Nets


@dataclass(frozen=True)
class Plan:
    """How to compute: `batch` examples at a time; in a loop, their draws in chunks of at most `chunk`."""

    strategy: str
    batch: int
    chunk: int


@dataclass(frozen=True)
class Objective:
    """The function whose gradient is taken; normalize: the gradient of every draw gets unit norm before the mean."""

    network: nn.Module
    schedule: Schedule
    precision: config.Precision
    output: config.Output = config.Output.loss
    normalize: bool = False

    def gradients(self, examples: Examples, draws: Draws, plan: Plan) -> Iterator[Tensor]:
        """Gradients of all examples in blocks of `plan.batch`. [≤ batch, d], float32

        Raises: FloatingPointError if a gradient to be normalised is zero.
        """
        ways = {"loop": loop_gradients, "vmap": vmap_gradients}
        for first in range(0, len(examples), plan.batch):
            yield ways[plan.strategy](self, examples[first : first + plan.batch], draws, plan.chunk)


def loop_gradients(objective: Objective, examples: Examples, draws: Draws, chunk: int) -> Tensor:
    """One backward pass per example and chunk of draws. [B, d]"""
    predict = bind(objective.network, objective.precision)
    parameters = list(objective.network.parameters())
    sizes = [p.numel() for p in parameters]
    rows = torch.zeros(len(examples), sum(sizes), device=examples.x0.device)
    for i in range(len(examples)):
        example, pieces = examples[i], list(rows[i].split(sizes))
        for part in draws.split(1 if objective.normalize else chunk):
            f = output(predict, objective.schedule, example.x0, part, example.context, objective.output)
            gradients = [g.flatten() for g in torch.autograd.grad(f, parameters)]
            if objective.normalize:
                torch._foreach_div_(gradients, _norm(torch.stack([g.norm() for g in gradients])))
            torch._foreach_add_(pieces, gradients, alpha=len(part) / len(draws))
    return rows


def vmap_gradients(objective: Objective, examples: Examples, draws: Draws, chunk: int) -> Tensor:
    """All examples of the block at once, each with all its draws; where draws are normalised, `chunk` of them. [B, d]"""
    parameters = {name: p.detach() for name, p in objective.network.named_parameters()}

    def f(parameters: dict[str, Tensor], x0: Tensor, context: Tensor | None, t: Tensor, eps: Tensor) -> Tensor:
        predict = bind(objective.network, objective.precision, parameters)
        return output(predict, objective.schedule, x0, Draws(t, eps), context, objective.output)

    over_examples = (None, 0, None if examples.context is None else 0, None, None)
    inputs = (parameters, examples.x0, examples.context)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
        if not objective.normalize:
            by_name = torch.func.vmap(_gradient(f), over_examples)(*inputs, draws.t, draws.eps)
            return torch.cat([g.flatten(1) for g in by_name.values()], 1)
        of_draw = torch.func.vmap(_gradient(f), (None, None, None, 0, 0))
        rows = 0
        for part in draws.split(chunk):
            by_name = torch.func.vmap(of_draw, over_examples)(*inputs, part.t[:, None], part.eps[:, None])
            pieces = [g.flatten(2) for g in by_name.values()]  # [B, chunk, …]
            norms = _norm(torch.stack([g.norm(dim=2) for g in pieces], 2), dim=2)
            rows = rows + torch.cat([torch.einsum("bkd,bk->bd", g, 1 / norms) for g in pieces], 1) / len(draws)
        return rows


def _gradient(f: Callable[..., Tensor]) -> Callable[..., dict[str, Tensor]]:
    """∇_θ f(θ, …). `torch.func.grad` would prepare for second derivatives, which breaks the backward pass of silu and of
    group normalisation into many small operations: a quarter more time on a tiny network, and twice the memory.
    """

    def gradient(parameters: dict[str, Tensor], *rest: Tensor | None) -> dict[str, Tensor]:
        value, pull_back = torch.func.vjp(lambda parameters: f(parameters, *rest), parameters)
        with torch.no_grad():
            return pull_back(torch.ones_like(value))[0]

    return gradient


def _norm(parts: Tensor, dim: int = 0) -> Tensor:
    """Norm of a vector from the norms of its parts."""
    norm = parts.norm(dim=dim)
    if not bool((norm > 0).all()):
        raise FloatingPointError("the gradient of a draw is zero, so it cannot be normalised")
    return norm


# ------------------------------------------------------------------------------------------- choosing the way


def choose(objective: Objective, examples: Examples, draws: Draws, wanted: config.Gradient, memory_gib: float) -> Plan:
    """The fastest plan within the memory budget, found by timing on the first examples.

    Raises: ConfigError if no plan of the wanted kind fits the budget.
    """
    plans = candidates(objective, examples, draws, memory_gib)
    if wanted is not config.Gradient.auto:
        plans = [plan for plan in plans if plan.strategy == wanted.value]
    if not plans:
        raise config.ConfigError(f"compute.gradient_memory_gib={memory_gib}: too small for compute.gradient={wanted.value}")
    return plans[0] if len(plans) == 1 else min(plans, key=lambda plan: _seconds(objective, examples, draws, plan))


def candidates(objective: Objective, examples: Examples, draws: Draws, memory_gib: float) -> list[Plan]:
    """Plans that fit: 12d bytes an example (its gradient in pieces, flattened, and the block before), 20d for the network,
    one gradient and the projection, and activations as measured, `VMAP_COPIES` times under vmap.
    """
    memory, d = memory_gib * 2**30, sum(p.numel() for p in objective.network.parameters())
    per_draw, num_draws = activation_bytes(objective, examples, draws), len(draws)

    def fits(gradients: int, draws_at_once: int) -> bool:
        return (12 * gradients + 20) * d + draws_at_once * per_draw <= memory

    chunks = {min(chunk, num_draws) for chunk in (1, 8, num_draws) if fits(1, min(chunk, num_draws))}
    chunks -= {1} if len(chunks) > 1 else set()  # one draw at a time only where nothing else fits
    if objective.normalize:  # a backward pass, and under vmap a gradient, for each draw
        chunks = {1} if fits(1, 1) else set()
    batches = {chunk: next(b for b in (8, 4, 2, 1) if b <= len(examples) and fits(b, chunk)) for chunk in sorted(chunks)}
    loops = [Plan("loop", batch, chunk) for chunk, batch in batches.items()]
    sizes = sorted({min(size, len(examples)) for size in (4, 16, 64)})
    if objective.normalize:
        tiles = [(size, min(16, num_draws)) for size in sizes]
        return loops + [Plan("vmap", b, k) for b, k in tiles if fits(b * (1 + k), VMAP_COPIES * b * k)]
    return loops + [Plan("vmap", size, num_draws) for size in sizes if fits(size, VMAP_COPIES * size * num_draws)]


def activation_bytes(objective: Objective, examples: Examples, draws: Draws) -> int:
    """What a forward pass keeps for the backward pass for each draw, beside what it keeps once (cast weights)."""
    one, two = (_kept_bytes(objective, examples[0], draws.split(count)[0]) for count in (1, 2))
    return max(1, two - one if len(draws) > 1 else one)


def _kept_bytes(objective: Objective, example: Examples, draws: Draws) -> int:
    parameters = {p.data_ptr() for p in objective.network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output(bind(objective.network, objective.precision), objective.schedule, example.x0, draws, example.context)
    return sum(kept.values())


def _seconds(objective: Objective, examples: Examples, draws: Draws, plan: Plan) -> float:
    """Per example, the faster of two runs: the first warms up, and either can be disturbed."""
    few, runs = examples[: plan.batch], []
    for _ in range(2):
        started = time.perf_counter()
        for block in objective.gradients(few, draws, plan):
            block[0, 0].item()  # waits for an accelerator
        runs.append(time.perf_counter() - started)
    return min(runs) / len(few)
