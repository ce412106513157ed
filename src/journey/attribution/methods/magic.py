"""MAGIC (Ilyas and Engstrom 2025): the exact gradient of an output by each training image's weight, through the whole training.

Every query at every step costs two trainings: an oracle for small models.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Metagradient, Sample, Score, Train
from journey.artifacts.workspace import Workspace, get
from journey.config.checks import MOST_MODELS, require, require_count
from journey.config.contracts import ImageSet, Method, Model
from journey.config.groups import At, Attribution, Precision

MOST_WORK = 1e15  # multiply-adds, as specs count them: a day of one core


@dataclass
class Magic(Method):
    kind: ClassVar[str] = "magic"
    at: At = At.step
    num_checkpoints: int = 1
    first_checkpoint: int = Attribution.first_checkpoint
    num_draws: int = Attribution.num_draws  # of each output; next to the way back, they cost nothing

    def check(self, where: str) -> None:
        require_count(f"{where}.num_checkpoints", self.num_checkpoints, most=MOST_MODELS)
        require_count(f"{where}.first_checkpoint", self.first_checkpoint, least=0, most=MOST_MODELS)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require_count(f"{where}.num_draws", self.num_draws, most=model.num_timesteps)
        require(not model.checkpoints, where, "magic", "left out: how model.checkpoints were trained is not known")

    def check_data(self, where: str, journeys: Sample, images: ImageSet) -> None:
        of, made = journeys.checkpoint, self._metagradients(journeys.checkpoint, journeys, 1.0)
        decay, precision = of.training.ema_decay, of.precision
        require(decay == 0, "training.ema_decay", decay, f"0 with {where}, which asks the last weights")
        require(precision is Precision.fp32, "compute.precision", precision.value, f"fp32 with {where}, which is exact")
        work = self.num_checkpoints * sum(spec.work for spec in made)
        through = f"{of.training.num_steps:,} training steps and back for {len(made) * journeys.num_queries} outputs"
        allowed = f"at most {MOST_WORK:.0e}: fewer sampling.steps or queries, or less training, of a smaller model"
        require(work <= MOST_WORK, where, f"{work:.0e} multiply-adds ({through})", allowed)

    def needs(self, recipes: Recipes) -> dict[str, object]:
        """scores: [checkpoint][step, or one for destinations]; full: what a trajectory's steps are weighted by."""
        checkpoints = [recipes.trained(self.first_checkpoint + k) for k in range(self.num_checkpoints)]
        made = tuple(self._metagradients(checkpoint, recipes.journeys, recipes.guidance) for checkpoint in checkpoints)
        return {"scores": made, "full": recipes.full_outputs if self.at is At.trajectory else None}

    def _metagradients(self, checkpoint: Train, journeys: Sample, guidance: float) -> tuple[Metagradient, ...]:
        steps = (None,) if self.at is At.destination else journeys.steps
        return tuple(Metagradient(checkpoint, journeys, step, self.num_draws, journeys.seed, guidance) for step in steps)

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        """The mean over checkpoints; of a trajectory, over its steps too."""
        from journey.attribution.targets import step_weights

        weights = step_weights(spec.needs["full"], spec.journeys, spec.steps, workspace)
        for made in spec.needs["scores"]:
            scores = np.stack([get(of_step, workspace).array("scores.npy") for of_step in made])  # [S, Q, N]
            mean = (scores * weights[..., None]).mean(0, keepdims=True) if self.at is At.trajectory else scores
            out[0] += mean / len(spec.needs["scores"])
        return {}
