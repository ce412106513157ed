"""Judge every method by retrained models. Payload: result.json."""

from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np

from journey import config, data
from journey.evaluation import lds, subsets
from journey.specs import Evaluate, ancestors, describe
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
    by_method, dampings = {}, {}
    for name, score in spec.scores.items():
        predictions = lds.predict(get(score, workspace).array("scores.npy"), masks, len(spec.steps))
        by_method[name] = lds.lds(predictions, measured, resampled)
        dampings[name] = score.method.damping if isinstance(score.method, config.TRAK) else []
    means = {name: lds.query_mean(m.replicates, resampled.query_weights) for name, m in by_method.items()}  # [B, T]
    ceiling = lds.query_mean(lds.ceiling(outputs, resampled), resampled.query_weights)

    # Save.
    result = {
        "dataset": dataset.name,
        "num_train": len(images),
        "num_subsets": len(masks),
        "num_seeds": evaluation.num_seeds,
        "num_queries": num_queries,
        "draws": evaluation.num_draws,
        "num_bootstrap": evaluation.num_bootstrap,
        "steps": list(spec.steps),
        "lds": {name: _by_target(mean) | _choices(by_method[name], dampings[name]) for name, mean in means.items()},
        "ceiling": _by_target(ceiling) | {"kind": "split-half over draws" if evaluation.num_seeds == 1 else "seeds"},
        "paired": [pair for a, b in combinations(means, 2) for pair in _paired(a, b, means, spec)],
        **_costs(spec, workspace),
        "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        "versions": versions(),
    }
    write_json(partial / "result.json", result)
    with track(spec, partial, workspace) as log:
        for i, t in enumerate(spec.steps):
            log(i, t=t, **{f"lds_{name}": float(mean[0, i]) for name, mean in means.items()})


def _by_target(means: np.ndarray) -> dict[str, dict]:
    targets = {lds.STEP: means[:, :-2], lds.TRAJECTORY: means[:, -2], lds.DESTINATION: means[:, -1]}
    return {name: lds.mean_and_interval(values) for name, values in targets.items()}


def _choices(method: lds.MethodLDS, damping: list[float]) -> dict[str, dict]:
    """What was chosen for each target, on the opposite of each of the four cells."""
    chosen = {t: [lds.candidate(i, damping) for i in indices] for t, indices in method.chosen.items()}
    return {
        "damping": {target: [c[0] for c in cells] for target, cells in chosen.items()},
        "readout": {target: [c[1] for c in cells] for target, cells in chosen.items()},
    }


def _paired(a: str, b: str, means: dict[str, np.ndarray], spec: Evaluate) -> list[dict]:
    """Difference a − b, under the same resampling."""
    difference = means[a] - means[b]
    steps = spec.evaluation.paired_steps
    columns = [spec.steps.index(t) for t in steps]
    targets = {
        lds.STEP: difference[:, columns].mean(1),
        lds.TRAJECTORY: difference[:, -2],
        lds.DESTINATION: difference[:, -1],
    }
    pairs = [{"a": a, "b": b, "target": target, **lds.mean_and_interval(d)} for target, d in targets.items()]
    pairs[0]["steps"] = list(steps)
    return pairs


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
