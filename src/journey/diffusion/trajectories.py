"""What stages read: the training examples of a model, and the trajectories of the queries.

It does not import torch, so that a cached report needs none.
"""

from typing import TYPE_CHECKING

import numpy as np

from journey.data.images import train_images
from journey.engine.workspace import Workspace, get
from journey.pipeline.examples import Examples
from journey.pipeline.interfaces import Continuations, Sample, Train

if TYPE_CHECKING:
    from torch import Tensor


def train_examples(checkpoint: Train, workspace: Workspace) -> Examples:
    """Return all training images as inputs of a model, also those outside its training subset."""
    latents = None if checkpoint.latents is None else get(checkpoint.latents, workspace)
    return checkpoint.model.encode(train_images(checkpoint.images, workspace), latents)


def trajectory_at(
    name: str, trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> "Tensor":
    """Return `x_t` or `x0_hat` of all queries at some of the stored steps [step, query, …]."""
    import torch

    return torch.from_numpy(_stored(name, trajectories, steps, workspace))


def _stored(
    name: str, trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> np.ndarray:
    """Return the same as an array."""
    stored = get(trajectories, workspace).array(f"{name}.npy")
    return np.stack([stored[trajectories.steps.index(t)] for t in steps])


def query_estimates(
    trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> list[Examples]:
    """Return x̂0_t of all queries at each step."""
    condition = query_conditions(trajectories, workspace)
    estimates = trajectory_at("x0_hat", trajectories, steps, workspace)
    return [Examples(x0_hat, condition=condition) for x0_hat in estimates]


def final_samples(trajectories: Sample, workspace: Workspace) -> Examples:
    """Return the final samples of all queries."""
    import torch

    final = torch.from_numpy(np.array(get(trajectories, workspace).array("final.npy")))
    return Examples(final, condition=query_conditions(trajectories, workspace))


def query_examples(
    trajectories: Sample, steps: tuple[int, ...] | None, workspace: Workspace
) -> list[tuple[int | None, Examples]]:
    """Return (t, x̂0_t of all queries) for every step; without steps, (None, the final samples)."""
    if steps is None:
        return [(None, final_samples(trajectories, workspace))]
    return list(zip(steps, query_estimates(trajectories, steps, workspace), strict=True))


def query_conditions(trajectories: Sample, workspace: Workspace) -> "Tensor | None":
    """Return the text [query, 1, L, E] or the class [query, 1] of every query, or None."""
    if not trajectories.checkpoint.model.is_conditional:
        return None
    import torch

    return torch.from_numpy(np.array(get(trajectories, workspace).array("condition.npy")))


def query_prompts(trajectories: Sample, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the prompts, or the names of classes, that the queries have in turn; or none."""
    return trajectories.prompts or class_names[: trajectories.checkpoint.model.num_classes]


def continuation_samples(continuations: Continuations, workspace: Workspace) -> np.ndarray:
    """Return the final samples of the first window, of fresh noise only [query, n, …]."""
    return np.array(get(continuations, workspace).array("final.npy")[0, :, 1:])


def estimate_pictures(
    trajectories: Sample, steps: tuple[int, ...], workspace: Workspace, name: str = "x0_hat"
) -> np.ndarray:
    """Return x̂0_t of all queries at some stored steps, in −1…1 [step, query, C, H, W]."""
    examples = _stored(name, trajectories, steps, workspace)
    return np.stack([decode_pictures(x, trajectories, workspace) for x in examples])


def noisy_pictures(
    trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> np.ndarray:
    """Return x_t likewise; of latents, what the decoder makes of noisy latents."""
    return estimate_pictures(trajectories, steps, workspace, "x_t")


def decode_pictures(x0: np.ndarray, trajectories: Sample, workspace: Workspace) -> np.ndarray:
    """Return examples of the trajectories' model [B, …] as pixels in −1…1 [B, C, H, W]."""
    checkpoint = trajectories.checkpoint
    latents = None if checkpoint.latents is None else get(checkpoint.latents, workspace)
    return checkpoint.model.decode(x0, latents)
