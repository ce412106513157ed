"""What of a query is judged: its output at each step, their mean, and the output of its final image."""

import numpy as np

STEP, TRAJECTORY, DESTINATION = "step", "trajectory", "destination"
PAIRED = "paired_steps"  # the mean over the steps at which methods are compared


def with_aggregates(outputs: np.ndarray) -> np.ndarray:
    """Outputs of steps and destination [..., S + 1, Q] → of all targets [..., S + 2, Q]: steps, trajectory, destination."""
    steps, destination = outputs[..., :-1, :], outputs[..., -1:, :]
    return np.concatenate([steps, steps.mean(-2, keepdims=True), destination], -2)
