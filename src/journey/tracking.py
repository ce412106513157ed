"""Metrics: JSON lines beside every artifact, always; Weights & Biases as a view of them, on request."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from journey.engine.checks import ConfigError, require_name
from journey.engine.workspace import LogMetrics, Tracking


@dataclass
class JSONLines(Tracking):
    """`metrics.jsonl` beside every artifact, which there always is, and nothing else."""

    name: ClassVar[str] = "jsonl"

    @contextlib.contextmanager
    def watch(
        self, name: str, group: str, job_type: str, settings: dict
    ) -> Iterator[LogMetrics | None]:
        yield None


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class Wandb(Tracking):
    """Weights & Biases too: a run for each training (group = experiment) and one for the report."""

    name: ClassVar[str] = "wandb"
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
            raise ConfigError(
                f"tracking.mode=online: W&B says: {_one_line(error)}; mode=offline needs no network"
            ) from None
        if not key:
            raise ConfigError(
                "tracking.mode=online: no W&B key; run `wandb login`, or use mode=offline"
            )

    @contextlib.contextmanager
    def watch(
        self, name: str, group: str, job_type: str, settings: dict
    ) -> Iterator[LogMetrics | None]:
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

    pages = {
        key: value
        for key, value in values.items()
        if isinstance(value, Path) and value.suffix == ".html"
    }
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
        return wandb.Table(
            columns=columns, data=[[row.get(key) for key in columns] for row in value]
        )
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
