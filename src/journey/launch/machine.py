"""One machine's workers: what all launchers that have some do alike."""

import math
import os
import pickle
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from journey.engine.checks import (
    ConfigError,
    require,
    require_count,
    require_positive,
    require_within,
)
from journey.engine.spec import Spec
from journey.engine.workspace import Compute, Workspace
from journey.launch.jobs import STOPPED, JobQueue, one_line
from journey.launch.pool import Outcome, Pool

DEVICES = "cpu, mps, cuda or cuda:N"


MOST_ATTEMPTS = 2  # at a job whose process is killed, or that runs out of memory


OUT_OF_MEMORY = (
    "OutOfMemoryError:",
    "MemoryError:",
)  # what the line about such an error begins with: torch's and Python's


LOOK = 1.0  # seconds between looks at the workers, if none says anything


def check_compute(of: Compute, where: str) -> None:
    """Refuse what no launcher can do. Raises: ConfigError."""
    require(
        re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", of.device) is not None,
        f"{where}.device",
        of.device,
        DEVICES,
    )
    require_positive(f"{where}.gradient_memory_gib", of.gradient_memory_gib)
    require_within(f"{where}.gradient_memory_gib", of.gradient_memory_gib, 1e-6, 1e6)
    seconds = of.checkpoint_seconds
    require(
        0 <= seconds < math.inf, f"{where}.checkpoint_seconds", seconds, "at least 0 and finite"
    )
    require_count(f"{where}.processes", of.processes, most=64)
    require(
        of.processes == 1 or of.device != "mps",
        f"{where}.processes",
        of.processes,
        "1 with device=mps",
    )


@dataclass(frozen=True)
class Allocation:
    """What an array task has. seconds: until it is asked to stop; seconds_to_stop: from then until it must have"""

    num_workers: int
    num_threads: int
    num_devices: int
    seconds: float
    seconds_to_stop: float


def num_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_environments(
    num_workers: int, num_threads: int, devices: Sequence[int]
) -> list[dict[str, str]]:
    """The variables of each worker: its threads and, where several devices are named, the one it sees; devices take turns."""
    threads = {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
    if not devices:
        return [threads] * num_workers
    return [
        threads | {"CUDA_VISIBLE_DEVICES": _visible(devices[worker % len(devices)])}
        for worker in range(num_workers)
    ]


def _visible(device: int) -> str:
    """What CUDA calls a device by its number among those that this process may see. Raises: ConfigError if there is none."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if names == [""]:
        return str(device)
    if device >= len(names):
        raise ConfigError(
            f"compute.devices={device}: CUDA_VISIBLE_DEVICES shows {len(names)} to this process, from 0"
        )
    return names[device]


def run_queue(agenda: JobQueue, pool: Pool, workspace: Workspace) -> Iterator[list[Spec]]:
    """Work off an agenda: after each look at the workers, the specs of what was made since the one before.

    Ends early, with jobs that run by the agenda, if a worker was asked to stop.
    """
    _hand_out(agenda, pool, workspace)
    while not agenda.finished:
        outcomes = pool.outcomes(LOOK)
        if any(outcome.error == STOPPED for outcome in outcomes):
            return
        made = _settle(agenda, outcomes)
        _hand_out(agenda, pool, workspace)  # before the consumer takes its time
        yield made


def _hand_out(agenda: JobQueue, pool: Pool, workspace: Workspace) -> None:
    """Give the ready jobs to idle workers, and see to it that there will be workers for the others."""
    if agenda.next_alone and not agenda.running:
        pool.keep(1)  # an idle worker has memory too
    for key in agenda.ready[: pool.num_idle]:
        agenda.take(key)
        try:
            pool.give(key, agenda.specs[key], workspace)
        except (
            pickle.PicklingError,
            AttributeError,
            TypeError,
        ) as error:  # such as a kind that is defined in a function
            agenda.fail(key, one_line(error))
    pool.prepare(len(agenda.ready))


def _settle(agenda: JobQueue, outcomes: list[Outcome]) -> list[Spec]:
    """Enter in the agenda how jobs ended; the specs of those that were made."""
    made = []
    for outcome in outcomes:
        again = agenda.attempts[outcome.key] < MOST_ATTEMPTS
        if again and (outcome.exit_code is not None or _out_of_memory(outcome)):
            agenda.give_back(outcome.key, alone=_out_of_memory(outcome))
        elif outcome.exit_code is not None:
            agenda.fail(outcome.key, f"the worker process {_death(outcome.exit_code)}")
        elif outcome.error is not None:
            agenda.fail(outcome.key, outcome.error)
        else:
            agenda.finish(outcome.key)
            made.append(agenda.specs[outcome.key])
    return made


def _out_of_memory(outcome: Outcome) -> bool:
    """Whether it was memory that was lacking, for certain or, where a process was killed, in all likelihood."""
    return outcome.exit_code == -signal.SIGKILL or (outcome.error or "").startswith(OUT_OF_MEMORY)


def _death(exit_code: int) -> str:
    """How a process ended, as often as it was tried."""
    if exit_code == -signal.SIGKILL:
        return "was killed twice (out of memory?)"
    if exit_code < 0:
        return f"was killed twice ({signal.Signals(-exit_code).name})"
    return f"ended twice (exit code {exit_code})"
