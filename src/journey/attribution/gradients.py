"""Per-example gradients g_i = ∇_θ f(x0_i; θ), two ways that agree to rounding.

loop   the K draws of one example are the batch of an ordinary backward pass; memory O(d)
vmap   several examples side by side, their draws inside; for networks so small that overhead rules

B  examples;  K  draws;  d  parameters (of all of `network.parameters()`, flattened in their order)
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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

TINY = 2**19  # parameters: 160k are faster under vmap, 1.1M in a loop, as measured


TOGETHER = (
    16,
    4,
    1,
)  # examples under vmap: of 160k parameters, 16 beat 4 and 64 at 8 to 128 draws, as measured


ACTIVATIONS = {
    "vmap": 2**30,
    "loop": 2**29,
}  # bytes of a forward pass that are kept for the backward pass, at most


VMAP_COPIES = 2  # peak memory under vmap over what a plain forward pass keeps: 1.5 to 1.9 as measured on two U-Nets


@dataclass(frozen=True)
class GradientPlan:
    """How to compute: `batch` examples at a time; in a loop, their draws in chunks of at most `chunk`."""

    strategy: str
    batch: int
    chunk: int


@dataclass(frozen=True)
class Objective:
    """The function whose gradient is taken, of the prediction as it is, or guided.

    normalize: the gradient of every draw gets unit norm before the mean; region: of the output, none for all of it.
    """

    network: nn.Module
    schedule: Schedule
    precision: Precision
    output: Output = Output.loss
    normalize: bool = False
    guidance: Guidance | None = None
    region: Region = ()

    def predict(self, parameters: dict[str, Tensor] | None = None) -> Predict:
        """The network, optionally with other parameters."""
        return bind(self.network, self.precision, parameters, self.guidance)

    def gradients(
        self, examples: Examples, draws: NoiseSamples, plan: GradientPlan
    ) -> Iterator[Tensor]:
        """Gradients of all examples in blocks of `plan.batch`. [≤ batch, d], float32

        Raises: FloatingPointError if a gradient to be normalised is zero.
        """
        ways = {"loop": loop_gradients, "vmap": vmap_gradients}
        for first in range(0, len(examples), plan.batch):
            yield ways[plan.strategy](self, examples[first : first + plan.batch], draws, plan.chunk)


def loop_gradients(
    objective: Objective, examples: Examples, draws: NoiseSamples, chunk: int
) -> Tensor:
    """One backward pass per example and chunk of draws. [B, d]"""
    predict = objective.predict()
    parameters = list(objective.network.parameters())
    sizes = [p.numel() for p in parameters]
    rows = torch.zeros(len(examples), sum(sizes), device=examples.x0.device)
    for i in range(len(examples)):
        example, pieces = examples[i], list(rows[i].split(sizes))
        for part in draws.split(1 if objective.normalize else chunk):
            f = output(
                predict, objective.schedule, example, part, objective.output, objective.region
            )
            gradients = [g.flatten() for g in torch.autograd.grad(f, parameters)]
            if objective.normalize:
                torch._foreach_div_(gradients, _norm(torch.stack([g.norm() for g in gradients])))
            torch._foreach_add_(pieces, gradients, alpha=len(part) / len(draws))
    return rows


def vmap_gradients(
    objective: Objective, examples: Examples, draws: NoiseSamples, chunk: int
) -> Tensor:
    """All examples of the block at once, each with all its draws; where draws are normalised, `chunk` of them. [B, d]"""
    parameters = {name: p.detach() for name, p in objective.network.named_parameters()}

    def f(
        parameters: dict[str, Tensor],
        example: dict[str, Tensor | None],
        draws: dict[str, Tensor | None],
    ) -> Tensor:
        seen = (Examples(**example), NoiseSamples(**draws))
        return output(
            objective.predict(parameters),
            objective.schedule,
            *seen,
            objective.output,
            objective.region,
        )

    over_examples, over_draws = (
        (None, _first_axis(examples), None),
        (None, None, _first_axis(draws)),
    )
    inputs = (parameters, vars(examples))
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
        if not objective.normalize:
            by_name = torch.func.vmap(_gradient(f), over_examples)(*inputs, vars(draws))
            return torch.cat([g.flatten(1) for g in by_name.values()], 1)
        of_draw = torch.func.vmap(_gradient(f), over_draws)
        rows = 0
        for part in draws.split(chunk):
            each = {
                name: None if tensor is None else tensor[:, None]
                for name, tensor in vars(part).items()
            }
            by_name = torch.func.vmap(of_draw, over_examples)(*inputs, each)
            pieces = [g.flatten(2) for g in by_name.values()]  # [B, chunk, …]
            norms = _norm(torch.stack([g.norm(dim=2) for g in pieces], 2), dim=2)
            rows = rows + torch.cat(
                [torch.einsum("bkd,bk->bd", g, 1 / norms) for g in pieces], 1
            ) / len(draws)
        return rows


def _first_axis(of: Examples | NoiseSamples) -> dict[str, int | None]:
    """That vmap goes along, of every tensor there is."""
    return {name: None if tensor is None else 0 for name, tensor in vars(of).items()}


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


def choose_plan(
    objective: Objective, examples: Examples, draws: NoiseSamples, memory_gib: float
) -> GradientPlan:
    """How to compute, as network, draws and precision say, and nothing else: other plans round otherwise.

    vmap in fp32 up to `TINY` parameters, where overhead rules; a loop above. As many examples (vmap) or draws (loop) at once as
    `ACTIVATIONS` hold. A loop's block of examples changes no bit, so it follows the memory there is.

    Raises: ConfigError if memory_gib does not hold the plan.
    """
    d, num_samples = sum(p.numel() for p in objective.network.parameters()), len(draws)
    per_draw = activation_bytes(objective, examples, draws)
    memory = memory_gib * 2**30
    if d <= TINY and objective.precision is Precision.fp32:
        chunk = min(16, num_samples) if objective.normalize else num_samples
        fits = [
            size
            for size in TOGETHER
            if VMAP_COPIES * size * chunk * per_draw <= ACTIVATIONS["vmap"]
        ]
        plan = GradientPlan("vmap", fits[0] if fits else 1, chunk)
        gradients = plan.batch * (1 + chunk if objective.normalize else 1)
        needed = _bytes(d, gradients, VMAP_COPIES * plan.batch * chunk * per_draw)
    else:
        chunk = (
            1 if objective.normalize else max(1, min(num_samples, ACTIVATIONS["loop"] // per_draw))
        )
        most = int((memory - _bytes(d, 0, chunk * per_draw)) // (12 * d))
        plan = GradientPlan("loop", max(1, min(8, most)), chunk)
        needed = _bytes(d, 1, chunk * per_draw)
    allowed = f"at least {needed / 2**30:.2f} for this network, precision and num_samples"
    require(needed <= memory, "compute.gradient_memory_gib", memory_gib, allowed)
    return plan


def _bytes(d: int, gradients: int, activations: int) -> int:
    """12d bytes an example (its gradient in pieces, flattened, and the block before), 24d for the network, what convolutions
    keep of it in an order of their own, one gradient and the projection.
    """
    return (12 * gradients + 24) * d + activations


def activation_bytes(objective: Objective, examples: Examples, draws: NoiseSamples) -> int:
    """What a forward pass keeps for the backward pass for each draw, beside what it keeps once (cast weights)."""
    return bytes_per_sample(
        objective.network,
        draws,
        lambda some: output(objective.predict(), objective.schedule, examples[0], some),
    )


def bytes_per_sample(
    network: nn.Module, draws: NoiseSamples, forward: Callable[[NoiseSamples], object]
) -> int:
    """What a function of draws keeps for its backward pass for each of them, beside parameters and what it keeps once."""
    one, two = (
        _kept_bytes(network, functools.partial(forward, draws.split(count)[0])) for count in (1, 2)
    )
    return max(1, two - one if len(draws) > 1 else one)


def _kept_bytes(network: nn.Module, forward: Callable[[], object]) -> int:
    parameters = {p.data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(kept.values())
