"""The scores of one method. Payload: scores.npy, float32 [candidate, step, query, train], positive = proponent; how.json.

Judge every method. Payload: result.json."""

from pathlib import Path

import numpy as np

from journey.engine.files import new_array, write_json
from journey.engine.metrics import track
from journey.engine.workspace import Workspace
from journey.evaluation.rows import select
from journey.pipeline.interfaces import Evaluate, Score


def make_scores(spec: Score, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if a score is not finite."""
    scores = new_array(partial / "scores.npy", spec.shape)
    how = spec.method.score(scores, spec, workspace)
    if not np.isfinite(scores).all():
        raise ValueError(f"scores of {spec.method.label} are not finite")
    scores.flush()
    write_json(partial / "how.json", how)
    with track(spec, partial, workspace) as log:
        log(0, std=float(scores.std()))


def make_evaluation(spec: Evaluate, partial: Path, workspace: Workspace) -> None:
    """What the evaluation finds; its numbers by step go to the trackers."""
    result = spec.evaluation.evaluate(spec, workspace)
    write_json(partial / "result.json", result)
    with track(spec, partial, workspace) as log:
        for i, t in enumerate(spec.steps):
            of_step = select(result["rows"], step=t, score_transform="best")
            log(i, t=t, **{f"{row['quantity']}_{row['method']}": row["value"] for row in of_step})
