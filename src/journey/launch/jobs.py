"""Jobs, whoever runs them: each is a spec whose result is an artifact. What is left to do, and how one is done."""

import contextlib
import heapq
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

from journey.engine.graph import parents
from journey.engine.resume import StoppedError
from journey.engine.spec import Spec, cache_key
from journey.engine.workspace import Workspace, get

STOPPED = "stopped when asked to"  # instead of what went wrong


class JobsFailedError(RuntimeError):
    """Some jobs failed; whatever does not depend on them was finished. The message has a line for each, with its log."""


class JobQueue:
    """What must be made, in order of priority, and where each of it stands. Everything is named by its address.

    A job is ready once all that it is made from is there. What is made from something that failed is blocked: not tried. A job
    that ran out of memory is tried again alone: after all others that can be taken, while nothing else runs.
    """

    def __init__(self, order: dict[str, Spec]) -> None:
        """order: as `graph.missing` gives it; what the specs need beside each other exists."""
        self.specs = order
        self.work = {key: spec.work for key, spec in order.items()}
        self.attempts: Counter[str] = Counter()
        self.running: dict[str, float] = {}  # since when
        self.queued: set[str] = (
            set()
        )  # of what runs: what in truth still waits, in the queue of a cluster
        self.alone: set[str] = set()  # what must run alone
        self.made: dict[str, float] = {}  # the seconds each took
        self.failures: dict[str, str] = {}  # what went wrong
        self.blocked: set[str] = set()
        self._rank = {key: rank for rank, key in enumerate(order)}
        self._unmade = {
            key: {cache_key(parent) for parent in parents(spec)} & order.keys()
            for key, spec in order.items()
        }
        self._children: defaultdict[str, list[str]] = defaultdict(list)
        for key, needed in self._unmade.items():
            for parent in needed:
                self._children[parent].append(key)
        self._ready = [
            self._place(key) for key, needed in self._unmade.items() if not needed
        ]  # a heap

    def _place(self, key: str) -> tuple[bool, int, str]:
        """Among those that are ready: what must run alone comes last."""
        return key in self.alone, self._rank[key], key

    @property
    def ready(self) -> list[str]:
        """What could be taken now, in order of priority."""
        if self.alone & self.running.keys():
            return []
        together = sorted(place for place in self._ready if not place[0])
        if not together and not self.running:
            together = sorted(self._ready)[:1]
        return [key for _, _, key in together]

    @property
    def next_alone(self) -> bool:
        """Whether what is ready must run alone."""
        return bool(self._ready) and self._ready[0][0]

    @property
    def finished(self) -> bool:
        """Whether all is made, failed or blocked."""
        return not self._ready and not self.running

    @property
    def left(self) -> list[str]:
        """What runs or will."""
        return [
            key
            for key in self.specs
            if not (key in self.made or key in self.failures or key in self.blocked)
        ]

    def take(self, key: str | None = None) -> str:
        """A ready job, the first unless it is named, which runs from now on."""
        place = self._ready[0] if key is None else self._place(key)
        self._ready.remove(place)
        heapq.heapify(self._ready)
        key = place[-1]
        self.attempts[key] += 1
        self.running[key] = time.monotonic()
        return key

    def give_back(self, key: str, alone: bool = False) -> None:
        """A running job ended without a result: it is ready again, to run alone if it ran out of memory."""
        self._end(key)
        if alone:
            self.alone.add(key)
        heapq.heappush(self._ready, self._place(key))

    def finish(self, key: str, seconds: float | None = None) -> None:
        """A running job was made: what waited for nothing else is ready. seconds: what it took, unless since it was taken"""
        since = self._end(key)
        self.made[key] = time.monotonic() - since if seconds is None else seconds
        for child in self._children[key]:
            self._unmade[child].discard(key)
            if not self._unmade[child]:
                heapq.heappush(self._ready, self._place(child))

    def _end(self, key: str) -> float:
        """A job runs no more; since when it did."""
        self.queued.discard(key)
        return self.running.pop(key)

    def fail(self, key: str, error: str) -> None:
        """A running job failed: whatever needs it is blocked."""
        self._end(key)
        self.failures[key] = error
        reached = list(self._children[key])
        while reached:
            child = reached.pop()
            if child not in self.blocked:
                self.blocked.add(child)
                reached.extend(self._children[child])

    def raise_failures(self) -> None:
        """Raises: JobsFailedError if a job failed."""
        if self.failures:
            raise JobsFailedError(
                "\n".join(f"{key}: {error}" for key, error in self.failures.items())
            )


def run_job(spec: Spec, workspace: Workspace) -> str | None:
    """Make one artifact, or say in one line what went wrong, with the whole story in a log."""
    try:
        get(spec, workspace)
    except StoppedError:
        return STOPPED
    except (
        BaseException
    ) as error:  # even an exit: other jobs go on, and this one is reported by name
        return one_line(error) + write_log(
            workspace.store.root, cache_key(spec), traceback.format_exc()
        )
    return None


def one_line(error: BaseException) -> str:
    """An exception for people."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def log_path(root: Path, key: str) -> Path:
    """Where in a store it is told why an artifact, by its address, could not be made."""
    return root / "logs" / (key.replace("/", "-") + ".log")


def write_log(root: Path, key: str, text: str) -> str:
    """Write the log of an artifact; says where it is."""
    log = log_path(root, key)
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text, encoding="utf-8", errors="backslashreplace")
        return f" (log: {log})"
    return ""
