"""Does subtracting the mean gradient of all images from each image's features save noise samples?

    python experiments/projections/centred.py [artifacts=…]

The mean gradient, which all images share, would serve as a control variate. Reads the features with
projection rank 16 and with sparse projection, which `experiment=projections` computes. Writes
centred.json beside this file: LDS × 100 of the paired steps and of the trajectory, as in that
experiment, of the features as they are, minus the mean of the training images' features, and minus
that of the queries' features too.

S  steps;  T  targets;  Q  queries;  M  subsets;  N  training images
"""

import json
import sys
from pathlib import Path

import numpy as np

import journey
from journey.attribution.gradient import GradientInputs, GradientMethod
from journey.attribution.kernel import add_ensemble_scores
from journey.attribution.targets import step_weights, with_aggregates
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds import LDSInputs, datamodeling
from journey.pipeline.interfaces import Score
from journey.pipeline.subsets import subset_mask

PROJECTIONS = (
    "experiment=projections",
    "vary.projection=[sparse]",
    "vary.projection_rank=[]",
    "vary.storage=[]",
)
CENTRED = {"none": (False, False), "train": (True, False), "train and queries": (True, True)}


def scores_from_features(
    method: GradientMethod,
    spec: Score,
    workspace: Workspace,
    centre_train: bool,
    centre_queries: bool,
) -> np.ndarray:
    """Return scores [damping, S, Q, N] from features whose mean is subtracted where asked for."""
    inputs = spec.inputs_as(GradientInputs)
    train, queries = [], []
    for (train_spec, *_), query_spec in zip(inputs.train, inputs.queries, strict=True):
        phi = np.asarray(get(train_spec, workspace).array("features.npy"))
        phi_q = np.asarray(get(query_spec, workspace).array("features.npy"))
        train.append([phi - phi.mean(-2, keepdims=True) if centre_train else phi])
        queries.append(phi_q - phi_q.mean(-2, keepdims=True) if centre_queries else phi_q)
    scores = np.zeros(spec.shape, np.float32)
    weights = [1 / len(train)] * len(train)
    kernel = (method.kernel, method.damping, method.damping_unit, method.scale)
    add_ensemble_scores(scores, train, queries, weights, *kernel)
    return scores


def main() -> None:
    """Write a row for each method, kind of centring and target."""
    run = journey.load(*PROJECTIONS, *sys.argv[1:])
    workspace = Workspace(run.store, run.run.compute, run.run.tracking, "centred")
    target = run.experiment.evaluation(run.run.evaluation, run.run.all_methods)
    inputs = target.inputs_as(LDSInputs)
    weights = step_weights(inputs.reference, target.trajectories, target.steps, workspace)
    masks, outputs = [], []
    for measures in inputs.outputs:
        masks.append(subset_mask(run.images.labels, measures[0].checkpoint.subset))
        outputs.append([get(measure, workspace).array("outputs.npy") for measure in measures])
    masks, outputs = np.stack(masks), with_aggregates(np.stack(outputs), weights)
    measured = np.moveaxis(outputs.mean((1, 2)), 0, -1)  # [T, Q, M]
    num_bootstrap = target.evaluation.num_bootstrap
    resampled = datamodeling.resampling(measured.shape[1], len(masks), num_bootstrap, target.seed)
    targets = {
        "paired_steps": [target.steps.index(t) for t in target.evaluation.paired_steps],
        "trajectory": [len(target.steps)],
    }

    rows = []
    for name, method in run.run.all_methods.items():
        step_weight = weights if method.in_units_of_output else np.ones_like(weights)
        by_centring = {}
        for centring, options in CENTRED.items():
            scores = scores_from_features(
                method, run.experiment.scores(method), workspace, *options
            )
            predictions = datamodeling.predict(scores, masks, step_weight)
            num_transforms = len(datamodeling.SCORE_TRANSFORMS)
            lds = datamodeling.lds(predictions, measured, resampled, num_transforms)
            by_centring[centring] = lds
            for target_name, indices in targets.items():
                row = {"method": name, "centred": centring, "target": target_name}
                quantities = {"lds": lds, "difference": lds.minus(by_centring["none"])}
                for quantity, of_method in quantities.items():
                    row[quantity] = [100 * end for end in of_method.interval(indices)[:3]]
                rows.append(row)
                print(row, flush=True)
    path = Path(__file__).parent / "centred.json"
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
