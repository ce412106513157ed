"""Evaluate the exact gradient of training (MAGIC) on small removals with coupled mini-batches.

    python experiments/magic/coupled.py [artifacts=…]

Reads two experiments, which must be complete and in one store. One is `experiment=magic`, for its
scores. The other is `experiment=counterfactual` with the settings in its README, for the models
that it retrained without 30 or 100 images. Those models use the mini-batches of the full model
without the removed images.

Writes coupled.json beside this file: Spearman's ρ, over removed sets of one size, between the sum
of the scores of the removed images and the relative rise of a query's output at a step. Sets that
were removed for the query itself are left out.

M  retrained models;  N  training images;  Q  queries;  S  steps
"""

import json
import sys
from pathlib import Path

import numpy as np

import journey
from journey.engine.spec import digest
from journey.engine.workspace import Workspace, get
from journey.evaluation.counterfactual import CounterfactualInputs
from journey.evaluation.counterfactual.changes import output_rises
from journey.evaluation.ranking import candidate_index
from journey.evaluation.statistics import query_mean_interval, weighted_spearman
from journey.pipeline.interfaces import FullData
from journey.pipeline.subsets import subset_rows

REMOVALS = (
    "experiment=counterfactual",
    "evaluation.opponents=[100]",
    "evaluation.short_windows=[1,10,30]",
)


def main() -> None:
    """Write a row for each method, step and number of removed images."""
    removals = journey.load(*REMOVALS, *sys.argv[1:])
    magic = journey.load("experiment=magic", *sys.argv[1:])
    workspace = Workspace(magic.store, magic.run.compute, magic.run.tracking, "coupled")

    # Which images each retrained model lacks, and how its outputs differ from the full model's.
    settings = removals.run.evaluation
    target = removals.experiment.evaluation(settings, removals.run.all_methods)
    inputs = target.inputs_as(CounterfactualInputs)
    by_digest = {digest(change.measured): change.measured for change in inputs.changes}
    measures = [spec for spec in by_digest.values() if spec.checkpoint.subset != FullData()]
    subsets = [spec.checkpoint.subset for spec in measures]
    removed = np.ones((len(subsets), len(removals.images)), bool)  # [M, N]
    for mask, subset in zip(removed, subsets, strict=True):
        rows = subset_rows(subset, removals.images, lambda s: get(s, workspace).array("scores.npy"))
        mask[rows] = False
    rises = [output_rises(inputs.reference, spec, workspace) for spec in measures]
    rises = np.stack(rises, -1)  # [S + 1, Q, M]

    rows = []
    for name, method in magic.run.all_methods.items():
        # A variant has the hyper-parameter of its method.
        index = candidate_index(name.split("-")[0], method, settings.candidates)
        scores = get(magic.experiment.scores(method), workspace).array("scores.npy")[index]
        for i, step in enumerate(magic.experiment.steps):
            predicted = scores[i if len(scores) > 1 else 0] @ removed.T  # [Q, M]
            measured = rises[removals.experiment.steps.index(step)]
            for count in settings.counts:
                rho = np.empty(len(predicted))
                for q in range(len(rho)):
                    weights = [s.count == count and getattr(s, "query", None) != q for s in subsets]
                    weights = np.array([weights], np.int64)  # [1, M]
                    rho[q] = weighted_spearman(predicted[[q]], measured[[q]], weights)[0, 0]
                value, low, high = query_mean_interval(rho)
                row = {"method": name, "step": step, "count": count}
                rows.append({**row, "value": value, "low": low, "high": high})
                interval = f"{100 * value:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
                print(f"{name}, t = {step}, {count} removed: {interval}")
    result = {"num_models": len(subsets), "num_queries": len(predicted), "rows": rows}
    path = Path(__file__).parent / "coupled.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
