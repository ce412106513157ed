"""Cosine similarity of the pixels of the query's x̂0_t and of a training image."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from journey.artifacts.specs import Score
from journey.artifacts.workspace import Workspace
from journey.config.contracts import Method
from journey.data import as_pixels, train_images


@dataclass
class Pixel(Method):
    kind: ClassVar[str] = "pixel"
    in_units_of_output: ClassVar[bool] = False

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution import cosine
        from journey.diffusion.pictures import pictures

        train = as_pixels(train_images(spec.images, workspace).images)
        out[:] = cosine.score(train.numpy(), pictures(spec.journeys, spec.steps, workspace))
        return {}
