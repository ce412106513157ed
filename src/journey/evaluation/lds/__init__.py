"""Linear datamodeling score: how well a method's scores predict the outputs of retrained models."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
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
from journey.engine.spec import cache_key, describe, omitted_default
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
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    Evaluate,
    Evaluation,
    Experiment,
    Inputs,
    Measure,
    Model,
    Sample,
    Score,
    SecondOrderMethod,
)
from journey.pipeline.settings import Sampling, Unit
from journey.pipeline.subsets import require_groups

INTERACTIONS = (0.0, 0.1, 0.3, 1.0)
"""Sizes of second-order terms relative to the sums of scores, of which one is chosen on held-out
groups: the scale of features leaves that of K⁻¹φ open."""

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
        full: Outputs of the full model, where groups are left out. [training seed]
        interactions: What second-order terms of groups are computed from, by method.
    """

    outputs: tuple[tuple[Measure, ...], ...]
    reference: Measure | None
    base: tuple[Measure, Measure] | None = omitted_default(None)
    full: tuple[Measure, ...] = omitted_default(())
    interactions: dict[str, Inputs] = omitted_default({})


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
        candidate_rows: The primary statistic with each hyper-parameter; none if there is one only.
        linear: The LDS of linear scores, by quantity.
        chosen: Labels of the chosen candidates, by score transform and target.
        shown: The hyper-parameters whose scores page and pictures show.
    """

    rows: list[Row]
    candidate_rows: list[Row]
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
    # What is left out of retrained models, one group of each; images: these are random subsets.
    groups: Unit = omitted_default(Unit.images)
    num_groups: int = omitted_default(10)  # random ones, of several images
    interaction_samples: int = omitted_default(8)  # noise samples of a group's second-order term

    def check(self, where: str) -> None:
        grouped = self.groups is not Unit.images
        require_count(f"{where}.num_groups", self.num_groups, least=8, most=10_000)
        require_count(f"{where}.interaction_samples", self.interaction_samples, least=0, most=1000)
        for name in ("num_groups", "interaction_samples"):
            value, allowed = getattr(self, name), f"left out without {where}.groups"
            default = getattr(LDS, name)
            require(grouped or value == default, f"{where}.{name}", value, allowed)
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        paired = self.paired_steps
        require(len(paired) > 0, f"{where}.paired_steps", paired, "a non-empty list")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        name, paired = f"{where}.paired_steps", self.paired_steps
        require(len(set(paired)) == len(paired), name, paired, "distinct")
        allowed = f"among sampling.steps={sampling.steps}"
        require(set(paired) <= set(sampling.steps), name, paired, allowed)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        require_groups(f"{where}.groups", self.groups, images, self.num_groups)

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
        if self.groups is Unit.images:
            return LDSInputs(experiment.subset_outputs(), experiment.reference_outputs, base)
        allowed = f"left out with evaluation.groups={self.groups.value}, whose models are retrained"
        require(not experiment.bank, "retraining.bank", "a list of models", allowed)
        outputs = experiment.outputs_without_groups(self.groups, self.num_groups)
        seeds = range(experiment.retraining.num_seeds)
        full = tuple(experiment.outputs(experiment.checkpoint(seed)) for seed in seeds)
        interactions = {}
        for name, score in scores.items() if self.interaction_samples else ():
            if not isinstance(score.method, SecondOrderMethod):
                continue
            inputs = score.method.interaction_inputs(experiment, self.interaction_samples)
            if inputs is not None:
                interactions[name] = inputs
        return LDSInputs(outputs, experiment.reference_outputs, base, full, interactions)

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        """Return the LDS of all methods, the ceilings, and all paired differences.

        Raises:
            ValueError: An output is the same under every subset model.
        """
        # 1. The ceilings of the measured outputs.
        measured = self._measurements(spec, workspace)
        rows = []
        for quantity, outputs in measured.outputs.items():
            rows += ceiling_rows(outputs, quantity, spec.steps, self.paired_steps)
        rows += _base_rows(spec, workspace) + _change_rows(spec, workspace)

        # 2. All methods under one resampling, in an order that does not depend on the run.
        methods, candidate_rows = {}, []
        for name in sorted(spec.scores):
            methods[name] = self._method_result(name, measured, spec, workspace)
            rows += methods[name].rows
            candidate_rows += methods[name].candidate_rows

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
            **({"groups": self.groups.value} if self.groups is not Unit.images else {}),
            "steps": list(spec.steps),
            "paired_steps": list(self.paired_steps),
            "rows": rows,
            "candidate_rows": candidate_rows,
            "chosen": {name: method.chosen for name, method in methods.items()},
            "shown": {name: method.shown for name, method in methods.items()},
            "candidates": {name: score.method.candidates() for name, score in spec.scores.items()},
            "diagnostics": diagnostics,
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

    def _measurements(self, spec: Evaluate, workspace: Workspace) -> Measurements:
        inputs = spec.inputs_as(LDSInputs)
        masks = subset_masks([measures[0] for measures in inputs.outputs], workspace)
        arrays = []
        for measures in inputs.outputs:
            arrays.append([get(measure, workspace).array("outputs.npy") for measure in measures])
        weights = step_weights(inputs.reference, spec.trajectories, spec.steps, workspace)
        return measurements(masks, np.stack(arrays), weights, self.num_bootstrap, spec.seed)

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
        rows, candidate_rows, linear = [], [], {}
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
                for i in range(len(candidates) if len(candidates) > 1 else 0):
                    of_candidate = datamodeling.lds(settings[i : i + 1], truth, resampled)
                    at_candidate: Row = {**PRIMARY, "method": name, "candidate": i}
                    candidate_rows += self._rows(of_candidate.interval, spec, at_candidate)
            shown = datamodeling.lds(settings[index : index + 1], truth, resampled)
            for transform, of_transform in (
                ("linear", lds),
                ("chosen", transformed),
                ("shown", shown),
            ):
                conditions = {"quantity": quantity, "method": name, "score_transform": transform}
                rows += self._rows(of_transform.interval, spec, conditions)
            linear[quantity] = lds

        # 3. Of groups, with the second-order terms.
        inputs = spec.inputs_as(LDSInputs).interactions
        if name in inputs:
            assert isinstance(score.method, SecondOrderMethod)
            terms = score.method.interactions(inputs[name], score, ~measured.masks, workspace)
            if name in self.candidates:
                terms = terms[index : index + 1]
            summed = with_interactions(datamodeling.linear(predictions), terms, weights)
            for quantity, lds in linear.items():
                truth = np.moveaxis(measured.outputs[quantity].mean((1, 2)), 0, -1)
                predicted = summed
                if quantity == "query_centred":
                    predicted = datamodeling.query_centred(summed, resampled.query_half)
                second = datamodeling.lds(predicted, truth, resampled)
                conditions = {"quantity": f"{quantity}_interaction", "method": name}
                rows += self._rows(second.interval, spec, conditions)
                conditions = {"quantity": f"{quantity}_interaction_gain", "method": name}
                conditions["against"] = "sum"
                rows += self._rows(second.minus(lds).interval, spec, conditions)
        return MethodResult(rows, candidate_rows, linear, chosen, candidates[index])

    def _rows(
        self,
        interval_of: Callable[[list[int]], tuple[float, ...]],
        spec: Evaluate,
        conditions: Mapping[str, str | int | float],
    ) -> list[Row]:
        return target_rows(interval_of, spec.steps, self.paired_steps, conditions)

    def benchmark(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        inputs = spec.inputs_as(LDSInputs)
        weights = step_weights(inputs.reference, spec.trajectories, spec.steps, workspace)
        outputs = []
        for by_seed in inputs.outputs:
            outputs.append([cache_key(measure).split("/")[1] for measure in by_seed])
        return {
            "steps": list(spec.steps),
            "paired_steps": list(self.paired_steps),
            "seed": spec.seed,
            "weights": weights.tolist(),
            "outputs": outputs,
        }

    def headline(self, result: dict) -> list[Row]:
        return select(result["rows"], **primary(result), target=PAIRED_STEPS)

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        return result["shown"][method]

    def curves(self, result: dict) -> dict[str, list[Row]]:
        title = "Query-centred LDS × 100 of the scores shown"
        shown = {**primary(result), "score_transform": "shown"}
        if "primary" not in result:  # of the former protocol
            title, shown = "LDS × 100", primary(result)
        rows = select(result["rows"], **shown) + result.get("candidate_rows", [])  # new: optional
        rows += titled_ceilings(result["rows"], shown["quantity"])
        return {title: percent([row for row in rows if row["target"] != PAIRED_STEPS])}


def with_interactions(sums: np.ndarray, terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return predictions with second-order terms of every size in INTERACTIONS.

    Their standard deviations over groups are in that ratio, where squares are averaged over
    queries.

    Args:
        sums: What sums of scores predict. [C, T, Q, M]
        terms: Second-order terms at the steps. [C, S, Q, M]
        weights: Weight of each step in the trajectory. [S, Q]

    Returns:
        [C × sizes, T, Q, M]
    """
    mean = (terms * weights[..., None]).mean(1, keepdims=True)
    terms = np.concatenate([terms, mean, mean], 1)
    first, second = (np.sqrt(a.var(-1).mean(-1))[..., None, None] for a in (sums, terms))
    unit = np.divide(first, second, out=np.zeros_like(second), where=second > 0)
    by_size = np.stack([sums + size * unit * terms for size in INTERACTIONS], 1)
    return by_size.reshape(-1, *sums.shape[1:])


def measurements(
    masks: np.ndarray, outputs: np.ndarray, weights: np.ndarray, num_bootstrap: int, seed: int
) -> Measurements:
    """Return the outputs of retrained models with those of the trajectory, and query-centred ones.

    Args:
        masks: Whether a subset holds a training image. [M, N]
        outputs: Outputs of steps and final sample. [M, R, 2, S + 1, Q]
        weights: Weight of each step in the trajectory. [S, Q]
        num_bootstrap: Number of replicates.
        seed: Seed of the halves and replicates.

    Raises:
        ValueError: An output is the same under every subset model.
    """
    outputs = with_aggregates(outputs, weights)
    means = outputs.mean((1, 2))
    if (means.min(0) == means.max(0)).any():
        raise ValueError("an output is the same under every subset model: nothing to rank")
    num_subsets, num_queries = len(masks), outputs.shape[-1]
    resampled = datamodeling.resampling(num_queries, num_subsets, num_bootstrap, seed)
    centred = datamodeling.query_centred(outputs[..., None], resampled.query_half)[..., 0]
    by_quantity = {"lds": outputs, "query_centred": centred}
    return Measurements(masks, weights, by_quantity, resampled)


def ceiling_rows(
    outputs: np.ndarray, quantity: str, steps: Sequence[int], paired_steps: Sequence[int]
) -> list[Row]:
    """Return the ceilings of outputs [M, R, 2, T, Q]; those over seeds need several."""
    shares = {"noise_samples": reliability.given_seed}
    if outputs.shape[1] > 1:
        shares["training_seeds"] = reliability.over_seeds
    rows = []
    for name, shares_of in shares.items():
        # A rank correlation is over the subsets of one half.
        limits = reliability.ceilings(outputs, shares_of, len(outputs) // 2)
        conditions = {"quantity": ceiling_of(quantity), "method": name}
        rows += target_rows(limits.interval, steps, paired_steps, conditions)
    return rows


def target_rows(
    interval_of: Callable[[list[int]], tuple[float, ...]],
    steps: Sequence[int],
    paired_steps: Sequence[int],
    conditions: Mapping[str, str | int | float],
) -> list[Row]:
    """Return a row for each step, the paired steps, the trajectory and the final sample.

    Args:
        interval_of: Returns the mean over some targets and its interval.
        steps: The timesteps.
        paired_steps: Those over which methods are compared.
        conditions: The other columns of the rows.
    """
    rows: list[Row] = []
    num_steps = len(steps)
    for i, t in enumerate(steps):
        at_step: Row = {**conditions, "target": STEP, "step": t}
        rows.append({**at_step, **named_ends(interval_of([i]), conditions)})
    aggregates = {
        PAIRED_STEPS: [steps.index(t) for t in paired_steps],
        TRAJECTORY: [num_steps],
        FINAL_SAMPLE: [num_steps + 1],
    }
    for target, indices in aggregates.items():
        ends = named_ends(interval_of(indices), conditions)
        rows.append({**conditions, "target": target, **ends})
    return rows


def _base_rows(spec: Evaluate, workspace: Workspace) -> list[Row]:
    """Return by how much outputs of the base are above those of the model that started at it.

    The quantity `base_difference` is relative to the model's output, a mean over queries; there is
    none without a base.
    """
    if (measures := spec.inputs_as(LDSInputs).base) is None:
        return []
    base, full = (get(measure, workspace).array("outputs.npy").mean(0) for measure in measures)
    conditions = {"quantity": "base_difference", "method": "base"}
    return _query_mean_rows(base / full - 1, spec.steps, **conditions)


def _query_mean_rows(values: np.ndarray, steps: Sequence[int], **conditions: str) -> list[Row]:
    """Return rows of the mean over queries at the steps and for the final sample. [S + 1, Q]"""
    *by_step, final = map(query_mean_interval, values)
    intervals = {STEP: tuple(np.array(by_step).T), FINAL_SAMPLE: tuple(map(np.float64, final))}
    return rows_of_targets(intervals, steps, **conditions)


def _change_rows(spec: Evaluate, workspace: Workspace) -> list[Row]:
    """Return how much outputs change without a group, and with another training seed alone.

    The quantity `change` is the absolute change relative to the output of the full model, a mean
    over models and queries. There is none where no groups are left out.
    """
    inputs = spec.inputs_as(LDSInputs)
    full = [get(measure, workspace).array("outputs.npy").mean(0) for measure in inputs.full]
    changes: dict[str, list[np.ndarray]] = {}  # of [S + 1, Q]
    for measures in inputs.outputs if full else ():
        for measure, before in zip(measures, full, strict=True):
            after = get(measure, workspace).array("outputs.npy").mean(0)
            changes.setdefault("without a group", []).append(np.abs(after / before - 1))
    for other in full[1:]:
        changes.setdefault("another seed", []).append(np.abs(other / full[0] - 1))
    rows = []
    for name, values in changes.items():
        rows += _query_mean_rows(np.mean(values, 0), spec.steps, quantity="change", method=name)
    return rows


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
