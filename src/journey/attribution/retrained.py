"""Scores from retrained models, without any gradient.

M  models;  N  training images;  T  outputs of a query, by step or other target;  Q  queries


Scores from retrained models, none of which judges: datamodels and empirical influence."""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import numpy as np

from journey.engine.checks import MOST_MODELS, require_candidates, require_count
from journey.engine.workspace import Workspace, get
from journey.pipeline.interfaces import Experiment, Inputs, Measure, Method, Score
from journey.pipeline.settings import Target


def difference_of_means(masks: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Empirical influence (Feldman and Zhang 2020): mean output of models without an image minus that of those with it.

    masks: bool [M, N]; outputs: [M, T, Q]. Returns [1, T, Q, N].

    Raises: ValueError if an image is in all subsets or in none.
    """
    counts = masks.sum(0)
    if not ((counts > 0) & (counts < len(masks))).all():
        raise ValueError(
            f"an image is in all or none of the {len(masks)} subsets; a larger num_subsets makes that unlikely"
        )
    kept, total = np.einsum("mn,mtq->tqn", masks, outputs), outputs.sum(0)[..., None]
    return ((total - kept) / (len(masks) - counts) - kept / counts)[None]


def ridge_regression(masks: np.ndarray, outputs: np.ndarray, damping: list[float]) -> np.ndarray:
    """Datamodels (Ilyas et al. 2022), with a ridge instead of the lasso: τ = −coefficients. [damping, T, Q, N]

    λ is relative to the mean diagonal of the centred Gram matrix of subsets [M, M], which is what is solved.
    """
    x, y = masks - masks.mean(0), outputs - outputs.mean(0)
    gram = x @ x.T
    mean_diagonal = gram.trace() / len(gram)
    scores = []
    for relative in damping:
        alpha = np.linalg.solve(
            gram + relative * mean_diagonal * np.eye(len(gram)), y.reshape(len(y), -1)
        )
        scores.append(-(alpha.T @ x).reshape(*y.shape[1:], -1))
    return np.stack(scores)


class Estimator(Enum):
    difference = "difference"  # of means of models with and without an image
    ridge = "ridge"  # regression of outputs on subset masks


@dataclass(frozen=True)
class RetrainedInputs(Inputs):
    """What the scores of `retrained` are computed from."""

    outputs: tuple[Measure, ...]  # [subset]: none of the subsets that the evaluation uses
    reference: Measure | None  # outputs that a trajectory weights its steps by


@dataclass
class Datamodel(Method):
    name: ClassVar[str] = "datamodel"
    target: Target = Target.step
    estimator: Estimator = Estimator.ridge
    num_subsets: int = 32
    damping: list[float] = field(
        default_factory=lambda: [0.1, 1.0, 10.0]
    )  # of the ridge, relative: candidates

    def check(self, where: str) -> None:
        require_count(f"{where}.num_subsets", self.num_subsets, least=2, most=MOST_MODELS)
        require_candidates(f"{where}.damping", self.damping)

    def depends_on(self, setting: str) -> bool:
        return setting != "damping" or self.estimator is Estimator.ridge

    def candidates(self) -> list[dict[str, float]]:
        return (
            [{}]
            if self.estimator is Estimator.difference
            else [{"damping": value} for value in self.damping]
        )

    def needs(self, experiment: Experiment) -> RetrainedInputs:
        """outputs: [subset], of subsets after the ones that judge; full: what a trajectory's steps are weighted by."""
        first = experiment.retraining.num_subsets
        subsets = (experiment.random_subset(first + i) for i in range(self.num_subsets))
        outputs = tuple(experiment.outputs(experiment.retrained(subset)) for subset in subsets)
        return RetrainedInputs(
            outputs=outputs,
            reference=experiment.reference_outputs if self.target is Target.trajectory else None,
        )

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        pass  # DROPPED
        from journey.attribution.targets import step_weights, with_aggregates
        from journey.data.images import train_images
        from journey.pipeline import subsets

        labels = train_images(spec.images, workspace).labels
        masks = np.stack(
            [
                subsets.subset_mask(labels, m.checkpoint.subset)
                for m in spec.inputs_as(RetrainedInputs).outputs
            ]
        )  # [M, N]
        outputs = np.stack(
            [
                get(m, workspace).array("outputs.npy").mean(0)
                for m in spec.inputs_as(RetrainedInputs).outputs
            ]
        )
        weights = step_weights(
            spec.inputs_as(RetrainedInputs).reference, spec.trajectories, spec.steps, workspace
        )
        of_target = with_aggregates(outputs, weights)[
            :, _target_rows(self.target, len(spec.steps))
        ]  # [M, S or 1, Q]
        match self.estimator:
            case Estimator.difference:
                out[:] = difference_of_means(masks, of_target)
            case Estimator.ridge:
                out[:] = ridge_regression(masks, of_target, self.damping)
        return {}


def _target_rows(at: Target, num_steps: int) -> list[int]:
    """Which rows of steps, trajectory and destination."""
    return {
        Target.step: list(range(num_steps)),
        Target.trajectory: [num_steps],
        Target.final_sample: [num_steps + 1],
    }[at]
