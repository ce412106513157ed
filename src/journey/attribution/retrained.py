"""Datamodels and empirical influence: scores from models retrained on random subsets.

The evaluations use none of these models.

M  models;  N  training images;  T  targets: outputs at steps, of a trajectory or of a final sample;
Q  queries
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import numpy as np

from journey.attribution.targets import step_weights, with_aggregates
from journey.data.images import train_images
from journey.engine.checks import MOST_MODELS, require_candidates, require_count
from journey.engine.workspace import Workspace, get
from journey.pipeline.interfaces import Experiment, Inputs, Measure, Method, RandomSubset, Score
from journey.pipeline.settings import Target
from journey.pipeline.subsets import subset_mask


def difference_of_means(masks: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return the mean output of models without an image minus that of models with it.

    This is empirical influence (Feldman and Zhang 2020).

    Args:
        masks: Whether a model was trained on an image, bool [M, N].
        outputs: Outputs of the models [M, T, Q].

    Returns:
        Scores [1, T, Q, N].

    Raises:
        ValueError: An image is in all subsets or in none.
    """
    counts = masks.sum(0)
    if not ((counts > 0) & (counts < len(masks))).all():
        raise ValueError(
            f"an image is in all or none of the {len(masks)} subsets; increase num_subsets"
        )
    sum_with, total = np.einsum("mn,mtq->tqn", masks, outputs), outputs.sum(0)[..., None]
    return ((total - sum_with) / (len(masks) - counts) - sum_with / counts)[None]


def ridge_regression(masks: np.ndarray, outputs: np.ndarray, damping: list[float]) -> np.ndarray:
    """Return minus the coefficients of a ridge regression of outputs on masks.

    Differs from the paper (Datamodels, Ilyas et al. 2022): a ridge instead of the lasso.

    Args:
        masks: Whether a model was trained on an image, bool [M, N].
        outputs: Outputs of the models [M, T, Q].
        damping: Values of λ, relative to the mean diagonal of the centred Gram matrix [M, M].

    Returns:
        Scores [damping, T, Q, N].
    """
    x, y = masks - masks.mean(0), outputs - outputs.mean(0)
    gram = x @ x.T
    mean_diagonal = gram.trace() / len(gram)
    scores = []
    for relative in damping:
        penalty = relative * mean_diagonal * np.eye(len(gram))
        alpha = np.linalg.solve(gram + penalty, y.reshape(len(y), -1))
        scores.append(-(alpha.T @ x).reshape(*y.shape[1:], -1))
    return np.stack(scores)


class Estimator(Enum):
    """How scores follow from the outputs of retrained models."""

    difference = "difference"  # of the means of models with and without an image
    ridge = "ridge"  # regression of outputs on subset masks


@dataclass(frozen=True)
class RetrainedInputs(Inputs):
    """The artifacts that the scores are computed from."""

    outputs: tuple[Measure, ...]  # [subset]: none of the subsets that the evaluation uses
    reference: Measure | None  # the full model's outputs, by which a trajectory weights its steps


@dataclass
class Datamodel(Method):
    """Scores from retrained models, without any gradient."""

    name: ClassVar[str] = "datamodel"
    target: Target = Target.step
    estimator: Estimator = Estimator.ridge
    num_subsets: int = 32
    # Candidates for λ of the ridge, relative.
    damping: list[float] = field(default_factory=lambda: [0.1, 1.0, 10.0])

    def check(self, where: str) -> None:
        require_count(f"{where}.num_subsets", self.num_subsets, least=2, most=MOST_MODELS)
        require_candidates(f"{where}.damping", self.damping)

    def depends_on(self, setting: str) -> bool:
        return setting != "damping" or self.estimator is Estimator.ridge

    def candidates(self) -> list[dict[str, float]]:
        if self.estimator is Estimator.difference:
            return [{}]
        return [{"damping": value} for value in self.damping]

    def needs(self, experiment: Experiment) -> RetrainedInputs:
        first = experiment.retraining.num_subsets  # after the subsets of the evaluation
        outputs = []
        for index in range(first, first + self.num_subsets):
            model = experiment.retrained(experiment.random_subset(index))
            outputs.append(experiment.outputs(model))
        is_trajectory = self.target is Target.trajectory
        reference = experiment.reference_outputs if is_trajectory else None
        return RetrainedInputs(outputs=tuple(outputs), reference=reference)

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        inputs = spec.inputs_as(RetrainedInputs)
        labels = train_images(spec.images, workspace).labels
        masks, measured = [], []
        for measure in inputs.outputs:
            subset = measure.checkpoint.subset
            assert isinstance(subset, RandomSubset)
            masks.append(subset_mask(labels, subset))
            measured.append(get(measure, workspace).array("outputs.npy").mean(0))
        weights = step_weights(inputs.reference, spec.trajectories, spec.steps, workspace)
        every_target = with_aggregates(np.stack(measured), weights)  # [M, S + 2, Q]
        targets = {
            Target.step: slice(None, -2),
            Target.trajectory: slice(-2, -1),
            Target.final_sample: slice(-1, None),
        }
        outputs = every_target[:, targets[self.target]]
        if self.estimator is Estimator.difference:
            out[:] = difference_of_means(np.stack(masks), outputs)
        else:
            out[:] = ridge_regression(np.stack(masks), outputs, self.damping)
        return {}
