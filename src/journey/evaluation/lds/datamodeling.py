"""The linear datamodeling score (Park et al. 2023, Section 2) of steps and whole trajectories.

A model trained on subset S is predicted to have the output −Σ_{i∈S} τ_i + const. The LDS of a query
is the Spearman correlation, over subsets, of predicted and measured outputs.

M  subsets
S  steps
T  targets: the S steps, the trajectory (their weighted mean) and the final sample
Q  queries
N  training images
C  candidates of a method: every combination of hyper-parameter and score transform
B  bootstrap replicates

Candidates are chosen on held-out data: queries and subsets are each split into two halves, and each
of the four cells (half of the queries × half of the subsets) uses the candidate that is best on the
opposite cell.

An interval counts what another sample of queries and subsets would change, and what it would change
in the choice. With candidates as chosen, the variance of the mean over queries is

    V = V_queries + V_subsets − V_interaction,

for each of the first two contains the variance of their interaction (Owen 2007). V_subsets is the
infinitesimal jackknife's. To it, the variance is added that choosing anew in each replicate of the
subsets adds to that of replicates with fixed choices. In a replicate, the LDS of a candidate varies
around its mean over the four cells, and differences between candidates are shrunk by the share of
noise in them: around observed values, which contain noise already, replicates would vary too much.
Quantiles are Student's t with min(Q, M) − 1 degrees of freedom. benchmarks/intervals.py measures
the coverage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from journey.attribution.targets import FINAL_SAMPLE, STEP, TRAJECTORY
from journey.engine.seeding import numpy_generator
from journey.evaluation.statistics import bootstrap_weights, spearman_derivatives, variance_of_mean

PRIMARY = {"quantity": "query_centred", "score_transform": "linear"}
"""The primary statistic, by which methods are compared."""

FORMER_PRIMARY = {"quantity": "lds", "score_transform": "chosen"}
"""That of results which name none."""


def primary(result: dict) -> dict[str, str]:
    """Return the conditions of the rows of a result's primary statistic."""
    return result.get("primary", FORMER_PRIMARY)


HEAD = 0.05  # share of the training images whose scores the transform "head" keeps


def head(tau: np.ndarray) -> np.ndarray:
    """Return scores [..., N] of which only the 5% with the largest absolute values are kept.

    >>> head(np.array([[1.0, -3.0, 2.0]])).tolist()
    [[0.0, -3.0, 0.0]]
    """
    sizes, count = np.abs(tau), int(np.ceil(HEAD * tau.shape[-1]))
    least = np.partition(sizes, -count, axis=-1)[..., -count, None]
    return np.where(sizes >= least, tau, 0)


SCORE_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda tau: tau,
    "relu": lambda tau: np.maximum(tau, 0),
    "square": np.square,
    "head": head,
}


@dataclass(frozen=True)
class Resampling:
    """The split into halves and the bootstrap weights, which all methods share.

    Attributes:
        query_half: 0 or 1 for each query. [Q]
        subset_half: 0 or 1 for each subset. [M]
        subset_weights: Weights of the subsets in each replicate, resampled in each half. [B, M]
    """

    query_half: np.ndarray
    subset_half: np.ndarray
    subset_weights: np.ndarray


def resampling(num_queries: int, num_subsets: int, num_bootstrap: int, seed: int) -> Resampling:
    """Return a seeded split and seeded bootstrap weights."""
    random = numpy_generator(seed, "lds")
    query_half = random.permutation(num_queries) % 2
    subset_half = random.permutation(num_subsets) % 2
    subset_weights = np.ones((num_bootstrap, num_subsets), np.int64)
    for half in (0, 1):
        members = subset_half == half
        subset_weights[:, members] = bootstrap_weights(members.sum(), num_bootstrap, random)
    return Resampling(query_half, subset_half, subset_weights)


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


class Interval(NamedTuple):
    """A number with its 95% interval, and the 90% interval by which equivalence is decided."""

    value: float
    low: float
    high: float
    low_90: float
    high_90: float


@dataclass(frozen=True)
class MethodLDS:
    """The LDS of one method, or the difference of two.

    Attributes:
        values: LDS of each query. [T, Q]
        influence: First-order change of each with the weight of a subset. [T, Q, M]
        rechosen: Mean LDS in replicates of the subsets, with candidates chosen anew. [B, T]
        fixed: The same with the candidates of the observed data. [B, T]
        chosen: The candidates chosen for the four cells, by target; for steps with several score
            transforms, those of each step in turn.
    """

    values: np.ndarray
    influence: np.ndarray
    rechosen: np.ndarray
    fixed: np.ndarray
    chosen: dict[str, list[int]]

    def minus(self, other: "MethodLDS") -> "MethodLDS":
        """Return the paired difference from another method under the same resampling."""
        return MethodLDS(
            self.values - other.values,
            self.influence - other.influence,
            self.rechosen - other.rechosen,
            self.fixed - other.fixed,
            {},
        )

    def interval(self, targets: list[int]) -> Interval:
        """Return the mean over queries and some targets, with its intervals."""
        from scipy.stats import t  # slow to import

        values, influence = self.values[targets].mean(0), self.influence[targets].mean(0)
        from_subsets = np.square(influence.mean(0)).sum()
        of_one_query = np.square(influence).sum(1).mean()
        variance = variance_of_mean(values, from_subsets, of_one_query)
        rechosen, fixed = self.rechosen[:, targets].mean(1), self.fixed[:, targets].mean(1)
        variance += max(0, rechosen.var() - fixed.var())

        value, error = float(values.mean()), float(np.sqrt(variance))
        wide, narrow = error * t.ppf([0.975, 0.95], min(influence.shape) - 1)
        ends = (value - wide, value + wide, value - narrow, value + narrow)
        return Interval(value, *map(float, ends))


def lds(
    predictions: np.ndarray, measured: np.ndarray, resampled: Resampling, num_transforms: int = 1
) -> MethodLDS:
    """Return the LDS of a method with candidates that are chosen on held-out cells.

    The hyper-parameter is chosen for all steps by its mean over them. With several score
    transforms, it is chosen for each transform, and the transform is then chosen for each step.

    Args:
        predictions: Predicted outputs of every candidate, the transforms of each hyper-parameter
            together. [C, T, Q, M]
        measured: Measured outputs. [T, Q, M]
        resampled: The halves and the replicates.
        num_transforms: Number of score transforms among the candidates.
    """
    num_candidates, num_targets, num_queries, num_subsets = predictions.shape

    # 1. The LDS of every candidate on either half of the subsets, and its derivatives.
    rho, derivatives = [], []
    for half in (0, 1):
        subsets = resampled.subset_half == half
        predicted = predictions[..., subsets].reshape(num_candidates, -1, subsets.sum())
        outputs = measured[..., subsets].reshape(-1, subsets.sum())
        of_half, slopes = spearman_derivatives(predicted, outputs)
        rho.append(of_half.reshape(predictions.shape[:-1]))
        derivatives.append(slopes.reshape(*predictions.shape[:-1], -1))

    # 2. Means over the queries of each cell, observed [C, T] and how replicates shift them.
    cells = ((0, 0), (0, 1), (1, 0), (1, 1))  # half of the queries, half of the subsets
    means, shifts = {}, {}
    for cell in cells:
        query_half, subset_half = cell
        queries = resampled.query_half == query_half
        means[cell] = rho[subset_half][..., queries].mean(-1)
        slopes = derivatives[subset_half][:, :, queries].mean(2)  # [C, T, M / 2]
        weights = resampled.subset_weights[:, resampled.subset_half == subset_half] - 1.0
        shifts[cell] = np.tensordot(weights, slopes, (1, 2))  # [B, C, T]
    mean = np.mean(list(means.values()), axis=0)
    centre = shrunk(mean, np.mean(list(shifts.values()), axis=0))

    # 3. Each cell with the candidate that is best on the opposite cell.
    all_targets = np.arange(num_targets)
    values = np.zeros((num_targets, num_queries))
    influence = np.zeros((num_targets, num_queries, num_subsets))
    rechosen = np.zeros((len(resampled.subset_weights), num_targets))
    fixed = np.zeros(rechosen.shape)
    chosen: dict[str, list[int]] = {STEP: [], TRAJECTORY: [], FINAL_SAMPLE: []}
    for query_half, subset_half in cells:
        queries = np.flatnonzero(resampled.query_half == query_half)
        subsets = np.flatnonzero(resampled.subset_half == subset_half)
        opposite = 1 - query_half, 1 - subset_half
        best = choose(means[opposite], num_transforms)  # [T]
        values[:, queries] += rho[subset_half][best, all_targets][:, queries] / 2
        of_best = derivatives[subset_half][best, all_targets][:, queries] / 2
        influence[np.ix_(all_targets, queries, subsets)] += of_best

        share = len(queries) / num_queries / 2
        replicated = centre + shifts[query_half, subset_half]
        anew = choose(centre + shifts[opposite], num_transforms)  # [B, T]
        rechosen += share * np.take_along_axis(replicated, anew[:, None], 1)[:, 0]
        fixed += share * replicated[:, best, all_targets]
        of_steps = best[:-2] if num_transforms > 1 else best[:1]
        for name, choice in zip(chosen, (of_steps, best[-2:-1], best[-1:]), strict=True):
            chosen[name] += choice.tolist()
    return MethodLDS(values, influence, rechosen, fixed, chosen)


def shrunk(means: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return mean LDS of candidates [C, T], whose differences are shrunk by the share of noise.

    The share of noise in the variance between candidates is that which replicates have, at most 1.
    For the steps, it is that of means over them, by which hyper-parameters are chosen.

    Args:
        means: Observed means. [C, T]
        shifts: Shifts of these means in replicates. [B, C, T]
    """
    if len(means) == 1:
        return means
    centre = np.empty(means.shape)
    for targets in (slice(0, -2), slice(-2, -1), slice(-1, None)):
        observed = means[:, targets].mean(-1)
        noise = shifts[..., targets].mean(-1)
        noise = noise - noise.mean(1, keepdims=True)
        share = noise.var(0).sum() / max(np.square(observed - observed.mean()).sum(), 1e-300)
        average = means[:, targets].mean(0)
        centre[:, targets] = average + max(0, 1 - share) * (means[:, targets] - average)
    return centre


def choose(means: np.ndarray, num_transforms: int) -> np.ndarray:
    """Return the candidate for each target [..., T] with the highest mean LDS [..., C, T]."""
    by_setting = means.reshape(*means.shape[:-2], -1, num_transforms, means.shape[-1])
    selection = by_setting.copy()  # by what a hyper-parameter is chosen
    selection[..., :-2] = by_setting[..., :-2].mean(-1, keepdims=True)
    setting = selection.argmax(-3)  # of each transform [..., transform, T]
    best = np.take_along_axis(by_setting, setting[..., None, :, :], -3)[..., 0, :, :]
    transform = best.argmax(-2)  # [..., T]
    setting = np.take_along_axis(setting, transform[..., None, :], -2)[..., 0, :]
    return setting * num_transforms + transform
