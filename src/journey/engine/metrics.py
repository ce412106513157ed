"""Metrics: JSON lines beside every artifact, always; Weights & Biases as a view of them, on request."""

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from journey.engine.files import replace_text
from journey.engine.spec import Spec, cache_key, key_fields
from journey.engine.workspace import LogMetrics, Workspace

METRICS = "metrics.jsonl"


Log = Callable[..., None]


@contextlib.contextmanager
def track(spec: Spec, partial: Path, workspace: Workspace, resume_step: int = -1) -> Iterator[Log]:
    """A function `log(step, name=value, …)` that appends a line to `metrics.jsonl` and tells whoever watches.

    A resumed stage gives the step it resumes from: later lines of the interrupted run are dropped, since they come again.
    """
    path = partial / METRICS
    kept = [line for line in _lines(path) if json.loads(line)["step"] <= resume_step]
    replace_text(path, "".join(kept))
    with _watched(spec, workspace) as watcher, open(path, "a") as file:

        def log(step: int, **values: float) -> None:
            file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
            file.flush()
            if watcher is not None:
                watcher(values, step=step)

        yield log


def _watched(spec: Spec, workspace: Workspace) -> AbstractContextManager[LogMetrics | None]:
    if not spec.has_curves:
        return contextlib.nullcontext()
    name, stage = cache_key(spec).split("/")[1], spec.stage
    return workspace.tracking.watch(name, workspace.group, stage, key_fields(spec))


def _lines(path: Path) -> list[str]:
    """The whole lines of a file that may have been cut short."""
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
