"""Metrics: JSON lines beside every artifact, and in the tracker of the run if it has one."""

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from journey.engine.files import replace_text
from journey.engine.spec import Spec, cache_key, key_fields
from journey.engine.workspace import LogMetrics, Workspace

METRICS = "metrics.jsonl"


@contextlib.contextmanager
def track(
    spec: Spec, partial: Path, workspace: Workspace, resume_step: int = -1
) -> Iterator[Callable[..., None]]:
    """Open the metrics of a stage, which resumes from `resume_step`; later steps are logged again.

    Yields:
        A function `log(step, name=value, …)`, which appends a line to `metrics.jsonl`.
    """
    path = partial / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):  # cut short by a crash
        lines.pop()
    replace_text(path, "".join(line for line in lines if json.loads(line)["step"] <= resume_step))

    tracker: AbstractContextManager[LogMetrics | None] = contextlib.nullcontext()
    if spec.has_curves:
        name = cache_key(spec).split("/")[1]
        tracker = workspace.tracking.watch(name, workspace.group, spec.stage, key_fields(spec))
    with tracker as log_metrics, open(path, "a") as file:

        def log(step: int, **values: float) -> None:
            file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
            file.flush()
            if log_metrics is not None:
                log_metrics(values, step=step)

        yield log
