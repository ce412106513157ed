"""The linear datamodeling score (Park et al. 2023, Section 2), of every step, of the trajectory and of the destination.

A model trained on subset S is predicted to have output −Σ_{i∈S} τ_i + const; the LDS of a query is the Spearman
correlation, over subsets, of predicted and measured outputs.

    M  subsets;  S  steps;  T  targets: the steps, the trajectory (their weighted mean), the destination;  Q  queries;  N
       training images
    candidates  every (hyper-parameter, read-out) of a method

Hyper-parameter and read-out are chosen where they are not judged: queries and subsets are each split into two halves, and each
of the four cells (half of queries × half of subsets) is reported with the candidate that is best on the opposite cell.
Intervals resample queries and subsets and hold these choices fixed.
"""

from dataclasses import dataclass

import numpy as np

from journey.attribution.targets import FINAL_SAMPLE, STEP, TRAJECTORY
from journey.engine.seeding import numpy_generator
from journey.evaluation.statistics import bootstrap_weights, weighted_spearman

READOUTS = {"linear": lambda tau: tau, "relu": lambda tau: np.maximum(tau, 0), "square": np.square}


@dataclass(frozen=True)
class Resampling:
    """The split into halves, and bootstrap weights: one draw of both for all methods, so that differences are paired.

    query_half, subset_half: 0 or 1 for each; query_weights: [B, Q]; subset_weights: [B, M], drawn within each half.
    The first replicate is the data themselves.
    """

    query_half: np.ndarray
    subset_half: np.ndarray
    query_weights: np.ndarray
    subset_weights: np.ndarray


def resampling(num_queries: int, num_subsets: int, num_bootstrap: int, seed: int) -> Resampling:
    """A seeded split and seeded weights."""
    random = numpy_generator(seed, "lds")
    query_half = random.permutation(num_queries) % 2
    subset_half = random.permutation(num_subsets) % 2
    query_weights = bootstrap_weights(num_queries, num_bootstrap, random)
    subset_weights = np.empty((num_bootstrap, num_subsets), np.int64)
    for half in (0, 1):
        members = subset_half == half
        subset_weights[:, members] = bootstrap_weights(members.sum(), num_bootstrap, random)
    observed = np.ones((1, num_queries), np.int64), np.ones((1, num_subsets), np.int64)
    return Resampling(
        query_half,
        subset_half,
        np.concatenate([observed[0], query_weights]),
        np.concatenate([observed[1], subset_weights]),
    )


def predict(scores: np.ndarray, masks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Predicted outputs of every candidate: scores [hyper-parameter, step, query, train], masks [M, N] → [candidates, T, Q, M].

    One score per image is judged at every step; the trajectory and the destination are predicted by the weighted mean over
    steps, each read out first. weights: of the steps in it, [S, Q]. Sums are float64: near-ties would be ranked by rounding.
    """
    kept = masks.T.astype(np.float64)
    by_step = [
        [-(score_transform(step.astype(np.float64)) @ kept) for step in tau]
        for tau in scores
        for score_transform in READOUTS.values()
    ]
    steps = np.stack(by_step)  # [C, S or 1, Q, M]
    steps = np.broadcast_to(steps, (len(steps), len(weights), *steps.shape[2:]))
    mean = (steps * weights[..., None]).mean(1, keepdims=True)
    return np.concatenate([steps, mean, mean], 1)


def specific(outputs: np.ndarray, query_half: np.ndarray) -> np.ndarray:
    """What is a query's own: outputs [..., Q, M] less their mean over queries, either half of the queries by itself.

    Much of what a subset does at a noisy step it does to every query, and to predict that is not to attribute.
    """
    own = np.empty(outputs.shape)
    for half in (0, 1):
        those = outputs[..., query_half == half, :]
        own[..., query_half == half, :] = those - those.mean(-2, keepdims=True)
    return own


def labels(hyperparameters: list[dict[str, float]]) -> list[dict[str, float | str]]:
    """What each candidate is, in the order of `predict`."""
    return [
        {**of, "readout": score_transform} for of in hyperparameters for score_transform in READOUTS
    ]


def linear(predictions: np.ndarray) -> np.ndarray:
    """The candidates that read scores out as they are."""
    return predictions[list(READOUTS).index("linear") :: len(READOUTS)]


@dataclass(frozen=True)
class MethodLDS:
    """replicates: LDS under resampling [B, T, Q], the first being the observed one; chosen: by target, then by cell."""

    replicates: np.ndarray
    chosen: dict[str, list[int]]


def lds(predictions: np.ndarray, measured: np.ndarray, resampled: Resampling) -> MethodLDS:
    """LDS of one method: predictions [candidates, T, Q, M] against measured outputs [T, Q, M]."""
    num_targets = len(measured)
    targets = {
        STEP: list(range(num_targets - 2)),
        TRAJECTORY: [num_targets - 2],
        FINAL_SAMPLE: [num_targets - 1],
    }
    replicates = np.zeros((len(resampled.subset_weights), *measured.shape[:2]))
    chosen = {name: [] for name in targets}
    on_half = [
        _all_candidates(predictions, measured, resampled.subset_half == half) for half in (0, 1)
    ]
    for query_half in (0, 1):
        for subset_half in (0, 1):
            queries, subsets = (
                resampled.query_half == query_half,
                resampled.subset_half == subset_half,
            )
            for name, target in targets.items():
                best = int(
                    on_half[1 - subset_half][:, target][:, :, ~queries].mean((1, 2)).argmax()
                )
                chosen[name].append(best)
                of_cell = (
                    predictions[best][target][:, queries][..., subsets],
                    measured[target][:, queries][..., subsets],
                )
                rho = _spearman(
                    *of_cell, resampled.subset_weights[:, subsets]
                )  # [B, targets, queries]
                replicates[np.ix_(range(len(replicates)), target, np.flatnonzero(queries))] += (
                    rho / 2
                )
    return MethodLDS(replicates, chosen)


def _all_candidates(
    predictions: np.ndarray, measured: np.ndarray, subsets: np.ndarray
) -> np.ndarray:
    """Plain LDS of every candidate on some of the subsets. [candidates, T, Q]"""
    once = np.ones((1, subsets.sum()))
    return np.stack(
        [_spearman(p[..., subsets], measured[..., subsets], once)[0] for p in predictions]
    )


def _spearman(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """ρ over the last axis of a and b [T, Q, M], under each replicate's weights. [B, T, Q]"""
    rho = weighted_spearman(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), weights)
    return rho.reshape(-1, *a.shape[:-1])


def num_ranked(num_subsets: int) -> int:
    """How many subsets a rank correlation is over: half of them."""
    return num_subsets // 2
