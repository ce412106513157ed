"""Metrics: JSON lines beside every artifact, and in the tracker of the run if it has one."""

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from journey.engine.files import replace_text
from journey.engine.resume import METRICS, STATE
from journey.engine.spec import Spec, cache_key, key_fields
from journey.engine.workspace import LogMetrics, Workspace


@contextlib.contextmanager
def track(spec: Spec, partial: Path, workspace: Workspace) -> Iterator[Callable[..., None]]:
    """Open the metrics of a stage: empty, or as they were at the state that `load_state` returned.

    Yields:
        A function `log(step, name=value, …)`, which appends a line to `metrics.jsonl`.
    """
    path = partial / METRICS
    if not (partial / STATE).exists():  # a stage that does not resume begins anew
        replace_text(path, "")

    tracker: AbstractContextManager[LogMetrics | None] = contextlib.nullcontext()
    if spec.has_curves:
        key = cache_key(spec)
        name = key.partition("/")[2]
        tracker = workspace.tracking.watch(key, name, workspace.group, spec.stage, key_fields(spec))
    with tracker as log_metrics, open(path, "a") as file:

        def log(step: int, **values: float) -> None:
            file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
            file.flush()
            if log_metrics is not None:
                log_metrics(values, step=step)

        yield log
