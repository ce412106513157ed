"""The outputs of a query: at each step, of the trajectory, and of the final sample."""

from collections.abc import Sequence

import numpy as np

from journey.data.images import train_images
from journey.engine.workspace import Workspace, get
from journey.pipeline.interfaces import (
    ListedSubset,
    Measure,
    RandomSubset,
    Sample,
    WithoutGroup,
)
from journey.pipeline.subsets import subset_groups, subset_mask

STEP, TRAJECTORY, FINAL_SAMPLE = "step", "trajectory", "final_sample"
PAIRED_STEPS = "paired_steps"  # the mean over the steps at which methods are compared


def subset_masks(outputs: Sequence[Measure], workspace: Workspace) -> np.ndarray:
    """Return whether each measured model was trained on each image. bool [M, N]"""
    images = train_images(outputs[0].checkpoint.images, workspace)
    groups = subset_groups(outputs[0].checkpoint.subset, images)  # of the same kind in all subsets
    masks = []
    for measure in outputs:
        subset = measure.checkpoint.subset
        assert isinstance(subset, RandomSubset | ListedSubset | WithoutGroup)
        masks.append(subset_mask(images.labels, subset, groups))
    return np.stack(masks)


def step_weights(
    full: Measure | None, trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> np.ndarray:
    """Return the weights of the steps' outputs in the output of the trajectory. [step, query]

    The variances of outputs over retrained models differ by orders of magnitude between steps.
    Relative to the outputs of the full model they are alike.

    Args:
        full: Outputs of the full model, or None to weight all steps equally.
        trajectories: The trajectories of the queries.
        steps: The steps of the trajectory.
        workspace: Where artifacts are.

    Raises:
        ValueError: An output of the full model is not positive.
    """
    if full is None:
        return np.ones((len(steps), trajectories.num_queries))
    outputs = get(full, workspace).array("outputs.npy").mean(0)[:-1]
    if not (outputs > 0).all():
        raise ValueError("an output of the full model is zero, so no step can be weighted by it")
    return 1 / outputs


def with_aggregates(outputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Insert the output of the trajectory, the weighted mean over steps, before the final sample's.

    Args:
        outputs: Outputs of steps and final sample [..., S + 1, Q].
        weights: Weights of the steps [S, Q].

    Returns:
        Outputs of steps, trajectory and final sample [..., S + 2, Q].
    """
    steps, final_sample = outputs[..., :-1, :], outputs[..., -1:, :]
    return np.concatenate([steps, (steps * weights).mean(-2, keepdims=True), final_sample], -2)
