"""Worker processes with a pipe and at most one job each: a dead process names its job.

Processes are spawned, not forked: a fork of a process with threads, or one that uses an
accelerator, may hang. Each imports the running script (as `__mp_main__`, under which `__main__` is
found too), so that what a script defines can be sent to it.
"""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess

from journey.launch.jobs import BROKEN_DEVICE, JobsFailedError, one_line

GRACE_SECONDS = 5.0  # that a terminated process has to end
MOST_FAILED_STARTS = 2  # in a row
MOST_FAILURES = 2  # of a device, without a job that was finished in between


@dataclass(frozen=True)
class Outcome:
    """How a job ended: well, with an error, or with its process (negative exit code: a signal)."""

    key: str
    error: str | None = None
    exit_code: int | None = None


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: connection.Connection
    slot: int  # index of its environment
    started: bool = False  # it has announced itself
    key: str | None = None  # of its job


class Pool:
    """A process per environment, started when needed.

    None outlives the `with` block, nor this process.
    """

    def __init__(
        self,
        run: Callable[..., str | None],
        environments: Sequence[dict[str, str]],
        num_beside: int = 0,
    ) -> None:
        """Prepare a pool.

        Args:
            run: An importable function, called in a worker with a job's arguments; it returns or
                raises the error, if any.
            environments: Environment variables of each worker.
            num_beside: How many of the workers, the last ones, run beside those that use devices,
                for jobs that use none.
        """
        self._run = run
        self._environments = environments
        self.num_beside = num_beside
        self._workers: list[_Worker] = []
        self._failed_starts = 0  # in a row
        # Of each device, since a job was finished on it.
        self._failures: Counter[str | None] = Counter()

    def __enter__(self) -> "Pool":
        atexit.register(self.close)  # for a generator that nobody closed; Python would wait for it
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _slots(self, beside: bool) -> set[int]:
        """Return the environments beside devices, or those whose device has not often failed."""
        first_beside = len(self._environments) - self.num_beside
        if beside:
            return set(range(first_beside, len(self._environments)))
        slots = set()
        for slot in range(first_beside):
            if self._failures[self._device(slot)] < MOST_FAILURES:
                slots.add(slot)
        return slots

    def _device(self, slot: int) -> str | None:
        """Return the name of the device that workers with an environment use, if they use one."""
        if slot in self._slots(beside=True):
            return None
        return self._environments[slot].get("CUDA_VISIBLE_DEVICES", "")

    def _idle(self, slots: set[int]) -> list[_Worker]:
        idle = [worker for worker in self._workers if worker.started and worker.key is None]
        return [worker for worker in idle if worker.slot in slots]

    def num_idle(self, beside: bool) -> int:
        """Return how many jobs can be given now to workers beside devices, or to the others."""
        return len(self._idle(self._slots(beside)))

    def prepare(self, num_jobs: int, beside: bool) -> None:
        """Start the workers that are missing to run so many further jobs at once."""
        slots = self._slots(beside)
        free = sum(worker.key is None and worker.slot in slots for worker in self._workers)
        slots -= {worker.slot for worker in self._workers}
        for slot in sorted(slots)[: max(0, num_jobs - free)]:
            pipe, worker_pipe = multiprocessing.Pipe()
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=_serve, args=(worker_pipe, os.getpid()))
            with _environment(self._environments[slot]), _signals_blocked():
                process.start()
            worker_pipe.close()  # the worker's alone, so that its end is the end of the pipe
            self._workers.append(_Worker(process, pipe, slot))

    def give(self, key: str, beside: bool, *arguments: object) -> None:
        """Give a job to an idle worker beside devices, or to one of the others.

        Arguments that cannot be pickled raise what pickle raises.
        """
        payload = pickle.dumps((self._run, arguments))
        worker = self._idle(self._slots(beside))[0]
        worker.key = key
        with contextlib.suppress(OSError):  # it died while idle: the job's outcome will say so
            worker.pipe.send_bytes(payload)

    def outcomes(self, seconds: float) -> list[Outcome]:
        """Return the jobs that ended; wait at most so long for one, or for a worker to become idle.

        Raises:
            JobsFailedError: Workers die before they have started, or every device has failed.
        """
        if not self._slots(beside=False) and all(worker.key is None for worker in self._workers):
            raise JobsFailedError(
                f"no job can be computed: {MOST_FAILURES} jobs in a row broke the accelerator; the "
                "logs in the store have the errors"
            )
        connection.wait([worker.pipe for worker in self._workers], seconds)
        outcomes = []
        for worker in list(self._workers):
            exit_code = worker.process.exitcode  # first: what it sent before it died is readable
            outcome = self._receive(worker)
            if exit_code is not None:
                self._workers.remove(worker)
                worker.pipe.close()
                self._failed_starts += not worker.started
                if self._failed_starts >= MOST_FAILED_STARTS:
                    raise JobsFailedError(
                        f"no job can be started: worker processes end at once (code {exit_code}); "
                        'a script must compute artifacts under `if __name__ == "__main__":`'
                    )
                if worker.key is not None:
                    outcome = Outcome(worker.key, exit_code=exit_code)
                self._failures[self._device(worker.slot)] += exit_code == BROKEN_DEVICE
            if outcome is not None:
                outcomes.append(outcome)
        return outcomes

    def _receive(self, worker: _Worker) -> Outcome | None:
        """Return the outcome that a worker has sent, if any."""
        try:
            if not worker.pipe.poll():
                return None
            error = worker.pipe.recv()
        except (EOFError, OSError):  # it is dying, or dead
            return None
        if not worker.started:
            worker.started, self._failed_starts = True, 0
            return None
        key, worker.key = worker.key, None
        if error is None:
            self._failures[self._device(worker.slot)] = 0
        return None if key is None else Outcome(key, error)

    def keep(self, number: int) -> None:
        """End idle workers until at most so many workers are left, or all that are left work."""
        idle = self._idle(set(range(len(self._environments))))
        _end(idle[: max(0, len(self._workers) - number)])
        self._workers = [worker for worker in self._workers if not worker.pipe.closed]

    def stop(self, seconds: float) -> None:
        """Tell the workers (SIGUSR2) to save their states and stop; wait at most `seconds`.

        May be called by a signal handler. Their outcomes can be read afterwards.
        """
        busy = [worker for worker in self._workers if worker.key is not None]
        for worker in busy:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process.pid or 0, signal.SIGUSR2)
        deadline = time.monotonic() + seconds
        while busy and (remaining := deadline - time.monotonic()) > 0:
            ready = connection.wait([worker.pipe for worker in busy], remaining)
            busy = [worker for worker in busy if worker.pipe not in ready]

    def close(self) -> None:
        """End all workers, also those that work."""
        atexit.unregister(self.close)
        _end(self._workers)
        self._workers = []


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close()  # on which an idle worker ends by itself
        if worker.key is not None or not worker.started:
            worker.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.process.kill()
        worker.process.join()


def _serve(pipe: connection.Connection, parent: int) -> None:
    """Run jobs in a worker until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    pipe.send(None)  # announces the worker
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent ended
        while True:
            payload = pipe.recv_bytes()
            try:
                run, arguments = pickle.loads(payload)
                error = run(*arguments)
            except BaseException as raised:  # such as a class that cannot be imported: the job ends
                error = one_line(raised)
            pipe.send(error)


def _end_with(parent: int) -> None:
    """End this process once its parent has ended, however that happened."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started inside: libraries read them once."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes that ignore Ctrl-C and SIGUSR2; both arrive here when the block ends."""
    resource_tracker.ensure_running()  # if started in the block, it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
