"""The linear datamodeling score (Park et al. 2023, Section 2) of steps and whole trajectories.

A model trained on subset S is predicted to have the output −Σ_{i∈S} τ_i + const. The LDS of a query
is the Spearman correlation, over subsets, of predicted and measured outputs.

M  subsets
S  steps
T  targets: the S steps, the trajectory (their weighted mean) and the final sample
Q  queries
N  training images
C  candidates of a method: every combination of hyper-parameter and score transform

Candidates are chosen on held-out data: queries and subsets are each split into two halves, and each
of the four cells (half of the queries × half of the subsets) uses the candidate that is best on the
opposite cell. Intervals resample queries and subsets and hold these choices fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from journey.attribution.targets import FINAL_SAMPLE, STEP, TRAJECTORY
from journey.engine.seeding import numpy_generator
from journey.evaluation.statistics import (
    bootstrap_weights,
    bootstrap_with_observed,
    weighted_spearman,
)

SCORE_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda tau: tau,
    "relu": lambda tau: np.maximum(tau, 0),
    "square": np.square,
}


@dataclass(frozen=True)
class Resampling:
    """The split into halves and the bootstrap weights, which all methods share.

    Attributes:
        query_half: 0 or 1 for each query. [Q]
        subset_half: 0 or 1 for each subset. [M]
        query_weights: Weights of the queries in each replicate, the observed data first. [1 + B, Q]
        subset_weights: Those of the subsets, resampled within each half. [1 + B, M]
    """

    query_half: np.ndarray
    subset_half: np.ndarray
    query_weights: np.ndarray
    subset_weights: np.ndarray


def resampling(num_queries: int, num_subsets: int, num_bootstrap: int, seed: int) -> Resampling:
    """Return a seeded split and seeded bootstrap weights."""
    random = numpy_generator(seed, "lds")
    query_half = random.permutation(num_queries) % 2
    subset_half = random.permutation(num_subsets) % 2
    query_weights = bootstrap_with_observed(num_queries, num_bootstrap, random)
    subset_weights = np.ones((1 + num_bootstrap, num_subsets), np.int64)
    for half in (0, 1):
        members = subset_half == half
        subset_weights[1:, members] = bootstrap_weights(members.sum(), num_bootstrap, random)
    return Resampling(query_half, subset_half, query_weights, subset_weights)


def predict(scores: np.ndarray, masks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the predicted outputs of every candidate. [C, T, Q, M]

    One score per image predicts every step. The weighted mean over steps predicts the trajectory
    and the final sample. Sums are float64: in float32, rounding would rank near-ties.

    Args:
        scores: Scores of a method. [hyper-parameter, step, query, train]
        masks: Whether a subset holds a training image. [M, N]
        weights: Weight of each step in the trajectory. [S, Q]
    """
    members = masks.T.astype(np.float64)
    predictions = []
    for tau in scores:
        for transform in SCORE_TRANSFORMS.values():
            predictions.append([-(transform(step.astype(np.float64)) @ members) for step in tau])
    steps = np.stack(predictions)  # [C, S or 1, Q, M]
    steps = np.broadcast_to(steps, (len(steps), len(weights), *steps.shape[2:]))
    mean = (steps * weights[..., None]).mean(1, keepdims=True)
    return np.concatenate([steps, mean, mean], 1)


def query_centred(outputs: np.ndarray, query_half: np.ndarray) -> np.ndarray:
    """Return outputs [..., Q, M] minus their mean over the queries of each half.

    At noisy steps, much of the effect of a subset is the same for every query. Predicting that part
    says nothing about the attribution of a particular query.
    """
    centred = np.empty(outputs.shape)
    for half in (0, 1):
        selected = outputs[..., query_half == half, :]
        centred[..., query_half == half, :] = selected - selected.mean(-2, keepdims=True)
    return centred


def labels(hyperparameters: list[dict[str, float]]) -> list[dict[str, float | str]]:
    """Return the label of each candidate, its settings, in the order of `predict`."""
    candidates: list[dict[str, float | str]] = []
    for settings in hyperparameters:
        candidates += [{**settings, "score_transform": name} for name in SCORE_TRANSFORMS]
    return candidates


Candidates = TypeVar("Candidates", np.ndarray, list)


def linear(candidates: Candidates) -> Candidates:
    """Return the candidates, or their labels, whose score transform is linear."""
    return candidates[list(SCORE_TRANSFORMS).index("linear") :: len(SCORE_TRANSFORMS)]


@dataclass(frozen=True)
class MethodLDS:
    """The LDS of one method.

    Attributes:
        replicates: LDS of each query in each replicate, the observed one first. [1 + B, T, Q]
        chosen: The candidate chosen for each of the four cells, by target.
    """

    replicates: np.ndarray
    chosen: dict[str, list[int]]


def lds(predictions: np.ndarray, measured: np.ndarray, resampled: Resampling) -> MethodLDS:
    """Return the LDS of a method from predictions [C, T, Q, M] and measured outputs [T, Q, M]."""
    num_targets = len(measured)
    targets = {
        STEP: list(range(num_targets - 2)),
        TRAJECTORY: [num_targets - 2],
        FINAL_SAMPLE: [num_targets - 1],
    }

    # The LDS of every candidate on either half of the subsets, [half][C, T, Q].
    by_half = []
    for half in (0, 1):
        subsets = resampled.subset_half == half
        once, outputs = np.ones((1, subsets.sum())), measured[..., subsets]
        rhos = [_spearman(p[..., subsets], outputs, once)[0] for p in predictions]
        by_half.append(np.stack(rhos))

    # Each cell with the candidate that is best on the opposite cell.
    replicates = np.zeros((len(resampled.subset_weights), *measured.shape[:2]))
    chosen: dict[str, list[int]] = {name: [] for name in targets}
    for query_half, subset_half in ((0, 0), (0, 1), (1, 0), (1, 1)):
        queries = resampled.query_half == query_half
        subsets = resampled.subset_half == subset_half
        weights = resampled.subset_weights[:, subsets]
        for name, target in targets.items():
            opposite = by_half[1 - subset_half][:, target][:, :, ~queries]
            best = int(opposite.mean((1, 2)).argmax())
            predicted = predictions[best][target][:, queries][..., subsets]
            outputs = measured[target][:, queries][..., subsets]
            rho = _spearman(predicted, outputs, weights)  # [1 + B, targets, queries]
            cell = np.ix_(np.arange(len(replicates)), np.array(target), np.flatnonzero(queries))
            replicates[cell] += rho / 2
            chosen[name].append(best)
    return MethodLDS(replicates, chosen)


def _spearman(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ρ over the last axis of a and b [T, Q, M] under the weights of B replicates."""
    rho = weighted_spearman(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), weights)
    return rho.reshape(-1, *a.shape[:-1])
