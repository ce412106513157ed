"""Run many independent jobs: each is a spec whose result is an artifact, so what is finished is read from the store."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from journey import config
from journey.specs import Spec, address, parents
from journey.stages import Workspace, get
from journey.store import Store


class JobsFailedError(RuntimeError):
    """Some jobs failed; the others were finished. The message has a line for each, with its log."""


def missing(targets: list[Spec], store: Store) -> list[list[Spec]]:
    """What must be made for the targets to exist, each once, in waves: a wave needs only the waves before it."""
    depths: dict[str, int] = {}
    found: dict[str, Spec] = {}

    def visit(spec: Spec) -> int:
        key = address(spec)
        if key not in depths:
            depths[key] = -1 if store.find(spec) else 1 + max((visit(parent) for parent in parents(spec)), default=-1)
            found[key] = spec
        return depths[key]

    deepest = max((visit(target) for target in targets), default=-1)
    return [[found[key] for key, depth in depths.items() if depth == wave] for wave in range(deepest + 1)]


def run(targets: list[Spec], workspace: Workspace) -> None:
    """Make the targets and everything they need, in worker processes where there is more than one thing to do.

    Raises: JobsFailedError, after all jobs that do not depend on a failed one.
    """
    waves = missing(targets, workspace.store)
    failures: dict[str, str] = {}
    unmade: set[str] = set()  # failed, or made from something that failed
    with _Workers(workspace.compute) as workers, _progress() as progress:
        for wave in waves:
            ready = [spec for spec in wave if not any(address(parent) in unmade for parent in parents(spec))]
            unmade |= {address(spec) for spec in wave} - {address(spec) for spec in ready}
            if not ready:
                continue
            bar = progress.add_task(_title(ready), total=len(ready))
            for spec, error in _outcomes(ready, workspace, workers):
                if error is not None:
                    failures[address(spec)] = error
                    unmade.add(address(spec))
                progress.advance(bar)
    if failures:
        raise JobsFailedError("\n".join(f"{name}: {error}" for name, error in failures.items()))


def _outcomes(wave: list[Spec], workspace: Workspace, workers: "_Workers") -> Iterator[tuple[Spec, str | None]]:
    """Each job of a wave as it ends, with what went wrong."""
    if len(wave) == 1 and wave[0].stage in ("score", "evaluate"):  # arrays only: all threads, and nothing to divide
        yield wave[0], _work(wave[0], workspace)
        return
    waiting = {address(spec): spec for spec in wave}
    fruitless = 0  # generations of workers, in a row, that died before any job ended
    while waiting:
        before = len(waiting)
        jobs: dict[Future, str] = {}
        with contextlib.suppress(BrokenProcessPool):  # a worker died while it was idle
            for key, spec in waiting.items():
                jobs[workers.pool.submit(_work, spec, workspace)] = key
        for future in as_completed(jobs):
            key = jobs[future]
            try:
                error = future.result()
            except BrokenProcessPool:
                continue  # a worker was killed: every unfinished job ends here, and is given to new workers
            yield waiting.pop(key), error
        fruitless = fruitless + 1 if len(waiting) == before else 0
        if waiting:
            workers.renew()
        if fruitless == 2:
            for spec in waiting.values():
                yield spec, "the worker process was killed (out of memory?), twice without any progress"
            return


def _work(spec: Spec, workspace: Workspace) -> str | None:
    """Make one artifact, or say in one line what went wrong, with the whole story in a log."""
    try:
        get(spec, workspace)
    except Exception as error:  # whatever it is, the other jobs go on and this one is reported by name
        log = workspace.store.root / "logs" / (address(spec).replace("/", "-") + ".log")
        return f"{type(error).__name__}: {' '.join(str(error).split())}{_written(log)}"
    return None


def _written(log: Path) -> str:
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc())
        return f" (log: {log})"
    return ""


# ----------------------------------------------------------------------------------------------------- workers


class _Workers:
    """A pool of worker processes that dies with this process, started when first used."""

    def __init__(self, compute: config.Compute) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.num = compute.workers or (self.cores if compute.device == "cpu" else 1)
        self._pool: ProcessPoolExecutor | None = None

    @property
    def pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            threads = max(1, self.cores // self.num)
            with _inherited(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads)):  # read at a worker's start
                spawn = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self.num, spawn, _begin_worker, (os.getpid(),))
                for _ in range(self.num):  # start them now, while the environment holds
                    self._pool.submit(int)
        return self._pool

    def renew(self) -> None:
        """Replace a broken pool."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._pool is None:
            return
        if kind is not None:
            for process in list(self._pool._processes.values()):
                process.terminate()
        self._pool.shutdown(cancel_futures=True)


def _begin_worker(parent: int) -> None:
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def _inherited(**values: str) -> Iterator[None]:
    """What processes started inside inherit: environment variables, and deafness to Ctrl-C, on which the parent decides."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# ---------------------------------------------------------------------------------------------------- progress


def _progress() -> Progress:
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), speed_estimate_period=1e9)  # over all jobs


def _title(wave: list[Spec]) -> str:
    stages = sorted({spec.stage for spec in wave})
    return ", ".join(f"{stage} ×{sum(spec.stage == stage for spec in wave)}" for stage in stages)
