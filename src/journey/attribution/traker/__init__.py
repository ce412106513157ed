"""Journey-TRAK by `trak.TRAKer`: an independent check of our implementation.

Models, images, noise samples and λ are those of `method=journey`. Gradients, projection, kernel and
solve are TRAKer's own, in fp32.
"""

from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np

from journey.engine.checks import require, require_count
from journey.engine.spec import Spec
from journey.engine.workspace import Workspace, get
from journey.pipeline.interfaces import Experiment, Inputs, Method, Model, Sample, Score, Train
from journey.pipeline.settings import DampingUnit, FeatureSettings, GradientSettings

LEAST_DIM = 101  # traker 0.3.2 loses projection matrices of 100 dimensions or fewer


@dataclass(frozen=True)
class TrakerScores(Spec):
    """The scores of `trak.TRAKer` under one model."""

    stage: ClassVar[str] = "traker"
    maker: ClassVar[str] = "journey.attribution.traker.stage:make_traker_scores"
    folder: ClassVar[str] = "traker"
    version: ClassVar[int] = 1
    checkpoint: Train
    trajectories: Sample
    steps: tuple[int, ...]
    settings: FeatureSettings
    damping: tuple[float, ...]
    damping_unit: DampingUnit
    seed: int

    @property
    def label(self) -> str:
        return self.checkpoint.label

    @property
    def num_queries(self) -> int:
        """Return the number of queries at all steps together."""
        return self.trajectories.num_queries * len(self.steps)

    @property
    def num_gradients(self) -> int:
        """Return the number of gradients, one for each noise sample of each example."""
        num_examples = self.checkpoint.images.num_train + self.num_queries
        return num_examples * self.settings.num_samples

    @property
    def work(self) -> float:
        return 3.0 * self.num_gradients * self.checkpoint.forward

    @property
    def size(self) -> int:
        return 4 * len(self.damping) * self.num_queries * self.checkpoint.images.num_train


@dataclass(frozen=True)
class TrakerInputs(Inputs):
    """The artifacts that the scores are computed from."""

    scores: tuple[TrakerScores, ...]  # [checkpoint]


@dataclass
class TrakerMethod(Method):
    """The scores of `trak.TRAKer`. The fields are those gradient settings that it can honour."""

    name: ClassVar[str] = "traker"
    # TRAKer divides every inverse kernel by the mean of its entries.
    in_units_of_output: ClassVar[bool] = False
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
        allowed = "false with method=traker, which attributes the unguided prediction"
        require(experiment.guidance == 1, "sampling.guided_outputs", "true", allowed)
        names = {f.name for f in fields(FeatureSettings)} & set(vars(self))
        settings = FeatureSettings(**{name: getattr(self, name) for name in names})
        scores = []
        for index in range(self.first_checkpoint, self.first_checkpoint + self.num_checkpoints):
            spec = TrakerScores(
                checkpoint=experiment.checkpoint(index),
                trajectories=experiment.trajectories,
                steps=experiment.steps,
                settings=settings,
                damping=tuple(self.damping),
                damping_unit=self.damping_unit,
                seed=experiment.seed,
            )
            scores.append(spec)
        return TrakerInputs(scores=tuple(scores))

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        # The mean over checkpoints, as `TRAKer.finalize_scores` takes it.
        inputs = spec.inputs_as(TrakerInputs)
        for checkpoint_scores in inputs.scores:
            scores = get(checkpoint_scores, workspace).array("scores.npy")
            out += scores.reshape(out.shape) / len(inputs.scores)
        return {}
