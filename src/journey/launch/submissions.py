"""What was submitted to a cluster, kept beside the store so that any client finds it again.

<root>/jobs/.lock held by the client that polls and submits, where the file system has locks
<root>/jobs/<token>/submission.json the cache keys of every task of one array, written before it is
submitted <root>/jobs/<token>/task-<index>.json the state of a task, written by the task itself
<root>/jobs/<token>/<job>_*.out, .err what it printed, and what submitit needs

The token is part of the job's name in Slurm. Whether an artifact exists is decided by the store
alone.
"""

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from journey.engine import resume
from journey.engine.files import (
    acquire_lock,
    read_checksummed,
    sibling,
    write_checksummed,
    write_json,
)

FOLDER = "jobs"
SUBMISSION = "submission.json"


@dataclass(frozen=True)
class ArrayTaskID:
    """One task of an array."""

    token: str
    index: int

    def __str__(self) -> str:
        return f"{self.token}_{self.index}"


@dataclass
class JobState:
    """The state of the jobs of an array task, by cache key.

    Attributes:
        running: What each running job resumed from, as `resume.state_hash` returns it.
        finished_seconds: How long each finished job took.
        failed: The error of each failed job.
    """

    running: dict[str, str] = field(default_factory=dict)
    finished_seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """Return whether the task has started a job."""
        return bool(self.running or self.finished_seconds or self.failed)


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Keep other clients from looking and submitting meanwhile, where the file system has locks."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as lock:
        acquire_lock(lock, f"the jobs of {root}")
        yield


def record_submission(root: Path, tasks: list[tuple[str, ...]]) -> str:
    """Return the token of an array about to be submitted, after recording its cache keys."""
    token = secrets.token_hex(6)
    folder = root / FOLDER / token
    folder.mkdir(parents=True)
    write_json(folder / SUBMISSION, {"tasks": tasks})
    return token


def submitted_tasks(root: Path, token: str) -> list[list[str]]:
    """Return the cache keys of every task of a submission; none if its record is damaged.

    A record of another store counts as none."""
    try:
        return json.loads((root / FOLDER / token / SUBMISSION).read_text())["tasks"]
    except (FileNotFoundError, ValueError):
        return []


def state_path(root: Path, task: ArrayTaskID) -> Path:
    """Return where a task writes its state."""
    return root / FOLDER / task.token / f"task-{task.index}.json"


def write_job_state(path: Path, state: JobState) -> None:
    """Write the state of a task."""
    write_checksummed(path, asdict(state))


def read_job_state(path: Path) -> JobState:
    """Return the state of a task; an empty one if it has written none, or not completely."""
    try:
        state = read_checksummed(path)
        return JobState(state["running"], state["finished_seconds"], state["failed"])
    except (OSError, ValueError):
        return JobState()


def resume_hash(root: Path, key: str) -> str:
    """Return a hash of the state that an interrupted job would resume from."""
    return resume.state_hash(sibling(root / key, ".partial"))
