"""The stages that all methods and evaluations share: scores, and the evaluation of scores."""

from pathlib import Path
from typing import cast

import numpy as np

from journey.engine.files import new_array, write_json
from journey.engine.metrics import track
from journey.engine.workspace import Workspace
from journey.pipeline.interfaces import Evaluate, Row, Score


def make_scores(spec: Score, partial: Path, workspace: Workspace) -> None:
    """Compute the scores of a method.

    Payload: scores.npy, float32 [candidate, step, query, train], positive = proponent; and
    diagnostics.json.

    Raises:
        ValueError: A score is not finite.
    """
    scores = new_array(partial / "scores.npy", spec.shape)
    diagnostics = spec.method.score(scores, spec, workspace)
    if not np.isfinite(scores).all():
        raise ValueError(f"scores of {spec.method.label} are not finite")
    scores.flush()
    write_json(partial / "diagnostics.json", diagnostics)
    with track(spec, partial, workspace) as log:
        log(0, std=float(scores.std()))


def make_evaluation(spec: Evaluate, partial: Path, workspace: Workspace) -> None:
    """Evaluate methods, and log the values of each step. Payload: result.json."""
    result = spec.evaluation.evaluate(spec, workspace)
    write_json(partial / "result.json", result)
    rows = cast("list[Row]", result["rows"])
    with track(spec, partial, workspace) as log:
        for i, t in enumerate(spec.steps):
            values = {}
            for row in rows:
                of_method = row.get("score_transform") == "linear" and "against" not in row
                if row.get("step") == t and of_method:
                    values[f"{row['quantity']}_{row['method']}"] = row["value"]
            log(i, t=t, **values)
