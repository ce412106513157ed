"""Attribution by unlearning (Wang et al. 2024): how much each training image's loss rises when the model forgets the query."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from journey.attribution.gradient import EKFACFactors
from journey.engine.checks import MOST_MODELS, require_candidates, require_count
from journey.engine.spec import Spec, omitted_default
from journey.engine.workspace import Precision, Workspace, get
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
    Target,
)


@dataclass(frozen=True)
class Unlearn(Spec):
    """How much every training image's loss rises when one model forgets each query."""

    stage: ClassVar[str] = "unlearn"
    maker: ClassVar[str] = "journey.attribution.unlearning.stage:make_unlearning"
    folder: ClassVar[str] = "unlearned"
    version: ClassVar[int] = 3
    checkpoint: Train
    curvature: EKFACFactors
    trajectories: Sample
    steps: tuple[int, ...] | None  # None: the destinations
    num_samples: int
    precision: Precision
    damping: float
    rise: tuple[float, ...]
    seed: int
    guidance: float = omitted_default(1.0)  # of the queries' prediction

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-{'destination' if self.steps is None else 'step'}"

    @property
    def num_queries(self) -> int:
        """Of all steps together."""
        return self.trajectories.num_queries * len(self.steps or (0,))

    @property
    def work(self) -> float:
        return (
            self.num_queries
            * len(self.rise)
            * self.checkpoint.images.num_train
            * self.num_samples
            * self.checkpoint.forward
        )

    @property
    def size(self) -> int:
        return 4 * len(self.rise) * self.num_queries * self.checkpoint.images.num_train


@dataclass(frozen=True)
class UnlearningInputs(Inputs):
    """What the scores of `unlearning` are computed from."""

    increases: tuple[Unlearn, ...]  # [checkpoint]
    reference: Measure | None  # outputs that a trajectory weights its steps by


@dataclass
class Unlearning(Method):
    name: ClassVar[str] = "unlearning"
    target: Target = Target.step
    num_checkpoints: int = 1
    num_samples: int = 16
    precision: Precision = Precision.fp32
    damping: float = 0.01  # of the Fisher matrix, relative to its mean eigenvalue
    rise: list[float] = field(
        default_factory=lambda: [0.1, 1.0]
    )  # of the query's loss, to first order, relative: candidates

    def check(self, where: str) -> None:
        require_count(f"{where}.num_checkpoints", self.num_checkpoints, most=MOST_MODELS)
        require_candidates(f"{where}.damping", [self.damping])
        require_candidates(f"{where}.rise", self.rise)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require_count(f"{where}.num_samples", self.num_samples, most=model.num_timesteps)

    def candidates(self) -> list[dict[str, float]]:
        return [{"rise": value} for value in self.rise]

    def needs(self, experiment: Experiment) -> UnlearningInputs:
        """rises: [checkpoint]; full: what a trajectory's steps are weighted by."""
        full = experiment.reference_outputs if self.target is Target.trajectory else None
        return UnlearningInputs(
            increases=tuple(
                self._unlearn(experiment, repeat) for repeat in range(self.num_checkpoints)
            ),
            reference=full,
        )

    def _unlearn(self, experiment: Experiment, repeat: int) -> Unlearn:
        checkpoint = experiment.checkpoint(repeat)
        return Unlearn(
            checkpoint=checkpoint,
            curvature=EKFACFactors(checkpoint, self.precision, experiment.seed),
            trajectories=experiment.trajectories,
            steps=None if self.target is Target.final_sample else experiment.steps,
            num_samples=self.num_samples,
            precision=self.precision,
            damping=self.damping,
            rise=tuple(self.rise),
            seed=experiment.seed,
            guidance=experiment.guidance,
        )

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        """The mean over checkpoints; of a trajectory, over its steps too."""
        from journey.attribution.targets import step_weights

        weights = step_weights(
            spec.inputs_as(UnlearningInputs).reference, spec.trajectories, spec.steps, workspace
        )
        for unlearned in spec.inputs_as(UnlearningInputs).increases:
            rises = (
                get(unlearned, workspace).array("rises.npy").reshape(len(out), -1, *out.shape[2:])
            )  # [rise, S, Q, N]
            mean = (
                (rises * weights[..., None]).mean(1, keepdims=True)
                if self.target is Target.trajectory
                else rises
            )
            out += mean / len(spec.inputs_as(UnlearningInputs).increases)
        return {}
