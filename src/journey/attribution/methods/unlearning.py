"""Attribution by unlearning (Wang et al. 2024): how much each training image's loss rises when the model forgets the query."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Curvature, Score, Unlearn
from journey.artifacts.workspace import Workspace, get
from journey.config.checks import MOST_MODELS, require_candidates, require_count
from journey.config.contracts import Method, Model
from journey.config.groups import At, Precision


@dataclass
class Unlearning(Method):
    kind: ClassVar[str] = "unlearning"
    at: At = At.step
    num_checkpoints: int = 1
    num_draws: int = 16
    precision: Precision = Precision.fp32
    damping: float = 0.01  # of the Fisher matrix, relative to its mean eigenvalue
    rise: list[float] = field(default_factory=lambda: [0.1, 1.0])  # of the query's loss, to first order, relative: candidates

    def check(self, where: str) -> None:
        require_count(f"{where}.num_checkpoints", self.num_checkpoints, most=MOST_MODELS)
        require_candidates(f"{where}.damping", [self.damping])
        require_candidates(f"{where}.rise", self.rise)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require_count(f"{where}.num_draws", self.num_draws, most=model.num_timesteps)

    def candidates(self) -> list[dict[str, float]]:
        return [{"rise": value} for value in self.rise]

    def needs(self, recipes: Recipes) -> dict[str, object]:
        """rises: [checkpoint]; full: what a trajectory's steps are weighted by."""
        full = recipes.full_outputs if self.at is At.trajectory else None
        return {"rises": tuple(self._unlearn(recipes, repeat) for repeat in range(self.num_checkpoints)), "full": full}

    def _unlearn(self, recipes: Recipes, repeat: int) -> Unlearn:
        checkpoint = recipes.trained(repeat)
        return Unlearn(
            checkpoint=checkpoint,
            curvature=Curvature(checkpoint, self.precision, recipes.seed),
            journeys=recipes.journeys,
            steps=None if self.at is At.destination else recipes.steps,
            num_draws=self.num_draws,
            precision=self.precision,
            damping=self.damping,
            rise=tuple(self.rise),
            seed=recipes.seed,
            guidance=recipes.guidance,
        )

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        """The mean over checkpoints; of a trajectory, over its steps too."""
        from journey.attribution.targets import step_weights

        weights = step_weights(spec.needs["full"], spec.journeys, spec.steps, workspace)
        for unlearned in spec.needs["rises"]:
            rises = get(unlearned, workspace).array("rises.npy").reshape(len(out), -1, *out.shape[2:])  # [rise, S, Q, N]
            mean = (rises * weights[..., None]).mean(1, keepdims=True) if self.at is At.trajectory else rises
            out += mean / len(spec.needs["rises"])
        return {}
