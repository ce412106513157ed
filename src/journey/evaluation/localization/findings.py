"""What an evaluation of localization states: whether scores of a region predict that region, and where removals change images.

R  regions;  S  steps;  Q  queries;  M  subsets;  B  bootstrap replicates, the observed value first
"""

from dataclasses import dataclass

import numpy as np

from journey.artifacts.specs import Evaluate, Measure
from journey.artifacts.workspace import Workspace, get
from journey.attribution.targets import PAIRED, STEP
from journey.data import subsets, train_images
from journey.evaluation import rows
from journey.evaluation.candidates import chosen
from journey.evaluation.localization import locality
from journey.evaluation.localization.removal import ALL, OTHERS, RANDOM, WHOLE, Removal
from journey.evaluation.statistics import interval, query_interval

# ----------------------------------------------------------------------------------------------- what is predicted


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
            of_targets = {PAIRED: interval(paired[:, r, s], self.query_weights)}
            found += rows.of_targets(of_targets, self.steps, **what, scores=names[r], outputs=names[s])
        return found

    def of_steps(self, of: np.ndarray, **what: str) -> list[rows.Row]:
        """Of replicates [B, S, Q]: every step, and the mean of the paired ones."""
        paired = of[:, self._paired].mean(1)
        of_targets = {STEP: interval(of, self.query_weights), PAIRED: interval(paired, self.query_weights)}
        return rows.of_targets(of_targets, self.steps, **what)

    @property
    def _paired(self) -> list[int]:
        return [self.steps.index(t) for t in self.paired_steps]


def predicted(
    spec: Evaluate, candidates: dict[str, float], means: Means, subset_weights: np.ndarray, workspace: Workspace
) -> list[rows.Row]:
    """LDS of every region's scores against every region's outputs, and how much more the diagonal has."""
    measured = np.stack([_measured(of, workspace)[: len(spec.steps)] for of in spec.needs["outputs"].values()])  # [R, S, Q, M]
    labels = train_images(spec.journeys.checkpoint.images, workspace).labels
    masks = np.stack([subsets.mask(labels, seeds[0].checkpoint.keep) for seeds in spec.needs["outputs"][WHOLE]])
    found, more = [], {"lds_locality": {}, "own_locality": {}}  # [B, S, Q], by method
    for method, of_regions in spec.needs["scores"].items():
        candidate = chosen(method, spec.scores[method].method, candidates)
        scores = [get(score, workspace).array("scores.npy")[candidate] for score in of_regions.values()]
        predictions = np.stack([locality.predicted(tau, masks, len(spec.steps)) for tau in scores])
        cells = locality.matrix(predictions, measured, subset_weights)  # [B, R, R, S, Q]
        names = list(of_regions)
        found += means.of_cells(cells, names, quantity="lds", method=method)
        more["lds_locality"][method] = locality.contrast(np.moveaxis(cells[:, 1:, 1:], (1, 2), (-2, -1)))
        cells = locality.matrix(locality.own(predictions[1:]), locality.own(measured[1:]), subset_weights)
        found += means.of_cells(cells, names[1:], quantity="own", method=method)
        more["own_locality"][method] = locality.contrast(np.moveaxis(cells, (1, 2), (-2, -1)))
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
    return np.stack([np.mean([_output(m, workspace) for m in seeds], 0) for seeds in of_subsets], -1)


# ------------------------------------------------------------------------------------------- what removals change


def removed(spec: Evaluate, step: int, query_weights: np.ndarray, workspace: Workspace) -> list[rows.Row]:
    """Where the change lies that leaving images out makes: in elements of where journeys end, and in the output.

    Raises: ValueError if leaving images out changes nothing.
    """
    full, by_region = spec.needs["full"], spec.needs["removed"]
    names, boxes = list(by_region), [m.region for m in full.outputs]
    changes, rises = zip(*(_joined([_changed(of, full, workspace) for of in by_region[name]]) for name in names), strict=True)
    by_chance = [_changed(of, full, workspace) for of in spec.needs["random"]]
    change = np.stack([*changes, np.mean([square for square, _ in by_chance], 0)])  # [left out R + 1, Q, …]; random last
    rise = np.stack([*rises, np.mean([rise for _, rise in by_chance], 0)])  # [left out R + 1, R, Q]
    share = np.moveaxis(locality.shares(change, boxes), -1, 1)

    found: list[rows.Row] = []

    def state(values: np.ndarray, **what: str) -> None:
        of_removal = {"removal": query_interval(values, query_weights)}
        found.extend(rows.of_targets(of_removal, [], **what, method=next(iter(spec.scores)), step=step))

    for out, left_out in enumerate([*names, RANDOM]):
        state(change[out].reshape(change.shape[1], -1).mean(1), quantity="change", removed=left_out)
        for s, region in enumerate(names):
            state(share[out, s], quantity="share", removed=left_out, outputs=region)
            state(rise[out, s], quantity="rise", removed=left_out, outputs=region)
    for quantity, of in (("share", share), ("rise", rise)):
        inside = of[range(len(names)), range(len(names))]  # [R, Q]
        for against, otherwise in {OTHERS: locality.beside(of[:-1]), RANDOM: of[-1]}.items():
            for region, more in zip([*names, ALL], [*(inside - otherwise), (inside - otherwise).mean(0)], strict=True):
                state(more, quantity=f"{quantity}_more", against=against, outputs=region)
    return found


def _changed(of: Removal, full: Removal, workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """Of the queries of a removal: the squared change of where they end, mean over continuations with the same noise, [Q', …],
    and the rise of the output of every region as a share of it, [R, Q'].
    """
    queries = list(of.ends.queries)
    before, after = (get(each.ends, workspace).array("final.npy")[0].astype(np.float64) for each in (full, of))
    was, now = (np.stack([_output(m, workspace)[0] for m in each.outputs])[:, queries] for each in (full, of))
    return np.square(after - before[queries]).mean(1), now / was - 1


def _joined(of_queries: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """What changed for one query each, as for several."""
    changes, rises = zip(*of_queries, strict=True)
    return np.concatenate(changes), np.concatenate(rises, 1)
