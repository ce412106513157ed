"""Reading what stages need of the journeys of all queries."""

import numpy as np
import torch
from torch import Tensor

from journey.artifacts.specs import Sample
from journey.artifacts.workspace import Workspace, get
from journey.diffusion.examples import Examples


def at_steps(name: str, journeys: Sample, steps: tuple[int, ...], workspace: Workspace) -> Tensor:
    """`x_t` or `x0_hat` of every query at some of the steps that are kept. [step, query, …]"""
    kept = get(journeys, workspace).array(f"{name}.npy")
    return torch.from_numpy(np.stack([kept[journeys.steps.index(t)] for t in steps]))


def estimates(journeys: Sample, steps: tuple[int, ...], workspace: Workspace) -> list[Examples]:
    """x̂0_t of every query, at each of some steps."""
    return [Examples(x0_hat) for x0_hat in at_steps("x0_hat", journeys, steps, workspace)]


def destinations(journeys: Sample, workspace: Workspace) -> Examples:
    """The final example of every query."""
    return Examples(torch.from_numpy(np.array(get(journeys, workspace).array("final.npy"))))
