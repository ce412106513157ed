"""Cosine similarity of the query's x̂0_t and of a training image as latents."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from journey.artifacts.specs import Score
from journey.artifacts.workspace import Workspace
from journey.config.contracts import Method


@dataclass
class Latent(Method):
    kind: ClassVar[str] = "latent"
    in_units_of_output: ClassVar[bool] = False
    needs_latents: ClassVar[bool] = True

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution import cosine
        from journey.diffusion.journeys import at_steps, train_examples

        train = train_examples(spec.journeys.checkpoint, workspace).x0
        out[:] = cosine.score(train.numpy(), at_steps("x0_hat", spec.journeys, spec.steps, workspace).numpy())
        return {}
