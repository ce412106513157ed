"""Scores drawn from N(0, 1): the floor every method is compared with."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from journey.artifacts.specs import Score
from journey.artifacts.workspace import Workspace
from journey.config.contracts import Method
from journey.seeding import numpy_generator


@dataclass
class Random(Method):
    kind: ClassVar[str] = "random"
    in_units_of_output: ClassVar[bool] = False

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        out[:] = numpy_generator(spec.seed, "random scores").standard_normal(out.shape)
        return {}
