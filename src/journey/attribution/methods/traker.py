"""Journey-TRAK by `trak.TRAKer`, for anyone who doubts ours: the models, images, draws and λ are those of `method=journey`;
gradients, projection, kernel and solve are its own, in fp32.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Score, Traker
from journey.artifacts.workspace import Workspace, get
from journey.config.checks import require, require_count
from journey.config.contracts import Method, Model
from journey.config.groups import Attribution, DampingUnit

LEAST_DIM = 101  # traker 0.3.2 loses the matrix of a projection to 100 dimensions or fewer before it scores


@dataclass
class TrakerMethod(Method):
    """Its fields are those of `Attribution` that mean something to it."""

    kind: ClassVar[str] = "traker"
    in_units_of_output: ClassVar[bool] = False  # TRAKer divides every inverse kernel by the mean of its entries
    num_checkpoints: int = Attribution.num_checkpoints
    first_checkpoint: int = Attribution.first_checkpoint
    num_draws: int = Attribution.num_draws
    redraw: int = Attribution.redraw
    stratified: bool = Attribution.stratified
    antithetic: bool = Attribution.antithetic
    projection_dim: int = Attribution.projection_dim
    damping: list[float] = field(default_factory=lambda: Attribution().damping)
    damping_unit: DampingUnit = Attribution.damping_unit

    def check(self, where: str) -> None:
        Attribution(**vars(self)).check(where)
        require_count(f"{where}.projection_dim", self.projection_dim, least=LEAST_DIM)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require_count(f"{where}.num_draws", self.num_draws, most=model.num_timesteps)

    def candidates(self) -> list[dict[str, float]]:
        return [{"damping": value} for value in self.damping]

    def needs(self, recipes: Recipes) -> dict[str, object]:
        """scores: [checkpoint]."""
        asked = recipes.guidance == 1
        require(asked, "sampling.judge_guided", "true", "false with method=traker, which attributes the prediction as it is")
        repeats = range(self.first_checkpoint, self.first_checkpoint + self.num_checkpoints)
        return {"scores": tuple(self._traker(recipes, repeat) for repeat in repeats)}

    def _traker(self, recipes: Recipes, repeat: int) -> Traker:
        return Traker(
            checkpoint=recipes.trained(repeat),
            journeys=recipes.journeys,
            steps=recipes.steps,
            num_draws=self.num_draws,
            redraw=self.redraw,
            stratified=self.stratified,
            antithetic=self.antithetic,
            projection_dim=self.projection_dim,
            damping=tuple(self.damping),
            damping_unit=self.damping_unit,
            seed=recipes.seed,
        )

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        """The mean over checkpoints, as `TRAKer.finalize_scores` takes it."""
        for made in spec.needs["scores"]:
            out += get(made, workspace).array("scores.npy").reshape(out.shape) / len(spec.needs["scores"])
        return {}
