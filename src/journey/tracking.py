"""Metrics: JSON lines beside every artifact, always; Weights & Biases as a view of them, on request."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from journey import config
from journey.specs import Spec, address, contents
from journey.stages import Workspace
from journey.store import replace_text

METRICS = "metrics.jsonl"
Log = Callable[..., None]


@contextlib.contextmanager
def track(spec: Spec, partial: Path, workspace: Workspace, resume_step: int = -1) -> Iterator[Log]:
    """A function `log(step, name=value, …)` that appends a line to `metrics.jsonl` and, if asked for, to a W&B run.

    A resumed stage gives the step it resumes from: later lines of the interrupted run are dropped, since they come again.
    """
    path = partial / METRICS
    kept = [line for line in _lines(path) if json.loads(line)["step"] <= resume_step]
    replace_text(path, "".join(kept))
    name = address(spec).split("/")[1]
    with wandb_run(workspace, name, spec.stage, contents(spec)) as run, open(path, "a") as file:

        def log(step: int, **values: float) -> None:
            file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
            file.flush()
            if run is not None:
                run.log(values, step=step)

        yield log


def _lines(path: Path) -> list[str]:
    """The whole lines of a file that may have been cut short."""
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


@contextlib.contextmanager
def wandb_run(workspace: Workspace, name: str, job_type: str, settings: dict) -> Iterator:
    """A W&B run (group = experiment, job type = stage), or None where W&B is disabled."""
    tracking = workspace.tracking
    if not isinstance(tracking, config.Wandb) or tracking.mode is config.WandbMode.disabled:
        yield None
        return
    import wandb

    with wandb.init(
        project=tracking.project,
        group=workspace.group,
        job_type=job_type,
        name=name,
        config=settings,
        mode=tracking.mode.value,
        settings=wandb.Settings(silent=True),
    ) as run:
        yield run
