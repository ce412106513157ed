"""The scores of one method. Payload: scores.npy, float32 [candidate, step, query, train], positive = proponent; how.json."""

from pathlib import Path

import numpy as np

from journey.artifacts.files import new_array, write_json
from journey.artifacts.specs import Score
from journey.artifacts.workspace import Workspace
from journey.tracking import track


def make(spec: Score, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if a score is not finite."""
    scores = new_array(partial / "scores.npy", spec.shape)
    how = spec.method.score(scores, spec, workspace)
    if not np.isfinite(scores).all():
        raise ValueError(f"scores of {spec.method.label} are not finite")
    scores.flush()
    write_json(partial / "how.json", how)
    with track(spec, partial, workspace) as log:
        log(0, std=float(scores.std()))
