"""Features of networks with projected layers (`journey.attribution.logra`), and their K-FAC form.

All examples and noise samples are one batch, and no gradient of a weight is computed.

K-FAC (Martens & Grosse 2015) approximates the preconditioned features of EK-FAC. There,
(Λ + λ)^{−1/2} of a layer (`journey.attribution.ekfac`) is no Kronecker product; a fit is:

    Λ ≈ b aᵀ, with the same sums of rows and of columns
    Λ + λ ≈ (b + √λ)(a + √λ)ᵀ
    R_out = S_out (b + √λ)^{−1/2} Q_Bᵀ,  R_in = S_in (a + √λ)^{−1/2} Q_Aᵀ

S_out and S_in are random projections. Every λ needs a network of its own.

Symbols: B examples; K noise samples; p dimension of the features
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from journey.attribution.ekfac import EKFAC
from journey.attribution.gradients import (
    MOST_PAIRS,
    GradientPlan,
    Objective,
    bytes_per_sample,
)
from journey.attribution.logra import (
    Layer,
    LayerProjections,
    dense_input_projection,
    projected_layers,
    random_projection,
    replace_layers,
)
from journey.attribution.outputs import NoiseSamples, all_pairs, batch_output
from journey.diffusion.network import num_trained
from journey.engine.checks import require
from journey.engine.seeding import generator
from journey.pipeline.examples import Examples

ACTIVATIONS = 2**28  # most bytes a forward pass saves on a CPU; measured: beats 2**25 and 2**29
LEAST = 8  # smallest batch (examples × noise samples) for `ACTIVATIONS`; smaller ones are slower
COPIES = 2  # peak memory over what a forward pass saves
NETWORK_COPIES = 2  # parameters, and their copy in the order of convolutions


def kronecker_features(
    objective: Objective, examples: Examples, noise: NoiseSamples, plan: GradientPlan
) -> Iterator[Tensor]:
    """Yield the features of all examples in blocks of `plan.batch`. [≤ batch, p], float32"""
    for first in range(0, len(examples), plan.batch):
        batch, total = examples[first : first + plan.batch], torch.zeros(())
        for part in noise.split(plan.chunk):
            total = total + _features(objective, batch, part) * (len(part) / len(noise))
        yield total


def _features(objective: Objective, examples: Examples, noise: NoiseSamples) -> Tensor:
    """Return the features of examples, from one batch of all noise samples. [B, p]"""
    # A guided prediction passes every example through the network without its prompt, then with it.
    passes = 1 if objective.guidance is None else 2
    layers = projected_layers(objective.network).values()
    z = [layer.new_z(passes * len(examples)) for layer in layers]
    x0, condition, pairs = all_pairs(examples, noise)
    inputs = (objective.schedule, x0, condition, pairs)
    mean = batch_output(objective.predict(), *inputs, objective.output, objective.region)
    gradients = torch.autograd.grad(mean * len(examples), z)
    phi = torch.cat([g.flatten(1) for g in gradients], 1)
    return phi.unflatten(0, (-1, len(examples))).sum(0)


def choose_kronecker_plan(
    objective: Objective, examples: Examples, noise: NoiseSamples, memory_gib: float
) -> GradientPlan:
    """Return the largest batch that fits into memory and, on a CPU, into `ACTIVATIONS`.

    On an accelerator, it has at most MOST_PAIRS examples × noise samples.

    Other plans round differently.

    Raises:
        ConfigError: If memory_gib is too small for one noise sample.
    """
    one, d = examples[:1], num_trained(objective.network)
    sample_bytes = bytes_per_sample(
        objective.network, noise, lambda part: _features(objective, one, part)
    )
    memory, fixed = memory_gib * 2**30, NETWORK_COPIES * 4 * d
    needed = fixed + COPIES * sample_bytes
    allowed = f"at least {needed / 2**30:.2f} for this network and precision"
    require(needed <= memory, "compute.gradient_memory_gib", memory_gib, allowed)
    most = (memory - fixed) / COPIES
    if examples.x0.device.type == "cpu":
        most = min(most, max(ACTIVATIONS, LEAST * sample_bytes))
    else:
        most = min(most, MOST_PAIRS * sample_bytes)
    rows = int(most // sample_bytes)
    return GradientPlan("kronecker", max(1, rows // len(noise)), min(rows, len(noise)))


def project_layers_kfac(
    network: nn.Module, ekfac: EKFAC, relative: float, rank: int, seed: int, key: str
) -> nn.Module:
    """Return a network with the same parameters, and projections preconditioned by K-FAC.

    λ is `relative` times the mean eigenvalue. Layers without EK-FAC factors have no features. S has
    `rank` rows; seed and key are those of `project_layers`.
    """
    root = ekfac.damping(relative).sqrt()

    def projections(name: str, layer: Layer) -> LayerProjections | None:
        if name not in ekfac.layers:
            return None
        factors = ekfac.layers[name]
        random = generator(seed, "kronecker projection", key, name)
        a, b = rank_one_factors(factors.matrix(ekfac.eigenvalues[None])[0])
        sides = []
        for basis, values in ((factors.in_basis, a), (factors.out_basis, b)):
            side = random_projection(len(basis), rank, random).to(basis.device)
            sides.append(side * (values + root).rsqrt() @ basis.T)
        return dense_input_projection(sides[0], layer), sides[1]

    return replace_layers(network, projections)


def rank_one_factors(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a [in + 1] and b [out] of values [out, in + 1] ≈ b aᵀ, which are not negative.

    b aᵀ has the same sums of rows and of columns (Shazeer & Stern 2018, "Adafactor", Algorithm 2).
    """
    root = values.mean().sqrt().clamp(min=1e-30)
    return values.mean(0) / root, values.mean(1) / root
