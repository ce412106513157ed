"""Cosine similarity between the query's x̂0_t and a training example."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from journey.artifacts.specs import Score
from journey.artifacts.workspace import Workspace
from journey.config.contracts import Method
from journey.data import train_images


@dataclass
class Pixel(Method):
    kind: ClassVar[str] = "pixel"
    in_units_of_output: ClassVar[bool] = False

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution import cosine
        from journey.diffusion.journeys import at_steps

        train = spec.journeys.checkpoint.model.encode(train_images(spec.images, workspace)).x0
        out[:] = cosine.score(train.numpy(), at_steps("x0_hat", spec.journeys, spec.steps, workspace).numpy())
        return {}
