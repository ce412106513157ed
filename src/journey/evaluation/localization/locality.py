"""Does what is said of a region hold of that region, and not of another?

Region-specific scores predict the outputs of subset models by −Σ_{i∈S} τ_i, as `journey.evaluation.lds.datamodeling` has it; the
LDS of scores of region r against outputs of region s is a cell of a matrix.

    R  regions;  S  steps;  Q  queries;  M  subsets;  B  bootstrap replicates, the first being the observed one
"""

import numpy as np

from journey.diffusion.regions import Region, boxes, inside
from journey.evaluation.statistics import weighted_spearman


def predicted(scores: np.ndarray, masks: np.ndarray, num_steps: int) -> np.ndarray:
    """Outputs by scores [S or 1, Q, N] of models trained on masks [M, N]; one score a query is of every step. [S, Q, M]"""
    outputs = -(scores.astype(np.float64) @ masks.T)
    return np.broadcast_to(outputs, (num_steps, *outputs.shape[1:]))


def matrix(predictions: np.ndarray, outputs: np.ndarray, subset_weights: np.ndarray) -> np.ndarray:
    """LDS of every region's scores against every region's outputs. predictions, outputs: [R, S, Q, M] → [B, R, R, S, Q]"""
    regions, *of_region, num_subsets = outputs.shape
    found = np.empty((len(subset_weights), len(predictions), regions, *of_region))
    flat = outputs.reshape(-1, num_subsets)
    for row, of_scores in enumerate(predictions):
        repeated = np.broadcast_to(of_scores, outputs.shape).reshape(-1, num_subsets)
        found[:, row] = weighted_spearman(repeated, flat, subset_weights).reshape(-1, regions, *of_region)
    return found


def own(of_regions: np.ndarray) -> np.ndarray:
    """What is a region's own: less the mean over regions, which is most of what a subset does to neighbours. [R, …]"""
    return of_regions - of_regions.mean(0)


def contrast(cells: np.ndarray) -> np.ndarray:
    """Mean of the diagonal of a matrix over regions, less the mean of what is beside it. [..., R, R] → [...]

    >>> contrast(np.array([[3.0, 1.0], [0.0, 1.0]]))
    np.float64(1.5)
    """
    size = cells.shape[-1]
    diagonal = np.trace(cells, axis1=-2, axis2=-1)
    return diagonal / size - (cells.sum((-2, -1)) - diagonal) / (size * (size - 1))


def shares(change: np.ndarray, regions: list[Region]) -> np.ndarray:
    """How much of a squared change [..., Q, C, H, W] lies in each region. [..., Q, R]

    Raises: ValueError if nothing changed.
    """
    whole = change.sum((-3, -2, -1))
    if not (whole > 0).all():
        raise ValueError("a model without a query's proponents goes on exactly as the one with them, so no change can be placed")
    num_queries, found = change.shape[-4], []
    for region in regions:
        parts = [inside(change[..., some, :, :, :], box).sum((-3, -2, -1)) for some, box in boxes(region, num_queries)]
        found.append(np.concatenate(parts, -1) / whole)
    return np.stack(found, -1)


def beside(of_regions: np.ndarray) -> np.ndarray:
    """For every region, what it is where another one's proponents are left out, on average. [left out R, region R, …] → [R, …]

    >>> beside(np.array([[5.0, 1.0, 2.0], [3.0, 6.0, 4.0], [1.0, 1.0, 7.0]]))
    array([2., 1., 3.])
    """
    size = len(of_regions)
    diagonal = np.moveaxis(np.diagonal(of_regions), -1, 0)
    return (of_regions.sum(0) - diagonal) / (size - 1)
