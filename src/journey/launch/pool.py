"""Worker processes with a pipe and at most one job each, so that when a process dies it is known what it was doing.

Processes are spawned, not forked: a fork of a process with threads, or one that uses an accelerator, may hang. Each imports the
script that runs (as `__mp_main__`, under which `__main__` is found too), so what a script defines can be sent to it.
"""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess

from journey.launch.jobs import JobsFailedError, one_line

GRACE = 5.0  # seconds that a process has to end when it is told to


MOST_FAILED_STARTS = 2  # in a row


@dataclass(frozen=True)
class Outcome:
    """How a job ended: well, with an error, or with the process that was doing it."""

    key: str
    error: str | None = None
    exit_code: int | None = None  # of a process that died; negative: the signal that killed it


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: connection.Connection
    place: int  # which of the environments it has
    started: bool = False  # whether it has said that it listens
    key: str | None = None  # of the job it has


class Pool:
    """A process for each environment, started when they are needed; none outlives the `with` block, nor this process.

    work: an importable function, called in a worker with each job's arguments; returns, or raises, what went wrong, if anything.
    environments: variables of each of the workers.
    """

    def __init__(
        self, work: Callable[..., str | None], environments: Sequence[dict[str, str]]
    ) -> None:
        self._work = work
        self._environments = environments
        self._workers: list[_Worker] = []
        self._failed_starts = 0  # in a row

    def __enter__(self) -> "Pool":
        atexit.register(
            self.close
        )  # a generator that nobody closed; without this, Python would wait for the workers
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_idle(self) -> int:
        """How many jobs can be given now."""
        return sum(worker.started and worker.key is None for worker in self._workers)

    def prepare(self, num_jobs: int) -> None:
        """Start what is lacking for so many further jobs at once; each worker is idle some time later."""
        free = sum(worker.key is None for worker in self._workers)
        taken = {worker.place for worker in self._workers}
        places = [place for place in range(len(self._environments)) if place not in taken]
        for place in places[: max(0, num_jobs - free)]:
            self._workers.append(self._start(place))

    def _start(self, place: int) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, os.getpid())
        )
        with _inherited(self._environments[place]), _signals_blocked():
            process.start()
        theirs.close()  # the worker's alone, so that its end is the end of the pipe
        return _Worker(process, ours, place)

    def give(self, key: str, *arguments: object) -> None:
        """Let an idle worker do a job.

        Raises: pickle.PicklingError, AttributeError or TypeError if the arguments cannot be sent.
        """
        payload = pickle.dumps((self._work, arguments))
        worker = next(worker for worker in self._workers if worker.started and worker.key is None)
        worker.key = key
        with contextlib.suppress(
            OSError
        ):  # it died while it was idle: the job's outcome will say so
            worker.pipe.send_bytes(payload)

    def outcomes(self, seconds: float) -> list[Outcome]:
        """The jobs that ended, waiting for one, or for a worker to be idle, at most so long.

        Raises: JobsFailedError if workers die before they listen.
        """
        connection.wait([worker.pipe for worker in self._workers], seconds)
        return [
            outcome
            for worker in list(self._workers)
            if (outcome := self._look_at(worker)) is not None
        ]

    def _look_at(self, worker: _Worker) -> Outcome | None:
        """The job a worker ended, if it did."""
        exit_code = (
            worker.process.exitcode
        )  # asked first: whatever it said before it died can be read then
        outcome = self._hear(worker)
        if exit_code is None:
            return outcome
        self._bury(worker, exit_code)
        return outcome if worker.key is None else Outcome(worker.key, exit_code=exit_code)

    def _hear(self, worker: _Worker) -> Outcome | None:
        """What a worker has said, if it was a result."""
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
        return Outcome(key, error)

    def _bury(self, worker: _Worker, exit_code: int) -> None:
        """Forget a dead worker. Raises: JobsFailedError if they die one after the other before they listen."""
        self._workers.remove(worker)
        worker.pipe.close()
        self._failed_starts += not worker.started
        if self._failed_starts >= MOST_FAILED_STARTS:
            raise JobsFailedError(
                f"no job can be started: worker processes end at once (exit code {exit_code}); "
                'a script that makes artifacts must do so under `if __name__ == "__main__":`'
            )

    def keep(self, number: int) -> None:
        """End idle workers until no more are left than a number, or all that are left work."""
        idle = [worker for worker in self._workers if worker.started and worker.key is None]
        _end(idle[: max(0, len(self._workers) - number)])
        self._workers = [worker for worker in self._workers if not worker.pipe.closed]

    def stop(self, seconds: float) -> None:
        """Tell the workers by SIGUSR2 to keep what they have done and end their jobs; waits for that at most so long.

        May be called by a signal's handler. What the workers say then is left to be heard.
        """
        busy = [worker for worker in self._workers if worker.key is not None]
        for worker in busy:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process.pid, signal.SIGUSR2)
        deadline = time.monotonic() + seconds
        while busy and (left := deadline - time.monotonic()) > 0:
            heard = connection.wait([worker.pipe for worker in busy], left)
            busy = [worker for worker in busy if worker.pipe not in heard]

    def close(self) -> None:
        """End all workers, also those that work."""
        atexit.unregister(self.close)
        _end(self._workers)
        self._workers = []


def _end(workers: list[_Worker]) -> None:
    """End some workers, also those that work."""
    for worker in workers:
        worker.pipe.close()  # on which an idle worker ends by itself
        if worker.key is not None or not worker.started:
            worker.process.terminate()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.process.kill()
        worker.process.join()


def _serve(pipe: connection.Connection, parent: int) -> None:
    """Do jobs until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent decides
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    pipe.send(None)  # ready
    with contextlib.suppress(
        EOFError, BrokenPipeError, ConnectionResetError
    ):  # the parent ended, or needs no more
        while True:
            pipe.send(_done(pipe.recv_bytes()))


def _done(payload: bytes) -> str | None:
    """Do a job."""
    try:
        work, arguments = pickle.loads(payload)
        return work(*arguments)
    except (
        BaseException
    ) as error:  # such as a class that cannot be imported here: the job's end, not the worker's
        return one_line(error)


def _die_with(parent: int) -> None:
    """End this process when its parent has ended, however that happened."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def _inherited(environment: dict[str, str]) -> Iterator[None]:
    """Environment variables of the processes started inside; libraries read them as they are loaded."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started inside are deaf to Ctrl-C and to SIGUSR2, which would end one that does not handle it yet, from the
    first moment; here they come when the block has ended.
    """
    resource_tracker.ensure_running()  # its own start, otherwise inside the block, would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
