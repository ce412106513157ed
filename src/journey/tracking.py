"""Trackers: Weights & Biases, as a view of the metrics.jsonl in every artifact, or none."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey.engine.checks import ConfigError, require, require_name
from journey.engine.provenance import git_state, package_versions
from journey.engine.text import printable, printable_json
from journey.engine.workspace import LogMetrics, Tracking

if TYPE_CHECKING:
    import wandb

MOST_LETTERS = 128  # of a name at W&B
MOST_IN_TAG = 64
TIMESTEP = "t"  # the axis of curves over the steps of a trajectory
BY_TIMESTEP = "by_timestep"  # the group of these curves
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
    entity: str = ""  # the user or team that has the project; "": the default one of the account
    tags: list[str] = field(default_factory=list)  # of every run
    notes: str = ""  # of every run

    def check(self, where: str) -> None:
        require_name(f"{where}.project", self.project)
        if self.entity:
            require_name(f"{where}.entity", self.entity)
        short = all(0 < len(tag) <= MOST_IN_TAG for tag in self.tags)
        valid = short and len(set(self.tags)) == len(self.tags)
        require(valid, f"{where}.tags", self.tags, f"distinct texts of 1…{MOST_IN_TAG} letters")

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
            entity=self.entity or None,
            tags=[printable(tag) for tag in self.tags],
            notes=printable(self.notes) or None,
            group=printable(group, MOST_LETTERS),
            job_type=printable(job_type, MOST_LETTERS),
            name=printable(name, MOST_LETTERS),
            config=printable_json(
                {"commit": git_state(), "versions": package_versions()} | settings
            ),
            mode=self.mode.value,
            settings=wandb.Settings(silent=True),
        ) as run:
            run.define_metric(TIMESTEP, hidden=True)
            run.define_metric(f"{BY_TIMESTEP}/*", step_metric=TIMESTEP)

            def log(values: dict[str, object], step: int | None = None) -> None:
                """Log numbers, figures (paths), rows (a table, with arrays as images) and a page.

                A directory is an input of the run, and a JSON file its result, which is an artifact
                that names the inputs. Online, these are artifacts that the run uses; W&B allows
                that online only.
                """
                logged: dict[str, object] = {}
                inputs: list[str] = []
                for name, value in values.items():
                    key = metric_name(name)
                    while key in logged:
                        key += "_"
                    if isinstance(value, Path) and value.is_dir():
                        inputs.append(f"{value.parent.name}/{value.name}")
                        if self.mode is WandbMode.online:
                            run.use_artifact(_input(value))
                    elif isinstance(value, Path) and value.suffix == ".json":
                        artifact = artifact_name(f"{group}-{key}")
                        result = wandb.Artifact(artifact, "result", metadata={"inputs": inputs})
                        result.add_file(str(value))
                        run.log_artifact(result, aliases=[run_id])
                    elif isinstance(value, Path) and value.suffix == ".html":
                        logged[key] = wandb.Html(value.read_text(encoding="utf-8"))
                    elif isinstance(value, Path):
                        logged[key] = wandb.Image(str(value))
                    elif isinstance(value, list):
                        columns = {column: None for row in value for column in row}
                        data = [list(map(_cell, (columns | row).values())) for row in value]
                        logged[key] = wandb.Table(columns=printable_json([*columns]), data=data)
                    else:
                        logged[key] = value
                run.log(logged, step=step)

            yield log
            directory = Path(run.dir).parent
        (directory / LOGGED).write_text(self.project)
        if self.mode is WandbMode.offline and job_type == "report":
            print(
                f"{directory}: this run, offline; to upload all: wandb sync --sync-all", flush=True
            )


def _input(directory: Path) -> "wandb.Artifact":
    """Return an artifact of the store as one of W&B, which refers to its files."""
    import wandb

    kind = {"images": "dataset", "models": "model"}.get(directory.parent.name, "artifact")
    artifact = wandb.Artifact(artifact_name(directory.name), type=kind)
    artifact.add_reference(directory.absolute().as_uri(), checksum=False)
    return artifact


def _cell(value: object) -> object:
    """Return a cell of a table: an array uint8 [H, W] or [H, W, 3] is an image."""
    if isinstance(value, np.ndarray):
        import wandb

        return wandb.Image(value)
    return printable_json(value)


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
