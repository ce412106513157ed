"""Features by projections inside the layers (`journey.attribution.adapters`): all examples and draws as one batch, without the
gradient of any weight.

B  examples;  K  draws;  p  dimension of the features
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from journey.attribution.adapters import adapters
from journey.attribution.gradients import Objective, Plan, bytes_of_draw
from journey.attribution.output import Draws, output_of, together
from journey.config.checks import require
from journey.diffusion.examples import Examples

ACTIVATIONS = 2**28  # bytes that a forward pass on a CPU keeps, at most: 2**27 and 2**28 beat 2**25 and 2**29, as measured
LEAST = 8  # examples × draws, all the same: convolutions of fewer are slower
COPIES = 2  # peak memory over what a forward pass keeps
NETWORK_COPIES = 2  # its parameters, and as convolutions order them


def features(objective: Objective, examples: Examples, draws: Draws, plan: Plan) -> Iterator[Tensor]:
    """Features of all examples under an adapted network, in blocks of `plan.batch`. [≤ batch, p], float32"""
    for first in range(0, len(examples), plan.batch):
        some = examples[first : first + plan.batch]
        parts = draws.split(plan.chunk)
        yield sum(_features(objective, some, part) * (len(part) / len(draws)) for part in parts)


def _features(objective: Objective, examples: Examples, draws: Draws) -> Tensor:
    """All examples and draws as one batch. [B, p]"""
    groups = len(examples) * (1 if objective.guidance is None else 2)  # guided: every example without its prompt, then with it
    z = [adapter.ask(groups) for adapter in adapters(objective.network).values()]
    x0, context, every = together(examples, [draws] * len(examples))
    mean = output_of(objective.predict(), objective.schedule, x0, context, every, objective.output, objective.region)
    gradients = torch.autograd.grad(mean * len(examples), z)
    phi = torch.cat([g.flatten(1) for g in gradients], 1)
    return phi.unflatten(0, (-1, len(examples))).sum(0)


# ------------------------------------------------------------------------------------------- choosing the batch


def choose(objective: Objective, examples: Examples, draws: Draws, memory_gib: float) -> Plan:
    """How many examples and draws are one batch under an adapted network: as many as the memory holds, and on a CPU the cache.

    Other batches round otherwise.

    Raises: ConfigError if memory_gib does not hold a single draw.
    """
    one, d = examples[:1], sum(p.numel() for p in objective.network.parameters())
    per_draw = bytes_of_draw(objective.network, draws, lambda some: _features(objective, one, some))
    memory, fixed = memory_gib * 2**30, NETWORK_COPIES * 4 * d
    needed = fixed + COPIES * per_draw
    allowed = f"at least {needed / 2**30:.2f} for this network and precision"
    require(needed <= memory, "compute.gradient_memory_gib", memory_gib, allowed)
    most = (memory - fixed) / COPIES
    if examples.x0.device.type == "cpu":
        most = min(most, max(ACTIVATIONS, LEAST * per_draw))
    rows = int(most // per_draw)
    return Plan("kronecker", max(1, rows // len(draws)), min(rows, len(draws)))
