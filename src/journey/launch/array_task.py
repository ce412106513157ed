"""An array task: compute artifacts in worker processes, and write the state of the jobs.

A worker that gets SIGUSR2 (before the time limit) or SIGTERM (before it is cancelled) stops once
the stage has saved its state. The task itself gets SIGUSR2 through submitit, which calls
`checkpoint` and queues it again.
"""

import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from submitit.helpers import DelayedSubmission

from journey.engine.resume import request_stop
from journey.engine.spec import Spec
from journey.engine.workspace import Workspace
from journey.launch.jobs import JobQueue, missing_jobs, run_job
from journey.launch.machine import Allocation, run_queue, worker_environments
from journey.launch.pool import Pool
from journey.launch.submissions import JobState, resume_hash, write_job_state

SAVE_SHARE = 2 / 3  # of the time from the signal to the end, in which stages save their state
WAIT_SECONDS = 600.0  # after which a cancelled task, whose stages were stopped, ends by itself
EARLY_SECONDS = 60.0  # that Slurm may send the signal before it is due


@dataclass
class ArrayTask:
    """The callable that submitit runs in an array task.

    It writes the state of its jobs to `state_file`.
    """

    specs: tuple[Spec, ...]
    workspace: Workspace
    allocation: Allocation
    state_file: Path
    _pool: Pool | None = field(default=None, init=False)  # here and below: of a task that runs
    _queue: JobQueue = field(default_factory=lambda: JobQueue({}), init=False)
    _started: float = field(default=0.0, init=False)
    _resumed_from: dict[str, str] = field(default_factory=dict, init=False)
    _written: JobState | None = field(default=None, init=False)

    def __call__(self) -> None:
        """Compute the artifacts that are missing."""
        store, allocation = self.workspace.store, self.allocation
        queue = missing_jobs(self.specs, store)
        self._queue, self._started = queue, time.monotonic()
        self._resumed_from = {key: resume_hash(store.root, key) for key in queue.specs}
        devices = range(allocation.num_devices) if allocation.num_devices > 1 else ()
        beside = 0 if self.workspace.compute.device == "cpu" else allocation.num_workers
        number = allocation.num_workers + beside
        environments = worker_environments(number, allocation.num_threads, devices)
        with Pool(make_in_worker, environments, beside) as self._pool:
            for _ in run_queue(queue, self._pool, self.workspace):
                self._write_state()
            if not queue.done:  # stopped; a task that ended now would not be queued again
                time.sleep(WAIT_SECONDS)

    def checkpoint(self) -> DelayedSubmission | None:
        """Return the task to queue again, or None if a whole time limit brought no progress."""
        if self._pool is not None:
            self._pool.stop(SAVE_SHARE * self.allocation.seconds_to_stop)
            limit = self.allocation.seconds
            reached = time.monotonic() - self._started >= limit - EARLY_SECONDS
            if reached and not self._progressed():
                minutes = f"{limit / 60:.1f} min until the signal"
                self._write_state(f"no progress within the time limit ({minutes})")
                return None
        task = ArrayTask(self.specs, self.workspace, self.allocation, self.state_file)
        return DelayedSubmission(task)

    def _progressed(self) -> bool:
        root = self.workspace.store.root
        if self._queue.finished_seconds:
            return True
        return any(self._resumed_from[key] != resume_hash(root, key) for key in self._queue.running)

    def _write_state(self, error: str = "") -> None:
        """Write the changed state of the jobs; with an error, running jobs count as failed."""
        queue = self._queue
        running = {key: self._resumed_from[key] for key in queue.running}
        failed = dict(queue.failures)
        if error:
            failed |= dict.fromkeys(running, error)
            running = {}
        state = JobState(running, dict(queue.finished_seconds), failed)
        if state != self._written:
            write_job_state(self.state_file, state)
            self._written = state


def make_in_worker(specs: tuple[Spec, ...], workspace: Workspace) -> str | None:
    """Return `run_job`'s result, stopping on a signal once the stage has saved its state."""
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda *_: request_stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    return run_job(specs, workspace)
