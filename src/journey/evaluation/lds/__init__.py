"""Linear datamodeling score: how well a method's scores predict the outputs of retrained models."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey.attribution.targets import (
    FINAL_SAMPLE,
    PAIRED_STEPS,
    STEP,
    TRAJECTORY,
    step_weights,
    with_aggregates,
)
from journey.data.images import train_images
from journey.engine.checks import require, require_count
from journey.engine.spec import describe
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds import datamodeling, reliability
from journey.evaluation.lds.reliability import CEILINGS
from journey.evaluation.rows import Number, Row, make_row, select
from journey.evaluation.statistics import interval
from journey.pipeline.interfaces import (
    Evaluate,
    Evaluation,
    Experiment,
    Inputs,
    Measure,
    Model,
    RandomSubset,
    Score,
)
from journey.pipeline.settings import Sampling
from journey.pipeline.subsets import subset_mask

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

DIAGNOSTICS = "diagnostics.json"  # what a method reports about its scores


@dataclass(frozen=True)
class LDSInputs(Inputs):
    """What the LDS is computed from.

    Attributes:
        outputs: Outputs of the retrained models. [subset][training seed]
        reference: Outputs of the full model, by which a trajectory weights its steps, if it does.
    """

    outputs: tuple[tuple[Measure, ...], ...]
    reference: Measure | None


@dataclass
class LDS(Evaluation):
    """The LDS of every method at every step, of the trajectory and of the final sample."""

    name: ClassVar[str] = "lds"
    num_bootstrap: int = 2000  # bootstrap replicates of an interval
    paired_steps: list[int] = field(
        default_factory=lambda: [600, 500, 400, 300]
    )  # t: methods are compared by their mean over these steps

    def check(self, where: str) -> None:
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        paired = self.paired_steps
        require(len(paired) > 0, f"{where}.paired_steps", paired, "a non-empty list")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        name, paired = f"{where}.paired_steps", self.paired_steps
        require(len(set(paired)) == len(paired), name, paired, "distinct")
        allowed = f"among sampling.steps={sampling.steps}"
        require(set(paired) <= set(sampling.steps), name, paired, allowed)

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> LDSInputs:
        outputs = []
        for index in range(experiment.retraining.num_subsets):
            subset = experiment.random_subset(index)
            models = [
                experiment.retrained(subset, seed)
                for seed in range(experiment.retraining.num_seeds)
            ]
            outputs.append(tuple(experiment.outputs(model) for model in models))
        return LDSInputs(tuple(outputs), experiment.reference_outputs)

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        """Return the LDS of all methods, the ceilings, and the differences from the first method.

        Raises:
            ValueError: An output is the same under every subset model.
        """
        # Load masks [M, N] and outputs [M, R, 2, T, Q], where 2 are halves of the noise samples.
        inputs = spec.inputs_as(LDSInputs)
        labels = train_images(spec.trajectories.checkpoint.images, workspace).labels
        members, arrays = [], []
        for measures in inputs.outputs:
            subset = measures[0].checkpoint.subset
            assert isinstance(subset, RandomSubset)
            members.append(subset_mask(labels, subset))
            arrays.append([get(measure, workspace).array("outputs.npy") for measure in measures])
        masks = np.stack(members)
        weights = step_weights(inputs.reference, spec.trajectories, spec.steps, workspace)
        outputs = with_aggregates(np.stack(arrays), weights)
        measured = np.moveaxis(outputs.mean((1, 2)), 0, -1)  # [T, Q, M]
        if (measured.min(-1) == measured.max(-1)).any():
            raise ValueError("an output is the same under every subset model: nothing to rank")

        # Query-centred outputs, and the ceilings of both.
        num_subsets, num_queries = len(masks), measured.shape[1]
        resampled = datamodeling.resampling(num_queries, num_subsets, self.num_bootstrap, spec.seed)
        centred = datamodeling.query_centred(outputs[..., None], resampled.query_half)[..., 0]
        measured_centred = np.moveaxis(centred.mean((1, 2)), 0, -1)
        rows = self._ceiling_rows(outputs, spec, "ceiling")
        rows += self._ceiling_rows(centred, spec, "query_centred_ceiling")

        # All methods under one resampling.
        chosen: dict[str, dict[str, dict[str, list]]] = {}
        replicates = {}  # of the LDS with chosen candidates, [1 + B, T, Q]
        for name, score in spec.scores.items():
            scores = get(score, workspace).array("scores.npy")
            own_weights = weights if score.method.in_units_of_output else np.ones_like(weights)
            predictions = datamodeling.predict(scores, masks, own_weights)
            candidates = datamodeling.labels(score.method.candidates())
            chosen[name] = {}
            for transform, predicted, settings in (
                ("chosen", predictions, candidates),
                ("linear", datamodeling.linear(predictions), datamodeling.linear(candidates)),
            ):
                lds = datamodeling.lds(predicted, measured, resampled)
                conditions = {"quantity": "lds", "method": name, "score_transform": transform}
                rows += self._lds_rows(lds.replicates, resampled, spec, conditions)
                chosen[name][transform] = {
                    target: [settings[i] for i in cells] for target, cells in lds.chosen.items()
                }
                if transform == "chosen":
                    replicates[name] = lds.replicates
            predicted = datamodeling.query_centred(predictions, resampled.query_half)
            lds = datamodeling.lds(predicted, measured_centred, resampled)
            conditions = {"quantity": "query_centred", "method": name, "score_transform": "chosen"}
            rows += self._lds_rows(lds.replicates, resampled, spec, conditions)

        # The first method minus each other.
        first, *others = replicates
        for other in others:
            difference = replicates[first] - replicates[other]
            conditions = {"quantity": "difference", "method": first, "against": other}
            rows += self._lds_rows(difference, resampled, spec, conditions)

        diagnostics = {}
        for name, score in spec.scores.items():
            text = (get(score, workspace).path / DIAGNOSTICS).read_text()
            diagnostics[name] = json.loads(text)
        return {
            "num_train": masks.shape[1],
            "num_subsets": num_subsets,
            "num_seeds": len(inputs.outputs[0]),
            "num_queries": num_queries,
            "num_samples": inputs.outputs[0][0].num_samples,
            "num_bootstrap": self.num_bootstrap,
            "steps": list(spec.steps),
            "paired_steps": list(self.paired_steps),
            "rows": rows,
            "chosen": chosen,
            "candidates": {name: score.method.candidates() for name, score in spec.scores.items()},
            "diagnostics": diagnostics,
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

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

    def _lds_rows(
        self,
        replicates: np.ndarray,
        resampled: datamodeling.Resampling,
        spec: Evaluate,
        conditions: dict[str, str],
    ) -> list[Row]:
        """Return the rows of replicates [1 + B, T, Q]."""
        weights = resampled.query_weights
        return self._rows(lambda i: interval(replicates[:, i].mean(1), weights), spec, conditions)

    def _rows(
        self,
        interval_of: Callable[[list[int]], tuple[Number, Number, Number]],
        spec: Evaluate,
        conditions: dict[str, str],
    ) -> list[Row]:
        """Return a row for each step, the paired steps, the trajectory and the final sample.

        `interval_of` returns the mean over some targets and its interval.
        """
        rows, num_steps = [], len(spec.steps)
        for i, t in enumerate(spec.steps):
            at_step: Row = {**conditions, "target": STEP, "step": t}
            rows.append(make_row(at_step, *interval_of([i])))
        aggregates = {
            PAIRED_STEPS: [spec.steps.index(t) for t in self.paired_steps],
            TRAJECTORY: [num_steps],
            FINAL_SAMPLE: [num_steps + 1],
        }
        for target, indices in aggregates.items():
            rows.append(make_row({**conditions, "target": target}, *interval_of(indices)))
        return rows

    def headline(self, result: dict) -> list[Row]:
        return select(result["rows"], quantity="lds", score_transform="chosen", target=PAIRED_STEPS)

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        """Return the hyper-parameters that most of the four cells chose for the steps."""
        cells = []
        for cell in result["chosen"][method]["chosen"][STEP]:
            cells.append({key: cell[key] for key in cell if key != "score_transform"})
        return max(cells, key=cells.count)

    def curves(self, result: dict) -> dict[str, list[Row]]:
        rows = select(result["rows"], quantity="lds", score_transform="chosen", target=STEP)
        for row in select(result["rows"], quantity="ceiling", target=STEP):
            rows.append(row | {"method": CEILINGS[str(row["method"])]})
        return {"LDS": rows}

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.lds.show import lds_tables

        return lds_tables(result)

    def texts(self, result: dict) -> dict[str, str]:
        from journey.evaluation.lds.show import lds_markdown

        return {"lds.md": lds_markdown(result)}

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.lds.show import lds_figures

        return lds_figures(result)
