"""Scores from retrained models, none of which judges: datamodels and empirical influence."""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import numpy as np

from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Score
from journey.artifacts.workspace import Workspace, get
from journey.config.checks import MOST_MODELS, require_candidates, require_count
from journey.config.contracts import Method
from journey.config.groups import At


class Estimator(Enum):
    difference = "difference"  # of means of models with and without an image
    ridge = "ridge"  # regression of outputs on subset masks


@dataclass
class Datamodel(Method):
    kind: ClassVar[str] = "datamodel"
    at: At = At.step
    estimator: Estimator = Estimator.ridge
    num_subsets: int = 32
    damping: list[float] = field(default_factory=lambda: [0.1, 1.0, 10.0])  # of the ridge, relative: candidates

    def check(self, where: str) -> None:
        require_count(f"{where}.num_subsets", self.num_subsets, least=2, most=MOST_MODELS)
        require_candidates(f"{where}.damping", self.damping)

    def heeds(self, setting: str) -> bool:
        return setting != "damping" or self.estimator is Estimator.ridge

    def candidates(self) -> list[dict[str, float]]:
        return [{}] if self.estimator is Estimator.difference else [{"damping": value} for value in self.damping]

    def needs(self, recipes: Recipes) -> dict[str, object]:
        """outputs: [subset], of subsets after the ones that judge; full: what a trajectory's steps are weighted by."""
        first = recipes.retraining.num_subsets
        subsets = (recipes.subset(first + i) for i in range(self.num_subsets))
        outputs = tuple(recipes.measured(recipes.trained(0, subset)) for subset in subsets)
        return {"outputs": outputs, "full": recipes.full_outputs if self.at is At.trajectory else None}

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution import datamodels
        from journey.attribution.targets import step_weights, with_aggregates
        from journey.data import subsets, train_images

        labels = train_images(spec.images, workspace).labels
        masks = np.stack([subsets.mask(labels, m.checkpoint.keep) for m in spec.needs["outputs"]])  # [M, N]
        outputs = np.stack([get(m, workspace).array("outputs.npy").mean(0) for m in spec.needs["outputs"]])
        weights = step_weights(spec.needs["full"], spec.journeys, spec.steps, workspace)
        of_target = with_aggregates(outputs, weights)[:, _targets(self.at, len(spec.steps))]  # [M, S or 1, Q]
        match self.estimator:
            case Estimator.difference:
                out[:] = datamodels.difference(masks, of_target)
            case Estimator.ridge:
                out[:] = datamodels.ridge(masks, of_target, self.damping)
        return {}


def _targets(at: At, num_steps: int) -> list[int]:
    """Which rows of steps, trajectory and destination."""
    return {At.step: list(range(num_steps)), At.trajectory: [num_steps], At.destination: [num_steps + 1]}[at]
