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

from journey.artifacts import locks, resume
from journey.artifacts.files import beside, read_sealed, write_json, write_sealed

FOLDER = "jobs"
SUBMISSION = "submission.json"


@dataclass(frozen=True)
class Task:
    """One task of an array."""

    token: str
    index: int

    def __str__(self) -> str:
        return f"{self.token}_{self.index}"


@dataclass
class Journal:
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
def alone(root: Path) -> Iterator[None]:
    """While no other client looks and submits, where the file system has locks."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as lock:
        locks.lock(lock, f"the jobs of {root}")
        yield


def enter(root: Path, tasks: list[tuple[str, ...]]) -> str:
    """Note what is about to be submitted, the addresses of each task; returns its token."""
    token = secrets.token_hex(6)
    folder = root / FOLDER / token
    folder.mkdir(parents=True)
    write_json(folder / SUBMISSION, {"tasks": tasks})
    return token


def tasks_of(root: Path, token: str) -> list[list[str]]:
    """The addresses of every task of a submission; none if it is another store's, or damaged: at worst, more is submitted."""
    try:
        return json.loads((root / FOLDER / token / SUBMISSION).read_text())["tasks"]
    except (FileNotFoundError, ValueError):
        return []


def journal_of(root: Path, task: Task) -> Path:
    """Where a task writes how far it is."""
    return root / FOLDER / task.token / f"task-{task.index}.json"


def write(path: Path, journal: Journal) -> None:
    """Say how far a task is."""
    write_sealed(path, asdict(journal))


def read(path: Path) -> Journal:
    """How far a task is; nowhere if it has not said so, or not as a whole."""
    try:
        said = read_sealed(path)
        return Journal(said["running"], said["made"], said["failed"])
    except (OSError, ValueError):
        return Journal()


def progress(root: Path, key: str) -> str:
    """How far an interrupted run of an artifact got."""
    return resume.progress(beside(root / key, ".partial"))
