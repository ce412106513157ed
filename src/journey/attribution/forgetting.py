"""Attribution by unlearning (Wang et al. 2024, "AbU"): forget a query, and see whose loss rises.

    θ' = θ + η (G + λI)⁻¹ g,   τ_i = L(x_i; θ') − L(x_i; θ)

g is the gradient of the query's output; η is such that, to first order, the step raises the output by a given share of it.
Differs from the paper: the Fisher matrix is the Gauss–Newton matrix by EK-FAC instead of a diagonal, and η follows from
the rise asked for instead of being tuned.

B  examples;  K  draws;  d  parameters
"""

import numpy as np
import torch
from torch import Tensor

from journey.attribution.curvature import Curvature
from journey.attribution.gradients import Objective, loop_gradients
from journey.attribution.output import Draws, seen
from journey.diffusion.examples import Examples
from journey.diffusion.training import denoising_loss


def output_and_gradient(objective: Objective, query: Examples, draws: Draws) -> tuple[float, Tensor]:
    """f and g of a single query. g: [d]"""
    gradient = loop_gradients(objective, query, draws, len(draws))[0]
    return float(losses(objective, None, query, draws, len(draws))[0]), gradient


def direction(curvature: Curvature, gradient: Tensor, damping: float) -> Tensor:
    """(G + λI)⁻¹ g in the original coordinates, with λ relative to the mean eigenvalue. [d] → [d]"""
    rotated = curvature.rotate(gradient[None]) / curvature.damped(damping)
    return curvature.rotate(rotated, back=True)[0]


def step_size(gradient: Tensor, direction: Tensor, output: float, rise: float) -> float:
    """η with η gᵀ(G + λI)⁻¹g = rise × output.

    Raises: FloatingPointError if the direction does not raise the output.
    """
    slope = float(gradient @ direction)
    if not slope > 0:
        raise FloatingPointError(f"the ascent direction has slope {slope}: the query's gradient is zero or not finite")
    return rise * output / slope


@torch.no_grad()
def losses(objective: Objective, change: Tensor | None, examples: Examples, draws: Draws, rows: int) -> np.ndarray:
    """Loss of every example, averaged over draws, of the network with its parameters changed. [N]

    `rows` examples × draws are computed at once.
    """
    parameters = None if change is None else _changed(objective, change)
    predict = objective.predict(parameters)
    batch, means = max(1, rows // len(draws)), []
    for first in range(0, len(examples), batch):
        some = examples[first : first + batch]
        x0, contexts = zip(*(seen(some[i], draws) for i in range(len(some))), strict=True)
        context = None if some.context is None else torch.cat(contexts)
        t, eps = draws.t.repeat(len(some)), draws.eps.repeat(len(some), *[1] * len(some.shape))
        loss = denoising_loss(predict, objective.schedule, torch.cat(x0), t, eps, context)
        means.append(loss.view(len(some), len(draws)).mean(1))
    return torch.cat(means).cpu().numpy()


def _changed(objective: Objective, change: Tensor) -> dict[str, Tensor]:
    named = dict(objective.network.named_parameters())
    pieces = change.split([p.numel() for p in named.values()])
    return {name: p.detach() + piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
