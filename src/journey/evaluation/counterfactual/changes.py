"""The effects of removals: distances of images, and the rows and pictures of a result.

W  windows; the last one is all timesteps to the end
Q  queries
R  retrained models that all queries share, of a control; 1 for a method, whose queries have a model
   each
n  continuations of a query
"""

import base64
from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg, stats
from skimage.metrics import structural_similarity

from journey.attribution.targets import FINAL_SAMPLE, STEP
from journey.data.images import train_images
from journey.diffusion.trajectories import decode_pictures
from journey.engine.workspace import Workspace, get
from journey.evaluation.classifiers import Classifiers, train_classifiers
from journey.evaluation.counterfactual.removals import (
    PROPONENTS,
    RANDOM,
    SAME,
    Change,
    CounterfactualInputs,
    Removal,
)
from journey.evaluation.rows import Row, make_row, select
from journey.evaluation.statistics import (
    kendall_tau,
    models_and_queries_interval,
    query_mean_interval,
)
from journey.pipeline.interfaces import Continuations, Evaluate, Measure

NUM_PICTURED = 3  # queries in the grid of pictures

SIGN = {"ssim": -1, "cosine": -1, "class_change": -1}  # quantities that fall where more has changed

Effects = dict[str, np.ndarray]
"""By quantity: [W, Q] of continuations, [1, Q] of outputs; for several models [R, …, Q]."""


def l2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of each pair of pictures [B, C, H, W]. [B]"""
    return np.sqrt(np.square(a - b).sum((1, 2, 3), dtype=np.float64))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the structural similarity (Wang et al. 2004) of each pair of pictures. [B]

    Args:
        a: Pictures in −1…1 of at least 7×7 pixels. [B, C, H, W]
        b: As many.
    """
    values = []
    for x, y in zip(np.clip(a, -1, 1), np.clip(b, -1, 1), strict=True):
        values.append(structural_similarity(x, y, data_range=2.0, channel_axis=0, win_size=7))
    return np.array(values)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of features [B, E]. [B]"""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of two samples [n, E] as normal distributions.

    ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) (Dowson and Landau 1982). Between samples of one
    distribution it is positive too, the more so the smaller n and the larger E.
    """
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    roots = []  # Σ^½
    for sample in (a, b):
        values, vectors = linalg.eigh(np.atleast_2d(np.cov(sample.T)))
        roots.append((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
    # tr (Σ_a Σ_b)^½ is the sum of the singular values of Σ_a^½ Σ_b^½.
    common = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    return float(mean + np.square(roots[0]).sum() + np.square(roots[1]).sum() - 2 * common)


def principal(train: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of features [N, E] and their first principal axes. [E], [E, d]

    The axes are in units of the standard deviation along each.
    """
    mean = train.mean(0, dtype=np.float64)
    _, scale, axes = linalg.svd(train - mean, full_matrices=False)
    scale = scale[:dimensions] / np.sqrt(len(train) - 1)
    return mean, axes[:dimensions].T / np.maximum(scale, 1e-12)


def pack_pictures(pictures: np.ndarray) -> dict[str, object]:
    """Return pictures in −1…1, of any shape, as JSON with 8 bits a value.

    >>> unpack_pictures(pack_pictures(np.array([-1.0, 1.0, 3.0])))
    array([-1.,  1.,  1.])
    """
    values = np.round(np.clip(pictures, -1, 1) * 127.5 + 127.5).astype(np.uint8)
    return {"shape": list(values.shape), "uint8": base64.b64encode(values.tobytes()).decode()}


def unpack_pictures(packed: dict) -> np.ndarray:
    """Return the pictures that `pack_pictures` was given, to 8 bits."""
    values = np.frombuffer(base64.b64decode(packed["uint8"]), np.uint8)
    return values.reshape(packed["shape"]) / 127.5 - 1


@dataclass(frozen=True)
class FinalPictures:
    """The final samples of continued trajectories.

    Attributes:
        pictures: [W, Q, n, C, height, width]
        features: [W, Q, n, E]
    """

    pictures: np.ndarray
    features: np.ndarray


def final_pictures(parts: tuple[Continuations, ...], workspace: Workspace) -> FinalPictures:
    """Return the pictures and features of continuations, whose windows follow each other."""
    pictures, features = [], []
    for part in parts:
        artifact = get(part, workspace)
        final = artifact.array("final.npy")
        examples = np.array(final).reshape(-1, *final.shape[3:])
        decoded = decode_pictures(examples, part.trajectories, workspace)
        pictures.append(decoded.reshape(*final.shape[:3], *decoded.shape[1:]))
        features.append(np.array(artifact.array("features.npy")))
    return FinalPictures(np.concatenate(pictures), np.concatenate(features))


def same_noise_distances(before: FinalPictures, after: FinalPictures) -> Effects:
    """Return the distances of the images that the trajectory's own noise leads to. [W, Q] each"""
    old, new = before.pictures[0, :, 0], after.pictures[:, :, 0]
    return {
        "l2": np.stack([l2(old, window) for window in new]),
        "ssim": np.stack([ssim(old, window) for window in new]),
        "cosine": np.stack(
            [cosine(before.features[0, :, 0], window) for window in after.features[:, :, 0]]
        ),
    }


def distribution_distances(
    before: FinalPictures,
    after: FinalPictures,
    axes: tuple[np.ndarray, np.ndarray],
    classifiers: Classifiers | None,
) -> Effects:
    """Return the distances of samples of continuations, before and after. [W, Q] each

    frechet       Fréchet distance along principal axes of the features
    class_change  change of the share of continuations in the class that was most frequent before

    Args:
        before: Continuations of the full model, to the end. [1, Q, …]
        after: Those of a retrained model. [W, Q, …]
        axes: Mean and principal axes of the features. [E], [E, d]
        classifiers: Classifiers of pictures; without them, class_change is left out.
    """
    mean, basis = axes
    old, new = ((sample.features - mean) @ basis for sample in (before, after))
    distances = []
    for window in new:
        distances.append([frechet(a, b) for a, b in zip(old[0], window, strict=True)])
    effects = {"frechet": np.array(distances)}
    if classifiers is not None:
        old_labels = classifiers.labels(before.pictures, before.features)["pixels"]  # [1, Q, n]
        new_labels = classifiers.labels(after.pictures, after.features)["pixels"]  # [W, Q, n]
        most = np.array([np.bincount(labels).argmax() for labels in old_labels[0]])
        new_share = (new_labels == most[:, None]).mean(2)
        effects["class_change"] = new_share - (old_labels == most[:, None]).mean(2)
    return effects


def output_rises(full: Measure, retrained: Measure, workspace: Workspace) -> np.ndarray:
    """Return the relative rise of every output, of steps and of the final sample. [S + 1, Q]"""
    before, after = (
        get(spec, workspace).array("outputs.npy").mean(0) for spec in (full, retrained)
    )
    return after / before - 1


@dataclass(frozen=True)
class RemovalEffects:
    """The effects of every removal.

    Attributes:
        effects: By removal and quantity, [R, W, Q] of continuations and [R, 1, Q] of outputs.
        windows: The W windows of each removal.
        before: Pictures from the trajectory's own noise under the full model, by step. [Q, C, H, W]
        after: The same after each removal.
        rises: Relative rise of every query's output under the models of each removal. [model, Q]
        accuracy: Accuracy of the classifiers, and their agreement.
        seed: Seed of the bootstrap.
    """

    effects: dict[Removal, Effects]
    windows: dict[Removal, tuple[int, ...]]
    before: dict[int, np.ndarray]
    after: dict[Removal, np.ndarray]
    rises: dict[Removal, np.ndarray]
    accuracy: dict[str, float]
    seed: int

    def rows(self) -> list[Row]:
        """Return the means over queries, then paired differences.

        Differences are those of the first method minus each other, and of each method minus random
        removals.
        """
        rows = []
        for removal, effects in self.effects.items():
            for quantity, values in effects.items():
                rows += self._rows(removal, quantity, values)
        removals = [removal for removal in self.effects if not removal.is_control]
        methods = sorted({removal.method for removal in removals})
        for removal in removals:
            others = [replace(removal, method=RANDOM, side=PROPONENTS)]
            for later in methods[methods.index(removal.method) + 1 :]:
                others.append(replace(removal, method=later))
            for other in others:
                rows += self._differences(removal, other)
        return rows

    def _rows(
        self, removal: Removal, quantity: str, values: np.ndarray, against: str = ""
    ) -> list[Row]:
        """Return a row for each window of values [R, W, Q]."""
        target, rows = FINAL_SAMPLE if quantity == "final_sample_rise" else STEP, []
        conditions: Row = {"quantity": quantity, "method": removal.method}
        if against:
            conditions["against"] = against
        conditions |= {"side": removal.side, "count": removal.count}
        conditions |= {"target": target, "step": removal.step}
        windows = self.windows[removal][-values.shape[1] :]  # of outputs, the last one alone
        for w, window in enumerate(windows):
            of_window = values[:, w]
            if len(of_window) == 1:
                ends = query_mean_interval(of_window[0])
            else:
                ends = models_and_queries_interval(of_window)
            rows.append(make_row({**conditions, "window": window}, *ends))
        return rows

    def _differences(self, removal: Removal, other: Removal) -> list[Row]:
        """Return the paired differences of two removals with Wilcoxon's p.

        Several models that queries share are represented by their mean.
        """
        rows = []
        for quantity, values in self.effects[removal].items():
            mean = self.effects[other][quantity].mean(0, keepdims=True)
            # Opponents lack the short windows, which come first.
            paired = values - mean[:, -values.shape[1] :]
            differences = self._rows(removal, quantity, paired, against=other.method)
            for row, of_window in zip(differences, paired[0], strict=True):
                p = float(stats.wilcoxon(of_window).pvalue) if np.any(of_window) else 1.0
                rows.append({**row, "p": p})
        return rows

    def per_query(self) -> list[dict[str, object]]:
        """Return the numbers whose means the rows are, by removal and quantity.

        The values of an effect are [R][window][query]. Those of "rise_of_all_queries" are
        [model][query of the run]: the models of a method are in the order of the queries for which
        images were removed.
        """
        numbers = []
        for removal, effects in self.effects.items():
            arrays = dict(effects)
            if removal in self.rises:
                arrays["rise_of_all_queries"] = self.rises[removal]
            for quantity, values in arrays.items():
                record: dict[str, object] = {"quantity": quantity, **vars(removal)}
                if values.ndim == 3:
                    record["windows"] = list(self.windows[removal][-values.shape[1] :])
                rounded = [float(f"{value:.6g}") for value in values.ravel()]
                numbers.append(record | {"values": np.reshape(rounded, values.shape).tolist()})
        return numbers

    def rows_beside_lds(self, lds: list[Row], counts: list[int]) -> list[Row]:
        """Return the linear LDS of the methods, and Kendall's τ with the effects of their removals.

        The intervals of τ resample the queries of the removals and hold the LDS fixed.

        Args:
            lds: The rows of the evaluation by LDS.
            counts: Numbers of removed proponents.
        """
        rows = []
        for step in self.before:
            linear = select(lds, quantity="lds", score_transform="linear", step=step)
            rows += linear
            values = np.array([row["value"] for row in linear])
            for count in sorted(counts):
                removals = [Removal(str(r["method"]), PROPONENTS, count, step) for r in linear]
                for quantity in self.effects[removals[0]]:
                    whole = [self.effects[removal][quantity][0, -1] for removal in removals]
                    by_method = np.stack(whole) * SIGN.get(quantity, 1)  # [method, Q]
                    conditions: Row = {"quantity": "tau", "method": quantity, "side": PROPONENTS}
                    conditions |= {"count": count, "target": STEP, "step": step, "window": step}
                    rows.append(
                        make_row(conditions, *kendall_tau(values[:, None], by_method, self.seed))
                    )
        return rows

    def pictures(self, count: int) -> dict[str, dict]:
        """Return packed pictures before and after the removal of `count` proponents, by step."""
        pictures = {}
        for step, before in self.before.items():
            packed = {"before": pack_pictures(before)}
            for removal, after in self.after.items():
                is_shown = removal.side == PROPONENTS and removal.count in (count, 0)
                if removal.step == step and is_shown:
                    packed[removal.method] = pack_pictures(after)
            pictures[str(step)] = packed
        return pictures


def measure_effects(spec: Evaluate, dimensions: int, workspace: Workspace) -> RemovalEffects:
    """Return the effects of every removal of an evaluation.

    Args:
        spec: The evaluation.
        dimensions: Principal axes of the features, for the Fréchet distance.
        workspace: Where artifacts are.
    """
    # Axes of the features, classifiers if there are classes, and the full model's continuations.
    inputs = spec.inputs_as(CounterfactualInputs)
    embeddings = inputs.embeddings
    axes = principal(np.array(get(embeddings, workspace).array("train.npy")), dimensions)
    has_classes = len(np.unique(train_images(embeddings.images, workspace).labels)) > 1
    classifiers = train_classifiers(embeddings, workspace) if has_classes else None
    before = {part.step: final_pictures((part,), workspace) for part in inputs.before}

    # Every retrained model against the continuations with the same noise, which are the first half.
    changes: dict[Removal, list[Change]] = {}
    for change in inputs.changes:
        changes.setdefault(change.removal, []).append(change)
    effects: dict[Removal, Effects] = {}
    windows: dict[Removal, tuple[int, ...]] = {}
    after: dict[Removal, np.ndarray] = {}
    rises_at_step: dict[Removal, np.ndarray] = {}
    for removal, group in changes.items():
        by_model, pictures, all_rises = [], [], []
        for change in group:
            full, queries = before[removal.step], list(change.queries)
            half = full.pictures.shape[2] // 2
            old = FinalPictures(full.pictures[:, queries, :half], full.features[:, queries, :half])
            new = final_pictures(change.continuations, workspace)
            of_model = same_noise_distances(old, new)
            of_model |= distribution_distances(old, new, axes, classifiers)
            pictures.append(new.pictures[-1, :NUM_PICTURED, 0])

            # Rises of outputs; the centred one is minus the mean rise of all other queries.
            rises = output_rises(inputs.reference, change.measured, workspace)
            at_step = rises[spec.steps.index(removal.step)]
            all_rises.append(at_step)
            others = (at_step.sum() - at_step[queries]) / (len(at_step) - 1)
            of_model["rise"] = at_step[queries][None]
            of_model["centred_rise"] = (at_step[queries] - others)[None]
            of_model["final_sample_rise"] = rises[-1, queries][None]
            by_model.append(of_model)
        windows[removal], rises_at_step[removal] = group[0].windows, np.stack(all_rises)
        effects[removal] = {}
        for quantity in by_model[0]:
            values = [model[quantity] for model in by_model]
            if removal.is_control:
                effects[removal][quantity] = np.stack(values)
            else:
                effects[removal][quantity] = np.concatenate(values, 1)[None]
        selected = pictures[:1] if removal.is_control else pictures
        after[removal] = np.concatenate(selected)[:NUM_PICTURED]

    # Two halves of the full model's continuations: the distance of two samples of one distribution.
    for step, full in before.items():
        half = full.pictures.shape[2] // 2
        first = FinalPictures(full.pictures[:, :, :half], full.features[:, :, :half])
        second = FinalPictures(full.pictures[:, :, half:], full.features[:, :, half:])
        distances = distribution_distances(first, second, axes, None)
        same = Removal(SAME, PROPONENTS, 0, step)
        effects[same] = {name: values[None] for name, values in distances.items()}
        windows[same] = (step,)

    accuracy = {}
    if classifiers is not None:
        accuracy = classifiers.accuracy | {"agreement": classifiers.agreement}
    pictured = {step: full.pictures[0, :NUM_PICTURED, 0] for step, full in before.items()}
    return RemovalEffects(effects, windows, pictured, after, rises_at_step, accuracy, spec.seed)
