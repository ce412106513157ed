"""Judge every method. Payload: result.json."""

from pathlib import Path

from journey.artifacts.files import write_json
from journey.artifacts.specs import Evaluate
from journey.artifacts.workspace import Workspace
from journey.evaluation.rows import select
from journey.tracking import track


def make(spec: Evaluate, partial: Path, workspace: Workspace) -> None:
    """What the evaluation finds; its numbers by step go to the trackers."""
    result = spec.evaluation.judge(spec, workspace)
    write_json(partial / "result.json", result)
    with track(spec, partial, workspace) as log:
        for i, t in enumerate(spec.steps):
            of_step = select(result["rows"], step=t, readout="best")
            log(i, t=t, **{f"{row['quantity']}_{row['method']}": row["value"] for row in of_step})
