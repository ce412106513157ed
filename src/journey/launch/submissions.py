"""What was submitted to a cluster, kept beside the store so that any client finds it again.

<root>/jobs/.lock                      held by the client that looks and submits, where the file system has locks
<root>/jobs/<token>/submission.json    the artifacts of every task of one array, written before it is submitted
<root>/jobs/<token>/task-<index>.json  how far a task is, written by the task itself
<root>/jobs/<token>/<job>_*.out, .err  what it printed, and what submitit needs

The token is part of the name of the job, by which the cluster says whether it is still there. An artifact's own directory, not
this, says that it is made.
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
    """How far a task is, by the addresses of artifacts: what runs, and what it continued from (as `resume.progress` has it); the
    seconds of what was made; what went wrong.
    """

    running: dict[str, str] = field(default_factory=dict)
    made: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """Whether the task has come as far as an artifact."""
        return bool(self.running or self.made or self.failed)


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """While no other client looks and submits, where the file system has locks."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as lock:
        acquire_lock(lock, f"the jobs of {root}")
        yield


def record_submission(root: Path, tasks: list[tuple[str, ...]]) -> str:
    """Note what is about to be submitted, the addresses of each task; returns its token."""
    token = secrets.token_hex(6)
    folder = root / FOLDER / token
    folder.mkdir(parents=True)
    write_json(folder / SUBMISSION, {"tasks": tasks})
    return token


def submitted_tasks(root: Path, token: str) -> list[list[str]]:
    """The addresses of every task of a submission; none if it is another store's, or damaged: at worst, more is submitted."""
    try:
        return json.loads((root / FOLDER / token / SUBMISSION).read_text())["tasks"]
    except (FileNotFoundError, ValueError):
        return []


def state_path(root: Path, task: ArrayTaskID) -> Path:
    """Where a task writes how far it is."""
    return root / FOLDER / task.token / f"task-{task.index}.json"


def write_job_state(path: Path, journal: JobState) -> None:
    """Say how far a task is."""
    write_checksummed(path, asdict(journal))


def read_job_state(path: Path) -> JobState:
    """How far a task is; nowhere if it has not said so, or not as a whole."""
    try:
        said = read_checksummed(path)
        return JobState(said["running"], said["made"], said["failed"])
    except (OSError, ValueError):
        return JobState()


def resume_hash(root: Path, key: str) -> str:
    """How far an interrupted run of an artifact got."""
    return resume.state_hash(sibling(root / key, ".partial"))
