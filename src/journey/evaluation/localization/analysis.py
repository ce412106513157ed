"""Do scores of a region predict that region, and where do removals change samples?

R  regions;  S  steps;  Q  queries;  M  subsets;  N  training images
B  bootstrap replicates, the observed value first
"""

import itertools

import numpy as np

from journey.attribution.targets import PAIRED_STEPS, STEP
from journey.evaluation.rows import Row, rows_of_targets
from journey.evaluation.statistics import interval, query_interval, weighted_spearman
from journey.pipeline.examples import Region, boxes, inside

WHOLE = "whole image"
RANDOM, OTHERS, ALL = "random images", "other regions", "all regions"


def predicted_outputs(scores: np.ndarray, masks: np.ndarray, num_steps: int) -> np.ndarray:
    """Return the outputs −Σ_{i∈S} τ_i that scores predict for subset models. [S, Q, M]

    Args:
        scores: τ, [S, Q, N], or [1, Q, N] for the same scores at every step.
        masks: Which training images each subset has, [M, N].
        num_steps: S.
    """
    outputs = -(scores.astype(np.float64) @ masks.T)
    return np.broadcast_to(outputs, (num_steps, *outputs.shape[1:]))


def lds_matrix(
    predictions: np.ndarray, outputs: np.ndarray, subset_weights: np.ndarray
) -> np.ndarray:
    """Return the LDS of every region's scores against every region's outputs. [B, R, R, S, Q]

    Args:
        predictions: By the scores of each region, [R, S, Q, M].
        outputs: Of retrained models in each region, [R, S, Q, M].
        subset_weights: How often each replicate contains each subset, [B, M].
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


def prediction_rows(
    predictions: dict[str, np.ndarray],
    outputs: np.ndarray,
    names: list[str],
    subset_weights: np.ndarray,
    query_weights: np.ndarray,
    steps: tuple[int, ...],
    paired_steps: list[int],
) -> list[Row]:
    """Return rows of LDS matrices and their contrasts, of outputs and of region-centred outputs.

    Args:
        predictions: By method; the whole image is the first region, [R, S, Q, M].
        outputs: Of retrained models, [R, S, Q, M].
        names: Of the R regions.
        subset_weights: How often each replicate contains each subset, [B, M].
        query_weights: How often each replicate contains each query, [B, Q].
        steps: t of each step, [S].
        paired_steps: Those over which matrices are averaged.
    """
    rows: list[Row] = []
    paired = [steps.index(t) for t in paired_steps]
    contrasts: dict[str, dict[str, np.ndarray]] = {"lds": {}, "region_centred": {}}
    for method, values in predictions.items():
        for quantity in contrasts:
            x, y, regions = values, outputs, names
            if quantity == "region_centred":
                x, y, regions = region_centred(x[1:]), region_centred(y[1:]), names[1:]
            cells = lds_matrix(x, y, subset_weights)  # [B, R, R, S, Q]
            means = cells[:, :, :, paired].mean(3)
            for r, s in np.ndindex(len(regions), len(regions)):
                ends = {PAIRED_STEPS: interval(means[:, r, s], query_weights)}
                pair = {"score_region": regions[r], "output_region": regions[s]}
                rows += rows_of_targets(ends, steps, quantity=quantity, method=method, **pair)
            named = cells[:, -len(names) + 1 :, -len(names) + 1 :]  # without the whole image
            contrasts[quantity][method] = contrast(np.moveaxis(named, (1, 2), (-2, -1)))

    def add(values: np.ndarray, **conditions: str) -> None:
        ends = {
            STEP: interval(values, query_weights),
            PAIRED_STEPS: interval(values[:, paired].mean(1), query_weights),
        }
        rows.extend(rows_of_targets(ends, steps, **conditions))

    for quantity, by_method in contrasts.items():  # [B, S, Q]
        for method, values in by_method.items():
            add(values, quantity=f"{quantity}_locality", method=method)
        for method, other in itertools.combinations(sorted(by_method), 2):
            conditions = {"method": method, "against": other}
            difference = by_method[method] - by_method[other]
            add(difference, quantity=f"{quantity}_locality_difference", **conditions)
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
