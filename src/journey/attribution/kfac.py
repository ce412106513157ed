"""Whitening inside the layers: EK-FAC's features, nearly, without the gradient of any weight (K-FAC: Martens & Grosse 2015).

(Λ + λ)^{−1/2} of a layer (`curvature`) is no Kronecker product, so it does not fit into R_out G R_inᵀ (`adapters`). A fit does:

    Λ ≈ b aᵀ, which has the sums of Λ over its rows and over its columns
    Λ + λ ≈ (b + √λ)(a + √λ)ᵀ
    R_out = S_out (b + √λ)^{−1/2} Q_Bᵀ,  R_in = S_in (a + √λ)^{−1/2} Q_Aᵀ,  S at random (`adapters.side`)

Layers that are held fixed have no features. Every λ is a projection of its own.
"""

from torch import Tensor, nn

from journey.attribution.adapters import Maps, as_layer, side, with_adapters
from journey.attribution.curvature import Curvature
from journey.seeding import generator


def adapted(network: nn.Module, estimated: Curvature, relative: float, rows: int, seed: int, key: str) -> nn.Module:
    """The same network, its parameters shared, with an adapter for every layer of the curvature.

    relative: λ over the mean eigenvalue; the key is that of a projection.

    Raises: ConfigError if a layer with parameters is of no known kind.
    """
    root = estimated.damping(relative).sqrt()

    def whitening(name: str, layer: nn.Module) -> Maps | None:
        if name not in estimated.layers:
            return None
        of = estimated.layers[name]
        random = generator(seed, "kronecker projection", key, name)
        sides = []
        for basis, along in zip((of.in_basis, of.out_basis), margins(of.matrix(estimated.eigenvalues[None])[0]), strict=True):
            sides.append(side(len(basis), rows, random).to(basis.device) * (along + root).rsqrt() @ basis.T)
        return as_layer(sides[0], layer), sides[1]

    return with_adapters(network, whitening)


def margins(values: Tensor) -> tuple[Tensor, Tensor]:
    """a [in + 1] and b [out] of non-negative values [out, in + 1] ≈ b aᵀ, with the same sums of rows and of columns, as
    Adafactor has it (Shazeer & Stern 2018, Algorithm 2).
    """
    root = values.mean().sqrt().clamp(min=1e-30)
    return values.mean(0) / root, values.mean(1) / root
