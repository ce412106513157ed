"""A user's method: python user_method.py experiment=smoke 'method=[journey,mine]'"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import journey

SIGN = -1


@dataclass
class Mine(journey.Method):
    """The closeness of a training image to a query's x̂0_t."""

    name: ClassVar[str] = "mine"
    power: float = 2.0

    def score(self, out, spec, workspace):
        from journey.diffusion.trajectories import train_examples, trajectory_at

        images = train_examples(spec.trajectories.checkpoint, workspace).x0.flatten(1)  # [N, D]
        x0_hat = trajectory_at("x0_hat", spec.trajectories, spec.steps, workspace)
        differences = x0_hat.flatten(2)[:, :, None] - images  # [S, Q, N, D]
        out[0] = SIGN * differences.abs().pow(self.power).sum(-1).numpy()
        return {"mean_distance": float(np.abs(out).mean())}


if __name__ == "__main__":
    journey.main([Mine])
