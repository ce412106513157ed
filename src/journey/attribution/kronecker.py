"""Features by projections inside the layers (`journey.attribution.adapters`): all examples and draws as one batch, without the
gradient of any weight.

B  examples;  K  draws;  p  dimension of the features


Whitening inside the layers: EK-FAC's features, nearly, without the gradient of any weight (K-FAC: Martens & Grosse 2015).

(Λ + λ)^{−1/2} of a layer (`curvature`) is no Kronecker product, so it does not fit into R_out G R_inᵀ (`adapters`). A fit does:

    Λ ≈ b aᵀ, which has the sums of Λ over its rows and over its columns
    Λ + λ ≈ (b + √λ)(a + √λ)ᵀ
    R_out = S_out (b + √λ)^{−1/2} Q_Bᵀ,  R_in = S_in (a + √λ)^{−1/2} Q_Aᵀ,  S at random (`adapters.side`)

Layers that are held fixed have no features. Every λ is a projection of its own.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from journey.attribution.ekfac import EKFAC
from journey.attribution.gradients import GradientPlan, Objective, bytes_per_sample
from journey.attribution.logra import (
    LayerProjections,
    as_input_projection,
    projected_layers,
    random_projection,
    replace_layers,
)
from journey.attribution.outputs import NoiseSamples, as_batch, batch_output
from journey.engine.checks import require
from journey.engine.seeding import generator
from journey.pipeline.examples import Examples

ACTIVATIONS = (
    2**28
)  # bytes that a forward pass on a CPU keeps, at most: 2**27 and 2**28 beat 2**25 and 2**29, as measured


LEAST = 8  # examples × draws, all the same: convolutions of fewer are slower


COPIES = 2  # peak memory over what a forward pass keeps


NETWORK_COPIES = 2  # its parameters, and as convolutions order them


def kronecker_features(
    objective: Objective, examples: Examples, draws: NoiseSamples, plan: GradientPlan
) -> Iterator[Tensor]:
    """Features of all examples under an adapted network, in blocks of `plan.batch`. [≤ batch, p], float32"""
    for first in range(0, len(examples), plan.batch):
        some = examples[first : first + plan.batch]
        parts = draws.split(plan.chunk)
        yield sum(_features(objective, some, part) * (len(part) / len(draws)) for part in parts)


def _features(objective: Objective, examples: Examples, draws: NoiseSamples) -> Tensor:
    """All examples and draws as one batch. [B, p]"""
    groups = len(examples) * (
        1 if objective.guidance is None else 2
    )  # guided: every example without its prompt, then with it
    z = [adapter.ask(groups) for adapter in projected_layers(objective.network).values()]
    x0, context, every = as_batch(examples, [draws] * len(examples))
    mean = batch_output(
        objective.predict(),
        objective.schedule,
        x0,
        context,
        every,
        objective.output,
        objective.region,
    )
    gradients = torch.autograd.grad(mean * len(examples), z)
    phi = torch.cat([g.flatten(1) for g in gradients], 1)
    return phi.unflatten(0, (-1, len(examples))).sum(0)


def choose_kronecker_plan(
    objective: Objective, examples: Examples, draws: NoiseSamples, memory_gib: float
) -> GradientPlan:
    """How many examples and draws are one batch under an adapted network: as many as the memory holds, and on a CPU the cache.

    Other batches round otherwise.

    Raises: ConfigError if memory_gib does not hold a single draw.
    """
    one, d = examples[:1], sum(p.numel() for p in objective.network.parameters())
    per_draw = bytes_per_sample(
        objective.network, draws, lambda some: _features(objective, one, some)
    )
    memory, fixed = memory_gib * 2**30, NETWORK_COPIES * 4 * d
    needed = fixed + COPIES * per_draw
    allowed = f"at least {needed / 2**30:.2f} for this network and precision"
    require(needed <= memory, "compute.gradient_memory_gib", memory_gib, allowed)
    most = (memory - fixed) / COPIES
    if examples.x0.device.type == "cpu":
        most = min(most, max(ACTIVATIONS, LEAST * per_draw))
    rows = int(most // per_draw)
    return GradientPlan("kronecker", max(1, rows // len(draws)), min(rows, len(draws)))


def project_layers_kfac(
    network: nn.Module, estimated: EKFAC, relative: float, rows: int, seed: int, key: str
) -> nn.Module:
    """The same network, its parameters shared, with an adapter for every layer of the curvature.

    relative: λ over the mean eigenvalue; the key is that of a projection.

    Raises: ConfigError if a layer with parameters is of no known kind.
    """
    root = estimated.damping(relative).sqrt()

    def whitening(name: str, layer: nn.Module) -> LayerProjections | None:
        if name not in estimated.layers:
            return None
        of = estimated.layers[name]
        random = generator(seed, "kronecker projection", key, name)
        sides = []
        for basis, along in zip(
            (of.in_basis, of.out_basis),
            margins(of.matrix(estimated.eigenvalues[None])[0]),
            strict=True,
        ):
            sides.append(
                random_projection(len(basis), rows, random).to(basis.device)
                * (along + root).rsqrt()
                @ basis.T
            )
        return as_input_projection(sides[0], layer), sides[1]

    return replace_layers(network, whitening)


def margins(values: Tensor) -> tuple[Tensor, Tensor]:
    """a [in + 1] and b [out] of non-negative values [out, in + 1] ≈ b aᵀ, with the same sums of rows and of columns, as
    Adafactor has it (Shazeer & Stern 2018, Algorithm 2).
    """
    root = values.mean().sqrt().clamp(min=1e-30)
    return values.mean(0) / root, values.mean(1) / root
