"""Trackers: Weights & Biases, as a view of the metrics.jsonl in every artifact, or none."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

from journey.engine.checks import ConfigError, require_name
from journey.engine.text import printable, printable_json
from journey.engine.workspace import LogMetrics, Tracking

MOST_LETTERS = 128  # of a name at W&B
LOGGED = "journey-logged"  # a file in W&B's directory of a run that was logged to its end


@dataclass
class JSONLines(Tracking):
    """Nothing beside `metrics.jsonl` in every artifact."""

    name: ClassVar[str] = "jsonl"

    @contextlib.contextmanager
    def watch(
        self, key: str, name: str, group: str, job_type: str, settings: dict[str, object]
    ) -> Iterator[LogMetrics | None]:
        yield None


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class Wandb(Tracking):
    """Weights & Biases: a run per training (group: the experiment) and one for the report.

    The id of a run is the hash in the cache key of its artifact. An interrupted training continues
    its run. What this machine has logged to the end is not logged again.
    """

    name: ClassVar[str] = "wandb"
    mode: WandbMode = WandbMode.offline
    # Of W&B, in which the runs are.
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
        self, key: str, name: str, group: str, job_type: str, settings: dict[str, object]
    ) -> Iterator[LogMetrics | None]:
        if self.mode is WandbMode.disabled:
            yield None
            return
        import wandb

        run_id = key.rpartition("-")[2]
        mark = {WandbMode.offline: "offline-run", WandbMode.online: "run"}[self.mode]
        directory = Path(wandb.setup().settings.wandb_dir)
        logged = directory.glob(f"{mark}-*-{run_id}*/{LOGGED}")  # "-1" in the same second
        if self.project in map(Path.read_text, logged):
            yield None
            return
        with wandb.init(
            project=self.project,
            id=run_id,
            resume="allow",
            group=printable(group, MOST_LETTERS),
            job_type=printable(job_type, MOST_LETTERS),
            name=printable(name, MOST_LETTERS),
            config=printable_json(settings),
            mode=self.mode.value,
            settings=wandb.Settings(silent=True),
        ) as run:

            def log(values: dict[str, object], step: int | None = None) -> None:
                """Log numbers, figures (paths), rows (a table), and a page (its own artifact)."""
                logged: dict[str, object] = {}
                for name, value in values.items():
                    key = metric_name(name)
                    while key in logged:
                        key += "_"
                    if isinstance(value, Path) and value.suffix == ".html":
                        page = wandb.Artifact(artifact_name(f"{run.name}-{key}"), type="page")
                        page.add_file(str(value))
                        run.log_artifact(page)
                    elif isinstance(value, Path):
                        logged[key] = wandb.Image(str(value))
                    elif isinstance(value, list):
                        columns = {column: None for row in value for column in row}
                        data = [list((columns | row).values()) for row in value]
                        logged[key] = wandb.Table(columns=[*columns], data=printable_json(data))
                    else:
                        logged[key] = value
                run.log(logged, step=step)

            yield log
            directory = Path(run.dir).parent
        (directory / LOGGED).write_text(self.project)


def metric_name(text: str) -> str:
    """Return a name that W&B accepts for a metric, in which "/" makes groups.

    >>> metric_name("lds/journey-damping0.1/trajectory")
    'lds/journey-damping0_1/trajectory'
    """
    return re.sub(r"[^A-Za-z0-9_/ -]", "_", text)[:MOST_LETTERS]


def artifact_name(text: str) -> str:
    """Return a name that W&B accepts for an artifact.

    >>> artifact_name("Übung-page")
    '-bung-page'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:MOST_LETTERS]
