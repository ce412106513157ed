"""Does what is said of a region hold of that region, and not of another?

Region-specific scores predict the outputs of subset models by −Σ_{i∈S} τ_i, as `journey.evaluation.lds.datamodeling` has it; the
LDS of scores of region r against outputs of region s is a cell of a matrix.

    R  regions;  S  steps;  Q  queries;  M  subsets;  B  bootstrap replicates, the first being the observed one


What an evaluation of localization states: whether scores of a region predict that region, and where removals change images.

R  regions;  S  steps;  Q  queries;  M  subsets;  B  bootstrap replicates, the observed value first
"""

from dataclasses import dataclass

import numpy as np

from journey.attribution.targets import PAIRED_STEPS, STEP
from journey.data.images import train_images
from journey.engine.workspace import Workspace, get
from journey.evaluation import rows
from journey.evaluation.localization import ALL, OTHERS, RANDOM, WHOLE, LocalizationInputs, Removal
from journey.evaluation.ranking import candidate_index
from journey.evaluation.statistics import interval, query_interval, weighted_spearman
from journey.pipeline import subsets
from journey.pipeline.examples import Region, boxes, inside
from journey.pipeline.interfaces import Evaluate, Measure


def predicted_outputs(scores: np.ndarray, masks: np.ndarray, num_steps: int) -> np.ndarray:
    """Outputs by scores [S or 1, Q, N] of models trained on masks [M, N]; one score a query is of every step. [S, Q, M]"""
    outputs = -(scores.astype(np.float64) @ masks.T)
    return np.broadcast_to(outputs, (num_steps, *outputs.shape[1:]))


def lds_matrix(
    predictions: np.ndarray, outputs: np.ndarray, subset_weights: np.ndarray
) -> np.ndarray:
    """LDS of every region's scores against every region's outputs. predictions, outputs: [R, S, Q, M] → [B, R, R, S, Q]"""
    regions, *of_region, num_subsets = outputs.shape
    found = np.empty((len(subset_weights), len(predictions), regions, *of_region))
    flat = outputs.reshape(-1, num_subsets)
    for row, of_scores in enumerate(predictions):
        repeated = np.broadcast_to(of_scores, outputs.shape).reshape(-1, num_subsets)
        found[:, row] = weighted_spearman(repeated, flat, subset_weights).reshape(
            -1, regions, *of_region
        )
    return found


def region_centred(of_regions: np.ndarray) -> np.ndarray:
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


def change_shares(change: np.ndarray, regions: list[Region]) -> np.ndarray:
    """How much of a squared change [..., Q, C, H, W] lies in each region. [..., Q, R]

    Raises: ValueError if nothing changed.
    """
    whole = change.sum((-3, -2, -1))
    if not (whole > 0).all():
        raise ValueError(
            "a model without a query's proponents goes on exactly as the one with them, so no change can be placed"
        )
    num_queries, found = change.shape[-4], []
    for region in regions:
        parts = [
            inside(change[..., some, :, :, :], box).sum((-3, -2, -1))
            for some, box in boxes(region, num_queries)
        ]
        found.append(np.concatenate(parts, -1) / whole)
    return np.stack(found, -1)


def other_regions_mean(of_regions: np.ndarray) -> np.ndarray:
    """For every region, what it is where another one's proponents are left out, on average. [left out R, region R, …] → [R, …]

    >>> beside(np.array([[5.0, 1.0, 2.0], [3.0, 6.0, 4.0], [1.0, 1.0, 7.0]]))
    array([2., 1., 3.])
    """
    size = len(of_regions)
    diagonal = np.moveaxis(np.diagonal(of_regions), -1, 0)
    return (of_regions.sum(0) - diagonal) / (size - 1)


@dataclass(frozen=True)
class Means:
    """Rows of means over queries. paired_steps: over which numbers of steps are averaged; query_weights: [B, Q], ones first"""

    steps: tuple[int, ...]
    paired_steps: list[int]
    query_weights: np.ndarray

    def of_cells(self, cells: np.ndarray, names: list[str], **what: str) -> list[rows.Row]:
        """Every cell of a matrix [B, R, R, S, Q]: the mean of the paired steps."""
        paired = cells[:, :, :, self._paired].mean(3)
        found = []
        for r, s in np.ndindex(len(names), len(names)):
            of_targets = {PAIRED_STEPS: interval(paired[:, r, s], self.query_weights)}
            found += rows.rows_of_targets(
                of_targets, self.steps, **what, scores=names[r], outputs=names[s]
            )
        return found

    def of_steps(self, of: np.ndarray, **what: str) -> list[rows.Row]:
        """Of replicates [B, S, Q]: every step, and the mean of the paired ones."""
        paired = of[:, self._paired].mean(1)
        of_targets = {
            STEP: interval(of, self.query_weights),
            PAIRED_STEPS: interval(paired, self.query_weights),
        }
        return rows.rows_of_targets(of_targets, self.steps, **what)

    @property
    def _paired(self) -> list[int]:
        return [self.steps.index(t) for t in self.paired_steps]


def prediction_rows(
    spec: Evaluate,
    candidates: dict[str, float],
    means: Means,
    subset_weights: np.ndarray,
    workspace: Workspace,
) -> list[rows.Row]:
    """LDS of every region's scores against every region's outputs, and how much more the diagonal has."""
    measured = np.stack(
        [
            _measured(of, workspace)[: len(spec.steps)]
            for of in spec.inputs_as(LocalizationInputs).outputs.values()
        ]
    )  # [R, S, Q, M]
    labels = train_images(spec.trajectories.checkpoint.images, workspace).labels
    masks = np.stack(
        [
            subsets.subset_mask(labels, seeds[0].checkpoint.subset)
            for seeds in spec.inputs_as(LocalizationInputs).outputs[WHOLE]
        ]
    )
    found, more = [], {"lds_locality": {}, "own_locality": {}}  # [B, S, Q], by method
    for method, of_regions in spec.inputs_as(LocalizationInputs).scores.items():
        candidate = candidate_index(method, spec.scores[method].method, candidates)
        scores = [
            get(score, workspace).array("scores.npy")[candidate] for score in of_regions.values()
        ]
        predictions = np.stack([predicted_outputs(tau, masks, len(spec.steps)) for tau in scores])
        cells = lds_matrix(predictions, measured, subset_weights)  # [B, R, R, S, Q]
        names = list(of_regions)
        found += means.of_cells(cells, names, quantity="lds", method=method)
        more["lds_locality"][method] = contrast(np.moveaxis(cells[:, 1:, 1:], (1, 2), (-2, -1)))
        cells = lds_matrix(
            region_centred(predictions[1:]), region_centred(measured[1:]), subset_weights
        )
        found += means.of_cells(cells, names[1:], quantity="own", method=method)
        more["own_locality"][method] = contrast(np.moveaxis(cells, (1, 2), (-2, -1)))
    return found + _differences(more, means)


def _differences(more: dict[str, dict[str, np.ndarray]], means: Means) -> list[rows.Row]:
    """What the diagonal has more, by every method, and by the first less every other. more: by quantity and method, [B, S, Q]"""
    found = []
    for quantity, of_methods in more.items():
        first = next(iter(of_methods))
        for method, of in of_methods.items():
            found += means.of_steps(of, quantity=quantity, method=method)
            if method != first:
                what = {"quantity": f"{quantity}_difference", "method": first, "against": method}
                found += means.of_steps(of_methods[first] - of, **what)
    return found


def _output(measured: Measure, workspace: Workspace) -> np.ndarray:
    """By all draws. [steps + destination, Q]"""
    return get(measured, workspace).array("outputs.npy").mean(0)


def _measured(of_subsets: tuple[tuple[Measure, ...], ...], workspace: Workspace) -> np.ndarray:
    """The mean over seeds of the outputs of all subset models. [steps + destination, Q, M]"""
    return np.stack(
        [np.mean([_output(m, workspace) for m in seeds], 0) for seeds in of_subsets], -1
    )


def removal_rows(
    spec: Evaluate, step: int, query_weights: np.ndarray, workspace: Workspace
) -> list[rows.Row]:
    """Where the change lies that leaving images out makes: in elements of where journeys end, and in the output.

    Raises: ValueError if leaving images out changes nothing.
    """
    full, by_region = (
        spec.inputs_as(LocalizationInputs).reference,
        spec.inputs_as(LocalizationInputs).removed,
    )
    names, boxes = list(by_region), [m.region for m in full.outputs]
    changes, rises = zip(
        *(_joined([_changed(of, full, workspace) for of in by_region[name]]) for name in names),
        strict=True,
    )
    by_chance = [_changed(of, full, workspace) for of in spec.inputs_as(LocalizationInputs).random]
    change = np.stack(
        [*changes, np.mean([square for square, _ in by_chance], 0)]
    )  # [left out R + 1, Q, …]; random last
    rise = np.stack([*rises, np.mean([rise for _, rise in by_chance], 0)])  # [left out R + 1, R, Q]
    share = np.moveaxis(change_shares(change, boxes), -1, 1)

    found: list[rows.Row] = []

    def state(values: np.ndarray, **what: str) -> None:
        of_removal = {"removal": query_interval(values, query_weights)}
        found.extend(
            rows.rows_of_targets(of_removal, [], **what, method=next(iter(spec.scores)), step=step)
        )

    for out, left_out in enumerate([*names, RANDOM]):
        state(change[out].reshape(change.shape[1], -1).mean(1), quantity="change", removed=left_out)
        for s, region in enumerate(names):
            state(share[out, s], quantity="share", removed=left_out, outputs=region)
            state(rise[out, s], quantity="rise", removed=left_out, outputs=region)
    for quantity, of in (("share", share), ("rise", rise)):
        inside = of[range(len(names)), range(len(names))]  # [R, Q]
        for against, otherwise in {OTHERS: other_regions_mean(of[:-1]), RANDOM: of[-1]}.items():
            for region, more in zip(
                [*names, ALL], [*(inside - otherwise), (inside - otherwise).mean(0)], strict=True
            ):
                state(more, quantity=f"{quantity}_more", against=against, outputs=region)
    return found


def _changed(of: Removal, full: Removal, workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """Of the queries of a removal: the squared change of where they end, mean over continuations with the same noise, [Q', …],
    and the rise of the output of every region as a share of it, [R, Q'].
    """
    queries = list(of.ends.queries)
    before, after = (
        get(each.ends, workspace).array("final.npy")[0].astype(np.float64) for each in (full, of)
    )
    was, now = (
        np.stack([_output(m, workspace)[0] for m in each.outputs])[:, queries]
        for each in (full, of)
    )
    return np.square(after - before[queries]).mean(1), now / was - 1


def _joined(of_queries: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """What changed for one query each, as for several."""
    changes, rises = zip(*of_queries, strict=True)
    return np.concatenate(changes), np.concatenate(rises, 1)
