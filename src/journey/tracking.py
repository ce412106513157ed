"""Trackers:

Weights & Biases, as a view of the metrics.jsonl in every artifact, or nothing beside that.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

from journey.engine.checks import ConfigError, require_name
from journey.engine.workspace import LogMetrics, Tracking


@dataclass
class JSONLines(Tracking):
    """Nothing beside `metrics.jsonl` in every artifact."""

    name: ClassVar[str] = "jsonl"

    @contextlib.contextmanager
    def watch(
        self, name: str, group: str, job_type: str, settings: dict[str, object]
    ) -> Iterator[LogMetrics | None]:
        yield None


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class Wandb(Tracking):
    """Weights & Biases: a run per training (group: the experiment) and one for the report."""

    name: ClassVar[str] = "wandb"
    mode: WandbMode = WandbMode.offline
    project: str = field(
        default="journey",
        metadata={"used_if": {"mode": (WandbMode.offline, WandbMode.online)}},
    )

    def check(self, where: str) -> None:
        require_name(f"{where}.project", self.project)

    def ready(self) -> None:
        if self.mode is WandbMode.disabled:
            return
        import wandb

        try:
            wandb.Settings().update_from_env_vars(dict(os.environ))
        except Exception as error:  # what W&B's environment variables may be is its own
            reason = " ".join(str(error).split())[:200]
            text = f"tracking=wandb: W&B refuses an environment variable, WANDB_…: {reason}"
            raise ConfigError(text) from None
        if self.mode is WandbMode.offline:
            return
        try:
            key = wandb.login(verify=True, timeout=10)
        except Exception as error:  # no network, no key, no account, …
            reason = " ".join(str(error).split())[:200]
            text = f"tracking.mode=online: W&B says: {reason}; mode=offline needs no network"
            raise ConfigError(text) from None
        if not key:
            advice = "run `wandb login`, or use mode=offline"
            raise ConfigError(f"tracking.mode=online: no W&B key; {advice}")

    @contextlib.contextmanager
    def watch(
        self, name: str, group: str, job_type: str, settings: dict[str, object]
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

            def log(values: dict[str, object], step: int | None = None) -> None:
                """Log numbers, figures (paths), rows (a table), and a page (its own artifact)."""
                logged: dict[str, object] = {}
                for key, value in values.items():
                    if isinstance(value, Path) and value.suffix == ".html":
                        page = wandb.Artifact(f"{run.name}-{key}", type="page")
                        page.add_file(str(value))
                        run.log_artifact(page)
                    elif isinstance(value, Path):
                        logged[key] = wandb.Image(str(value))
                    elif isinstance(value, list):
                        columns = list(dict.fromkeys(name for row in value for name in row))
                        data = [[row.get(name) for name in columns] for row in value]
                        logged[key] = wandb.Table(columns=columns, data=data)
                    else:
                        logged[key] = value
                run.log(logged, step=step)

            yield log
