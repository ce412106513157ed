"""This machine: worker processes, each making one artifact at a time."""

import math
import os
import pickle
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from journey.artifacts.graph import missing
from journey.artifacts.specs import Spec
from journey.artifacts.workspace import Workspace
from journey.config.checks import require, require_positive, require_within
from journey.config.contracts import Compute
from journey.launch.jobs import Agenda, one_line, work
from journey.launch.pool import Outcome, Pool
from journey.launch.progress import shown

DEVICES = "cpu, mps, cuda or cuda:N"
MOST_WORKERS = 4  # for each core
MOST_ATTEMPTS = 2  # at a job whose process is killed
LOOK = 1.0  # seconds between looks at the workers, if none says anything


@dataclass
class Local(Compute):
    """Every job runs in a worker with the same number of threads, so that how work is scheduled changes no bit."""

    kind: ClassVar[str] = "local"
    workers: int = 0  # processes; 0: one per core on a CPU, one on an accelerator

    def check(self, where: str) -> None:
        """Raises: ConfigError."""
        require(re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", self.device) is not None, f"{where}.device", self.device, DEVICES)
        most = MOST_WORKERS * num_cores()
        allowed = f"in 0…{most}: this process may use {num_cores()} cores; 0 is one each, or one on an accelerator"
        require(0 <= self.workers <= most, f"{where}.workers", self.workers, allowed)
        require_positive(f"{where}.gradient_memory_gib", self.gradient_memory_gib)
        require_within(f"{where}.gradient_memory_gib", self.gradient_memory_gib, 1e-6, 1e6)
        seconds = self.checkpoint_seconds
        require(0 <= seconds < math.inf, f"{where}.checkpoint_seconds", seconds, "at least 0 and finite")

    @property
    def num_workers(self) -> int:
        """How many processes there may be."""
        return self.workers or (num_cores() if self.device == "cpu" else 1)

    @property
    def num_threads(self) -> int:
        """Of each process."""
        return max(1, num_cores() // self.num_workers)

    def make(self, targets: list[Spec], workspace: Workspace) -> Iterator[Spec]:
        """Make what the targets lack, and yield each artifact's spec once it is there; what was there before is not yielded.

        Jobs start as soon as what they need is there, those first that the first target needs. When the generator is closed,
        or on Ctrl-C, the workers are terminated; the next run continues from what they kept.

        Raises: JobsFailedError, after all jobs that do not depend on a failed one; StoreError.
        """
        agenda = Agenda(missing(targets, lambda spec: workspace.store.find(spec) is not None))
        if agenda.finished:
            return
        threads = str(self.num_threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with Pool(work, self.num_workers, environment) as pool, shown(agenda, self.num_workers) as show:
            _hand_out(agenda, pool, workspace)
            while not agenda.finished:
                made = _settle(agenda, pool.outcomes(LOOK))
                _hand_out(agenda, pool, workspace)  # before the consumer takes its time
                show()
                yield from made
        agenda.raise_failures()


def num_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hand_out(agenda: Agenda, pool: Pool, workspace: Workspace) -> None:
    """Give the ready jobs to idle workers, and see to it that there will be workers for the others."""
    while agenda.num_ready and pool.num_idle:
        key = agenda.take()
        try:
            pool.give(key, agenda.specs[key], workspace)
        except (pickle.PicklingError, AttributeError, TypeError) as error:  # such as a kind that is defined in a function
            agenda.fail(key, one_line(error))
    pool.prepare(agenda.num_ready)


def _settle(agenda: Agenda, outcomes: list[Outcome]) -> list[Spec]:
    """Enter in the agenda how jobs ended; the specs of those that were made."""
    made = []
    for outcome in outcomes:
        if outcome.exit_code is not None and agenda.attempts[outcome.key] < MOST_ATTEMPTS:
            agenda.give_back(outcome.key)
        elif outcome.exit_code is not None:
            agenda.fail(outcome.key, f"the worker process {_death(outcome.exit_code)}")
        elif outcome.error is not None:
            agenda.fail(outcome.key, outcome.error)
        else:
            agenda.finish(outcome.key)
            made.append(agenda.specs[outcome.key])
    return made


def _death(exit_code: int) -> str:
    """How a process ended, as often as it was tried."""
    if exit_code == -signal.SIGKILL:
        return "was killed twice (out of memory?)"
    if exit_code < 0:
        return f"was killed twice ({signal.Signals(-exit_code).name})"
    return f"ended twice (exit code {exit_code})"
