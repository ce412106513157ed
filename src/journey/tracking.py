"""Metrics: JSON lines beside every artifact, always; Weights & Biases as a view of them, on request."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from journey.artifacts.files import replace_text
from journey.artifacts.graph import address, contents
from journey.artifacts.specs import Spec
from journey.artifacts.workspace import Workspace
from journey.config.checks import ConfigError, require_name
from journey.config.contracts import Tracking, Watcher

METRICS = "metrics.jsonl"
Log = Callable[..., None]


@dataclass
class JSONLines(Tracking):
    """`metrics.jsonl` beside every artifact, which there always is, and nothing else."""

    kind: ClassVar[str] = "jsonl"

    @contextlib.contextmanager
    def watch(self, name: str, group: str, job_type: str, settings: dict) -> Iterator[Watcher | None]:
        yield None


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class Wandb(Tracking):
    """Weights & Biases too: a run for each training (group = experiment) and one for the report."""

    kind: ClassVar[str] = "wandb"
    mode: WandbMode = WandbMode.offline
    project: str = "journey"

    def check(self, where: str) -> None:
        require_name(f"{where}.project", self.project)

    def ready(self) -> None:
        if self.mode is not WandbMode.online:
            return
        import wandb

        try:
            key = wandb.login(verify=True, timeout=10)
        except Exception as error:  # whatever it is: no network, no key, no account
            raise ConfigError(f"tracking.mode=online: W&B says: {_one_line(error)}; mode=offline needs no network") from None
        if not key:
            raise ConfigError("tracking.mode=online: no W&B key; run `wandb login`, or use mode=offline")

    @contextlib.contextmanager
    def watch(self, name: str, group: str, job_type: str, settings: dict) -> Iterator[Watcher | None]:
        if self.mode is WandbMode.disabled:
            yield None
            return
        import wandb

        with wandb.init(
            project=self.project,
            group=group,
            job_type=job_type,
            name=name,
            config=settings,
            mode=self.mode.value,
            settings=wandb.Settings(silent=True),
        ) as run:
            yield functools.partial(_tell, run)


def _tell(run: Any, values: dict[str, object], step: int | None = None) -> None:
    """Log values in a W&B run; a page is kept as an artifact of it, whole. run: wandb.Run"""
    import wandb

    pages = {key: value for key, value in values.items() if isinstance(value, Path) and value.suffix == ".html"}
    for key, path in pages.items():
        artifact = wandb.Artifact(f"{run.name}-{key}", type="page")
        artifact.add_file(str(path))
        run.log_artifact(artifact)
    run.log({key: _shown(value) for key, value in values.items() if key not in pages}, step=step)


def _shown(value: object) -> object:
    """What W&B takes for a number, the path of a picture or rows."""
    import wandb

    if isinstance(value, Path):
        return wandb.Image(str(value))
    if isinstance(value, list):
        columns = list(dict.fromkeys(key for row in value for key in row))
        return wandb.Table(columns=columns, data=[[row.get(key) for key in columns] for row in value])
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


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


def _watched(spec: Spec, workspace: Workspace) -> AbstractContextManager[Watcher | None]:
    if not spec.has_curves:
        return contextlib.nullcontext()
    name, stage = address(spec).split("/")[1], spec.stage_name
    return workspace.tracking.watch(name, workspace.group, stage, contents(spec))


def _lines(path: Path) -> list[str]:
    """The whole lines of a file that may have been cut short."""
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
