"""Jobs, whoever runs them: each is a spec whose result is an artifact. What is left to do, and how one is done."""

import contextlib
import heapq
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

from journey.artifacts.graph import address, parents
from journey.artifacts.specs import Spec
from journey.artifacts.workspace import Workspace, get


class JobsFailedError(RuntimeError):
    """Some jobs failed; whatever does not depend on them was finished. The message has a line for each, with its log."""


class Agenda:
    """What must be made, in order of priority, and where each of it stands. Everything is named by its address.

    A job is ready once all that it is made from is there. What is made from something that failed is blocked: not tried.
    """

    def __init__(self, order: dict[str, Spec]) -> None:
        """order: as `graph.missing` gives it; what the specs need beside each other exists."""
        self.specs = order
        self.work = {key: spec.work for key, spec in order.items()}
        self.attempts: Counter[str] = Counter()
        self.running: dict[str, float] = {}  # since when
        self.made: dict[str, float] = {}  # the seconds each took
        self.failures: dict[str, str] = {}  # what went wrong
        self.blocked: set[str] = set()
        self._rank = {key: rank for rank, key in enumerate(order)}
        self._unmade = {key: {address(parent) for parent in parents(spec)} & order.keys() for key, spec in order.items()}
        self._children: defaultdict[str, list[str]] = defaultdict(list)
        for key, needed in self._unmade.items():
            for parent in needed:
                self._children[parent].append(key)
        self._ready = [(self._rank[key], key) for key, needed in self._unmade.items() if not needed]  # a heap

    @property
    def num_ready(self) -> int:
        """How many jobs could be taken now."""
        return len(self._ready)

    @property
    def finished(self) -> bool:
        """Whether all is made, failed or blocked."""
        return not self._ready and not self.running

    @property
    def left(self) -> list[str]:
        """What runs or will."""
        return [key for key in self.specs if not (key in self.made or key in self.failures or key in self.blocked)]

    def take(self) -> str:
        """The first ready job, which runs from now on."""
        _, key = heapq.heappop(self._ready)
        self.attempts[key] += 1
        self.running[key] = time.monotonic()
        return key

    def give_back(self, key: str) -> None:
        """A running job ended without a result: it is ready again."""
        del self.running[key]
        heapq.heappush(self._ready, (self._rank[key], key))

    def finish(self, key: str) -> None:
        """A running job was made: what waited for nothing else is ready."""
        self.made[key] = time.monotonic() - self.running.pop(key)
        for child in self._children[key]:
            self._unmade[child].discard(key)
            if not self._unmade[child]:
                heapq.heappush(self._ready, (self._rank[child], child))

    def fail(self, key: str, error: str) -> None:
        """A running job failed: whatever needs it is blocked."""
        del self.running[key]
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
            raise JobsFailedError("\n".join(f"{key}: {error}" for key, error in self.failures.items()))


def work(spec: Spec, workspace: Workspace) -> str | None:
    """Make one artifact, or say in one line what went wrong, with the whole story in a log."""
    try:
        get(spec, workspace)
    except BaseException as error:  # even an exit: other jobs go on, and this one is reported by name
        log = workspace.store.root / "logs" / (address(spec).replace("/", "-") + ".log")
        return f"{one_line(error)}{_written(log, traceback.format_exc())}"
    return None


def one_line(error: BaseException) -> str:
    """An exception for people."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _written(log: Path, text: str) -> str:
    """Where the whole story is."""
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text, encoding="utf-8", errors="backslashreplace")
        return f" (log: {log})"
    return ""
