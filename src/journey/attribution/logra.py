"""Kronecker projections inside the layers: features without the gradient of any weight (Choe et al. 2024, "LoGra").

Of a layer with weight and bias as one matrix [out, in + 1], as in `curvature`:

    a  inputs, with a 1 for the bias (patches, of a convolution);  δ  gradient at its outputs
    G = Σ δ aᵀ over draws and positions: its gradient [out, in + 1], never formed
    φ = R_out G R_inᵀ = Σ (R_out δ)(R_in a)ᵀ: its features;  R_in a is a convolution with random filters like the layer's own

Of a normalisation, G is [out, 2]: the gradients of its scale and of its shift. So every layer is projected in one way, biases
cost nothing, and nothing is left out.

R has `rows` orthonormal rows, uniformly distributed, times one number (but see `inner`): E[RᵀR] = I, so that inner products of
features are those of gradients on average, and vary less than with independent entries. A side of no more than `rows` dimensions
stays as it is.

φ is also the gradient at Z = 0 where the layer's matrix is W + R_outᵀ Z R_in, and is had as such: by automatic differentiation
by a Z for every example, in which no weight takes part.

B  examples;  K  draws;  N  examples × draws, a batch;  P  positions;  p  dimension of the features, those of all layers
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from journey.engine.checks import require
from journey.engine.seeding import generator

LAST = torch.channels_last  # convolutions on a CPU work in an order like it; in another, they copy


def random_projection(size: int, rows: int, random: torch.Generator) -> Tensor:
    """R [min(rows, size), size], float32: the identity, or orthonormal rows times √(size / rows)."""
    if size <= rows:
        return torch.eye(size)
    basis, triangle = torch.linalg.qr(
        torch.randn(size, rows, generator=random, dtype=torch.float64)
    )
    basis *= triangle.diagonal().sign()  # without which it is not uniformly distributed
    return (basis.T * (size / rows) ** 0.5).float().contiguous()


@dataclass(frozen=True)
class InputProjection:
    """R_in as a linear layer, or as a convolution, of channels and then, each by itself, of positions.

    mix      [rows, channels], before; None: nothing
    filters  [rows, in], or of a convolution [rows, channels or, after mixing, 1, height, width]
    shift    the column of the bias [rows], or None
    """

    mix: Tensor | None
    filters: Tensor
    shift: Tensor | None

    def __len__(self) -> int:
        return len(self.filters)

    def to(self, device: torch.device) -> "InputProjection":
        return InputProjection(
            **{
                name: None if tensor is None else tensor.to(device)
                for name, tensor in vars(self).items()
            }
        )

    @property
    def matrix(self) -> Tensor:
        """R_in [rows, in + 1]"""
        filters = self.filters if self.mix is None else self.filters * self.mix[:, :, None, None]
        return torch.cat(
            [filters.reshape(len(filters), -1)]
            + ([] if self.shift is None else [self.shift[:, None]]),
            1,
        )


def random_input_projection(
    layer: nn.Module, rows: int, random: torch.Generator
) -> InputProjection:
    """R_in of a layer. Of a convolution of `rows` channels or more, in one group, a filter is a vector of channels times signs:
    a fraction of a dense one's operations, for more variance (on digits, 16 rows of inputs are as near as 8 dense ones).
    """
    shape, biased = layer.weight.shape[1:], layer.bias is not None
    separable = (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and shape[0] >= rows
        and shape[1:].numel() > 1
    )
    if separable:
        mix, taps = random_projection(shape[0], rows, random), signs(random, rows, 1, *shape[1:])
        return InputProjection(mix, taps, signs(random, rows) / rows**0.5 if biased else None)
    return as_input_projection(random_projection(shape.numel() + biased, rows, random), layer)


def as_input_projection(matrix: Tensor, layer: nn.Module) -> InputProjection:
    """A dense R_in [rows, in + 1], or without the bias's column, as a layer like the one it belongs to."""
    shape = layer.weight.shape[1:]
    shift = None if layer.bias is None else matrix[:, -1].contiguous()
    return InputProjection(None, matrix[:, : shape.numel()].reshape(-1, *shape).contiguous(), shift)


def signs(random: torch.Generator, *shape: int) -> Tensor:
    """±1, float32."""
    return torch.randint(2, shape, generator=random) * 2.0 - 1.0


class ProjectedLayer(nn.Module):
    """A layer that φ is asked of. z: its Z for every example, [B, rows out, rows in], whose values nobody reads."""

    z: Tensor

    def __init__(
        self,
        layer: nn.Module,
        way: type[torch.autograd.Function],
        inner: InputProjection,
        outer: Tensor,
    ) -> None:
        super().__init__()
        device = layer.weight.device
        self.layer, self.way, self.shape = layer, way, (len(outer), len(inner))
        self.inner, self.outer = inner.to(device), outer.to(device)
        self.whole = torch.equal(outer, torch.eye(*outer.shape, device=outer.device))
        self.ask(0)

    def ask(self, num_examples: int) -> Tensor:
        """φ of so many examples, next time: the gradient by what is returned."""
        zero = torch.zeros((), device=self.outer.device)  # expanded, it takes no memory
        self.z = zero.expand(num_examples, *self.shape).requires_grad_()
        return self.z

    def forward(self, x: Tensor) -> Tensor:
        return self.way.apply(x, self.z, self)

    def features(self, products: Tensor) -> Tensor:
        """φ [B, rows out, rows in] from Σ δ (R_in a)ᵀ of every example, [B, out, rows in]."""
        products = products.float()
        return products if self.whole else self.outer @ products


def convolved(x: Tensor, inner: InputProjection, layer: nn.Conv2d) -> Tensor:
    """R_in a, at every position of the layer's outputs. [N, groups × rows, H', W']"""
    filters, shift, groups = inner.filters, inner.shift, layer.groups
    if inner.mix is not None:
        x, groups = F.conv2d(x, inner.mix[:, :, None, None]), len(inner)
    elif groups > 1:  # the same for every group: they share the columns of G
        filters, shift = (
            filters.repeat(groups, 1, 1, 1),
            None if shift is None else shift.repeat(groups),
        )
    return F.conv2d(x, filters, shift, layer.stride, layer.padding, layer.dilation, groups)


class Convolution(torch.autograd.Function):
    """x [N, in, H, W] → [N, out, H', W'], which keeps R_in a alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, adapter: ProjectedLayer) -> Tensor:
        x = x.contiguous(memory_format=LAST)
        ctx.save_for_backward(convolved(x, adapter.inner, adapter.layer))
        ctx.adapter, ctx.num_examples, ctx.shape = adapter, len(z), x.shape
        return adapter.layer(x).contiguous(memory_format=LAST)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor, None]:
        layer, (inner,) = ctx.adapter.layer, ctx.saved_tensors
        delta = delta.contiguous(memory_format=LAST)
        a, b = (  # [B, groups, K × P, …]
            of.movedim(1, -1)
            .reshape(ctx.num_examples, -1, layer.groups, of.shape[1] // layer.groups)
            .transpose(1, 2)
            for of in (inner, delta)
        )
        products = (a.mT @ b).mT.flatten(1, 2)  # [B, out, rows in]
        x = pulled_back(delta, layer, ctx.shape) if ctx.needs_input_grad[0] else None
        return x, ctx.adapter.features(products), None


def pulled_back(delta: Tensor, layer: nn.Conv2d, shape: torch.Size) -> Tensor:
    """The gradient at a convolution's inputs, of that shape."""
    x = torch.empty(
        shape, dtype=delta.dtype, device=delta.device, memory_format=LAST
    )  # of which only the order is read
    weight, geometry = (
        layer.weight.detach().to(delta.dtype),
        (layer.stride, layer.padding, layer.dilation),
    )
    return torch.ops.aten.convolution_backward(
        delta, x, weight, None, *geometry, False, [0, 0], layer.groups, [True, False, False]
    )[0]


class Linear(torch.autograd.Function):
    """x [N, …, in] → [N, …, out], which keeps R_in a alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, adapter: ProjectedLayer) -> Tensor:
        ctx.save_for_backward(F.linear(x, adapter.inner.filters, adapter.inner.shift))
        ctx.adapter, ctx.num_examples = adapter, len(z)
        return adapter.layer(x)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (inner,) = ctx.saved_tensors
        a, b = (
            of.reshape(ctx.num_examples, -1, of.shape[-1]) for of in (inner, delta)
        )  # [B, K × P, …]
        x = (
            delta @ ctx.adapter.layer.weight.detach().to(delta.dtype)
            if ctx.needs_input_grad[0]
            else None
        )
        return x, ctx.adapter.features((a.mT @ b).mT), None


class GroupNorm(torch.autograd.Function):
    """x [N, channels, …] → y = γ x̂ + β, x̂ = (x − mean) rstd by groups of channels.

    By sums over positions, which the features need of every draw: PyTorch's own backward pass adds up those of all draws.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, adapter: ProjectedLayer) -> Tensor:
        layer, positions = adapter.layer, x[0, 0].numel()
        mean = of_groups(summed(x) / positions, layer)
        variance = of_groups(summed(x.float() * x) / positions, layer) - mean.square()
        rstd = (variance.clamp(min=0) + layer.eps).rsqrt()
        ctx.save_for_backward(x, mean, rstd)
        ctx.adapter, ctx.num_examples = adapter, len(z)
        scale = layer.weight * rstd
        return scaled(x, scale, layer.bias - mean * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor, None]:
        """∂/∂γ = Σ δ x̂, ∂/∂β = Σ δ, ∂/∂x = (γ δ − mean of γ δ − x̂ × mean of γ δ x̂) rstd, means over a group."""
        layer, (x, mean, rstd) = ctx.adapter.layer, ctx.saved_tensors
        weight, positions = layer.weight.detach(), x[0, 0].numel()
        shift = summed(delta)  # [N, channels], as all but x and δ
        scale = (summed(delta.float() * x) - mean * shift) * rstd
        common, along = (of_groups(weight * of, layer) / positions for of in (shift, scale))
        x = scaled(x, -along * rstd.square(), (along * mean * rstd - common) * rstd)
        x.addcmul_(delta, spread(weight * rstd, delta))
        products = (
            torch.stack([scale, shift], -1).unflatten(0, (ctx.num_examples, -1)).sum(1)
        )  # [B, channels, 2]
        return x.to(delta.dtype), ctx.adapter.features(products), None


def summed(x: Tensor) -> Tensor:
    """Over positions. [N, channels, …] → [N, channels], float32"""
    return x.flatten(2).sum(2, dtype=torch.float32)


def of_groups(of: Tensor, norm: nn.GroupNorm) -> Tensor:
    """For every channel the mean over its group. [N, channels]"""
    groups = of.unflatten(1, (norm.num_groups, -1))
    return groups.mean(2, keepdim=True).expand_as(groups).flatten(1)


def spread(of: Tensor, x: Tensor) -> Tensor:
    """[N, channels] → [N, channels, 1 …], as x has axes."""
    return of.reshape(*of.shape, *[1] * (x.dim() - 2))


def scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x [N, channels, …], every channel of every draw by its own scale and shift, float32."""
    return torch.addcmul(spread(shift, x), x, spread(scale, x))


class LayerNorm(torch.autograd.Function):
    """x [N, …, channels] normalised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, adapter: ProjectedLayer) -> Tensor:
        layer = adapter.layer
        y, mean, rstd = torch.native_layer_norm(
            x, layer.normalized_shape, layer.weight, layer.bias, layer.eps
        )
        ctx.save_for_backward(x, mean, rstd)
        ctx.adapter, ctx.num_examples = adapter, len(z)
        return y

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor, None]:
        layer, (x, mean, rstd) = ctx.adapter.layer, ctx.saved_tensors
        shape, parameters = layer.normalized_shape, (layer.weight.detach(), layer.bias.detach())
        pulled_back, _, _ = torch.ops.aten.native_layer_norm_backward(
            delta, x, shape, mean, rstd, *parameters, [True, False, False]
        )
        affine = torch.stack([delta * (x - mean) * rstd, delta.float()], -1)  # [N, …, channels, 2]
        products = affine.reshape(ctx.num_examples, -1, *affine.shape[-2:]).sum(1)
        return pulled_back, ctx.adapter.features(products), None


WAYS = {nn.Conv2d: Convolution, nn.Linear: Linear, nn.GroupNorm: GroupNorm, nn.LayerNorm: LayerNorm}


LayerProjections = tuple[InputProjection, Tensor]
"""R_in and R_out [rows out, out] of a layer"""


def project_layers(network: nn.Module, rows: int, seed: int, key: str) -> nn.Module:
    """The same network, its parameters shared, with an adapter for every layer; the key is that of a projection.

    Raises: ConfigError if a layer with parameters is of another kind.
    """

    def random_maps(name: str, layer: nn.Module) -> LayerProjections:
        random = generator(seed, "kronecker projection", key, name)
        return random_input_projection(layer, rows, random), random_projection(
            len(layer.weight), rows, random
        )

    return replace_layers(network, random_maps)


def replace_layers(
    network: nn.Module, maps: Callable[[str, nn.Module], LayerProjections | None]
) -> nn.Module:
    """The same network, its parameters shared, with an adapter for every layer that has maps.

    Raises: ConfigError if one with parameters is of another kind than those that are known.
    """
    copied = copy.deepcopy(network, {id(p): p for p in network.parameters()})
    for name, layer in list(copied.named_modules()):
        if not any(True for _ in layer.parameters(recurse=False)):
            continue
        _require_known(name, layer)
        if (of := maps(name, layer)) is not None:
            copied.set_submodule(name, ProjectedLayer(layer, WAYS[type(layer)], *of))
    return copied


def _require_known(name: str, layer: nn.Module) -> None:
    """Raises: ConfigError"""
    known = type(layer) in WAYS and {n for n, _ in layer.named_parameters(recurse=False)} <= {
        "weight",
        "bias",
    }
    if isinstance(layer, nn.Conv2d):
        known = known and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        known = known and layer.weight.dim() == 1 and layer.bias is not None
    allowed = f"another projection with this network: {name} is a {type(layer).__name__} as it has no features of"
    require(known, "projection", "kronecker", allowed)


def projected_layers(network: nn.Module) -> dict[str, ProjectedLayer]:
    """Those of an adapted network, by name, in the order of its features."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, ProjectedLayer)
    }


def feature_dimension(network: nn.Module) -> int:
    """p, of an adapted network."""
    return sum(
        rows * columns
        for rows, columns in (adapter.shape for adapter in projected_layers(network).values())
    )
