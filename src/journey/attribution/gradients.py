"""Per-example gradients g_i = ∇_θ f(x0_i; θ), by three strategies that agree to rounding.

loop    The K noise samples of one example are the batch of an ordinary backward pass. Memory O(d).
vmap    Several examples side by side, for networks so small that the overhead of a call dominates.
layers  For accelerators: all pairs of examples and noise samples are one batch, and the gradients
        of layers are products of their inputs and the gradients at their outputs.

Symbols: B examples; K noise samples; d parameters, all that are trained, in their order.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from journey.attribution.outputs import NoiseSamples, all_pairs, batch_output, output
from journey.diffusion.network import Guidance, Predict, bind, num_trained, trained_parameters
from journey.engine.checks import require
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples, Region
from journey.pipeline.schedule import Schedule
from journey.pipeline.settings import Output

VMAP_PARAMETERS = 2**19  # measured: vmap is faster with 160k parameters, a loop with 1.1M, and
# with LoRA of 300k in a network of 3.1M
VMAP_BATCHES = (16, 4, 1)  # measured: of 160k parameters, 16 examples beat 4 and 64
VMAP_COPIES = 2  # peak memory under vmap over what a forward pass saves; measured: 1.5 to 1.9
ACTIVATIONS = {"vmap": 2**30, "loop": 2**29}  # most bytes a forward pass saves on a CPU
MOST_PAIRS = 8192  # of a pass on an accelerator: there, its dispatch is a small part
LAYER_COPIES = 2  # peak memory of `layers` over what a forward pass saves
LAYER_BYTES = 2**28  # most bytes of patches, or of gradients of pairs, at once


@dataclass(frozen=True)
class GradientPlan:
    """How gradients, or features by projected layers (kronecker), are computed."""

    strategy: Literal["loop", "vmap", "layers", "kronecker"]
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
        """Yield the gradients of all examples in blocks of `plan.batch`. [≤ batch, d], float32

        With `normalize`, a row is NaN if the gradient at a noise sample is zero.
        """
        strategies = {"loop": loop_gradients, "vmap": vmap_gradients, "layers": layer_gradients}
        compute = strategies[plan.strategy]
        for first in range(0, len(examples), plan.batch):
            yield compute(self, examples[first : first + plan.batch], noise, plan.chunk)


def loop_gradients(
    objective: Objective, examples: Examples, noise: NoiseSamples, chunk: int
) -> Tensor:
    """Return gradients by one backward pass per example and chunk of noise samples. [B, d]"""
    predict = objective.predict()
    parameters = list(trained_parameters(objective.network).values())
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
                torch._foreach_div_(gradients, norms.norm())
            torch._foreach_add_(pieces, gradients, alpha=len(part) / len(noise))
    return rows


def vmap_gradients(
    objective: Objective, examples: Examples, noise: NoiseSamples, chunk: int
) -> Tensor:
    """Return gradients of all examples at once. [B, d]

    All noise samples of an example are one batch. Only if each is normalized are their gradients
    separate, `chunk` of them at a time.
    """
    trained = trained_parameters(objective.network)
    parameters = {name: p.detach() for name, p in trained.items()}
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
            scale = 1 / torch.stack([g.norm(dim=2) for g in flat], 2).norm(dim=2)
            sums = [torch.einsum("bkd,bk->bd", g, scale) for g in flat]
            rows += torch.cat(sums, 1) / len(noise)
        return rows


def _first_axes(batch: Examples | NoiseSamples) -> dict[str, int | None]:
    """Return the axis that vmap runs over, for every field."""
    axes: dict[str, int | None] = {}
    for name, tensor in vars(batch).items():
        axes[name] = None if tensor is None else 0
    return axes


Signal = tuple[str, Tensor, Tensor]
"""Name of a layer, its inputs, and the gradient at its outputs, both [N, …]"""


def layer_signals(
    layers: Mapping[str, nn.Module],
    forward: Callable[[], Tensor],
    dtype: torch.dtype | None = None,
) -> list[Signal]:
    """Return the signals of every call of a layer.

    Args:
        layers: Layers by name.
        forward: Runs the network, and returns a scalar, whose gradient is taken.
        dtype: That of autocast, if it is on: inputs that it converts are kept in it.
    """
    inputs: list[tuple[str, Tensor]] = []
    outputs: list[torch.autograd.graph.GradientEdge] = []
    names = {layer: name for name, layer in layers.items()}

    def record(
        layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor
    ) -> None:
        x = (*args, *kwargs.values())[0].detach()
        converted = dtype is not None and isinstance(layer, nn.Conv2d | nn.Linear)
        inputs.append((names[layer], x.to(dtype) if converted else x))
        outputs.append(torch.autograd.graph.get_gradient_edge(y))

    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers.values()]
    try:
        scalar = forward()
    finally:
        for hook in hooks:
            hook.remove()
    gradients = torch.autograd.grad(scalar, outputs)
    return [(name, x, delta) for (name, x), delta in zip(inputs, gradients, strict=True)]


def patches(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return what each position of a convolution's output sees. [N, …] → [N, positions, in]"""
    assert not isinstance(layer.padding, str), "networks have numerical padding"
    if x.device.type != "cpu":
        return windows(x, layer)
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT


def windows(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return `patches` by one copy: on CUDA, `unfold` is a kernel for each example."""
    assert not isinstance(layer.padding, str), "networks have numerical padding"
    (top, left), steps = layer.padding, layer.stride
    if top or left:
        x = F.pad(x, (left, left, top, top))
    spans = [d * (size - 1) for d, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    height, width = (
        (size - span - 1) // step + 1
        for size, span, step in zip(x.shape[2:], spans, steps, strict=True)
    )
    example, channel, row, column = x.stride()
    sizes = (len(x), height, width, x.shape[1], *layer.kernel_size)
    moves = (row * steps[0], column * steps[1])
    within = (row * layer.dilation[0], column * layer.dilation[1])
    views = x.as_strided(sizes, (example, *moves, channel, *within))
    return views.reshape(len(x), height * width, -1)


def layer_gradients(
    objective: Objective, examples: Examples, noise: NoiseSamples, chunk: int
) -> Tensor:
    """Return gradients of all examples by one backward pass per chunk of noise samples. [B, d]

    The weights of a layer have the gradient Σ δ aᵀ over positions, noise samples and, where there
    is guidance, both predictions.

        a  inputs of the layer: patches, for a convolution  [N, positions, in]
        δ  gradient at its outputs  [N, positions, out]

    If each pair of an example and a noise sample is normalized, the squared norm of its gradient is
    Σ (aᵀa′)(δᵀδ′) over pairs of positions, where that takes fewer operations than to compute the
    gradient itself (Li et al. 2022, Bu et al. 2022: "ghost norm"). Then δ is divided by the norm.
    """
    parameters = list(trained_parameters(objective.network).values())
    sizes = [p.numel() for p in parameters]
    rows = torch.zeros(len(examples), sum(sizes), device=examples.x0.device)
    views = zip(parameters, rows.split(sizes, 1), strict=True)
    pieces = {id(p): piece for p, piece in views}
    layers = _layers_with_parameters(objective.network)
    for part in noise.split(chunk):
        num_pairs = len(examples) * len(part)
        weight, scale = 1 / len(noise), None
        signals = _pair_signals(objective, layers, examples, part, weight)
        if objective.normalize:
            squares = torch.zeros(num_pairs, device=rows.device)
            for name, x, delta in signals:
                _add_squares(squares, layers[name], x, delta)
            scale = weight * squares.rsqrt()
        while signals:  # each is freed after use
            name, x, delta = signals.pop()
            if scale is not None:
                factors = scale.repeat(len(x) // num_pairs).view(-1, *[1] * (delta.dim() - 1))
                delta = torch.mul(delta, factors, out=torch.empty_like(delta))
            _add_gradients(pieces, layers[name], x, delta, num_pairs, len(examples))
    return rows


def _layers_with_parameters(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have trained parameters themselves, by name."""
    modules = network.named_modules()
    return {n: m for n, m in modules if any(p.requires_grad for p in m.parameters(recurse=False))}


def _pair_signals(
    objective: Objective,
    layers: dict[str, nn.Module],
    examples: Examples,
    noise: NoiseSamples,
    weight: float = 1.0,
) -> list[Signal]:
    """Return the signals of Σ f × weight over all pairs of an example and a noise sample.

    If the gradients of pairs are normalized, the weight is 1.
    """
    x0, condition, pairs = all_pairs(examples, noise)

    def forward() -> Tensor:
        inputs = (objective.schedule, x0, condition, pairs)
        mean = batch_output(objective.predict(), *inputs, objective.output, objective.region)
        return mean * (len(pairs) * (1.0 if objective.normalize else weight))

    dtype = torch.bfloat16 if objective.precision is Precision.bf16 else None
    return layer_signals(layers, forward, dtype)


def _grouped(x: Tensor, num_pairs: int, num_groups: int) -> Tensor:
    """Return the rows of each group of consecutive pairs. [passes × pairs, …] → [groups, rows, …]

    A guided prediction has two passes, each of all pairs.
    """
    return x.unflatten(0, (-1, num_groups, num_pairs // num_groups)).movedim(0, 1).flatten(1, 2)


def layer_sides(layer: nn.Module, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return a [N, positions, in] and δ [N, positions, out] of a layer with weights [out, in]."""
    if isinstance(layer, nn.Conv2d):
        return patches(x, layer), delta.flatten(2).mT
    if isinstance(layer, nn.Embedding):  # the gradient at an output belongs to the row of its index
        index = torch.arange(layer.num_embeddings, device=x.device)
        chosen = (x.reshape(len(x), -1, 1) == index).to(delta.dtype)
        return delta.reshape(len(x), -1, delta.shape[-1]), chosen
    return x.reshape(len(x), -1, x.shape[-1]), delta.reshape(len(x), -1, delta.shape[-1])


def _matrices(
    layer: nn.Module, x: Tensor, delta: Tensor, num_pairs: int, num_groups: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield some groups of pairs at a time, with a and δ of all their positions [groups, …]."""
    x, delta = (_grouped(side, num_pairs, num_groups) for side in (x, delta))
    numbers = 2 * sum(p.numel() for p in layer.parameters())  # their product, and a copy
    if isinstance(layer, nn.Conv2d):
        numbers += x[0].numel() * layer.kernel_size[0] * layer.kernel_size[1]
    at_once = max(1, LAYER_BYTES // (numbers * delta.element_size()))
    for first in range(0, num_groups, at_once):
        groups = slice(first, min(first + at_once, num_groups))
        count = groups.stop - first
        a, b = layer_sides(layer, x[groups].flatten(0, 1), delta[groups].flatten(0, 1))
        a, b = (side.unflatten(0, (count, -1)).flatten(1, 2) for side in (a, b))
        yield groups, a.to(b.dtype), b


def _add_squares(squares: Tensor, layer: nn.Module, x: Tensor, delta: Tensor) -> None:
    """Add the squared norms of a layer's gradient at all pairs. [pairs]"""
    num_pairs = len(squares)
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        for g in _affine_gradients(layer, x, delta):
            norms = _grouped(g, num_pairs, num_pairs).sum(1).norm(dim=1)
            squares.addcmul_(norms, norms)
        return
    for pairs, a, b in _matrices(layer, x, delta, num_pairs, num_pairs):
        positions, num_inputs, num_outputs = a.shape[1], a.shape[2], b.shape[2]
        if positions * (num_inputs + num_outputs) < num_inputs * num_outputs:
            squares[pairs].add_(((a @ a.mT).float() * (b @ b.mT)).sum((1, 2)))
        else:
            norms = torch.linalg.vector_norm(b.mT @ a, dim=(1, 2), dtype=torch.float32)
            squares[pairs].addcmul_(norms, norms)
        if getattr(layer, "bias", None) is not None:
            norms = b.sum(1, dtype=torch.float32).norm(dim=1)
            squares[pairs].addcmul_(norms, norms)


def _add_gradients(
    pieces: dict[int, Tensor],
    layer: nn.Module,
    x: Tensor,
    delta: Tensor,
    num_pairs: int,
    num_examples: int,
) -> None:
    """Add a layer's gradients to the pieces [B, …] of its parameters."""
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        gradients = _affine_gradients(layer, x, delta)
        for p, g in zip((weight, bias), gradients, strict=True):
            pieces[id(p)].add_(_grouped(g, num_pairs, num_examples).sum(1))
        return
    for group, a, b in _matrices(layer, x, delta, num_pairs, num_examples):
        pieces[id(weight)][group].add_((b.mT @ a).flatten(1))
        if bias is not None:
            pieces[id(bias)][group].add_(b.sum(1, dtype=torch.float32))


def _affine_gradients(
    layer: nn.GroupNorm | nn.LayerNorm, x: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of scale and shift, summed over positions. [N, channels], float32"""
    x, delta = x.float(), delta.float()
    if isinstance(layer, nn.GroupNorm):
        normalized = F.group_norm(x, layer.num_groups, eps=layer.eps)
        axes = tuple(range(2, x.dim()))
    else:
        normalized = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        axes = tuple(range(1, x.dim() - 1))
    if not axes:
        return delta * normalized, delta
    return (delta * normalized).sum(axes), delta.sum(axes)


def layers_suffice(objective: Objective, examples: Examples, noise: NoiseSamples) -> bool:
    """Return whether `layer_gradients` has the gradients of a loop for a network.

    It has not if parameters are used outside of layers that it knows, or examples are not the first
    axis. So it is compared with the loop, at two noise samples of two examples. The norm of a
    parameter's gradient is not that of its parts, if it is used several times.
    """
    layers = _layers_with_parameters(objective.network)
    if not all(map(_is_known, layers.values())):
        return False
    objective = replace(objective, precision=Precision.fp32)
    examples, noise = examples[:2], noise[:2]
    num_rows = len(examples) * len(noise) * (1 if objective.guidance is None else 2)
    uses: list[nn.Parameter] = []
    for name, x, _ in _pair_signals(objective, layers, examples, noise):
        uses += layers[name].parameters(recurse=False)
        if len(x) != num_rows:
            return False
    if objective.normalize and len(uses) > len(set(uses)):
        return False
    sizes = [p.numel() for p in trained_parameters(objective.network).values()]
    expected, ours = (
        compute(objective, examples, noise, 2) for compute in (loop_gradients, layer_gradients)
    )
    errors = torch.stack([piece.norm() for piece in (ours - expected).split(sizes, 1)])
    norms = torch.stack([piece.norm() for piece in expected.split(sizes, 1)])
    # Convolutions may be TF32. Some gradients are rounding alone.
    return bool((errors <= 0.05 * norms + 1e-3 * norms.norm()).all())


def _is_known(layer: nn.Module) -> bool:
    """Return whether `layer_gradients` has formulas for a layer's parameters."""
    names = {name for name, _ in layer.named_parameters(recurse=False)}
    if not names <= {"weight", "bias"}:
        return False
    match layer:
        case nn.Conv2d():
            numerical = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
            return numerical and layer.groups == 1
        case nn.GroupNorm() | nn.LayerNorm():
            return layer.weight.dim() == 1 and layer.bias is not None
        case nn.Embedding():
            return layer.padding_idx is None and layer.max_norm is None
        case _:
            return isinstance(layer, nn.Linear)


def choose_plan(
    objective: Objective, examples: Examples, noise: NoiseSamples, memory_gib: float
) -> GradientPlan:
    """Return a plan that, on a CPU, follows from network, noise samples and precision alone.

    Other plans round differently. On a CPU, memory only sets the number of examples in a block of a
    loop, which changes no bit.

    Raises:
        ConfigError: If memory_gib is too small for the plan.
    """
    if examples.x0.device.type != "cpu":
        return accelerator_plan(objective, examples, noise, memory_gib)
    d, num_samples = num_trained(objective.network), len(noise)
    sample_bytes = activation_bytes(objective, examples, noise)
    memory = memory_gib * 2**30
    # Parameters take 24 d bytes: the network, its copy in the order of convolutions, one gradient
    # and the projection. Each gradient takes 12 d: in pieces, flattened, and the block before.
    all_parameters = sum(p.numel() for p in objective.network.parameters())
    if all_parameters <= VMAP_PARAMETERS and objective.precision is not Precision.bf16:
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
    _require_memory((12 * num_gradients + 24) * d + activations, memory_gib)
    return plan


def accelerator_plan(
    objective: Objective, examples: Examples, noise: NoiseSamples, memory_gib: float
) -> GradientPlan:
    """Return a plan with as many pairs of an example and a noise sample in a pass as memory admits.

    The time to dispatch a pass does not depend on its size. A parameter takes as many bytes as in
    `choose_plan`.

    Raises:
        ConfigError: If memory_gib is too small for one noise sample.
    """
    d, num_samples = num_trained(objective.network), len(noise)
    sample_bytes = require_one_gradient(objective, examples, noise, memory_gib)
    pair_bytes, memory = LAYER_COPIES * sample_bytes, memory_gib * 2**30
    if layers_suffice(objective, examples, noise):
        left = memory - 24 * d - LAYER_BYTES
        batch = int(left // (12 * d + num_samples * pair_bytes))
        if batch >= 1:
            most = max(1, MOST_PAIRS // num_samples)
            return GradientPlan("layers", min(batch, most), num_samples)
        chunk = int((left - 12 * d) // pair_bytes)
        if objective.normalize and chunk >= 1:
            return GradientPlan("layers", 1, chunk)
    most = 1 if objective.normalize else int((memory - 36 * d) // sample_bytes)
    chunk = min(num_samples, most)
    batch = int((memory - 24 * d - chunk * sample_bytes) // (12 * d))
    return GradientPlan("loop", min(8, batch), chunk)


def require_one_gradient(
    objective: Objective, examples: Examples, noise: NoiseSamples, memory_gib: float
) -> int:
    """Return `activation_bytes` if an accelerator has memory for the gradient of one noise sample.

    Raises:
        ConfigError: It has not.
    """
    d = num_trained(objective.network)
    sample_bytes = activation_bytes(objective, examples, noise)
    _require_memory(36 * d + sample_bytes, memory_gib)
    return sample_bytes


def _require_memory(needed: float, memory_gib: float) -> None:
    allowed = f"at least {needed / 2**30:.2f} for this network, precision and num_samples"
    require(needed <= memory_gib * 2**30, "compute.gradient_memory_gib", memory_gib, allowed)


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
