"""Linear datamodeling score: rank correlation of predicted with retrained outputs over random subsets, for every method."""

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
from journey.evaluation import rows
from journey.evaluation.lds import datamodeling, reliability
from journey.evaluation.statistics import interval
from journey.pipeline import subsets
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


HOW = "how.json"  # what a method says of its scores


@dataclass(frozen=True)
class LDSInputs(Inputs):
    """What the result of `lds` are computed from."""

    outputs: tuple[tuple[Measure, ...], ...]  # [subset][training seed]
    reference: Measure | None  # outputs that a trajectory weights its steps by


@dataclass
class LDS(Evaluation):
    name: ClassVar[str] = "lds"
    num_bootstrap: int = 2000
    paired_steps: list[int] = field(default_factory=lambda: [600, 500, 400, 300])

    def check(self, where: str) -> None:
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        require(
            len(self.paired_steps) > 0,
            f"{where}.paired_steps",
            self.paired_steps,
            "a non-empty list",
        )

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        paired = self.paired_steps
        require(len(set(paired)) == len(paired), f"{where}.paired_steps", paired, "distinct")
        require(
            set(paired) <= set(sampling.steps),
            f"{where}.paired_steps",
            paired,
            f"among sampling.steps={sampling.steps}",
        )

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> LDSInputs:
        """outputs: [subset][seed]; full: what a trajectory's steps are weighted by."""
        of = experiment.retraining

        def outputs(index: int) -> tuple[Measure, ...]:
            subset = experiment.random_subset(index)
            return tuple(
                experiment.outputs(experiment.retrained(subset, repeat))
                for repeat in range(of.num_seeds)
            )

        return LDSInputs(
            outputs=tuple(outputs(index) for index in range(of.num_subsets)),
            reference=experiment.reference_outputs,
        )

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        """Raises: ValueError if an output is the same under every subset model."""
        # What retraining did, and to which images.
        needed: tuple[tuple[Measure, ...], ...] = spec.inputs_as(LDSInputs).outputs
        labels = train_images(spec.trajectories.checkpoint.images, workspace).labels
        masks = np.stack(
            [subsets.subset_mask(labels, repeats[0].checkpoint.subset) for repeats in needed]
        )  # [M, N]
        halves = np.stack(
            [[get(m, workspace).array("outputs.npy") for m in repeats] for repeats in needed]
        )
        weights = step_weights(
            spec.inputs_as(LDSInputs).reference, spec.trajectories, spec.steps, workspace
        )
        outputs = with_aggregates(halves, weights)  # [M, R, 2, T, Q]
        measured = np.moveaxis(outputs.mean((1, 2)), 0, -1)  # [T, Q, M]
        _refuse_constant(measured)

        # Of it, what is a query's own; and how well anything can do.
        resampled = datamodeling.resampling(
            measured.shape[1], len(masks), self.num_bootstrap, spec.seed
        )
        own_outputs = datamodeling.specific(outputs[..., None], resampled.query_half)[..., 0]
        own = np.moveaxis(own_outputs.mean((1, 2)), 0, -1)
        found = self._ceilings(outputs, spec, "ceiling") + self._ceilings(
            own_outputs, spec, "specific_ceiling"
        )

        # All methods under one resampling.
        chosen, replicates = {}, {}
        for name, score in spec.scores.items():
            of_steps = weights if score.method.in_units_of_output else np.ones_like(weights)
            predictions = datamodeling.predict(
                get(score, workspace).array("scores.npy"), masks, of_steps
            )
            chosen[name] = {}
            for score_transform, (candidates, of) in _readouts(predictions, score).items():
                judged = datamodeling.lds(candidates, measured, resampled)
                chosen[name][score_transform] = {
                    target: [of[i] for i in cells] for target, cells in judged.chosen.items()
                }
                found += self._lds_rows(
                    judged.replicates,
                    resampled,
                    spec,
                    quantity="lds",
                    method=name,
                    score_transform=score_transform,
                )
                if score_transform == "best":
                    replicates[name] = judged.replicates
            judged = datamodeling.lds(
                datamodeling.specific(predictions, resampled.query_half), own, resampled
            )
            found += self._lds_rows(
                judged.replicates,
                resampled,
                spec,
                quantity="specific",
                method=name,
                score_transform="best",
            )

        # The first method minus each other.
        first = next(iter(replicates))
        for other in list(replicates)[1:]:
            difference = replicates[first] - replicates[other]
            found += self._lds_rows(
                difference, resampled, spec, quantity="difference", method=first, against=other
            )
        return {
            "num_train": masks.shape[1],
            "num_subsets": len(masks),
            "num_seeds": len(needed[0]),
            "num_queries": measured.shape[1],
            "draws": needed[0][0].num_samples,
            "num_bootstrap": self.num_bootstrap,
            "steps": list(spec.steps),
            "paired_steps": list(self.paired_steps),
            "rows": found,
            "chosen": chosen,
            "candidates": {name: score.method.candidates() for name, score in spec.scores.items()},
            "how": {
                name: json.loads((get(score, workspace).path / HOW).read_text())
                for name, score in spec.scores.items()
            },
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

    def _ceilings(self, outputs: np.ndarray, spec: Evaluate, quantity: str) -> list[rows.Row]:
        """Of these models, and, with several seeds, of others. outputs: [M, R, 2, T, Q]"""
        found, num_ranked = [], datamodeling.num_ranked(len(outputs))
        noises = {"draws": reliability.given_seed} | (
            {"seeds": reliability.over_seeds} if outputs.shape[1] > 1 else {}
        )
        for noise, shares_of in noises.items():
            limits = reliability.ceilings(outputs, shares_of, num_ranked)
            found += self._rows(
                lambda targets, of=limits: of.mean(targets).interval(),
                spec,
                quantity=quantity,
                method=noise,
            )
        return found

    def _lds_rows(
        self,
        replicates: np.ndarray,
        resampled: datamodeling.Resampling,
        spec: Evaluate,
        **what: str,
    ) -> list[rows.Row]:
        """Of replicates [B, T, Q]."""

        def ends(targets: list[int]) -> rows.Interval:
            return interval(replicates[:, targets].mean(1), resampled.query_weights)

        return self._rows(ends, spec, **what)

    def _rows(
        self, ends: Callable[[list[int]], rows.Interval], spec: Evaluate, **what: str
    ) -> list[rows.Row]:
        """Every step, the mean of the paired steps, the trajectory and the destination. ends: of the mean over some targets."""
        num_steps = len(spec.steps)
        each = [[float(end) for end in np.ravel(ends([i]))] for i in range(num_steps + 2)]
        steps, trajectory, destination = np.transpose(each[:-2]), each[-2], each[-1]
        paired = [
            float(end) for end in np.ravel(ends([spec.steps.index(t) for t in self.paired_steps]))
        ]
        of_targets = {
            STEP: tuple(steps),
            PAIRED_STEPS: paired,
            TRAJECTORY: trajectory,
            FINAL_SAMPLE: destination,
        }
        return rows.rows_of_targets(of_targets, spec.steps, **what)

    # ------------------------------------------------------------------------------------------ how it is shown

    def headline(self, result: dict) -> list[rows.Row]:
        return rows.select(
            result["rows"], quantity="lds", score_transform="best", target=PAIRED_STEPS
        )

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        """What most of the four cells chose for the steps."""
        of_cells = [
            {k: v for k, v in cell.items() if k != "readout"}
            for cell in result["chosen"][method]["best"][STEP]
        ]
        return max(of_cells, key=of_cells.count)

    def curves(self, result: dict) -> dict[str, list[rows.Row]]:
        from journey.evaluation.lds.show import ceiling_titles

        judged = rows.select(result["rows"], quantity="lds", score_transform="best", target=STEP)
        limits = rows.select(result["rows"], quantity="ceiling", target=STEP)
        titles = ceiling_titles(result)
        return {"LDS": judged + [row | {"method": titles[row["method"]]} for row in limits]}

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.lds.show import lds_table, paired_table

        paired = paired_table(result)
        return [lds_table(result), *([paired] if paired else [])]

    def texts(self, result: dict) -> dict[str, str]:
        from journey.evaluation.lds.show import lds_markdown

        return {"lds.md": lds_markdown(result)}

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.lds.show import (
            ablation_figure,
            lds_by_method,
            lds_by_step,
            named_methods,
            plain_methods,
        )

        pictures = {"lds_by_step.png": lds_by_step(result)}
        if named_methods(result) != plain_methods(result):
            pictures["lds_by_method.png"] = lds_by_method(result)
        if result["axes"]:
            pictures["ablations.png"] = ablation_figure(
                result, next(iter(result["chosen"])), result["axes"]
            )
        return pictures


def _readouts(predictions: np.ndarray, score: Score) -> dict[str, tuple[np.ndarray, list[dict]]]:
    """The candidates that are chosen among, and what they are: any read-out, or scores as they are."""
    labels = datamodeling.labels(score.method.candidates())
    return {
        "best": (predictions, labels),
        "linear": (datamodeling.linear(predictions), datamodeling.linear(labels)),
    }


def _refuse_constant(measured: np.ndarray) -> None:
    if (measured.min(-1) == measured.max(-1)).any():
        raise ValueError("an output is the same under every subset model, so nothing can be ranked")
