"""What of a query is judged: its output at each step, their weighted mean, and the output of its final image."""

import numpy as np

from journey.engine.workspace import Workspace, get
from journey.pipeline.interfaces import Measure, Sample

STEP, TRAJECTORY, FINAL_SAMPLE = "step", "trajectory", "final_sample"


PAIRED_STEPS = "paired_steps"  # the mean over the steps at which methods are compared


def step_weights(
    full: Measure | None, trajectories: Sample, steps: tuple[int, ...], workspace: Workspace
) -> np.ndarray:
    """What the output of each step counts in that of the trajectory: one over what it is under the full model. [S, Q]

    full: outputs under the full model; None: every step counts 1. The variances of outputs over retrained models differ by
    orders of magnitude between steps; as shares of the output they are alike.

    Raises: ValueError if an output of the full model is not positive.
    """
    if full is None:
        return np.ones((len(steps), trajectories.num_queries))
    of_steps = get(full, workspace).array("outputs.npy").mean(0)[:-1]
    if not (of_steps > 0).all():
        raise ValueError("an output of the full model is zero, so no step can be weighted by it")
    return 1 / of_steps


def with_aggregates(outputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Outputs of steps and destination [..., S + 1, Q] → of all targets [..., S + 2, Q]: steps, trajectory, destination.

    weights: of the steps in the trajectory, [S, Q].
    """
    steps, destination = outputs[..., :-1, :], outputs[..., -1:, :]
    return np.concatenate([steps, (steps * weights).mean(-2, keepdims=True), destination], -2)
