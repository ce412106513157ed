"""MAGIC (Ilyas and Engstrom 2025): the exact gradient of an output by each training image's weight.

It goes back through the whole training, which costs two trainings for each query and step. So it is
an oracle for small models.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from journey.attribution.targets import step_weights
from journey.engine.checks import MOST_MODELS, require, require_count
from journey.engine.spec import Spec, omitted_default
from journey.engine.workspace import Precision, Workspace, get
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    Experiment,
    Inputs,
    Measure,
    Method,
    Model,
    Sample,
    Score,
    Train,
)
from journey.pipeline.settings import GradientSettings, Target, setting

MOST_WORK = 1e15  # multiply-adds, as specs count them: a day of one core


@dataclass(frozen=True)
class MagicScores(Spec):
    """The first-order effect of removing each training image on every query's output."""

    stage: ClassVar[str] = "magic"
    maker: ClassVar[str] = "journey.attribution.magic.stage:make_magic_scores"
    folder: ClassVar[str] = "magic"
    version: ClassVar[int] = 1
    checkpoint: Train
    trajectories: Sample
    step: int | None  # None: the final samples
    num_samples: int
    seed: int
    guidance: float = omitted_default(1.0)  # of the prediction whose loss is a query's output

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-{'final' if self.step is None else f't{self.step}'}"

    @property
    def work(self) -> float:
        # Two trainings forward and, at the cost of two, one back for each query.
        return 2.0 * (1 + self.trajectories.num_queries) * self.checkpoint.work

    @property
    def size(self) -> int:
        return 4 * self.trajectories.num_queries * self.checkpoint.images.num_train


@dataclass(frozen=True)
class MagicInputs(Inputs):
    """The artifacts that the scores are computed from."""

    scores: tuple[tuple[MagicScores, ...], ...]  # [checkpoint][step, or one for final samples]
    reference: Measure | None  # the full model's outputs, by which a trajectory weights its steps


@dataclass
class Magic(Method):
    """The exact metagradient of the training."""

    name: ClassVar[str] = "magic"
    target: Target = setting(Target.step, "Attribute this output of a query.")
    num_checkpoints: int = setting(
        1, "Average scores over this many checkpoints.", least=1, most=MOST_MODELS
    )
    first_checkpoint: int = setting(
        GradientSettings.first_checkpoint, "Begin with this checkpoint.", least=0, most=MOST_MODELS
    )
    num_samples: int = setting(
        GradientSettings.num_samples, "Average each output over this many noise samples."
    )

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require_count(f"{where}.num_samples", self.num_samples, most=model.num_timesteps)
        allowed = "left out: how model.checkpoints were trained is unknown"
        require(not model.checkpoints, where, "magic", allowed)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        checkpoint = trajectories.checkpoint
        decay, precision = checkpoint.training.ema_decay, checkpoint.precision
        allowed = f"0 with {where}, which differentiates the last weights"
        require(decay == 0, "training.ema_decay", decay, allowed)
        exact = precision is Precision.fp32
        require(exact, "compute.precision", precision.value, f"fp32 with {where}, which is exact")
        specs = self._scores(checkpoint, trajectories, 1.0)
        work = self.num_checkpoints * sum(spec.work for spec in specs)
        num_steps, num_outputs = (
            checkpoint.training.num_steps,
            len(specs) * trajectories.num_queries,
        )
        course = f"{num_steps:,} training steps and back for {num_outputs} outputs"
        value = f"{work:.0e} multiply-adds ({course})"
        advice = "use fewer sampling.steps or queries, shorter training or a smaller model"
        require(work <= MOST_WORK, where, value, f"at most {MOST_WORK:.0e}; {advice}")

    def needs(self, experiment: Experiment) -> MagicInputs:
        scores, trajectories = [], experiment.trajectories
        for index in range(self.first_checkpoint, self.first_checkpoint + self.num_checkpoints):
            checkpoint = experiment.checkpoint(index)
            scores.append(self._scores(checkpoint, trajectories, experiment.guidance))
        whole = self.target is Target.trajectory
        return MagicInputs(tuple(scores), experiment.reference_outputs if whole else None)

    def _scores(
        self, checkpoint: Train, trajectories: Sample, guidance: float
    ) -> tuple[MagicScores, ...]:
        steps = (None,) if self.target is Target.final_sample else trajectories.steps
        shared = (self.num_samples, trajectories.seed, guidance)
        return tuple(MagicScores(checkpoint, trajectories, step, *shared) for step in steps)

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        inputs = spec.inputs_as(MagicInputs)
        weights = step_weights(inputs.reference, spec.trajectories, spec.steps, workspace)
        for by_step in inputs.scores:
            scores = np.stack([get(s, workspace).array("scores.npy") for s in by_step])  # [S, Q, N]
            if self.target is Target.trajectory:
                scores = (scores * weights[..., None]).mean(0, keepdims=True)
            out[0] += scores / len(inputs.scores)
        return {}
