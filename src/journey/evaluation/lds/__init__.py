"""Linear datamodeling score: how well a method's scores predict the outputs of retrained models."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from journey.attribution.targets import (
    FINAL_SAMPLE,
    PAIRED_STEPS,
    STEP,
    TRAJECTORY,
    step_weights,
    subset_masks,
    with_aggregates,
)
from journey.engine.checks import require, require_count
from journey.engine.spec import describe, omitted_default
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds import datamodeling, reliability
from journey.evaluation.lds.datamodeling import (
    PRIMARY,
    SCORE_TRANSFORMS,
    Interval,
    MethodLDS,
    Resampling,
    primary,
)
from journey.evaluation.lds.reliability import ceiling_of, titled_ceilings
from journey.evaluation.ranking import candidate_index
from journey.evaluation.rows import Row, difference_of, percent, rows_of_targets, select
from journey.evaluation.statistics import query_mean_interval
from journey.pipeline.interfaces import (
    Evaluate,
    Evaluation,
    Experiment,
    Inputs,
    Measure,
    Model,
    Score,
)
from journey.pipeline.settings import Sampling

DIAGNOSTICS = "diagnostics.json"  # what a method reports about its scores

QUANTITIES = ("query_centred", "lds")


@dataclass(frozen=True)
class LDSInputs(Inputs):
    """What the LDS is computed from.

    Attributes:
        outputs: Outputs of the retrained models. [subset][training seed]
        reference: Outputs of the full model, by which a trajectory weights its steps, if it does.
        base: Outputs of the model at whose weights training starts, if it does, and of the full
            model.
    """

    outputs: tuple[tuple[Measure, ...], ...]
    reference: Measure | None
    base: tuple[Measure, Measure] | None = omitted_default(None)


@dataclass(frozen=True)
class Measurements:
    """What the scores of all methods are compared with.

    Attributes:
        masks: Whether a subset holds a training image. [M, N]
        weights: Weight of each step in the trajectory. [S, Q]
        outputs: Measured outputs by quantity, for two halves of the noise samples. [M, R, 2, T, Q]
        resampled: The halves of the queries and subsets, and the replicates.
    """

    masks: np.ndarray
    weights: np.ndarray
    outputs: dict[str, np.ndarray]
    resampled: Resampling


@dataclass(frozen=True)
class MethodResult:
    """The LDS of one method.

    Attributes:
        rows: The rows of every quantity and score transform.
        linear: The LDS of linear scores, by quantity.
        chosen: Labels of the chosen candidates, by score transform and target.
        shown: The hyper-parameters whose scores page and pictures show.
    """

    rows: list[Row]
    linear: dict[str, MethodLDS]
    chosen: dict[str, dict[str, list]]
    shown: dict[str, float]


@dataclass
class LDS(Evaluation):
    """The LDS of every method at every step, of the trajectory and of the final sample."""

    name: ClassVar[str] = "lds"
    show: ClassVar[str] = "journey.evaluation.lds.show"
    num_bootstrap: int = 2000  # bootstrap replicates of an interval
    paired_steps: list[int] = field(
        default_factory=lambda: [600, 500, 400, 300]
    )  # t: methods are compared by their mean over these steps
    candidates: dict[str, float] = omitted_default(
        {}
    )  # by method, the λ that is fixed beforehand; others are chosen on held-out data

    def check(self, where: str) -> None:
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        paired = self.paired_steps
        require(len(paired) > 0, f"{where}.paired_steps", paired, "a non-empty list")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        name, paired = f"{where}.paired_steps", self.paired_steps
        require(len(set(paired)) == len(paired), name, paired, "distinct")
        allowed = f"among sampling.steps={sampling.steps}"
        require(set(paired) <= set(sampling.steps), name, paired, allowed)

    def check_objective(self, where: str, methods: list[str]) -> None:
        Evaluation.check_objective(self, where, methods)
        objective = self.objective
        allowed = {
            "quantity": list(QUANTITIES),
            "score_transform": ["linear", "chosen", "shown"],
            "target": [STEP, PAIRED_STEPS, TRAJECTORY, FINAL_SAMPLE],
        }
        if "against" in objective:
            allowed |= {"quantity": list(map(difference_of, QUANTITIES))}
            allowed |= {"score_transform": ["linear"]}
        keys = ["method", "against", *allowed, "step"]
        for key, value in objective.items():
            require(key in keys, where, key, f"a key of {', '.join(keys)}")
            values = allowed.get(key, [value])
            require(value in values, f"{where}.{key}", value, f"one of {', '.join(values)}")
        at_step = objective.get("target") == STEP
        require(at_step == ("step" in objective), where, objective, "with target=step and a step")

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> LDSInputs:
        for name in self.candidates:
            require(name in scores, "evaluation.candidates", name, f"among {', '.join(scores)}")
            candidate_index(name, scores[name].method, self.candidates)
        base = None
        if experiment.start is not None:
            models = experiment.start, experiment.checkpoint(0)
            base = experiment.outputs(models[0]), experiment.outputs(models[1])
        return LDSInputs(experiment.subset_outputs(), experiment.reference_outputs, base)

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        """Return the LDS of all methods, the ceilings, and all paired differences.

        Raises:
            ValueError: An output is the same under every subset model.
        """
        # 1. The ceilings of the measured outputs.
        measured = self._measurements(spec, workspace)
        rows = []
        for quantity, outputs in measured.outputs.items():
            rows += self._ceiling_rows(outputs, spec, ceiling_of(quantity))
        rows += _base_rows(spec, workspace)

        # 2. All methods under one resampling, in an order that does not depend on the run.
        methods = {}
        for name in sorted(spec.scores):
            methods[name] = self._method_result(name, measured, spec, workspace)
            rows += methods[name].rows

        # 3. Paired differences of every two methods.
        for quantity in measured.outputs:
            for (name, method), (other, against) in itertools.combinations(methods.items(), 2):
                difference = method.linear[quantity].minus(against.linear[quantity])
                conditions = {
                    "quantity": difference_of(quantity),
                    "method": name,
                    "against": other,
                    "score_transform": "linear",
                }
                rows += self._rows(difference.interval, spec, conditions)

        # 4. What tables, figures and the page need beside the rows.
        diagnostics = {}
        for name, score in spec.scores.items():
            text = (get(score, workspace).path / DIAGNOSTICS).read_text()
            diagnostics[name] = json.loads(text)
        num_subsets, num_seeds, _, _, num_queries = measured.outputs["lds"].shape
        return {
            "num_train": measured.masks.shape[1],
            "num_subsets": num_subsets,
            "num_seeds": num_seeds,
            "num_queries": num_queries,
            "num_samples": spec.inputs_as(LDSInputs).outputs[0][0].num_samples,
            "num_bootstrap": self.num_bootstrap,
            "primary": PRIMARY,
            "steps": list(spec.steps),
            "paired_steps": list(self.paired_steps),
            "rows": rows,
            "chosen": {name: method.chosen for name, method in methods.items()},
            "shown": {name: method.shown for name, method in methods.items()},
            "candidates": {name: score.method.candidates() for name, score in spec.scores.items()},
            "diagnostics": diagnostics,
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

    def _measurements(self, spec: Evaluate, workspace: Workspace) -> Measurements:
        """Return the outputs of the retrained models, and their query-centred outputs.

        Raises:
            ValueError: An output is the same under every subset model.
        """
        inputs = spec.inputs_as(LDSInputs)
        masks = subset_masks([measures[0] for measures in inputs.outputs], workspace)
        arrays = []
        for measures in inputs.outputs:
            arrays.append([get(measure, workspace).array("outputs.npy") for measure in measures])
        weights = step_weights(inputs.reference, spec.trajectories, spec.steps, workspace)
        outputs = with_aggregates(np.stack(arrays), weights)
        means = outputs.mean((1, 2))
        if (means.min(0) == means.max(0)).any():
            raise ValueError("an output is the same under every subset model: nothing to rank")
        num_subsets, num_queries = len(masks), outputs.shape[-1]
        resampled = datamodeling.resampling(num_queries, num_subsets, self.num_bootstrap, spec.seed)
        centred = datamodeling.query_centred(outputs[..., None], resampled.query_half)[..., 0]
        by_quantity = {"lds": outputs, "query_centred": centred}
        return Measurements(masks, weights, by_quantity, resampled)

    def _method_result(
        self, name: str, measured: Measurements, spec: Evaluate, workspace: Workspace
    ) -> MethodResult:
        """Return the LDS of one method."""
        # 1. The outputs that each candidate predicts, or the one that is fixed beforehand.
        score = spec.scores[name]
        scores, candidates = get(score, workspace).array("scores.npy"), score.method.candidates()
        if name in self.candidates:
            index = candidate_index(name, score.method, self.candidates)
            scores, candidates = scores[index : index + 1], candidates[index : index + 1]
        weights = measured.weights
        if not score.method.in_units_of_output:
            weights = np.ones_like(weights)
        resampled = measured.resampled
        predictions = datamodeling.predict(scores, measured.masks, weights)
        centred = datamodeling.query_centred(predictions, resampled.query_half)

        # 2. Their LDS. The candidate that is shown is that of the primary statistic, the first.
        rows, linear = [], {}
        for quantity, predicted in (("query_centred", centred), ("lds", predictions)):
            truth = np.moveaxis(measured.outputs[quantity].mean((1, 2)), 0, -1)  # [T, Q, M]
            settings = datamodeling.linear(predicted)
            lds = datamodeling.lds(settings, truth, resampled)
            transformed = datamodeling.lds(predicted, truth, resampled, len(SCORE_TRANSFORMS))
            if quantity == PRIMARY["quantity"]:
                labels = datamodeling.labels(candidates)
                chosen = {
                    "linear": _labelled(lds.chosen, datamodeling.linear(labels)),
                    "chosen": _labelled(transformed.chosen, labels),
                }
                index = shown_index(lds.chosen[STEP], candidates)
            shown = datamodeling.lds(settings[index : index + 1], truth, resampled)
            for transform, of_transform in (
                ("linear", lds),
                ("chosen", transformed),
                ("shown", shown),
            ):
                conditions = {"quantity": quantity, "method": name, "score_transform": transform}
                rows += self._rows(of_transform.interval, spec, conditions)
            linear[quantity] = lds
        return MethodResult(rows, linear, chosen, candidates[index])

    def _ceiling_rows(self, outputs: np.ndarray, spec: Evaluate, quantity: str) -> list[Row]:
        """Return the ceilings of outputs [M, R, 2, T, Q]; those over seeds need several."""
        shares = {"noise_samples": reliability.given_seed}
        if outputs.shape[1] > 1:
            shares["training_seeds"] = reliability.over_seeds
        rows = []
        for name, shares_of in shares.items():
            # A rank correlation is over the subsets of one half.
            limits = reliability.ceilings(outputs, shares_of, len(outputs) // 2)
            rows += self._rows(limits.interval, spec, {"quantity": quantity, "method": name})
        return rows

    def _rows(
        self,
        interval_of: Callable[[list[int]], tuple[float, ...]],
        spec: Evaluate,
        conditions: dict[str, str],
    ) -> list[Row]:
        """Return a row for each step, the paired steps, the trajectory and the final sample.

        `interval_of` returns the mean over some targets and its interval.
        """
        rows: list[Row] = []
        num_steps = len(spec.steps)
        for i, t in enumerate(spec.steps):
            at_step: Row = {**conditions, "target": STEP, "step": t}
            rows.append({**at_step, **named_ends(interval_of([i]), conditions)})
        aggregates = {
            PAIRED_STEPS: [spec.steps.index(t) for t in self.paired_steps],
            TRAJECTORY: [num_steps],
            FINAL_SAMPLE: [num_steps + 1],
        }
        for target, indices in aggregates.items():
            ends = named_ends(interval_of(indices), conditions)
            rows.append({**conditions, "target": target, **ends})
        return rows

    def headline(self, result: dict) -> list[Row]:
        return select(result["rows"], **primary(result), target=PAIRED_STEPS)

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        return result["shown"][method]

    def curves(self, result: dict) -> dict[str, list[Row]]:
        title = "Query-centred LDS × 100 of the scores shown"
        shown = {**primary(result), "score_transform": "shown"}
        if "primary" not in result:  # of the former protocol
            title, shown = "LDS × 100", primary(result)
        ceilings = titled_ceilings(result["rows"], shown["quantity"])
        rows = select(result["rows"], **shown, target=STEP)
        return {title: percent(rows + select(ceilings, target=STEP))}


def _base_rows(spec: Evaluate, workspace: Workspace) -> list[Row]:
    """Return by how much outputs of the base are above those of the model that started at it.

    The quantity `base_difference` is relative to the model's output, a mean over queries; there is
    none without a base.
    """
    if (measures := spec.inputs_as(LDSInputs).base) is None:
        return []
    base, full = (get(measure, workspace).array("outputs.npy").mean(0) for measure in measures)
    ends = [query_mean_interval(values) for values in base / full - 1]  # [S + 1, Q] → S + 1
    by_step = tuple(np.array(ends[:-1]).T)
    final = tuple(map(np.float64, ends[-1]))
    intervals = {STEP: by_step, FINAL_SAMPLE: final}
    return rows_of_targets(intervals, spec.steps, quantity="base_difference", method="base")


def shown_index(choices: list[int], candidates: list[dict[str, float]]) -> int:
    """Return the candidate that most of the four cells chose for the steps.

    Of those that were chosen equally often it is the one with the larger value: the stronger λ.

    >>> shown_index([0, 2, 2, 0], [{"damping": 0.1}, {"damping": 1.0}, {"damping": 10.0}])
    2
    """
    return max(set(choices), key=lambda i: (choices.count(i), *candidates[i].values()))


def named_ends(
    interval: tuple[float, ...], conditions: Mapping[str, str | int | float]
) -> dict[str, float]:
    """Return the ends of an interval by name; those of 90% decide about differences only."""
    names = Interval._fields if "against" in conditions else Interval._fields[:3]
    return dict(zip(names, interval, strict=False))


def _labelled(chosen: dict[str, list[int]], labels: list) -> dict[str, list]:
    """Return the labels of chosen candidates, by target."""
    by_target = {}
    for target, choices in chosen.items():
        by_target[target] = [labels[i] for i in choices]
    return by_target
