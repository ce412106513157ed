"""Slurm: what it is asked and what is submitted to it."""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from journey.launch.submissions import FOLDER, ArrayTaskID

NAME = "journey-"  # our jobs' names begin with it; the token follows
TAKEN = {"BOOT_FAIL", "CANCELLED", "NODE_FAIL", "PREEMPTED", "REVOKED"}  # by no fault of the job
OVER = TAKEN | {"COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}
MOST_IN_ARRAY = 1001  # Slurm's default
TIMEOUT = 60  # seconds that Slurm has to answer


def is_there() -> bool:
    """Return whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def task_states() -> dict[ArrayTaskID, str] | None:
    """Return the state of every task of ours that Slurm knows; None if it does not answer."""
    output = _ask("squeue", "--noheader", "--array", "--states=all", "--me", "--format=%K|%T|%j")
    if output is None:
        return None
    states = {}
    for line in output.splitlines():
        index, state, name = line.split("|", 2)
        if name.startswith(NAME):
            number = int(index) if index.isdigit() else 0
            states[ArrayTaskID(name.removeprefix(NAME), number)] = state
    return states


def end_of(task: ArrayTaskID, folder: Path) -> str:
    """Return the final state of a task from Slurm's accounting; "" where there is none."""
    job = job_of(task, folder)
    if not job:
        return ""
    words = ("sacct", "--noheader", "--allocations", "--parsable2", "--jobs", job, "--format=State")
    states = (_ask(*words) or "").split()
    return states[0] if states else ""


def job_of(task: ArrayTaskID, folder: Path) -> str:
    """Return Slurm's name of a task, from submitit's files in the folder; "" if unknown."""
    for path in folder.glob("*_submitted.pkl"):
        job = path.name.removesuffix("_submitted.pkl")
        if "_" not in job or job.endswith(f"_{task.index}"):
            return job
    return ""


def error_log(task: ArrayTaskID, root: Path) -> Path | None:
    """Return the file with a task's standard error, if the task has begun."""
    folder = root / FOLDER / task.token
    return next(iter(folder.glob(f"{job_of(task, folder) or '?'}_0_log.err")), None)


def most_in_array() -> int:
    """Return how many tasks an array may have."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config") or "")
    return int(match[1]) if match else MOST_IN_ARRAY


def submit(
    token: str, tasks: Sequence[Callable[[], None]], settings: dict[str, object], root: Path
) -> str | None:
    """Return None, or the error in one line, after submitting an array.

    Args:
        token: The token of the submission.
        tasks: A callable per array task, which submitit can ask to `checkpoint`.
        settings: As submitit's `AutoExecutor.update_parameters` takes them.
        root: The root of the store.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = root / FOLDER / token
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=10**6)
    executor.update_parameters(name=NAME + token, **settings)
    try:
        executor.submit_array(tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        return " ".join(str(error).split())
    return None


def _ask(*words: str) -> str | None:
    """Return what a command of Slurm prints, or None if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
