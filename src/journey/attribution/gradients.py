"""Per-example gradients g_i = ∇_θ f(x0_i; θ), by two strategies that agree to rounding.

loop   The K noise samples of one example are the batch of an ordinary backward pass. Memory O(d).
vmap   Several examples side by side, for networks so small that the overhead of a call dominates.

Symbols: B examples; K noise samples; d parameters, all of `network.parameters()` in their order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from journey.attribution.outputs import NoiseSamples, output
from journey.diffusion.network import Guidance, Predict, bind
from journey.engine.checks import require
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples, Region
from journey.pipeline.schedule import Schedule
from journey.pipeline.settings import Output

VMAP_PARAMETERS = 2**19  # measured: vmap is faster with 160k parameters, a loop with 1.1M
VMAP_BATCHES = (16, 4, 1)  # measured: of 160k parameters, 16 examples beat 4 and 64
VMAP_COPIES = 2  # peak memory under vmap over what a forward pass saves; measured: 1.5 to 1.9
ACTIVATIONS = {"vmap": 2**30, "loop": 2**29}  # most bytes that a forward pass saves for backward


@dataclass(frozen=True)
class GradientPlan:
    """How gradients, or features by projected layers (kronecker), are computed."""

    strategy: Literal["loop", "vmap", "kronecker"]
    batch: int  # examples in a block
    chunk: int  # most noise samples at once


@dataclass(frozen=True)
class Objective:
    """The function f whose gradient is taken; see `journey.attribution.outputs.output`."""

    network: nn.Module
    schedule: Schedule
    precision: Precision  # of forward passes
    output: Output = Output.loss
    normalize: bool = False  # each noise sample's gradient has unit norm before the mean
    guidance: Guidance | None = None
    region: Region = ()  # box of the output; (): all of it

    def predict(self, parameters: dict[str, Tensor] | None = None) -> Predict:
        """Return the network as a function, optionally with other parameters."""
        return bind(self.network, self.precision, parameters, self.guidance)

    def gradients(
        self, examples: Examples, noise: NoiseSamples, plan: GradientPlan
    ) -> Iterator[Tensor]:
        """Yield the gradients of all examples in blocks of `plan.batch`. [≤ batch, d], float32"""
        compute = {"loop": loop_gradients, "vmap": vmap_gradients}[plan.strategy]
        for first in range(0, len(examples), plan.batch):
            yield compute(self, examples[first : first + plan.batch], noise, plan.chunk)


def loop_gradients(
    objective: Objective, examples: Examples, noise: NoiseSamples, chunk: int
) -> Tensor:
    """Return gradients by one backward pass per example and chunk of noise samples. [B, d]"""
    predict = objective.predict()
    parameters = list(objective.network.parameters())
    sizes = [p.numel() for p in parameters]
    rows = torch.zeros(len(examples), sum(sizes), device=examples.x0.device)
    for i in range(len(examples)):
        example, pieces = examples[i], list(rows[i].split(sizes))
        for part in noise.split(1 if objective.normalize else chunk):
            inputs = (objective.schedule, example, part)
            f = output(predict, *inputs, objective.output, objective.region)
            gradients = [g.flatten() for g in torch.autograd.grad(f, parameters)]
            if objective.normalize:
                norms = torch.stack([g.norm() for g in gradients])
                torch._foreach_div_(gradients, _total_norm(norms))
            torch._foreach_add_(pieces, gradients, alpha=len(part) / len(noise))
    return rows


def vmap_gradients(
    objective: Objective, examples: Examples, noise: NoiseSamples, chunk: int
) -> Tensor:
    """Return gradients of all examples at once. [B, d]

    All noise samples of an example are one batch. Only if each is normalized are their gradients
    separate, `chunk` of them at a time.
    """
    parameters = {name: p.detach() for name, p in objective.network.named_parameters()}
    if examples.condition is not None:  # vmap is over tensors: captions are encoded here
        used = slice(1) if noise.caption_index is None else slice(None)
        examples = replace(examples, condition=examples.condition[:, used])

    # `torch.func.grad` would prepare for second derivatives, which splits the backward passes of
    # silu and group normalization into many small operations: 25% slower, and twice the memory.
    def gradient(
        parameters: dict[str, Tensor], example: dict[str, Any], noise: dict[str, Any]
    ) -> dict[str, Tensor]:
        def f(parameters: dict[str, Tensor]) -> Tensor:
            inputs = (objective.schedule, Examples(**example), NoiseSamples(**noise))
            predict = objective.predict(parameters)
            return output(predict, *inputs, objective.output, objective.region)

        value, pull_back = torch.func.vjp(f, parameters)[:2]
        with torch.no_grad():
            return pull_back(torch.ones_like(value))[0]

    by_example = (None, _first_axes(examples), None)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
        if not objective.normalize:
            pieces = torch.func.vmap(gradient, by_example)(parameters, vars(examples), vars(noise))
            return torch.cat([g.flatten(1) for g in pieces.values()], 1)

        by_sample = torch.func.vmap(gradient, (None, None, _first_axes(noise)))
        per_pair = torch.func.vmap(by_sample, by_example)
        d = sum(p.numel() for p in parameters.values())
        rows = torch.zeros(len(examples), d, device=examples.x0.device)
        for part in noise.split(chunk):
            singles = {k: None if v is None else v[:, None] for k, v in vars(part).items()}
            pieces = per_pair(parameters, vars(examples), singles)
            flat = [g.flatten(2) for g in pieces.values()]  # [B, chunk, …]
            scale = 1 / _total_norm(torch.stack([g.norm(dim=2) for g in flat], 2), dim=2)
            sums = [torch.einsum("bkd,bk->bd", g, scale) for g in flat]
            rows += torch.cat(sums, 1) / len(noise)
        return rows


def _first_axes(batch: Examples | NoiseSamples) -> dict[str, int | None]:
    """Return the axis that vmap runs over, for every field."""
    axes: dict[str, int | None] = {}
    for name, tensor in vars(batch).items():
        axes[name] = None if tensor is None else 0
    return axes


def _total_norm(norms: Tensor, dim: int = 0) -> Tensor:
    """Return the norm of a gradient from the norms of its parts.

    Raises:
        FloatingPointError: If the norm is zero or not a number.
    """
    norm = norms.norm(dim=dim)
    if not bool((norm > 0).all()):
        raise FloatingPointError("normalize=true: the gradient at a noise sample is zero or NaN")
    return norm


def choose_plan(
    objective: Objective, examples: Examples, noise: NoiseSamples, memory_gib: float
) -> GradientPlan:
    """Return a plan that follows from network, noise samples and precision alone.

    Other plans round differently. Memory only sets the number of examples in a block of a loop,
    which changes no bit.

    Raises:
        ConfigError: If memory_gib is too small for the plan.
    """
    d, num_samples = sum(p.numel() for p in objective.network.parameters()), len(noise)
    sample_bytes = activation_bytes(objective, examples, noise)
    memory = memory_gib * 2**30
    # Parameters take 24 d bytes: the network, its copy in the order of convolutions, one gradient
    # and the projection. Each gradient takes 12 d: in pieces, flattened, and the block before.
    if d <= VMAP_PARAMETERS and objective.precision is not Precision.bf16:
        chunk = min(16, num_samples) if objective.normalize else num_samples
        plan = GradientPlan("vmap", 1, chunk)
        for batch in VMAP_BATCHES:
            if VMAP_COPIES * batch * chunk * sample_bytes <= ACTIVATIONS["vmap"]:
                plan = GradientPlan("vmap", batch, chunk)
                break
        num_gradients = plan.batch * (1 + chunk if objective.normalize else 1)
        activations = VMAP_COPIES * plan.batch * chunk * sample_bytes
    else:
        most = 1 if objective.normalize else min(num_samples, ACTIVATIONS["loop"] // sample_bytes)
        chunk = max(1, most)
        num_gradients, activations = 1, chunk * sample_bytes
        most = int((memory - (24 * d + activations)) // (12 * d))
        plan = GradientPlan("loop", max(1, min(8, most)), chunk)
    needed = (12 * num_gradients + 24) * d + activations
    allowed = f"at least {needed / 2**30:.2f} for this network, precision and num_samples"
    require(needed <= memory, "compute.gradient_memory_gib", memory_gib, allowed)
    return plan


def activation_bytes(objective: Objective, examples: Examples, noise: NoiseSamples) -> int:
    """Return the bytes that a forward pass saves for the backward pass, per noise sample."""
    predict = objective.predict()
    return bytes_per_sample(
        objective.network,
        noise,
        lambda part: output(predict, objective.schedule, examples[0], part),
    )


def bytes_per_sample(
    network: nn.Module, noise: NoiseSamples, forward: Callable[[NoiseSamples], Tensor]
) -> int:
    """Return the bytes that `forward` saves for its backward pass, per noise sample.

    Parameters do not count, nor does what is saved once for all samples, such as cast weights.
    """
    parameters = {p.data_ptr() for p in network.parameters()}
    totals = []
    for count in (1, 2):
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            if tensor.data_ptr() not in parameters:
                saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward(noise[:count])
        totals.append(sum(saved.values()))
    return max(1, totals[1] - totals[0] if len(noise) > 1 else totals[0])
