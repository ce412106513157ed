"""Does it save draws to subtract the mean gradient, which all images share, from each image's features (a control variate)?

    python experiments/projections/centred.py [artifacts=…]

Reads what `experiment=projections` made of 16 rows and of sparse projection. Writes centred.json beside this file: LDS × 100 at
the steps and over the trajectory, as the experiment judges it, of features as they are, less the mean of the images', and less
that of the queries' too.
"""

import json
import sys
from pathlib import Path

import numpy as np

import journey
from journey.attribution.gradient import GradientMethod
from journey.attribution.kernel import add_ensemble_scores
from journey.attribution.targets import step_weights, with_aggregates
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds import datamodeling
from journey.evaluation.statistics import interval
from journey.pipeline import subsets
from journey.pipeline.interfaces import Score

PROJECTIONS = (
    "experiment=projections",
    "vary.projection=[sparse]",
    "vary.projection_rank=[]",
    "vary.storage=[]",
)
WAYS = {"as they are": (False, False), "images centred": (True, False), "queries too": (True, True)}


def centred(features: np.ndarray, whether: bool) -> np.ndarray:
    """Less their mean, or as they are."""
    features = np.asarray(features)
    return features - features.mean(-2, keepdims=True) if whether else features


def scored(
    method: GradientMethod, spec: Score, workspace: Workspace, images: bool, asked: bool
) -> np.ndarray:
    """Scores [damping, step, query, train] of a method whose images' and queries' features are centred."""
    train = [
        [centred(get(steps[0], workspace).array("features.npy"), images)]
        for steps in spec.inputs.train
    ]
    queries = [
        centred(get(features, workspace).array("features.npy"), asked)
        for features in spec.inputs.queries
    ]
    scores = np.zeros(get(spec, workspace).array("scores.npy").shape, np.float32)
    weights = [1 / len(train)] * len(train)
    add_ensemble_scores(
        scores,
        train,
        queries,
        weights,
        method.kernel,
        method.damping,
        method.damping_unit,
        method.scale,
    )
    return scores


def main() -> None:
    """Write a row for each method, way and target."""
    run = journey.open(*PROJECTIONS, *sys.argv[1:])
    workspace = Workspace(run.store, run.run.compute, run.run.tracking, "centred")
    target = run.experiment.evaluation(run.run.evaluation, run.run.all_methods)
    needed = target.inputs.outputs
    masks = np.stack(
        [subsets.subset_mask(run.images.labels, repeats[0].checkpoint.subset) for repeats in needed]
    )
    outputs = np.stack(
        [
            [get(measure, workspace).array("outputs.npy") for measure in repeats]
            for repeats in needed
        ]
    )
    weights = step_weights(target.inputs.reference, target.trajectories, target.steps, workspace)
    measured = np.moveaxis(with_aggregates(outputs, weights).mean((1, 2)), 0, -1)  # [T, Q, M]
    resampled = datamodeling.resampling(
        measured.shape[1], len(masks), target.evaluation.num_bootstrap, target.seed
    )
    steps = [target.steps.index(t) for t in target.evaluation.paired_steps]

    rows = []
    for name, method in run.run.all_methods.items():
        plain = None
        for way, both in WAYS.items():
            scores = scored(method, run.experiment.scores(method), workspace, *both)
            of_steps = weights if method.in_units_of_output else np.ones_like(weights)
            found = datamodeling.lds(
                datamodeling.predict(scores, masks, of_steps), measured, resampled
            ).replicates
            plain = found if plain is None else plain
            for of, places in (("paired_steps", steps), ("trajectory", [len(target.steps)])):
                row = {"method": name, "way": way, "target": of}
                for quantity, each in (("lds", found), ("difference", found - plain)):
                    ends = interval(each[:, places].mean(1), resampled.query_weights)
                    row[quantity] = [100 * float(end) for end in ends]
                rows.append(row)
                print(row, flush=True)
    (Path(__file__).parent / "centred.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
