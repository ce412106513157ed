"""What is the exact gradient worth where it is the gradient of what is judged: small removals that leave the batches as they are?

    python experiments/magic/coupled.py [artifacts=…]

Reads the models that `experiment=counterfactual` (with opponents and short windows, as its README has it) retrained without 30
or 100 images, which go through the batches of the full model and skip what is left out, and the scores of `experiment=magic`.
Both must have been made, in one store. Writes coupled.json beside this file: Spearman's ρ, over the sets of one size that were
left out for other queries or at random, between what scores add up to and what retraining did to a query's output at a step.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import journey
from journey.engine.spec import digest
from journey.engine.workspace import Workspace, get
from journey.evaluation.counterfactual.changes import output_rises
from journey.evaluation.ranking import candidate_index
from journey.evaluation.statistics import query_mean_interval, weighted_spearman
from journey.pipeline import subsets
from journey.pipeline.interfaces import FullData, Measure, Score

if TYPE_CHECKING:
    from journey.run import Run

REMOVALS = (
    "experiment=counterfactual",
    "evaluation.opponents=[100]",
    "evaluation.short_windows=[1,10,30]",
)


def outputs(removals: "Run") -> tuple[Measure, list[Measure]]:
    """Of the full model, and of those of its seed that were trained without some images."""
    needs = removals.experiment.evaluation(removals.run.evaluation, removals.run.all_methods).inputs
    of = {digest(change.measured): change.measured for change in needs["changes"]}
    return needs["full"], [spec for spec in of.values() if spec.checkpoint.subset != FullData()]


def left_out(
    specs: list[Measure], removals: "Run", array: Callable[[Score], np.ndarray]
) -> np.ndarray:
    """Which images each model was trained without. bool [M, N]"""
    masks = np.ones((len(specs), len(removals.images)), bool)
    for mask, spec in zip(masks, specs, strict=True):
        mask[subsets.subset_rows(spec.checkpoint.subset, removals.images, array)] = False
    return masks


def judging(specs: list[Measure], query: int, count: int) -> np.ndarray:
    """Which models lack so many images, that were not chosen for this query. int64 [1, M]"""
    keeps = [spec.checkpoint.subset for spec in specs]
    return np.array(
        [[keep.count == count and getattr(keep, "query", None) != query for keep in keeps]],
        np.int64,
    )


def main() -> None:
    """Write a row for each method and step."""
    removals, exact = (
        journey.open(*REMOVALS, *sys.argv[1:]),
        journey.open("experiment=magic", *sys.argv[1:]),
    )
    workspace = Workspace(exact.store, exact.run.compute, exact.run.tracking, "coupled")
    full, specs = outputs(removals)
    masks = left_out(specs, removals, lambda score: get(score, workspace).array("scores.npy"))
    rise = np.stack(
        [output_rises(full, spec, workspace) for spec in specs], -1
    )  # [steps + destination, Q, M]

    rows = []
    for name, method in exact.run.all_methods.items():
        kind = name.split("-")[0]  # a variant's hyper-parameter is its method's
        scores = get(exact.experiment.scores(method), workspace).array("scores.npy")
        scores = scores[
            candidate_index(kind, method, removals.run.evaluation.candidates)
        ]  # [steps or 1, Q, N]
        for i, step in enumerate(exact.experiment.steps):
            predicted = scores[i if len(scores) > 1 else 0] @ masks.T  # [Q, M]
            happened = rise[removals.experiment.steps.index(step)]
            for count in removals.run.evaluation.counts:
                weights = [judging(specs, query, count) for query in range(len(predicted))]
                rho = [
                    weighted_spearman(predicted[[q]], happened[[q]], of)[0, 0]
                    for q, of in enumerate(weights)
                ]
                value, low, high = query_mean_interval(np.array(rho))
                rows.append(
                    {
                        "method": name,
                        "step": step,
                        "count": count,
                        "value": value,
                        "low": low,
                        "high": high,
                    }
                )
                print(
                    f"{name}, t = {step}, {count} left out: {100 * value:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
                )
    found = {"num_models": len(specs), "num_queries": len(predicted), "rows": rows}
    (Path(__file__).parent / "coupled.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
