"""From retrained models to the numbers and pictures of a counterfactual evaluation.

W  windows, the last of which is the whole rest of a journey;  Q  queries;  R  models that all queries share
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from journey.artifacts.specs import Evaluate
from journey.artifacts.workspace import Workspace, get
from journey.attribution.targets import DESTINATION, STEP
from journey.data import train_images
from journey.evaluation import classifiers
from journey.evaluation.counterfactual import distances, effects
from journey.evaluation.counterfactual.effects import Effects, Ended
from journey.evaluation.counterfactual.removal import FLOORS, PROPONENTS, RANDOM, SAME, SEED, Change, What, grouped
from journey.evaluation.counterfactual.thumbnails import pack
from journey.evaluation.rows import Row, select
from journey.evaluation.statistics import over_draws_and_queries, over_queries
from journey.seeding import numpy_generator

SHOWN = 3  # queries in the grid of pictures
REPLICATES = 2000  # of queries, for the interval of Kendall's τ


@dataclass(frozen=True)
class Judged:
    """What every retraining did.

    windows: of continuations. found: by quantity, [R, W, Q] of continuations and [R, 1, Q] of outputs; R is 1 of a method,
    whose every query has a model of its own. before, after: pictures that one noise led to, of some queries, [Q, C, H, W]; by
    step, or by What.
    """

    windows: dict[What, tuple[int, ...]]
    found: dict[What, Effects]
    before: dict[int, np.ndarray]
    after: dict[What, np.ndarray]
    accuracy: dict[str, float]
    seed: int

    # ----------------------------------------------------------------------------------------------- its numbers

    def stated(self) -> list[Row]:
        """Means over queries, and paired differences: of the first method and every other, and of every method and the floor."""
        stated = []
        for what, of in self.found.items():
            for quantity, values in of.items():
                stated += self._rows(what, quantity, values)
        methods = [name for name in dict.fromkeys(what[0] for what in self.found) if name not in FLOORS]
        for what in self.found:
            name, side, count, step = what
            if name in FLOORS:
                continue
            others = [(RANDOM, PROPONENTS), *((other, side) for other in methods if name == methods[0] and other != name)]
            for other, of_side in others:
                stated += self._differences(what, (other, of_side, count, step))
        return stated

    def _rows(self, what: What, quantity: str, values: np.ndarray, **more: str) -> list[Row]:
        """One for each window. values: [R, W, Q]"""
        method, side, count, step = what
        windows = self.windows[what] if values.shape[1] > 1 else (step,)
        target = {"target": DESTINATION if quantity == "destination rise" else STEP, "step": step, "window": 0}
        said = []
        for w, window in enumerate(windows):
            of = values[:, w]
            value, low, high = over_queries(of[0]) if len(of) == 1 else over_draws_and_queries(of)
            about = {"quantity": quantity, "method": method, **more, "side": side, "count": count, **target, "window": window}
            said.append({**about, "value": value, "low": low, "high": high})
        return said

    def _differences(self, what: What, other: What) -> list[Row]:
        """Query by query, with Wilcoxon's p; of models that queries share, their mean."""
        stated = []
        for quantity, values in self.found[what].items():
            theirs = self.found[other][quantity].mean(0, keepdims=True)
            paired = values - theirs[:, -values.shape[1] :]  # opponents have no short windows, which come first
            for row, of in zip(self._rows(what, quantity, paired, against=other[0]), paired[0], strict=True):
                p = float(stats.wilcoxon(of).pvalue) if np.any(of) else 1.0
                stated.append({**row, "p": p})
        return stated

    def against_lds(self, lds: list[Row]) -> list[Row]:
        """Kendall's τ between the methods' LDS at a step and what their removals do. Its interval resamples queries of
        the removals and holds the LDS fixed.
        """
        stated = []
        for step in self.before:
            of_step = {str(r["method"]): float(r["value"]) for r in select(lds, quantity="lds", readout="linear", step=step)}
            stated += select(lds, quantity="lds", readout="linear", step=step)
            for count in self._counts(step):
                whats = [(name, PROPONENTS, count, step) for name in of_step]
                for quantity in self.found[whats[0]]:
                    effect = np.stack([self.found[what][quantity][0, -1] for what in whats])  # [method, Q]
                    value, low, high = _tau(np.array(list(of_step.values())), effect * SIGN.get(quantity, 1), self.seed)
                    about = {"quantity": "tau", "method": quantity, "side": PROPONENTS, "count": count, "target": STEP}
                    stated.append({**about, "step": step, "window": step, "value": value, "low": low, "high": high})
        return stated

    # ---------------------------------------------------------------------------------------------- its pictures

    def pictures(self) -> dict[str, dict]:
        """By step: before, and after the largest removal by every method and under every floor; of some queries."""
        shown: dict[str, dict] = {}
        for step, before in self.before.items():
            of, most = {"before": pack(before)}, max(self._counts(step))
            for (method, side, count, at), after in self.after.items():
                if at == step and side == PROPONENTS and count in (most, 0):
                    of[method] = pack(after)
            shown[str(step)] = of
        return shown

    def windows_at(self, step: int) -> list[int]:
        """All there are at a step, in rising order."""
        return sorted({window for what, of in self.windows.items() if what[3] == step for window in of})

    def _counts(self, step: int) -> list[int]:
        """Of the proponents that were left out at a step."""
        return sorted({count for name, side, count, at in self.found if at == step and side == PROPONENTS and name not in FLOORS})


SIGN = {"ssim": -1, "cosine": -1, "class": -1}  # the smaller, the more has changed


def judged(spec: Evaluate, dimensions: int, workspace: Workspace) -> Judged:
    """Every retraining of an evaluation. dimensions: of the space of the Fréchet distance"""
    embedded = spec.needs["embedded"]
    axes = distances.principal(np.array(get(embedded, workspace).array("train.npy")), dimensions)
    several = len(np.unique(train_images(embedded.images, workspace).labels)) > 1
    known = classifiers.trained(embedded, workspace) if several else None
    before = {made.step: effects.ended((made,), workspace) for made in spec.needs["before"]}

    found: dict[What, Effects] = {}
    after: dict[What, np.ndarray] = {}
    for what, changes in grouped(spec.needs["changes"]).items():
        each, pictures = [], []
        for change in changes:
            new, old = effects.ended(change.continued, workspace), _first_half(before[change.step], change.queries)
            of = effects.same_noise(old, new) | effects.distributions(old, new, axes, known)
            each.append(of | _rises(spec, change, workspace))
            pictures.append(new.pictures[-1, :SHOWN, 0])
        shared = what[0] in (RANDOM, SEED)
        found[what] = _together(each, shared)
        after[what] = pictures[0] if shared else np.concatenate(pictures)[:SHOWN]
    for step, of in before.items():
        found[SAME, PROPONENTS, 0, step] = _by_chance(of, axes)
    first = {step: of.pictures[0, :SHOWN, 0] for step, of in before.items()}
    accuracy = {} if known is None else {**known.accuracy, "agreement": known.agreement}
    windows = {change.what: change.windows for change in spec.needs["changes"]}
    return Judged(windows, found, first, after, accuracy, spec.seed)


def _together(each: list[Effects], shared: bool) -> Effects:
    """Of several models that all queries share, [R, W, Q]; of a model for each query, [1, W, Q]."""
    if shared:
        return {name: np.stack([of[name] for of in each]) for name in each[0]}
    return {name: np.concatenate([of[name] for of in each], 1)[None] for name in each[0]}


def _first_half(of: Ended, queries: tuple[int, ...]) -> Ended:
    """Continuations of some queries that have the same noise as those after a change."""
    half = of.pictures.shape[2] // 2
    return Ended(of.pictures[:, list(queries), :half], of.features[:, list(queries), :half])


def _by_chance(of: Ended, axes: tuple[np.ndarray, np.ndarray]) -> Effects:
    """How far apart two samples of one model's continuations are, with noise of their own. [1, 1, Q]"""
    half = of.pictures.shape[2] // 2
    one, other = (Ended(of.pictures[:, :, part], of.features[:, :, part]) for part in (slice(half), slice(half, None)))
    return {name: values[None] for name, values in effects.distributions(one, other, axes, None).items()}


def _rises(spec: Evaluate, change: Change, workspace: Workspace) -> Effects:
    """Of the output at the step, of the query less the mean of the others', and of the destination. [1, Q]"""
    of = effects.rises(spec.needs["full"], change.measured, workspace)  # [steps + destination, all queries]
    at, own = of[spec.steps.index(change.step)], list(change.queries)
    others = (at.sum() - at[own]) / (len(at) - 1)
    found = {"rise": at[own], "own rise": at[own] - others, "destination rise": of[-1, own]}
    return {name: values[None] for name, values in found.items()}


def _tau(lds: np.ndarray, effect: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Kendall's τ over methods; of what is the same for all, which carries no order, 0. lds: [method]; effect: [method, Q]"""
    random = numpy_generator(seed, "tau")
    num_queries = effect.shape[1]
    draws = random.integers(num_queries, size=(REPLICATES, num_queries))
    taus = np.nan_to_num([stats.kendalltau(lds, effect[:, drawn].mean(1)).statistic for drawn in (range(num_queries), *draws)])
    low, high = np.percentile(taus[1:], (2.5, 97.5))
    return float(taus[0]), float(low), float(high)
