"""Reading what stages need: the clean examples of a model, and the journeys of all queries."""

import numpy as np
import torch
from torch import Tensor

from journey.artifacts.specs import Continuations, Sample, Train
from journey.artifacts.workspace import Workspace, get
from journey.data import train_images
from journey.diffusion.examples import Examples


def train_examples(of: Train, workspace: Workspace) -> Examples:
    """The training images as a model sees them."""
    encoded = None if of.encoded is None else get(of.encoded, workspace)
    return of.model.encode(train_images(of.images, workspace), encoded)


def at_steps(name: str, journeys: Sample, steps: tuple[int, ...], workspace: Workspace) -> Tensor:
    """`x_t` or `x0_hat` of every query at some of the steps that are kept. [step, query, …]"""
    kept = get(journeys, workspace).array(f"{name}.npy")
    return torch.from_numpy(np.stack([kept[journeys.steps.index(t)] for t in steps]))


def estimates(journeys: Sample, steps: tuple[int, ...], workspace: Workspace) -> list[Examples]:
    """x̂0_t of every query, at each of some steps."""
    context = conditions(journeys, workspace)
    return [Examples(x0_hat, context=context) for x0_hat in at_steps("x0_hat", journeys, steps, workspace)]


def continued(of: Continuations, workspace: Workspace) -> np.ndarray:
    """The examples that continuations with noise of their own end in, in their first window. [query, n, …]"""
    return np.array(get(of, workspace).array("final.npy")[0, :, 1:])


def destinations(journeys: Sample, workspace: Workspace) -> Examples:
    """The final example of every query."""
    final = torch.from_numpy(np.array(get(journeys, workspace).array("final.npy")))
    return Examples(final, context=conditions(journeys, workspace))


def conditions(journeys: Sample, workspace: Workspace) -> Tensor | None:
    """What the prompt of every query conditions a model by, [query, 1, L, E]; None: there are no prompts."""
    if not journeys.prompts:
        return None
    return torch.from_numpy(np.array(get(journeys, workspace).array("context.npy")))
