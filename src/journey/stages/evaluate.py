"""Judge every method by retrained models. Payload: result.json."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from journey import config, data
from journey.evaluation import lds, subsets
from journey.specs import Curvature, Evaluate, Featurize, Sample, Score, Train, Unlearn, ancestors, describe
from journey.stages import Workspace, get
from journey.store import versions, write_json
from journey.tracking import track


def run(spec: Evaluate, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if an output is the same under every subset model."""
    # Load.
    dataset = spec.outputs[0][0].model.dataset
    images, _ = data.load(dataset)
    masks = np.stack([subsets.mask(images.labels, repeats[0].model.subset) for repeats in spec.outputs])  # [M, N]
    halves = np.stack([[get(m, workspace).array("outputs.npy") for m in repeats] for repeats in spec.outputs])
    outputs = lds.with_aggregates(halves)  # [M, R, 2, T, Q]
    measured = np.moveaxis(outputs.mean((1, 2)), 0, -1)  # [T, Q, M]
    _refuse_constant(measured)

    # Judge all methods under one resampling.
    evaluation, num_queries = spec.evaluation, measured.shape[1]
    resampled = lds.resampling(num_queries, len(masks), evaluation.num_bootstrap, spec.seed)
    means, summaries = {}, {}
    for name, score in spec.scores.items():
        predictions = lds.predict(get(score, workspace).array("scores.npy"), masks, len(spec.steps))
        labels = lds.labels(config.candidates(score.method))
        means[name], best = _judge(predictions, labels, measured, resampled, spec)
        _, linear = _judge(lds.linear(predictions), lds.linear(labels), measured, resampled, spec)
        summaries[name] = best | {"linear": linear, "cost": _cost_of_method(score, len(images), workspace)}
    ceiling = lds.query_mean(lds.ceiling(outputs, resampled), resampled.query_weights)

    # Save.
    first = next(iter(means))
    result = {
        "dataset": dataset.name,
        "num_train": len(images),
        "num_subsets": len(masks),
        "num_seeds": evaluation.num_seeds,
        "num_queries": num_queries,
        "draws": evaluation.num_draws,
        "num_bootstrap": evaluation.num_bootstrap,
        "steps": list(spec.steps),
        "paired_steps": list(evaluation.paired_steps),
        "lds": summaries,
        "ceiling": _by_target(ceiling, spec) | {"kind": "split-half over draws" if evaluation.num_seeds == 1 else "seeds"},
        "paired": [{"a": first, "b": other, **_by_target(means[first] - means[other], spec)} for other in list(means)[1:]],
        **_costs(spec, workspace),
        "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        "versions": versions(),
    }
    write_json(partial / "result.json", result)
    with track(spec, partial, workspace) as log:
        for i, t in enumerate(spec.steps):
            log(i, t=t, **{f"lds_{name}": float(mean[0, i]) for name, mean in means.items()})


def _judge(
    predictions: np.ndarray, labels: list[dict], measured: np.ndarray, resampled: lds.Resampling, spec: Evaluate
) -> tuple[np.ndarray, dict]:
    """Replicates of the mean over queries [B, T]; their summary, with what was chosen for each of the four cells."""
    judged = lds.lds(predictions, measured, resampled)
    mean = lds.query_mean(judged.replicates, resampled.query_weights)
    chosen = {target: [labels[i] for i in indices] for target, indices in judged.chosen.items()}
    return mean, _by_target(mean, spec) | {"chosen": chosen}


def _by_target(means: np.ndarray, spec: Evaluate) -> dict[str, dict]:
    """Every step, the mean of the paired steps, the trajectory and the destination, each with its interval."""
    paired = means[:, [spec.steps.index(t) for t in spec.evaluation.paired_steps]].mean(1)
    targets = {lds.STEP: means[:, :-2], "paired_steps": paired, lds.TRAJECTORY: means[:, -2], lds.DESTINATION: means[:, -1]}
    return {name: lds.mean_and_interval(values) for name, values in targets.items()}


def _cost_of_method(score: Score, num_train: int, workspace: Workspace) -> dict[str, float]:
    """What a method's scores cost beside the models and journeys they explain; shared features count for every method.

    gradients: backward passes, one for each example and draw.
    """
    seconds, size, gradients = 0.0, 0, 0
    for made in [score, *ancestors(score)]:
        explained = isinstance(made, Sample) or (isinstance(made, Train) and made.subset is None)
        if explained or (artifact := workspace.store.find(made)) is None:
            continue
        seconds += artifact.manifest["seconds"]
        size += artifact.manifest["bytes"]
        match made:
            case Featurize():
                gradients += len(artifact.array("features.npy")) * made.num_draws
            case Curvature():
                gradients += 2 * num_train
            case Unlearn():
                gradients += artifact.array("rises.npy").shape[1] * made.num_draws
    return {"seconds": round(seconds, 1), "gradients": gradients, "bytes": size}


def _costs(spec: Evaluate, workspace: Workspace) -> dict[str, dict]:
    """Worker-seconds and bytes, by stage, of what this result is made from and the store still has."""
    seconds, size = defaultdict(float), defaultdict(int)
    for ancestor in ancestors(spec):
        if artifact := workspace.store.find(ancestor):
            seconds[ancestor.stage] += artifact.manifest["seconds"]
            size[ancestor.stage] += artifact.manifest["bytes"]
    totals = {"seconds": seconds, "bytes": size}
    return {name: {k: round(v, 1) for k, v in {**of, "total": sum(of.values())}.items()} for name, of in totals.items()}


def _refuse_constant(measured: np.ndarray) -> None:
    if (measured.min(-1) == measured.max(-1)).any():
        raise ValueError("an output is the same under every subset model, so nothing can be ranked")
