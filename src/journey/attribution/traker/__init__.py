"""Journey-TRAK by `trak.TRAKer`, for anyone who doubts ours: the models, images, draws and λ are those of `method=journey`;
gradients, projection, kernel and solve are its own, in fp32.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from journey.engine.checks import require, require_count
from journey.engine.spec import Spec
from journey.engine.workspace import Workspace, get
from journey.pipeline.interfaces import Experiment, Inputs, Method, Model, Sample, Score, Train
from journey.pipeline.settings import (
    DampingUnit,
    GradientSettings,
)


@dataclass(frozen=True)
class TrakerScores(Spec):
    """The scores that `trak.TRAKer` gives training images under one model."""

    stage: ClassVar[str] = "traker"
    maker: ClassVar[str] = "journey.attribution.traker.stage:make_traker_scores"
    folder: ClassVar[str] = "traker"
    version: ClassVar[int] = 1
    checkpoint: Train
    trajectories: Sample
    steps: tuple[int, ...]
    num_samples: int
    noise_set: int
    stratified: bool
    antithetic: bool
    projection_dim: int
    damping: tuple[float, ...]
    damping_unit: DampingUnit
    seed: int

    @property
    def label(self) -> str:
        return self.checkpoint.label

    @property
    def num_queries(self) -> int:
        """Of all steps together."""
        return self.trajectories.num_queries * len(self.steps)

    @property
    def num_rows(self) -> int:
        return self.checkpoint.images.num_train + self.num_queries

    @property
    def work(self) -> float:
        return 3.0 * self.num_rows * self.num_samples * self.checkpoint.forward

    @property
    def size(self) -> int:
        return 4 * len(self.damping) * self.num_queries * self.checkpoint.images.num_train


LEAST_DIM = (
    101  # traker 0.3.2 loses the matrix of a projection to 100 dimensions or fewer before it scores
)


@dataclass(frozen=True)
class TrakerInputs(Inputs):
    """What the scores of `traker` are computed from."""

    scores: tuple[TrakerScores, ...]  # [checkpoint]


@dataclass
class TrakerMethod(Method):
    """Its fields are those of `Attribution` that mean something to it."""

    name: ClassVar[str] = "traker"
    in_units_of_output: ClassVar[bool] = (
        False  # TRAKer divides every inverse kernel by the mean of its entries
    )
    num_checkpoints: int = GradientSettings.num_checkpoints
    first_checkpoint: int = GradientSettings.first_checkpoint
    num_samples: int = GradientSettings.num_samples
    noise_set: int = GradientSettings.noise_set
    stratified: bool = GradientSettings.stratified
    antithetic: bool = GradientSettings.antithetic
    projection_dim: int = GradientSettings.projection_dim
    damping: list[float] = field(default_factory=lambda: GradientSettings().damping)
    damping_unit: DampingUnit = GradientSettings.damping_unit

    def check(self, where: str) -> None:
        GradientSettings(**vars(self)).check(where)
        require_count(f"{where}.projection_dim", self.projection_dim, least=LEAST_DIM)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require_count(f"{where}.num_samples", self.num_samples, most=model.num_timesteps)

    def candidates(self) -> list[dict[str, float]]:
        return [{"damping": value} for value in self.damping]

    def needs(self, experiment: Experiment) -> TrakerInputs:
        """scores: [checkpoint]."""
        asked = experiment.guidance == 1
        require(
            asked,
            "sampling.guided_outputs",
            "true",
            "false with method=traker, which attributes the prediction as it is",
        )
        repeats = range(self.first_checkpoint, self.first_checkpoint + self.num_checkpoints)
        return TrakerInputs(scores=tuple(self._traker(experiment, repeat) for repeat in repeats))

    def _traker(self, experiment: Experiment, repeat: int) -> TrakerScores:
        return TrakerScores(
            checkpoint=experiment.checkpoint(repeat),
            trajectories=experiment.trajectories,
            steps=experiment.steps,
            num_samples=self.num_samples,
            noise_set=self.noise_set,
            stratified=self.stratified,
            antithetic=self.antithetic,
            projection_dim=self.projection_dim,
            damping=tuple(self.damping),
            damping_unit=self.damping_unit,
            seed=experiment.seed,
        )

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        """The mean over checkpoints, as `TRAKer.finalize_scores` takes it."""
        for made in spec.inputs_as(TrakerInputs).scores:
            out += get(made, workspace).array("scores.npy").reshape(out.shape) / len(
                spec.inputs_as(TrakerInputs).scores
            )
        return {}
