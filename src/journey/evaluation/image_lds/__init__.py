"""How well scores predict what retraining does to the final image, beside what it does to a loss.

Each retrained model continues every query from its x_t at some steps, with the noise of the query's
own trajectory, and once from the first noise: the whole generation. Numbers of the final images
(`ImageTarget`) take the place of the losses in the LDS of `journey.evaluation.lds`, with the same
statistic, resampling and choice of λ on held-out data.

M  subsets;  R  training seeds;  S  steps;  T  targets: the S steps, and the whole generation twice,
where the LDS has the trajectory and the final sample;  Q  queries
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from journey.attribution.baselines import Encoder
from journey.attribution.targets import (
    PAIRED_STEPS,
    STEP,
    TRAJECTORY,
    step_weights,
    subset_masks,
    with_aggregates,
)
from journey.engine.checks import require, require_count
from journey.engine.spec import describe, omitted_default
from journey.engine.store import Artifact
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds import datamodeling, named_ends, reliability, shown_index
from journey.evaluation.lds.datamodeling import MethodLDS, Resampling
from journey.evaluation.lds.reliability import ceiling_of, titled_ceilings
from journey.evaluation.ranking import candidate_index
from journey.evaluation.rows import Row, difference_of, percent, select
from journey.evaluation.statistics import kendall_tau, query_mean_interval
from journey.pipeline.images import ImageSet, check_several_classes
from journey.pipeline.interfaces import (
    Continuations,
    Evaluate,
    Evaluation,
    Experiment,
    Inputs,
    Measure,
    Model,
    Result,
    Sample,
    Score,
)
from journey.pipeline.settings import (
    ImageTarget,
    Sampler,
    Sampling,
)

QUANTITIES = {"query_centred": "image_query_centred", "lds": "image_lds"}
"""The quantities of the LDS of images, by that of the LDS of losses."""

PRIMARY = QUANTITIES["query_centred"]

LOSS, NOISY_LOSS = "loss", "noisy_loss"  # at x̂0_t, and at x_t itself

TITLES = {
    LOSS: "loss at x̂0_t",
    NOISY_LOSS: "loss at x_t itself",
    "distance": "distance from the original image",
    "projection": "projection on the original image",
    "class_loss": "class loss of the image",
    "direction": "projection on a principal axis",
    "features": "distance of features",
}

REST, WINDOW = "rest", "window"  # the retrained model drives to the end, or to the next step

Axis = tuple[str, str]
"""What is measured, and for how long the retrained model drives."""

Measurement = Callable[[Artifact, int], np.ndarray]
"""(continuations, index of a window) → a number of each query [Q]"""


@dataclass(frozen=True)
class ImageLDSInputs(Inputs):
    """What the LDS of images is computed from.

    Attributes:
        continuations: Under every retrained model. [subset][training seed][step, then generation]
        outputs: The losses at x̂0_t. [subset][training seed]
        noisy_outputs: The losses at x_t itself, likewise.
        reference: Losses of the full model, by which a trajectory weights its steps, if it does.
    """

    continuations: tuple[tuple[tuple[Continuations, ...], ...], ...]
    outputs: tuple[tuple[Measure, ...], ...]
    noisy_outputs: tuple[tuple[Measure, ...], ...]
    reference: Measure | None


@dataclass
class ImageLDS(Evaluation):
    """The LDS of every method against the final images of retrained models, and against losses."""

    name: ClassVar[str] = "image_lds"
    continues_trajectories: ClassVar[bool] = True
    show: ClassVar[str] = "journey.evaluation.image_lds.show"
    steps: list[int] = field(
        default_factory=lambda: [600, 400, 200]
    )  # t: the trajectories are continued from these steps
    targets: list[ImageTarget] = field(
        default_factory=lambda: [
            ImageTarget.distance,
            ImageTarget.projection,
            ImageTarget.class_loss,
        ]
    )  # numbers of the final images
    num_continuations: int = 1  # whose mean is measured; the first has the trajectory's own noise
    windows: bool = False  # also let retrained models drive to the next step only
    encoder: Encoder = field(default_factory=lambda: Encoder(side=96))  # of the target `features`
    num_bootstrap: int = 2000  # bootstrap replicates of an interval
    candidates: dict[str, float] = omitted_default({})  # by method, the λ that is fixed beforehand

    def check(self, where: str) -> None:
        require(len(self.steps) > 0, f"{where}.steps", self.steps, "a non-empty list")
        names = [target.value for target in self.targets]
        valid = 0 < len(names) == len(set(names))
        require(valid, f"{where}.targets", names, "a non-empty list, distinct")
        require_count(f"{where}.num_continuations", self.num_continuations, most=10_000)
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        self.encoder.check(f"{where}.encoder")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        name, steps = f"{where}.steps", self.steps
        falling = steps == sorted(set(steps), reverse=True)
        require(falling, name, steps, "distinct, in falling order")
        allowed = f"among sampling.steps={sampling.steps}"
        require(set(steps) <= set(sampling.steps), name, steps, allowed)
        count, random = self.num_continuations, sampling.sampler is Sampler.ddpm
        allowed = f"1 with sampling.sampler={sampling.sampler.value}: all are the same"
        require(random or count == 1, f"{where}.num_continuations", count, allowed)
        if ImageTarget.features in self.targets:
            self.encoder.weights(f"{where}.encoder")
        allowed = f"left out with model={model.name}: its classifier is of pixels"
        valid = model.pixels or ImageTarget.class_loss not in self.targets
        require(valid, f"{where}.targets", ImageTarget.class_loss.value, allowed)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        if ImageTarget.class_loss in self.targets:
            check_several_classes(f"{where}.targets", ImageTarget.class_loss.value, images)

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> ImageLDSInputs:
        for name in self.candidates:
            require(name in scores, "evaluation.candidates", name, f"among {', '.join(scores)}")
            candidate_index(name, scores[name].method, self.candidates)
        sampling = experiment.sampling
        outputs, first = experiment.subset_outputs(), experiment.trajectories.visited[0]
        queries = tuple(range(sampling.num_queries))
        encoder = self.encoder if ImageTarget.features in self.targets else None
        by_subset, noisy = [], []
        for measures in outputs:
            by_seed = []
            for measure in measures:
                parts = []
                for t in dict.fromkeys([*self.steps, first]):
                    windows: tuple[int, ...] = (t,)
                    if self.windows and t in self.steps and (end := self._end(t, sampling.steps)):
                        windows = (t - end, t)
                    rest = (t, queries, self.num_continuations, encoder, windows)
                    parts.append(experiment.continuations(measure.checkpoint, *rest))
                by_seed.append(tuple(parts))
            by_subset.append(tuple(by_seed))
            noisy.append(tuple(experiment.noisy_outputs(m.checkpoint) for m in measures))
        reference = experiment.reference_outputs
        return ImageLDSInputs(tuple(by_subset), outputs, tuple(noisy), reference)

    @staticmethod
    def _end(t: int, steps: list[int]) -> int:
        """Return the step after t, where its window ends; 0 after the last, which has no window.

        >>> ImageLDS._end(600, [600, 400, 200]), ImageLDS._end(200, [600, 400, 200])
        (400, 0)
        """
        return next((step for step in steps if step < t), 0)

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> Result:
        """Return the LDS of all methods for images and for losses, ceilings, differences, and τ.

        Raises:
            ValueError: A target is the same under every retrained model.
        """
        # 1. What retrained models do: to losses, and to final images.
        inputs = spec.inputs_as(ImageLDSInputs)
        masks = subset_masks([measures[0] for measures in inputs.outputs], workspace)
        weights = step_weights(inputs.reference, spec.trajectories, spec.steps, workspace)
        measured = {
            (LOSS, REST): self._losses(inputs.outputs, weights, spec, workspace),
            (NOISY_LOSS, REST): self._losses(inputs.noisy_outputs, weights, spec, workspace),
        }
        images, rows = self._final_images(spec, workspace)
        measured |= images
        for (name, _), values in measured.items():
            means = values.mean(1)
            if (means.min(0) == means.max(0)).any():
                raise ValueError(f"{name} is the same under every retrained model")

        # 2. What every method predicts, in an order that does not depend on the run.
        predicted = {}
        for name in sorted(spec.scores):
            predicted[name] = self._predictions(name, spec, masks, weights, workspace)

        # 3. The LDS of each target, plain and query-centred.
        num_subsets, num_seeds, _, num_queries = measured[LOSS, REST].shape
        resampled = datamodeling.resampling(num_queries, num_subsets, self.num_bootstrap, spec.seed)
        centred: dict[Axis, dict[str, MethodLDS]] = {}
        for axis, values in measured.items():
            of_axis = {name: by_window[axis[1]] for name, by_window in predicted.items()}
            plain_rows = self._lds(of_axis, values[:, :, None], axis, "lds", resampled)[1]
            half = resampled.query_half
            for name, predictions in of_axis.items():
                of_axis[name] = datamodeling.query_centred(predictions, half)
            values = datamodeling.query_centred(values[..., None], half)[..., 0]
            rest = (values[:, :, None], axis, "query_centred", resampled)
            centred[axis], centred_rows = self._lds(of_axis, *rest)
            rows += centred_rows + plain_rows

        # 4. Whether methods rank alike by losses and by images.
        loss = np.stack([lds.values for lds in centred[LOSS, REST].values()])  # [method, T, Q]
        per_query = []
        for axis, methods in centred.items():
            values = np.stack([lds.values for lds in methods.values()])
            if axis != (LOSS, REST) and len(methods) > 2:
                conditions: Row = {"quantity": "tau", "method": "all methods"}
                rows += self._rows(_tau_interval(loss, values, spec.seed), conditions, axis)
            by_method = dict(zip(methods, values.round(4).tolist(), strict=True))
            per_query.append({"image": axis[0], "window": axis[1], "query_centred": by_method})

        shown = {}
        for name, lds in centred[LOSS, REST].items():
            candidates = self._candidates(name, spec)[1]
            shown[name] = candidates[shown_index(lds.chosen[STEP], candidates)]
        return {
            "num_train": masks.shape[1],
            "num_subsets": num_subsets,
            "num_seeds": num_seeds,
            "num_queries": num_queries,
            "num_continuations": self.num_continuations,
            "num_bootstrap": self.num_bootstrap,
            "steps": list(self.steps),
            "rows": rows,
            "per_query": per_query,
            "shown": shown,
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

    def _losses(
        self,
        measures: tuple[tuple[Measure, ...], ...],
        weights: np.ndarray,
        spec: Evaluate,
        workspace: Workspace,
    ) -> np.ndarray:
        """Return the losses at the steps, and those of trajectories twice. [M, R, T, Q]"""
        arrays = []
        for of_subset in measures:
            arrays.append([get(m, workspace).array("outputs.npy").mean(0) for m in of_subset])
        return with_aggregates(np.stack(arrays), weights)[:, :, self._places(spec)]

    def _places(self, spec: Evaluate) -> list[int]:
        """Return where the T targets are among those of the LDS, of all steps."""
        num_steps = len(spec.steps)
        return [*(spec.steps.index(t) for t in self.steps), num_steps, num_steps]

    def _final_images(
        self, spec: Evaluate, workspace: Workspace
    ) -> tuple[dict[Axis, np.ndarray], list[Row]]:
        """Return the numbers of final images [M, R, T, Q] by target, and rows of how far they move.

        Those rows compare images of retrained models with the original, and, with several training
        seeds, images of two models of one subset.
        """
        functions = self._functions(spec, workspace)
        final = np.array(get(spec.trajectories, workspace).array("final.npy"))
        spans = ((REST, -1), (WINDOW, 0)) if self.windows else ((REST, -1),)
        numbers: dict[Axis, list[np.ndarray]] = {}
        moved: dict[str, list[np.ndarray]] = {}
        for by_seed in spec.inputs_as(ImageLDSInputs).continuations:
            models = [self._by_target(parts, workspace) for parts in by_seed]
            for target, function in functions.items():
                for window, place in spans:
                    values = []
                    for artifacts in models:
                        values.append(np.stack([function(a, place) for a in artifacts]))
                    numbers.setdefault((target.value, window), []).append(np.stack(values))

            images = []  # with the trajectory's own noise [T, Q, …], by training seed
            for artifacts in models:
                images.append(np.stack([a.array("final.npy")[-1, :, 0] for a in artifacts]))
            pairs = {"retrained": (images[0], final)}
            if len(images) > 1:
                pairs["another seed"] = (images[0], images[1])
            for name, (a, b) in pairs.items():
                distance = np.square(a - b).reshape(*a.shape[:2], -1).mean(-1)
                moved.setdefault(name, []).append(distance)

        rows = []
        for name, distances in moved.items():
            mean = np.stack(distances).mean(0, dtype=np.float64)  # [T, Q]
            conditions: Row = {"quantity": "moved", "method": name}
            rows += self._rows(_mean_interval(mean), conditions, (ImageTarget.distance.value, REST))
        return {axis: np.stack(values) for axis, values in numbers.items()}, rows

    def _by_target(self, parts: tuple[Continuations, ...], workspace: Workspace) -> list[Artifact]:
        """Return the continuations of one model, of each of the T targets."""
        by_step = {part.step: get(part, workspace) for part in parts}
        first = by_step[max(by_step)]  # the whole generation
        return [*(by_step[t] for t in self.steps), first, first]

    def _functions(self, spec: Evaluate, workspace: Workspace) -> dict[ImageTarget, Measurement]:
        """Return the measurement of each target, a mean over continuations."""
        import torch

        from journey.attribution.image_targets import TargetFunction, target_function
        from journey.diffusion.trajectories import decode_pictures

        trajectories = spec.trajectories

        def of_images(function: TargetFunction) -> Measurement:
            def measure(artifact: Artifact, place: int) -> np.ndarray:
                x = torch.from_numpy(np.array(artifact.array("final.npy")[place]))  # [Q, n, …]
                queries = torch.arange(len(x)).repeat_interleave(x.shape[1])
                values = function(x.flatten(0, 1), queries).double()
                return values.view(len(x), -1).mean(1).numpy()

            return measure

        functions: dict[ImageTarget, Measurement] = {}
        for target in self.targets:
            if target is ImageTarget.features:
                final = np.array(get(trajectories, workspace).array("final.npy"))
                pictures = torch.from_numpy(decode_pictures(final, trajectories, workspace))
                functions[target] = _features_distance(self.encoder.load()(pictures).numpy())
            else:
                on_cpu = (trajectories, workspace, torch.device("cpu"))
                functions[target] = of_images(target_function(target, *on_cpu))
        return functions

    def _candidates(self, name: str, spec: Evaluate) -> tuple[slice, list[dict[str, float]]]:
        """Return which candidates of a method are compared: all, or the one fixed beforehand."""
        method = spec.scores[name].method
        candidates = method.candidates()
        if name not in self.candidates:
            return slice(None), candidates
        index = candidate_index(name, method, self.candidates)
        return slice(index, index + 1), candidates[index : index + 1]

    def _predictions(
        self,
        name: str,
        spec: Evaluate,
        masks: np.ndarray,
        weights: np.ndarray,
        workspace: Workspace,
    ) -> dict[str, np.ndarray]:
        """Return what every candidate predicts [C, T, Q, M], by how long retrained models drive.

        Scores of windows that add up predict the rest by their sum from the step on.
        """
        score = spec.scores[name]
        scores = get(score, workspace).array("scores.npy")[self._candidates(name, spec)[0]]
        if not score.method.in_units_of_output:
            weights = np.ones_like(weights)
        window = datamodeling.linear(datamodeling.predict(scores, masks, weights))
        rest = window.copy()
        if score.method.additive:
            num_steps = len(spec.steps)
            rest[:, :num_steps] = window[:, :num_steps][:, ::-1].cumsum(1)[:, ::-1]
        places = self._places(spec)
        return {REST: rest[:, places], WINDOW: window[:, places]}

    def _lds(
        self,
        predictions: dict[str, np.ndarray],
        outputs: np.ndarray,
        axis: Axis,
        quantity: str,
        resampled: Resampling,
    ) -> tuple[dict[str, MethodLDS], list[Row]]:
        """Return the LDS of every method, and the rows of LDS, ceilings and paired differences.

        Args:
            predictions: Predicted outputs by method. [C, T, Q, M]
            outputs: Measured outputs. [M, R, 1, T, Q]
            axis: What was measured.
            quantity: The quantity of the LDS of losses.
            resampled: The halves and the replicates.
        """
        rows, methods = [], {}
        quantity = QUANTITIES[quantity]
        if outputs.shape[1] > 1:  # noise samples are no noise here: continuations repeat the noise
            limits = reliability.ceilings(outputs, reliability.over_seeds, len(outputs) // 2)
            conditions: Row = {"quantity": ceiling_of(quantity), "method": "training_seeds"}
            rows += self._rows(limits.interval, conditions, axis)
        truth = np.moveaxis(outputs.mean((1, 2)), 0, -1)  # [T, Q, M]
        for name, predicted in predictions.items():
            methods[name] = datamodeling.lds(predicted, truth, resampled)
            conditions = {"quantity": quantity, "method": name}
            rows += self._rows(methods[name].interval, conditions, axis)
        for (name, lds), (other, against) in itertools.combinations(methods.items(), 2):
            conditions = {"quantity": difference_of(quantity), "method": name, "against": other}
            rows += self._rows(lds.minus(against).interval, conditions, axis)
        return methods, rows

    def _rows(
        self,
        interval_of: Callable[[list[int]], tuple[float, ...]],
        conditions: Row,
        axis: Axis,
    ) -> list[Row]:
        """Return a row for each step, for their mean, and for the whole generation.

        `interval_of` returns the mean over some targets and its interval. Windows have no
        generation.
        """
        rows, (image, window) = [], axis
        conditions = {**conditions, "image": image, "window": window}
        for i, t in enumerate(self.steps):
            ends = named_ends(interval_of([i]), conditions)
            rows.append({**conditions, "target": STEP, "step": t, **ends})
        num_steps = len(self.steps)
        aggregates = {PAIRED_STEPS: list(range(num_steps)), TRAJECTORY: [num_steps]}
        if window == WINDOW:
            del aggregates[TRAJECTORY]
        for target, indices in aggregates.items():
            ends = named_ends(interval_of(indices), conditions)
            rows.append({**conditions, "target": target, **ends})
        return rows

    def headline(self, result: Result) -> list[Row]:
        first = self.targets[0].value
        rows: list[Row] = result["rows"]  # type: ignore[assignment]
        conditions = {"image": first, "window": REST, "target": PAIRED_STEPS}
        return select(rows, quantity=PRIMARY, **conditions)

    def curves(self, result: dict) -> dict[str, list[Row]]:
        curves = {}
        for image, title in TITLES.items():
            rows = select(result["rows"], image=image, window=REST)
            lines = select(rows, quantity=PRIMARY) + titled_ceilings(rows, PRIMARY)
            if lines:
                shown = [row for row in lines if row["target"] != PAIRED_STEPS]
                curves[f"Query-centred LDS × 100, {title}"] = percent(shown)
        return curves

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        return result["shown"][method]


def _features_distance(own: np.ndarray) -> Measurement:
    """Return the squared distance from features of the original images [Q, E], per feature."""

    def measure(artifact: Artifact, place: int) -> np.ndarray:
        difference = artifact.array("features.npy")[place] - own[:, None]  # [Q, n, E]
        return np.square(difference, dtype=np.float64).mean((1, 2))

    return measure


def _mean_interval(values: np.ndarray) -> Callable[[list[int]], tuple[float, ...]]:
    """Return the function from targets to the mean of values [T, Q] and its interval."""
    return lambda targets: query_mean_interval(values[targets].mean(0))


def _tau_interval(
    loss: np.ndarray, image: np.ndarray, seed: int
) -> Callable[[list[int]], tuple[float, ...]]:
    """Return the function from targets to Kendall's τ of two LDS [method, T, Q]."""
    return lambda targets: kendall_tau(loss[:, targets].mean(1), image[:, targets].mean(1), seed)
