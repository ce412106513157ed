"""LoGra: features by Kronecker projections inside the layers (Choe et al. 2024).

Weight and bias of a layer are one matrix [out, in + 1], as in `journey.attribution.ekfac`.

    a  inputs of the layer, with a 1 for the bias (patches, for a convolution)
    δ  gradient at the outputs of the layer
    G  gradient of the matrix, Σ δ aᵀ over noise samples and positions, which is never formed
    φ  features of the layer, R_out G R_inᵀ = Σ (R_out δ)(R_in a)ᵀ

For a normalization, G [out, 2] holds the gradients of its scale and of its shift; for an
embedding, G [rows, width] those of its rows. An adaptive normalization of diffusers is a linear
layer, and a normalization without parameters.

R has `rank` orthonormal rows, uniformly distributed, times a number such that E[RᵀR] = I. On
average, inner products of features are those of gradients, with less variance than independent
entries give. A side of at most `rank` dimensions is not projected.

φ is the gradient with respect to Z, at Z = 0, of a layer with the matrix W + R_outᵀ Z R_in.
Automatic differentiation computes it for one Z per example, without the gradient of any weight.

Symbols: B examples; K noise samples; N = B × K, a batch; P positions; "rank" rows of R
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from journey.engine.checks import ConfigError
from journey.engine.seeding import generator

LAST = torch.channels_last  # convolutions on a CPU copy tensors that are in another order

Layer = nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm | nn.Embedding
"""The layers that can be projected."""


def random_projection(size: int, rank: int, random: torch.Generator) -> Tensor:
    """Return R [min(rank, size), size], float32: the identity, or scaled orthonormal rows."""
    if size <= rank:
        return torch.eye(size)
    normal = torch.randn(size, rank, generator=random, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(normal)
    basis *= triangle.diagonal().sign()  # makes the distribution uniform (Mezzadri 2007)
    return (basis.T * (size / rank) ** 0.5).float().contiguous()


@dataclass(frozen=True)
class InputProjection:
    """R_in as a linear layer or a convolution, on the device of its layer."""

    mix: Tensor | None  # of channels, comes first [rank, channels]
    filters: Tensor  # [rank, in]; of a convolution [rank, channels (after mix: 1), height, width]
    shift: Tensor | None  # column of the bias [rank]


def _has_bias(layer: Layer) -> bool:
    return getattr(layer, "bias", None) is not None


def dense_input_projection(matrix: Tensor, layer: Layer) -> InputProjection:
    """Return R_in [rank, in + 1], or [rank, in] without a bias, in the form of its layer."""
    shape, matrix = layer.weight.shape[1:], matrix.to(layer.weight.device)
    shift = matrix[:, -1].contiguous() if _has_bias(layer) else None
    filters = matrix[:, : shape.numel()].reshape(-1, *shape).contiguous()
    return InputProjection(None, filters, shift)


def random_input_projection(layer: Layer, rank: int, random: torch.Generator) -> InputProjection:
    """Return a random R_in of a layer.

    Differs from the paper: for a convolution of at least `rank` channels, a filter is a vector of
    channels times a matrix of signs. That takes a fraction of the operations of dense filters, with
    more variance: on digits, rank 16 is as accurate as rank 8 with dense filters.
    """
    shape, biased = layer.weight.shape[1:], _has_bias(layer)
    convolution = isinstance(layer, nn.Conv2d) and layer.groups == 1 and shape[1:].numel() > 1
    if convolution and shape[0] >= rank:
        device = layer.weight.device
        mix = random_projection(shape[0], rank, random).to(device)
        filters = torch.randint(2, (rank, 1, *shape[1:]), generator=random) * 2.0 - 1.0
        shift = None
        if biased:
            signs = torch.randint(2, (rank,), generator=random) * 2.0 - 1.0
            shift = (signs / rank**0.5).to(device)
        return InputProjection(mix, filters.to(device), shift)
    return dense_input_projection(random_projection(shape.numel() + biased, rank, random), layer)


class ProjectedLayer(nn.Module):
    """A layer with a hook that computes its features."""

    z: Tensor  # Z of every example [B, rank out, rank in]: its gradient is φ, its values are unused

    def __init__(self, layer: Layer, inner: InputProjection, outer: Tensor) -> None:
        super().__init__()
        self.layer, self.shape = layer, (len(outer), len(inner.filters))
        self.inner, self.outer = inner, outer.to(layer.weight.device)
        self.keeps_outputs = torch.equal(outer, torch.eye(*outer.shape, device=outer.device))
        self.new_z(0)

    @property
    def weight(self) -> Tensor:
        """Return that of the layer, whose type peft reads."""
        return self.layer.weight

    def new_z(self, num_examples: int) -> Tensor:
        """Return a new Z for each example of the next batch."""
        zero = torch.zeros((), device=self.outer.device)  # expanded, it takes no memory
        self.z = zero.expand(num_examples, *self.shape).requires_grad_()
        return self.z

    def forward(self, x: Tensor) -> Tensor:
        return FUNCTIONS[type(self.layer)].apply(x, self.z, self, self.layer)

    def features(self, products: Tensor) -> Tensor:
        """Return φ [B, rank out, rank in] from Σ δ (R_in a)ᵀ, [B, out, rank in]."""
        products = products.float()
        return products if self.keeps_outputs else self.outer @ products


class Convolution(torch.autograd.Function):
    """x [N, in, H, W] → [N, out, H', W'], saving only R_in a [N, groups × rank, H', W']."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, hook: ProjectedLayer, layer: nn.Conv2d) -> Tensor:
        x = x.contiguous(memory_format=LAST)
        inner, groups, channels = hook.inner, layer.groups, x
        filters, shift = inner.filters, inner.shift
        if inner.mix is not None:
            channels, groups = F.conv2d(x, inner.mix[:, :, None, None]), len(filters)
        elif groups > 1:  # groups share the columns of G, so they have the same filters
            filters = filters.repeat(groups, 1, 1, 1)
            shift = None if shift is None else shift.repeat(groups)
        geometry: Any = (layer.stride, layer.padding, layer.dilation, groups)
        ctx.save_for_backward(F.conv2d(channels, filters, shift, *geometry))
        ctx.hook, ctx.layer, ctx.num_examples, ctx.shape = hook, layer, len(z), x.shape
        return layer(x).contiguous(memory_format=LAST)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        layer, (inner,) = ctx.layer, ctx.saved_tensors
        delta = delta.contiguous(memory_format=LAST)
        # Both sides as [B, groups, K × P, rank in or out of a group].
        sides = []
        for side in (inner, delta):
            width = side.shape[1] // layer.groups
            rows = side.movedim(1, -1).reshape(ctx.num_examples, -1, layer.groups, width)
            sides.append(rows.transpose(1, 2))
        a, b = sides
        products = (a.mT @ b).mT.flatten(1, 2)  # [B, out, rank in]
        gradient = None
        if ctx.needs_input_grad[0]:
            # Of x, only the shape and the memory format are read.
            x = torch.empty(ctx.shape, dtype=delta.dtype, device=delta.device, memory_format=LAST)
            weight = layer.weight.detach().to(delta.dtype)
            geometry = (layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups)
            gradient = torch.ops.aten.convolution_backward(
                delta, x, weight, None, *geometry, [True, False, False]
            )[0]
        return gradient, ctx.hook.features(products), None, None


class Linear(torch.autograd.Function):
    """x [N, …, in] → [N, …, out], saving only R_in a [N, …, rank]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, hook: ProjectedLayer, layer: nn.Linear) -> Tensor:
        ctx.save_for_backward(F.linear(x, hook.inner.filters, hook.inner.shift))
        ctx.hook, ctx.layer, ctx.num_examples = hook, layer, len(z)
        return layer(x)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (inner,) = ctx.saved_tensors
        a = inner.reshape(ctx.num_examples, -1, inner.shape[-1])  # [B, K × P, rank in]
        b = delta.reshape(ctx.num_examples, -1, delta.shape[-1])  # [B, K × P, out]
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = delta @ ctx.layer.weight.detach().to(delta.dtype)
        return gradient, ctx.hook.features((a.mT @ b).mT), None, None


class GroupNorm(torch.autograd.Function):
    """x [N, channels, …] → y = γ x̂ + β, x̂ = (x − mean) rstd over groups of channels.

        ∂/∂γ = Σ δ x̂,  ∂/∂β = Σ δ,  ∂/∂x = (γ δ − mean of γ δ − x̂ × mean of γ δ x̂) rstd

    Means are over a group. Sums are over positions only, [N, channels], for every noise sample;
    PyTorch's own backward pass sums over the batch too. An accelerator has kernels of its own for
    y and ∂/∂x; the formulas here are faster on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, z: Tensor, hook: ProjectedLayer, layer: nn.GroupNorm
    ) -> Tensor:
        ctx.hook, ctx.layer, ctx.num_examples = hook, layer, len(z)
        positions = x[0, 0].numel()
        if x.device.type != "cpu":
            sizes = (len(x), x.shape[1], positions, layer.num_groups)
            inputs = (_for_kernel(x), layer.weight, layer.bias)
            y, mean, rstd = torch.native_group_norm(*inputs, *sizes, layer.eps)
            ctx.save_for_backward(x, mean, rstd)
            return y.to(x.dtype)
        mean = _group_means(_position_sums(x) / positions, layer)
        variance = _group_means(_position_sums(x.float() * x) / positions, layer) - mean.square()
        rstd = (variance.clamp(min=0) + layer.eps).rsqrt()
        ctx.save_for_backward(x, mean, rstd)
        scale = layer.weight * rstd
        return _affine(x, scale, layer.bias - mean * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor, None, None]:
        layer, (x, mean, rstd) = ctx.layer, ctx.saved_tensors
        weight, positions = layer.weight.detach(), x[0, 0].numel()
        shift, by_kernel = _position_sums(delta), delta.device.type != "cpu"
        if by_kernel:
            sizes = (len(x), x.shape[1], positions, layer.num_groups)
            inputs = (_for_kernel(delta), _for_kernel(x), mean, rstd, weight)
            gradient = torch.ops.aten.native_group_norm_backward(
                *inputs, *sizes, [True, False, False]
            )[0]
            mean, rstd = (_of_channels(values, layer) for values in (mean, rstd))
        scale = (_position_sums(delta.float() * x) - mean * shift) * rstd
        if not by_kernel:
            common = _group_means(weight * shift, layer) / positions
            along = _group_means(weight * scale, layer) / positions
            gradient = _affine(x, -along * rstd.square(), (along * mean * rstd - common) * rstd)
            gradient.addcmul_(delta, _unsqueeze(weight * rstd, delta))
        by_sample = torch.stack([scale, shift], -1).unflatten(0, (ctx.num_examples, -1))
        return gradient.to(delta.dtype), ctx.hook.features(by_sample.sum(1)), None, None


def _for_kernel(x: Tensor) -> Tensor:
    """Return x as CUDA's kernels of group normalization read it."""
    return x.to(torch.float32, memory_format=torch.contiguous_format)


def _position_sums(x: Tensor) -> Tensor:
    """Return sums over positions, float32. [N, channels, …] → [N, channels]"""
    return x.flatten(2).sum(2, dtype=torch.float32)


def _group_means(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Return for every channel the mean over its group. [N, channels]"""
    return _of_channels(x.unflatten(1, (norm.num_groups, -1)).mean(2), norm)


def _of_channels(values: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Return for every channel the value of its group. [N, groups] → [N, channels]"""
    size = norm.num_channels // norm.num_groups
    return values[:, :, None].expand(-1, -1, size).flatten(1)


def _unsqueeze(values: Tensor, x: Tensor) -> Tensor:
    """Return values [N, channels] with as many axes as x."""
    return values.reshape(*values.shape, *[1] * (x.dim() - 2))


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return scale × x + shift, float32, for x [N, channels, …]."""
    return torch.addcmul(_unsqueeze(shift, x), x, _unsqueeze(scale, x))


class LayerNorm(torch.autograd.Function):
    """x [N, …, channels] → normalized over channels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, z: Tensor, hook: ProjectedLayer, layer: nn.LayerNorm
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(
            x, layer.normalized_shape, layer.weight, layer.bias, layer.eps
        )
        # Where autocast computes this in float32 (CUDA), x may still be bfloat16.
        ctx.save_for_backward(x.to(y.dtype), mean, rstd)
        ctx.hook, ctx.layer, ctx.num_examples = hook, layer, len(z)
        return y

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor, None, None]:
        layer, (x, mean, rstd) = ctx.layer, ctx.saved_tensors
        inputs = (delta, x, layer.normalized_shape, mean, rstd)
        parameters = (layer.weight.detach(), layer.bias.detach())
        gradient, _, _ = torch.ops.aten.native_layer_norm_backward(
            *inputs, *parameters, [True, False, False]
        )
        affine = torch.stack([delta * (x - mean) * rstd, delta.float()], -1)  # [N, …, channels, 2]
        products = affine.reshape(ctx.num_examples, -1, *affine.shape[-2:]).sum(1)
        return gradient, ctx.hook.features(products), None, None


class Embedding(torch.autograd.Function):
    """index [N, …] → its rows [N, …, width]; G = Σ e δᵀ, e the unit vector of an index."""

    @staticmethod
    def forward(
        ctx: Any, index: Tensor, z: Tensor, hook: ProjectedLayer, layer: nn.Embedding
    ) -> Tensor:
        ctx.save_for_backward(index)
        ctx.hook, ctx.layer, ctx.num_examples = hook, layer, len(z)
        return layer(index)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[None, Tensor, None, None]:
        (index,) = ctx.saved_tensors
        inner = F.linear(delta.float(), ctx.hook.inner.filters)
        a = inner.reshape(ctx.num_examples, -1, inner.shape[-1])  # [B, K × P, rank in]
        rows = torch.arange(ctx.layer.num_embeddings, device=index.device)
        units = index.reshape(ctx.num_examples, -1, 1) == rows
        return None, ctx.hook.features(units.to(a.dtype).mT @ a), None, None


FUNCTIONS: dict[type[nn.Module], type[torch.autograd.Function]] = {
    nn.Conv2d: Convolution,
    nn.Linear: Linear,
    nn.GroupNorm: GroupNorm,
    nn.LayerNorm: LayerNorm,
    nn.Embedding: Embedding,
}

LayerProjections = tuple[InputProjection, Tensor]
"""R_in and R_out [rank, out] of a layer"""


def project_layers(network: nn.Module, rank: int, seed: int, key: str) -> nn.Module:
    """Return a network with the same parameters, and projections of `rank` rows for every layer.

    There is one key for each checkpoint, which training images and queries share.
    """

    def projections(name: str, layer: Layer) -> LayerProjections:
        random = generator(seed, "kronecker projection", key, name)
        inner = random_input_projection(layer, rank, random)
        return inner, random_projection(len(layer.weight), rank, random)

    return replace_layers(network, projections)


def replace_layers(
    network: nn.Module, projections: Callable[[str, Layer], LayerProjections | None]
) -> nn.Module:
    """Return a network with the same parameters, and projections for every layer that has some.

    Frozen layers, such as those of a network with LoRA, have none.

    Raises:
        ConfigError: If a layer with parameters is not supported.
    """
    copied = copy.deepcopy(network, {id(p): p for p in network.parameters()})
    for name, layer in list(copied.named_modules()):
        if not any(p.requires_grad for p in layer.parameters(recurse=False)):
            continue
        if not _is_supported(layer):
            message = f"does not support {type(layer).__name__}({layer.extra_repr()}) ({name})"
            raise ConfigError(f"projection=kronecker {message}; use another projection")
        if (pair := projections(name, layer)) is not None:
            copied.set_submodule(name, ProjectedLayer(layer, *pair))
    return copied


def _is_supported(layer: nn.Module) -> TypeGuard[Layer]:
    names = {name for name, _ in layer.named_parameters(recurse=False)}
    if type(layer) not in FUNCTIONS or not names <= {"weight", "bias"}:
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        return layer.weight.dim() == 1 and layer.bias is not None
    if isinstance(layer, nn.Embedding):
        return layer.padding_idx is None and layer.max_norm is None
    return True


def projected_layers(network: nn.Module) -> dict[str, ProjectedLayer]:
    """Return the projected layers of a network by name, in the order of their features."""
    modules = network.named_modules()
    return {name: module for name, module in modules if isinstance(module, ProjectedLayer)}


def feature_dimension(network: nn.Module) -> int:
    """Return the dimension of the features of a network with projected layers."""
    return sum(math.prod(layer.shape) for layer in projected_layers(network).values())
