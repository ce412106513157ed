"""MAGIC (Ilyas and Engstrom 2025): the exact gradient of an output by each training image's weight, through the whole training.

Every query at every step costs two trainings: an oracle for small models.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

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
from journey.pipeline.settings import (
    GradientSettings,
    Target,
)


@dataclass(frozen=True)
class Metagradient(Spec):
    """How much leaving each training image out raises every query's output, to first order, through all of the training."""

    stage: ClassVar[str] = "metagradient"
    maker: ClassVar[str] = "journey.attribution.magic.stage:make_metagradients"
    folder: ClassVar[str] = "metagradients"
    version: ClassVar[int] = 1
    checkpoint: Train
    trajectories: Sample
    step: int | None  # None: the destinations
    num_samples: int
    seed: int
    guidance: float = omitted_default(1.0)  # of the queries' prediction

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-{'destination' if self.step is None else f't{self.step}'}"

    @property
    def work(self) -> float:
        """Twice there, and once back for each query, at the cost of two."""
        return 2.0 * (1 + self.trajectories.num_queries) * self.checkpoint.work

    @property
    def size(self) -> int:
        return 4 * self.trajectories.num_queries * self.checkpoint.images.num_train


MOST_WORK = 1e15  # multiply-adds, as specs count them: a day of one core


@dataclass(frozen=True)
class MagicInputs(Inputs):
    """What the scores of `magic` are computed from."""

    scores: tuple[tuple[Metagradient, ...], ...]  # [checkpoint][step, or one for final samples]
    reference: Measure | None  # outputs that a trajectory weights its steps by


@dataclass
class Magic(Method):
    name: ClassVar[str] = "magic"
    target: Target = Target.step
    num_checkpoints: int = 1
    first_checkpoint: int = GradientSettings.first_checkpoint
    num_samples: int = (
        GradientSettings.num_samples
    )  # of each output; next to the way back, they cost nothing

    def check(self, where: str) -> None:
        require_count(f"{where}.num_checkpoints", self.num_checkpoints, most=MOST_MODELS)
        require_count(f"{where}.first_checkpoint", self.first_checkpoint, least=0, most=MOST_MODELS)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require_count(f"{where}.num_samples", self.num_samples, most=model.num_timesteps)
        require(
            not model.checkpoints,
            where,
            "magic",
            "left out: how model.checkpoints were trained is not known",
        )

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        of, made = (
            trajectories.checkpoint,
            self._metagradients(trajectories.checkpoint, trajectories, 1.0),
        )
        decay, precision = of.training.ema_decay, of.precision
        require(
            decay == 0, "training.ema_decay", decay, f"0 with {where}, which asks the last weights"
        )
        require(
            precision is Precision.fp32,
            "compute.precision",
            precision.value,
            f"fp32 with {where}, which is exact",
        )
        work = self.num_checkpoints * sum(spec.work for spec in made)
        through = f"{of.training.num_steps:,} training steps and back for {len(made) * trajectories.num_queries} outputs"
        allowed = f"at most {MOST_WORK:.0e}: fewer sampling.steps or queries, or less training, of a smaller model"
        require(work <= MOST_WORK, where, f"{work:.0e} multiply-adds ({through})", allowed)

    def needs(self, experiment: Experiment) -> MagicInputs:
        """scores: [checkpoint][step, or one for destinations]; full: what a trajectory's steps are weighted by."""
        checkpoints = [
            experiment.checkpoint(self.first_checkpoint + k) for k in range(self.num_checkpoints)
        ]
        made = tuple(
            self._metagradients(checkpoint, experiment.trajectories, experiment.guidance)
            for checkpoint in checkpoints
        )
        return MagicInputs(
            scores=made,
            reference=experiment.reference_outputs if self.target is Target.trajectory else None,
        )

    def _metagradients(
        self, checkpoint: Train, trajectories: Sample, guidance: float
    ) -> tuple[Metagradient, ...]:
        steps = (None,) if self.target is Target.final_sample else trajectories.steps
        return tuple(
            Metagradient(
                checkpoint, trajectories, step, self.num_samples, trajectories.seed, guidance
            )
            for step in steps
        )

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        """The mean over checkpoints; of a trajectory, over its steps too."""
        from journey.attribution.targets import step_weights

        weights = step_weights(
            spec.inputs_as(MagicInputs).reference, spec.trajectories, spec.steps, workspace
        )
        for made in spec.inputs_as(MagicInputs).scores:
            scores = np.stack(
                [get(of_step, workspace).array("scores.npy") for of_step in made]
            )  # [S, Q, N]
            mean = (
                (scores * weights[..., None]).mean(0, keepdims=True)
                if self.target is Target.trajectory
                else scores
            )
            out[0] += mean / len(spec.inputs_as(MagicInputs).scores)
        return {}
