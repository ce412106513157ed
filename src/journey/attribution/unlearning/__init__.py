"""Attribution by unlearning (Wang et al. 2024): whose loss increases when a query is unlearned."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from journey.attribution.gradient import EKFACFactors
from journey.attribution.targets import step_weights
from journey.engine.checks import LAMBDA, MOST_MODELS, require_count
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
from journey.pipeline.settings import Target, setting


@dataclass(frozen=True)
class LossIncreases(Spec):
    """The increase of every training image's loss when one model unlearns each query."""

    stage: ClassVar[str] = "unlearning"
    maker: ClassVar[str] = "journey.attribution.unlearning.stage:make_loss_increases"
    folder: ClassVar[str] = "unlearning"
    version: ClassVar[int] = 3
    checkpoint: Train
    curvature: EKFACFactors
    trajectories: Sample
    steps: tuple[int, ...] | None  # None: the final samples
    num_samples: int
    precision: Precision
    damping: float
    rise: tuple[float, ...]
    seed: int
    guidance: float = omitted_default(1.0)  # of the prediction whose loss is a query's output

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-{'final' if self.steps is None else 'step'}"

    @property
    def num_queries(self) -> int:
        """Return the number of queries at all steps together."""
        return self.trajectories.num_queries * len(self.steps or (0,))

    @property
    def size(self) -> int:
        return 4 * len(self.rise) * self.num_queries * self.checkpoint.images.num_train

    @property
    def work(self) -> float:
        num_losses = len(self.rise) * self.num_queries * self.checkpoint.images.num_train
        return num_losses * self.num_samples * self.checkpoint.forward


@dataclass(frozen=True)
class UnlearningInputs(Inputs):
    """The artifacts that the scores are computed from."""

    increases: tuple[LossIncreases, ...]  # [checkpoint]
    reference: Measure | None  # the full model's outputs, by which a trajectory weights its steps


@dataclass
class Unlearning(Method):
    """The increase of a training image's loss when the model unlearns the query."""

    name: ClassVar[str] = "unlearning"
    target: Target = setting(Target.step, "Attribute this output of a query.")
    num_checkpoints: int = setting(
        1, "Average scores over this many checkpoints.", least=1, most=MOST_MODELS
    )
    num_samples: int = setting(4, "Average each loss over this many noise samples.")
    precision: Precision = setting(Precision.fp32, "Compute losses and gradients in this.")
    damping: float = setting(
        0.01, "Add this λ, relative to the mean eigenvalue of G.", least=LAMBDA[0], most=LAMBDA[1]
    )
    rise: list[float] = setting(
        [0.1],
        "Raise the query's output by each of these fractions, to first order.",
        least=LAMBDA[0],
        most=LAMBDA[1],
    )

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require_count(f"{where}.num_samples", self.num_samples, most=model.num_timesteps)

    def candidates(self) -> list[dict[str, float]]:
        return [{"rise": value} for value in self.rise]

    def needs(self, experiment: Experiment) -> UnlearningInputs:
        increases = []
        for index in range(self.num_checkpoints):
            checkpoint = experiment.checkpoint(index)
            spec = LossIncreases(
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
            increases.append(spec)
        whole = self.target is Target.trajectory
        return UnlearningInputs(tuple(increases), experiment.reference_outputs if whole else None)

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        inputs = spec.inputs_as(UnlearningInputs)
        weights = step_weights(inputs.reference, spec.trajectories, spec.steps, workspace)
        for increases in inputs.increases:
            scores = get(increases, workspace).array("increases.npy")
            scores = scores.reshape(len(out), -1, *out.shape[2:])  # [rise, S, Q, N]
            if self.target is Target.trajectory:
                scores = (scores * weights[..., None]).mean(1, keepdims=True)
            out += scores / len(inputs.increases)
        return {}
