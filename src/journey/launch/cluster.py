"""What Slurm is asked and told, and nothing else."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from journey.launch.submissions import FOLDER, ArrayTaskID

NAME = "journey-"  # what the names of our jobs begin with; the token follows


OVER = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
)  # fmt: skip


TAKEN = (
    "BOOT_FAIL",
    "CANCELLED",
    "NODE_FAIL",
    "PREEMPTED",
    "REVOKED",
)  # over by no fault of what the task did


MOST_IN_ARRAY = 1001  # Slurm's own default


PATIENCE = 60  # seconds that Slurm has to answer


def is_there() -> bool:
    """Whether this machine can submit."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def look() -> dict[ArrayTaskID, str] | None:
    """The state of every task of ours that Slurm still knows, ended ones for some minutes; None if it does not answer."""
    said = _ask("squeue", "--noheader", "--array", "--states=all", "--me", "--format=%K|%T|%j")
    if said is None:
        return None
    states = {}
    for line in said.splitlines():
        index, state, name = line.split("|", 2)
        if name.startswith(NAME):
            states[ArrayTaskID(name.removeprefix(NAME), int(index) if index.isdigit() else 0)] = (
                state
            )
    return states


def end_of(task: ArrayTaskID, folder: Path) -> str:
    """The state in which a task ended that the queue has forgotten, from the accounts; nothing where there are none."""
    job = job_of(task, folder)
    said = job and _ask(
        "sacct", "--noheader", "--allocations", "--parsable2", "--jobs", job, "--format=State"
    )
    return said.split()[0] if said and said.split() else ""


def job_of(task: ArrayTaskID, folder: Path) -> str:
    """What Slurm calls a task, as far as submitit's files tell. folder: of the submission"""
    for path in folder.glob("*_submitted.pkl"):
        job = path.name.removesuffix("_submitted.pkl")
        if "_" not in job or job.endswith(f"_{task.index}"):
            return job
    return ""


def error_log(task: ArrayTaskID, root: Path) -> Path | None:
    """Where a task's errors are, if it has begun."""
    folder = root / FOLDER / task.token
    return next((path for path in folder.glob(f"{job_of(task, folder) or '?'}_0_log.err")), None)


def most_in_array() -> int:
    """How many tasks an array may have."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config") or "")
    return int(found[1]) if found else MOST_IN_ARRAY


def submit(token: str, deeds: Sequence[Any], settings: dict[str, Any], root: Path) -> str | None:
    """Submit an array, a task for each deed: a callable that submitit can ask to `checkpoint`. Returns what went wrong.

    settings: as submitit has them, whose `AutoExecutor.update_parameters` lists them.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = submitit.AutoExecutor(
        root / FOLDER / token, cluster="slurm", slurm_max_num_timeout=10**6
    )
    executor.update_parameters(name=NAME + token, **settings)
    try:
        executor.submit_array(deeds)
    except (FailedJobError, FailedSubmissionError) as error:
        return " ".join(str(error).split())
    return None


def _ask(*words: str) -> str | None:
    """What a command of Slurm says; None if it cannot."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
