"""Reading what stages need: the clean examples of a model, and the journeys of all queries.

What the journeys look like."""

import numpy as np
import torch
from torch import Tensor

from journey.data.images import train_images
from journey.engine.workspace import Workspace, get
from journey.pipeline.examples import Examples
from journey.pipeline.interfaces import Continuations, Sample, Train


def train_examples(of: Train, workspace: Workspace) -> Examples:
    """The training images as a model sees them."""
    encoded = None if of.latents is None else get(of.latents, workspace)
    return of.model.encode(train_images(of.images, workspace), encoded)


def trajectory_at(
    name: str, trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> Tensor:
    """`x_t` or `x0_hat` of every query at some of the steps that are kept. [step, query, …]"""
    kept = get(trajectories, workspace).array(f"{name}.npy")
    return torch.from_numpy(np.stack([kept[trajectories.steps.index(t)] for t in steps]))


def query_estimates(
    trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> list[Examples]:
    """x̂0_t of every query, at each of some steps."""
    context = query_contexts(trajectories, workspace)
    return [
        Examples(x0_hat, context=context)
        for x0_hat in trajectory_at("x0_hat", trajectories, steps, workspace)
    ]


def query_examples(
    trajectories: Sample, steps: tuple[int, ...] | None, workspace: Workspace
) -> list[tuple[int | None, Examples]]:
    """Return (t, x̂0_t of all queries) for every step; without steps, (None, the final samples)."""
    if steps is None:
        return [(None, final_samples(trajectories, workspace))]
    return list(zip(steps, query_estimates(trajectories, steps, workspace), strict=True))


def continuation_samples(of: Continuations, workspace: Workspace) -> np.ndarray:
    """The examples that continuations with noise of their own end in, in their first window. [query, n, …]"""
    return np.array(get(of, workspace).array("final.npy")[0, :, 1:])


def final_samples(trajectories: Sample, workspace: Workspace) -> Examples:
    """The final example of every query."""
    final = torch.from_numpy(np.array(get(trajectories, workspace).array("final.npy")))
    return Examples(final, context=query_contexts(trajectories, workspace))


def query_contexts(trajectories: Sample, workspace: Workspace) -> Tensor | None:
    """What the prompt of every query conditions a model by, [query, 1, L, E]; None: there are no prompts."""
    if not trajectories.prompts:
        return None
    return torch.from_numpy(np.array(get(trajectories, workspace).array("context.npy")))


def estimate_pictures(
    trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> np.ndarray:
    """x̂0_t of every query at some of the steps that are kept, as pixels in −1…1. [step, query, C, H, W]"""
    return _pictures_at("x0_hat.npy", trajectories, steps, workspace)


def noisy_pictures(
    trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> np.ndarray:
    """x_t likewise; of latents, what their decoder makes of noise."""
    return _pictures_at("x_t.npy", trajectories, steps, workspace)


def _pictures_at(
    name: str, trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> np.ndarray:
    kept = get(trajectories, workspace).array(name)
    return np.stack(
        [decode_pictures(kept[trajectories.steps.index(t)], trajectories, workspace) for t in steps]
    )


def decode_pictures(x0: np.ndarray, trajectories: Sample, workspace: Workspace) -> np.ndarray:
    """Examples of the model of some journeys [B, …], as pixels in −1…1. [B, C, H, W]"""
    of = trajectories.checkpoint
    encoded = None if of.latents is None else get(of.latents, workspace)
    return of.model.decode(x0, encoded)
