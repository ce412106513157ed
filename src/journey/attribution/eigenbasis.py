"""The leading directions of EK-FAC's eigenbasis inside the layers: its features without the gradient of any weight.

R_in and R_out of `adapters` are, instead of random, the eigenvectors of A and B (`curvature`) with the largest eigenvalues. So φ
is that part of Qᵀg, and φ (Λ + λ)^{−1/2} are features whose inner products are EK-FAC's: all of it where every side of a layer
has at most so many rows. Layers that are held fixed have none.

p  dimension of the features, those of all layers
"""

import torch
from torch import Tensor, nn

from journey.attribution.adapters import Maps, adapters, as_layer, with_adapters
from journey.attribution.curvature import Curvature


def adapted(network: nn.Module, estimated: Curvature, rows: int) -> nn.Module:
    """The same network, its parameters shared, with an adapter for every layer of the curvature.

    Raises: ConfigError if such a layer is of no kind that has features.
    """

    def leading(name: str, layer: nn.Module) -> Maps | None:
        if name not in estimated.layers:
            return None
        of = estimated.layers[name]
        return as_layer(of.in_basis[:, -rows:].T, layer), of.out_basis[:, -rows:].T.contiguous()

    return with_adapters(network, leading)


def factors(network: nn.Module, estimated: Curvature, rows: int, damping: tuple[float, ...]) -> Tensor:
    """(Λ + λ)^{−1/2} of what an adapted network's features are along. damping: λ relative to the mean eigenvalue. [damping, p]"""
    damped = torch.stack([estimated.damped(relative) for relative in damping])
    blocks = [estimated.layers[name].matrix(damped)[:, -rows:, -rows:] for name in adapters(network)]
    return torch.cat([block.flatten(1) for block in blocks], 1).rsqrt()
