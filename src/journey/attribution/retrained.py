"""Scores from models retrained on random subsets, none of which an evaluation uses.

masks    whether a model was trained on an image, bool [M, N]
outputs  outputs of the models [M, T, Q]
M  models;  N  training images;  T  targets: steps, the trajectory or the final sample;  Q  queries
"""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np

from journey.attribution.targets import step_weights, subset_masks, with_aggregates
from journey.engine.checks import LAMBDA, MOST_MODELS
from journey.engine.workspace import Workspace, get
from journey.pipeline.interfaces import Experiment, Inputs, Measure, Method, Score
from journey.pipeline.settings import Target, has_effect, setting


def difference_of_means(masks: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return the mean output of models without an image minus that of models with it [1, T, Q, N].

    This is empirical influence (Feldman and Zhang 2020).

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
    """Return minus the coefficients of ridge regressions of outputs on masks [damping, T, Q, N].

    λ is relative to the mean diagonal of the centred Gram matrix [M, M].
    Differs from the paper (Datamodels, Ilyas et al. 2022): a ridge instead of the lasso.
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

    difference = "difference"  # empirical influence: a difference of means
    ridge = "ridge"  # datamodels: a regression of outputs on masks


@dataclass(frozen=True)
class RetrainedInputs(Inputs):
    """The artifacts that the scores are computed from."""

    outputs: tuple[Measure, ...]  # [subset]: none of the subsets that the evaluation uses
    reference: Measure | None  # the full model's outputs, by which a trajectory weights its steps


@dataclass
class Datamodel(Method):
    """Scores from retrained models, without any gradient."""

    name: ClassVar[str] = "datamodel"
    target: Target = setting(Target.step, "Attribute this output of a query.")
    estimator: Estimator = setting(Estimator.ridge, "Estimate scores by this.")
    num_subsets: int = setting(
        32, "Retrain on this many random subsets.", least=2, most=MOST_MODELS
    )
    damping: list[float] = setting(
        [0.1, 1.0, 10.0],
        "Compute ridge regressions with each of these λ, relative.",
        least=LAMBDA[0],
        most=LAMBDA[1],
        used_if={"estimator": (Estimator.ridge,)},
    )

    def depends_on(self, setting: str) -> bool:
        return has_effect(self, setting)

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
        whole = self.target is Target.trajectory
        return RetrainedInputs(tuple(outputs), experiment.reference_outputs if whole else None)

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        inputs = spec.inputs_as(RetrainedInputs)
        masks = subset_masks(inputs.outputs, workspace)
        measured = [
            get(measure, workspace).array("outputs.npy").mean(0) for measure in inputs.outputs
        ]
        weights = step_weights(inputs.reference, spec.trajectories, spec.steps, workspace)
        outputs = with_aggregates(np.stack(measured), weights)  # [M, S + 2, Q]
        match self.target:
            case Target.step:
                outputs = outputs[:, :-2]
            case Target.trajectory:
                outputs = outputs[:, -2:-1]
            case Target.final_sample:
                outputs = outputs[:, -1:]
        if self.estimator is Estimator.difference:
            out[:] = difference_of_means(masks, outputs)
        else:
            out[:] = ridge_regression(masks, outputs, self.damping)
        return {}
