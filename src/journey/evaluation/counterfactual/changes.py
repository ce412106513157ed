"""How far apart images are, and samples of images.

Small pictures inside a result, so that it is drawn from itself alone.

What a change of the training images did to some queries.

From retrained models to the numbers and pictures of a counterfactual evaluation.

W  windows, the last of which is the whole rest of a journey;  Q  queries;  R  models that all queries share
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import linalg, stats
from skimage.metrics import structural_similarity

from journey.attribution.targets import FINAL_SAMPLE, STEP
from journey.data.images import train_images
from journey.diffusion.trajectories import decode_pictures
from journey.engine.seeding import numpy_generator
from journey.engine.workspace import Workspace, get
from journey.evaluation import classifiers
from journey.evaluation.classifiers import Classifiers
from journey.evaluation.counterfactual import (
    CONTROLS,
    PROPONENTS,
    RANDOM,
    SAME,
    SEED,
    Change,
    CounterfactualInputs,
    RemovalKey,
    group_changes,
)
from journey.evaluation.rows import Row, select
from journey.evaluation.statistics import models_and_queries_interval, query_mean_interval
from journey.pipeline.interfaces import Continuations, Evaluate, Measure

RANGE = 2.0  # pixels are in −1…1


def l2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distance of pictures [B, C, H, W], each pair. [B]"""
    return np.sqrt(np.square(a - b).sum((1, 2, 3), dtype=np.float64))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) of pictures [B, C, H, W] of 7×7 pixels or more, each pair. [B]"""
    a, b = np.clip(a, -1, 1), np.clip(b, -1, 1)
    pairs = zip(a, b, strict=True)
    return np.array(
        [
            structural_similarity(x, y, data_range=RANGE, channel_axis=0, win_size=7)
            for x, y in pairs
        ]
    )


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of features [B, E], each pair. [B]"""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two samples [n, E] as normal distributions: ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) (Dowson and
    Landau 1982). Two samples of one distribution are at a distance too: the smaller n and the larger E, the further.
    """
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    root = [_root(np.cov(sample.T)) for sample in (a, b)]
    # tr (Σ_a Σ_b)^½ is the sum of the singular values of Σ_a^½ Σ_b^½.
    common = np.linalg.svd(root[0] @ root[1], compute_uv=False).sum()
    return float(mean + np.square(root[0]).sum() + np.square(root[1]).sum() - 2 * common)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root."""
    values, vectors = linalg.eigh(np.atleast_2d(covariance))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def principal(train: np.ndarray, dimensions: int) -> "tuple[np.ndarray, np.ndarray]":
    """The mean of features [N, E] and their first principal axes, in units of the standard deviation along each. [E], [E, d]"""
    mean = train.mean(0, dtype=np.float64)
    _, scale, axes = linalg.svd(train - mean, full_matrices=False)
    scale = scale[:dimensions] / np.sqrt(len(train) - 1)
    return mean, axes[:dimensions].T / np.maximum(scale, 1e-12)


def pack_pictures(pictures: np.ndarray) -> dict[str, object]:
    """Pictures in −1…1, of any shape, as JSON with 8 bits a value.

    >>> unpack(pack(np.array([-1.0, 1.0, 3.0])))
    array([-1.,  1.,  1.])
    """
    values = np.round(np.clip(pictures, -1, 1) * 127.5 + 127.5).astype(np.uint8)
    return {"shape": list(values.shape), "uint8": base64.b64encode(values.tobytes()).decode()}


def unpack_pictures(packed: dict) -> np.ndarray:
    """What `pack` was given, to 8 bits."""
    values = np.frombuffer(base64.b64decode(packed["uint8"]), np.uint8)
    return values.reshape(packed["shape"]) / 127.5 - 1


Effects = dict[str, np.ndarray]
"""By quantity. Of continuations, [window, query]; rises, [query]."""


@dataclass(frozen=True)
class ContinuedPictures:
    """Where continuations of some queries end: pictures [W, Q, n, C, H, W'] and their features [W, Q, n, E]."""

    pictures: np.ndarray
    features: np.ndarray


def continued_pictures(of: tuple[Continuations, ...], workspace: Workspace) -> ContinuedPictures:
    """The pictures, and what an encoder sees; windows one after the other."""
    each = [_continued_pictures(made, workspace) for made in of]
    return ContinuedPictures(
        np.concatenate([some.pictures for some in each]),
        np.concatenate([some.features for some in each]),
    )


def _continued_pictures(made: Continuations, workspace: Workspace) -> ContinuedPictures:
    final = get(made, workspace).array("final.npy")
    shape, examples = final.shape[:3], np.array(final).reshape(-1, *final.shape[3:])
    pictures = decode_pictures(examples, made.trajectories, workspace)
    return ContinuedPictures(
        pictures.reshape(*shape, *pictures.shape[1:]),
        np.array(get(made, workspace).array("features.npy")),
    )


def same_noise(before: ContinuedPictures, after: ContinuedPictures) -> Effects:
    """Distances of the images that one noise led to, before and after.

    before: one window, the whole rest of the journey; after: of each window is compared with it.
    """
    found: Effects = {}
    each: dict[str, tuple[str, Callable]] = {
        "l2": ("pictures", l2),
        "ssim": ("pictures", ssim),
        "cosine": ("features", cosine),
    }
    for name, (of, distance) in each.items():
        old, new = (getattr(some, of)[:, :, 0] for some in (before, after))
        found[name] = np.stack([distance(old[0], window) for window in new])
    return found


def distributions(
    before: ContinuedPictures,
    after: ContinuedPictures,
    axes: tuple[np.ndarray, np.ndarray],
    classifiers: Classifiers | None,
) -> Effects:
    """Distances of the samples of continuations, before and after; as in `same_noise`.

    frechet   in the space of the features' principal axes: their mean [E] and the axes [E, d]
    class     the share of continuations that show the class which most of them showed before, less what it was
    """
    mean, basis = axes
    old, new = ((some.features - mean) @ basis for some in (before, after))
    found = {
        "frechet": np.array(
            [[frechet(a, b) for a, b in zip(old[0], of, strict=True)] for of in new]
        )
    }
    if classifiers is not None:
        said = [
            classifiers.labels(some.pictures, some.features)["pixels"] for some in (before, after)
        ]  # [W, Q, n]
        most = np.array([np.bincount(labels).argmax() for labels in said[0][0]])
        share = [(labels == most[:, None]).mean(2) for labels in said]
        found["class"] = share[1] - share[0]
    return found


def output_rises(full: Measure, made: Measure, workspace: Workspace) -> np.ndarray:
    """How much the output at each step, and of the destination, rises, as a share of what it was. [steps + destination, query]"""
    before, after = (get(spec, workspace).array("outputs.npy").mean(0) for spec in (full, made))
    return after / before - 1


SHOWN = 3  # queries in the grid of pictures


REPLICATES = 2000  # of queries, for the interval of Kendall's τ


@dataclass(frozen=True)
class RemovalEffects:
    """What every retraining did.

    windows: of continuations. found: by quantity, [R, W, Q] of continuations and [R, 1, Q] of outputs; R is 1 of a method,
    whose every query has a model of its own. before, after: pictures that one noise led to, of some queries, [Q, C, H, W]; by
    step, or by What.
    """

    windows: dict[RemovalKey, tuple[int, ...]]
    found: dict[RemovalKey, Effects]
    before: dict[int, np.ndarray]
    after: dict[RemovalKey, np.ndarray]
    accuracy: dict[str, float]
    seed: int

    # ----------------------------------------------------------------------------------------------- its numbers

    def stated(self) -> list[Row]:
        """Means over queries, and paired differences: of the first method and every other, and of every method and the floor."""
        stated = []
        for what, of in self.found.items():
            for quantity, values in of.items():
                stated += self._rows(what, quantity, values)
        methods = [
            name for name in dict.fromkeys(what[0] for what in self.found) if name not in CONTROLS
        ]
        for what in self.found:
            name, side, count, step = what
            if name in CONTROLS:
                continue
            others = [
                (RANDOM, PROPONENTS),
                *((other, side) for other in methods if name == methods[0] and other != name),
            ]
            for other, of_side in others:
                stated += self._differences(what, (other, of_side, count, step))
        return stated

    def _rows(self, what: RemovalKey, quantity: str, values: np.ndarray, **more: str) -> list[Row]:
        """One for each window. values: [R, W, Q]"""
        method, side, count, step = what
        windows = self.windows[what] if values.shape[1] > 1 else (step,)
        target = {
            "target": FINAL_SAMPLE if quantity == "destination rise" else STEP,
            "step": step,
            "window": 0,
        }
        said = []
        for w, window in enumerate(windows):
            of = values[:, w]
            value, low, high = (
                query_mean_interval(of[0]) if len(of) == 1 else models_and_queries_interval(of)
            )
            about = {
                "quantity": quantity,
                "method": method,
                **more,
                "side": side,
                "count": count,
                **target,
                "window": window,
            }
            said.append({**about, "value": value, "low": low, "high": high})
        return said

    def _differences(self, what: RemovalKey, other: RemovalKey) -> list[Row]:
        """Query by query, with Wilcoxon's p; of models that queries share, their mean."""
        stated = []
        for quantity, values in self.found[what].items():
            theirs = self.found[other][quantity].mean(0, keepdims=True)
            paired = (
                values - theirs[:, -values.shape[1] :]
            )  # opponents have no short windows, which come first
            for row, of in zip(
                self._rows(what, quantity, paired, against=other[0]), paired[0], strict=True
            ):
                p = float(stats.wilcoxon(of).pvalue) if np.any(of) else 1.0
                stated.append({**row, "p": p})
        return stated

    def against_lds(self, lds: list[Row]) -> list[Row]:
        """Kendall's τ between the methods' LDS at a step and what their removals do. Its interval resamples queries of
        the removals and holds the LDS fixed.
        """
        stated = []
        for step in self.before:
            of_step = {
                str(r["method"]): float(r["value"])
                for r in select(lds, quantity="lds", score_transform="linear", step=step)
            }
            stated += select(lds, quantity="lds", score_transform="linear", step=step)
            for count in self._counts(step):
                whats = [(name, PROPONENTS, count, step) for name in of_step]
                for quantity in self.found[whats[0]]:
                    effect = np.stack(
                        [self.found[what][quantity][0, -1] for what in whats]
                    )  # [method, Q]
                    value, low, high = _tau(
                        np.array(list(of_step.values())), effect * SIGN.get(quantity, 1), self.seed
                    )
                    about = {
                        "quantity": "tau",
                        "method": quantity,
                        "side": PROPONENTS,
                        "count": count,
                        "target": STEP,
                    }
                    stated.append(
                        {
                            **about,
                            "step": step,
                            "window": step,
                            "value": value,
                            "low": low,
                            "high": high,
                        }
                    )
        return stated

    # ---------------------------------------------------------------------------------------------- its pictures

    def pictures(self) -> dict[str, dict]:
        """By step: before, and after the largest removal by every method and under every floor; of some queries."""
        shown: dict[str, dict] = {}
        for step, before in self.before.items():
            of, most = {"before": pack_pictures(before)}, max(self._counts(step))
            for (method, side, count, at), after in self.after.items():
                if at == step and side == PROPONENTS and count in (most, 0):
                    of[method] = pack_pictures(after)
            shown[str(step)] = of
        return shown

    def windows_at(self, step: int) -> list[int]:
        """All there are at a step, in rising order."""
        return sorted(
            {window for what, of in self.windows.items() if what[3] == step for window in of}
        )

    def _counts(self, step: int) -> list[int]:
        """Of the proponents that were left out at a step."""
        return sorted(
            {
                count
                for name, side, count, at in self.found
                if at == step and side == PROPONENTS and name not in CONTROLS
            }
        )


SIGN = {"ssim": -1, "cosine": -1, "class": -1}  # the smaller, the more has changed


def measure_effects(spec: Evaluate, dimensions: int, workspace: Workspace) -> RemovalEffects:
    """Every retraining of an evaluation. dimensions: of the space of the Fréchet distance"""
    embedded = spec.inputs_as(CounterfactualInputs).embeddings
    axes = principal(np.array(get(embedded, workspace).array("train.npy")), dimensions)
    several = len(np.unique(train_images(embedded.images, workspace).labels)) > 1
    known = classifiers.train_classifiers(embedded, workspace) if several else None
    before = {
        made.step: continued_pictures((made,), workspace)
        for made in spec.inputs_as(CounterfactualInputs).before
    }

    found: dict[RemovalKey, Effects] = {}
    after: dict[RemovalKey, np.ndarray] = {}
    for what, changes in group_changes(spec.inputs_as(CounterfactualInputs).changes).items():
        each, pictures = [], []
        for change in changes:
            new, old = (
                continued_pictures(change.continuations, workspace),
                _first_half(before[change.step], change.queries),
            )
            of = same_noise(old, new) | distributions(old, new, axes, known)
            each.append(of | _change_rises(spec, change, workspace))
            pictures.append(new.pictures[-1, :SHOWN, 0])
        shared = what[0] in (RANDOM, SEED)
        found[what] = _together(each, shared)
        after[what] = pictures[0] if shared else np.concatenate(pictures)[:SHOWN]
    for step, of in before.items():
        found[SAME, PROPONENTS, 0, step] = _by_chance(of, axes)
    first = {step: of.pictures[0, :SHOWN, 0] for step, of in before.items()}
    accuracy = {} if known is None else {**known.accuracy, "agreement": known.agreement}
    windows = {
        change.what: change.windows for change in spec.inputs_as(CounterfactualInputs).changes
    }
    return RemovalEffects(windows, found, first, after, accuracy, spec.seed)


def _together(each: list[Effects], shared: bool) -> Effects:
    """Of several models that all queries share, [R, W, Q]; of a model for each query, [1, W, Q]."""
    if shared:
        return {name: np.stack([of[name] for of in each]) for name in each[0]}
    return {name: np.concatenate([of[name] for of in each], 1)[None] for name in each[0]}


def _first_half(of: ContinuedPictures, queries: tuple[int, ...]) -> ContinuedPictures:
    """Continuations of some queries that have the same noise as those after a change."""
    half = of.pictures.shape[2] // 2
    return ContinuedPictures(
        of.pictures[:, list(queries), :half], of.features[:, list(queries), :half]
    )


def _by_chance(of: ContinuedPictures, axes: tuple[np.ndarray, np.ndarray]) -> Effects:
    """How far apart two samples of one model's continuations are, with noise of their own. [1, 1, Q]"""
    half = of.pictures.shape[2] // 2
    one, other = (
        ContinuedPictures(of.pictures[:, :, part], of.features[:, :, part])
        for part in (slice(half), slice(half, None))
    )
    return {name: values[None] for name, values in distributions(one, other, axes, None).items()}


def _change_rises(spec: Evaluate, change: Change, workspace: Workspace) -> Effects:
    """Of the output at the step, of the query less the mean of the others', and of the destination. [1, Q]"""
    of = output_rises(
        spec.inputs_as(CounterfactualInputs).reference, change.measured, workspace
    )  # [steps + destination, all queries]
    at, own = of[spec.steps.index(change.step)], list(change.queries)
    others = (at.sum() - at[own]) / (len(at) - 1)
    found = {"rise": at[own], "own rise": at[own] - others, "destination rise": of[-1, own]}
    return {name: values[None] for name, values in found.items()}


def _tau(lds: np.ndarray, effect: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Kendall's τ over methods; of what is the same for all, which carries no order, 0. lds: [method]; effect: [method, Q]"""
    random = numpy_generator(seed, "tau")
    num_queries = effect.shape[1]
    draws = random.integers(num_queries, size=(REPLICATES, num_queries))
    taus = np.nan_to_num(
        [
            stats.kendalltau(lds, effect[:, drawn].mean(1)).statistic
            for drawn in (range(num_queries), *draws)
        ]
    )
    low, high = np.percentile(taus[1:], (2.5, 97.5))
    return float(taus[0]), float(low), float(high)
