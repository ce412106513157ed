"""Do scores of a region predict that region, and where do removals change samples?

R  regions;  S  steps;  Q  queries;  M  subsets;  N  training images
B  bootstrap replicates, the observed value first
"""

from dataclasses import dataclass

import numpy as np

from journey.attribution.targets import PAIRED_STEPS, STEP
from journey.evaluation.rows import Row, rows_of_targets
from journey.evaluation.statistics import interval, query_interval, weighted_spearman
from journey.pipeline.examples import Region, boxes, inside

WHOLE = "whole image"

RANDOM, OTHERS, ALL = "random images", "other regions", "all regions"


def predicted_outputs(scores: np.ndarray, masks: np.ndarray, num_steps: int) -> np.ndarray:
    """Predict outputs of models trained on subsets as −Σ_{i∈S} τ_i. [S, Q, M]

    Args:
        scores: τ, [S, Q, N], or [1, Q, N] for the same scores at every step.
        masks: Which training images each subset has, [M, N].
        num_steps: S.

    Returns:
        The predictions, float64.
    """
    outputs = -(scores.astype(np.float64) @ masks.T)
    return np.broadcast_to(outputs, (num_steps, *outputs.shape[1:]))


def lds_matrix(
    predictions: np.ndarray, outputs: np.ndarray, subset_weights: np.ndarray
) -> np.ndarray:
    """Return the LDS of the scores of every region against the outputs of every region.

    Args:
        predictions: By the scores of each region, [R, S, Q, M].
        outputs: Of retrained models in each region, [R, S, Q, M].
        subset_weights: How often each replicate contains each subset, [B, M].

    Returns:
        The LDS, [B, R of scores, R of outputs, S, Q].
    """
    num_replicates, num_subsets = subset_weights.shape
    matrix = np.empty((num_replicates, len(predictions), *outputs.shape[:-1]))
    flat = outputs.reshape(-1, num_subsets)
    for region, values in enumerate(predictions):
        repeated = np.broadcast_to(values, outputs.shape).reshape(-1, num_subsets)
        lds = weighted_spearman(repeated, flat, subset_weights)
        matrix[:, region] = lds.reshape(num_replicates, *outputs.shape[:-1])
    return matrix


def region_centred(values: np.ndarray) -> np.ndarray:
    """Return values less their mean over regions, which is most of a subset's effect. [R, …]"""
    return values - values.mean(0)


def contrast(matrix: np.ndarray) -> np.ndarray:
    """Return the mean of the diagonal minus that of the other cells. [..., R, R] → [...]

    >>> contrast(np.array([[3.0, 1.0], [0.0, 1.0]]))
    np.float64(1.5)
    """
    size = matrix.shape[-1]
    diagonal = np.trace(matrix, axis1=-2, axis2=-1)
    return diagonal / size - (matrix.sum((-2, -1)) - diagonal) / (size * (size - 1))


def change_shares(change: np.ndarray, regions: list[Region]) -> np.ndarray:
    """Return the share of a squared change [..., Q, C, H, W] that is in each region. [..., Q, R]

    Raises:
        ValueError: Nothing changed.
    """
    total = change.sum((-3, -2, -1))
    if not (total > 0).all():
        raise ValueError(
            "models with and without the removed images continue a trajectory identically, so its "
            "change has no location; remove more images"
        )
    shares = []
    for region in regions:
        parts = []
        for queries, box in boxes(region, change.shape[-4]):
            parts.append(inside(change[..., queries, :, :, :], box).sum((-3, -2, -1)))
        shares.append(np.concatenate(parts, -1) / total)
    return np.stack(shares, -1)


@dataclass(frozen=True)
class MeanRows:
    """Rows of means over queries, with intervals over queries [B, Q] and what is resampled."""

    steps: tuple[int, ...]
    paired_steps: list[int]
    query_weights: np.ndarray

    def matrix(self, matrix: np.ndarray, names: list[str], **conditions: str) -> list[Row]:
        """Return a row for each cell of a matrix [B, R, R, S, Q], the mean over paired steps."""
        rows, paired = [], matrix[:, :, :, self._paired].mean(3)
        for r, s in np.ndindex(len(names), len(names)):
            ends = {PAIRED_STEPS: interval(paired[:, r, s], self.query_weights)}
            regions = {"score_region": names[r], "output_region": names[s]}
            rows += rows_of_targets(ends, self.steps, **conditions, **regions)
        return rows

    def by_step(self, replicates: np.ndarray, **conditions: str) -> list[Row]:
        """Return a row for each step of replicates [B, S, Q], and one for the paired steps."""
        paired = replicates[:, self._paired].mean(1)
        ends = {
            STEP: interval(replicates, self.query_weights),
            PAIRED_STEPS: interval(paired, self.query_weights),
        }
        return rows_of_targets(ends, self.steps, **conditions)

    @property
    def _paired(self) -> list[int]:
        return [self.steps.index(t) for t in self.paired_steps]


def prediction_rows(
    predictions: dict[str, np.ndarray],
    outputs: np.ndarray,
    names: list[str],
    subset_weights: np.ndarray,
    means: MeanRows,
) -> list[Row]:
    """Return rows of LDS matrices and their contrasts, of outputs and of region-centred outputs.

    Args:
        predictions: By method; the whole image is the first region, [R, S, Q, M].
        outputs: Of retrained models, [R, S, Q, M].
        names: Of the regions.
        subset_weights: How often each replicate contains each subset, [B, M].
        means: What turns statistics of queries into rows.
    """
    rows: list[Row] = []
    contrasts: dict[str, dict[str, np.ndarray]] = {"lds": {}, "region_centred": {}}  # [B, S, Q]
    centred_outputs = region_centred(outputs[1:])
    for method, values in predictions.items():
        lds = lds_matrix(values, outputs, subset_weights)
        rows += means.matrix(lds, names, quantity="lds", method=method)
        centred = lds_matrix(region_centred(values[1:]), centred_outputs, subset_weights)
        rows += means.matrix(centred, names[1:], quantity="region_centred", method=method)
        contrasts["lds"][method] = contrast(np.moveaxis(lds[:, 1:, 1:], (1, 2), (-2, -1)))
        contrasts["region_centred"][method] = contrast(np.moveaxis(centred, (1, 2), (-2, -1)))
    first = next(iter(predictions))
    for name, by_method in contrasts.items():
        quantity = f"{name}_locality"
        for method, values in by_method.items():
            rows += means.by_step(values, quantity=quantity, method=method)
            if method != first:
                conditions = {"quantity": f"{quantity}_difference", "method": first}
                rows += means.by_step(by_method[first] - values, **conditions, against=method)
    return rows


def removal_rows(
    change: np.ndarray,
    rise: np.ndarray,
    regions: dict[str, Region],
    query_weights: np.ndarray,
    conditions: Row,
) -> list[Row]:
    """Return rows of where removals change samples and outputs, and of the contrast to controls.

    The last removal is that of random images, the others are those of each region's proponents.

    Args:
        change: Squared change of the final samples, [R + 1 removals, Q, C, H, W].
        rise: Relative rise of the output of each region, [R + 1 removals, R, Q].
        regions: The R regions by name.
        query_weights: How often each replicate contains each query, [B, Q].
        conditions: What all rows have in common.
    """
    rows: list[Row] = []
    names = list(regions)

    def add(values: np.ndarray, **keys: str) -> None:
        ends = {"removal": query_interval(values, query_weights)}
        rows.extend(row | conditions for row in rows_of_targets(ends, [], **keys))

    share = np.moveaxis(change_shares(change, list(regions.values())), -1, 1)  # as rise
    for i, removed in enumerate([*names, RANDOM]):
        mean_change = change[i].reshape(change.shape[1], -1).mean(1)
        add(mean_change, quantity="change", removed=removed)
        for j, region in enumerate(names):
            add(share[i, j], quantity="change_share", removed=removed, output_region=region)
            add(rise[i, j], quantity="output_rise", removed=removed, output_region=region)
    for quantity, values in {"change_share": share, "output_rise": rise}.items():
        own = values[range(len(names)), range(len(names))]  # [R, Q]
        others = (values[:-1].sum(0) - own) / (len(names) - 1)  # removals of other regions
        for against, control in {OTHERS: others, RANDOM: values[-1]}.items():
            keys = {"quantity": f"{quantity}_difference", "against": against}
            difference = own - control
            for region, value in zip([*names, ALL], [*difference, difference.mean(0)], strict=True):
                add(value, **keys, output_region=region)
    return rows
