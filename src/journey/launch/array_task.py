"""What an array task does: it makes some artifacts, each in a worker process, and says how far it is.

A worker that gets SIGUSR2 (before the time limit) or SIGTERM (before it is cancelled) stops once the stage has kept what it did.
The task itself gets SIGUSR2 through submitit, which asks it to `checkpoint` and queues it again.
"""

import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from submitit.helpers import DelayedSubmission

from journey.engine.graph import missing
from journey.engine.resume import request_stop
from journey.engine.spec import Spec
from journey.engine.workspace import Workspace
from journey.launch.jobs import JobQueue, run_job
from journey.launch.machine import Allocation, run_queue, worker_environments
from journey.launch.pool import Pool
from journey.launch.submissions import JobState, resume_hash, write_job_state

KEPT_WITHIN = (
    2 / 3
)  # of the time from the signal to the end, that stages have to keep what they did; the rest is for Slurm


ENDED_WITHIN = (
    600.0  # seconds after which a cancelled task, whose stages were stopped, ends by itself
)


EARLY = 60.0  # seconds that Slurm may send the signal before it should


@dataclass
class ArrayTask:
    """Called by submitit in the task. journal: where it writes how far it is."""

    specs: tuple[Spec, ...]
    workspace: Workspace
    allocation: Allocation
    journal: Path
    _pool: Pool | None = field(default=None, init=False)  # from here on, of a task that has begun
    _agenda: JobQueue | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)
    _before: dict[str, str] = field(
        default_factory=dict, init=False
    )  # how far each artifact was, as the task began
    _noted: JobState | None = field(default=None, init=False)

    def __call__(self) -> None:
        """Make what is missing of the artifacts."""
        store, of = self.workspace.store, self.allocation
        agenda = JobQueue(missing(list(self.specs), lambda spec: store.find(spec) is not None))
        self._agenda, self._began = agenda, time.monotonic()
        self._before = {key: resume_hash(store.root, key) for key in agenda.specs}
        devices = range(of.num_devices) if of.num_devices > 1 else ()
        with Pool(
            make_in_worker, worker_environments(of.num_workers, of.num_threads, devices)
        ) as self._pool:
            for _ in run_queue(agenda, self._pool, self.workspace):
                self._note()
            if (
                not agenda.finished
            ):  # stopped: if it ended now, it would count as done, and not be queued again
                time.sleep(ENDED_WITHIN)

    def checkpoint(self) -> DelayedSubmission | None:
        """Stop, and go on in another allocation; None, and no more, if a whole time limit brought nothing that could be kept."""
        if self._pool is not None:
            self._pool.stop(KEPT_WITHIN * self.allocation.seconds_to_stop)
            if (
                time.monotonic() - self._began >= self.allocation.seconds - EARLY
                and not self._further()
            ):
                self._note(
                    f"got no further within the time limit: {self.allocation.seconds / 60:.1f} min until the signal"
                )
                return None
        return DelayedSubmission(
            ArrayTask(self.specs, self.workspace, self.allocation, self.journal)
        )

    def _further(self) -> bool:
        """Whether anything was made, or what runs got further than it was."""
        running = self._agenda.running
        return bool(self._agenda.made) or any(
            self._before[key] != self._progress(key) for key in running
        )

    def _progress(self, key: str) -> str:
        return resume_hash(self.workspace.store.root, key)

    def _note(self, error: str = "") -> None:
        """Say how far it is, if that has changed. error: what went wrong with all that runs"""
        agenda = self._agenda
        running = {key: self._before[key] for key in agenda.running}
        failed = agenda.failures | (dict.fromkeys(running, error) if error else {})
        journal = JobState({} if error else running, dict(agenda.made), failed)
        if journal != self._noted:
            write_job_state(self.journal, journal)
            self._noted = journal


def make_in_worker(spec: Spec, workspace: Workspace) -> str | None:
    """In a worker: `work`, but stopped by a signal as soon as what was done is kept."""
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda *_: request_stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    return run_job(spec, workspace)
