"""The queue of jobs. A job computes one artifact; it is named by the artifact's cache key."""

import contextlib
import heapq
import os
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from journey.engine.graph import missing, parents
from journey.engine.resume import StoppedError
from journey.engine.spec import Spec, cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get, get_group

STOPPED = "stopped on request"  # in place of an error
BROKEN_DEVICE = 70  # exit code of a worker that can no longer use its accelerator


class JobsFailedError(RuntimeError):
    """Some jobs failed; whatever does not depend on them was finished.

    The message has a line for each, with its log.
    """


class JobQueue:
    """The jobs of a run, in order of priority, and their states.

    A job is ready once the artifacts it needs exist. A job that needs a failed one is blocked. A
    job that ran out of memory is retried alone: after all other ready jobs, while nothing else
    runs.

    Attributes:
        attempts: How often each job was started.
        running: When each running job started, by `time.monotonic`.
        queued: Running jobs that still wait in the queue of a cluster.
        finished_seconds: How long each finished job took.
        failures: The error of each failed job.
        groups: The running jobs that are computed together, by the first of them.
        ungrouped: Jobs whose group ended without a result; they are computed one by one.
    """

    def __init__(self, order: dict[str, Spec]) -> None:
        """Queue the specs that `graph.missing` returned; everything else exists."""
        self.specs = order
        self.attempts: Counter[str] = Counter()
        self.running: dict[str, float] = {}
        self.queued: set[str] = set()
        self.alone: set[str] = set()
        self.finished_seconds: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self.blocked: set[str] = set()
        self.groups: dict[str, list[str]] = {}
        self.ungrouped: set[str] = set()
        self._rank = {key: rank for rank, key in enumerate(order)}
        self._waiting_for: dict[str, set[str]] = {}
        self._children: defaultdict[str, list[str]] = defaultdict(list)
        # Ready jobs; those that must run alone come last.
        self._heap: list[tuple[bool, int, str]] = []
        for key, spec in order.items():
            needed = {cache_key(parent) for parent in parents(spec)} & order.keys()
            self._waiting_for[key] = needed
            for parent in needed:
                self._children[parent].append(key)
            if not needed:
                heapq.heappush(self._heap, self._entry(key))

    def _entry(self, key: str) -> tuple[bool, int, str]:
        return key in self.alone, self._rank[key], key

    @property
    def ready(self) -> list[str]:
        """Return the jobs that can start now, in order of priority."""
        if self.alone & self.running.keys():
            return []
        together = sorted(entry for entry in self._heap if not entry[0])
        if not together and not self.running:
            together = sorted(self._heap)[:1]
        return [key for _, _, key in together]

    @property
    def next_alone(self) -> bool:
        """Return whether the next job must run alone."""
        return bool(self._heap) and self._heap[0][0]

    @property
    def done(self) -> bool:
        """Return whether every job is finished, failed or blocked."""
        return not self._heap and not self.running

    @property
    def remaining(self) -> list[str]:
        """Return the jobs that run or will run."""
        ended = self.finished_seconds.keys() | self.failures.keys() | self.blocked
        return [key for key in self.specs if key not in ended]

    def start(self, key: str | None = None) -> str:
        """Return a ready job, by default the first one, now marked as running."""
        entry = self._heap[0] if key is None else self._entry(key)
        self._heap.remove(entry)
        heapq.heapify(self._heap)
        key = entry[-1]
        self.attempts[key] += 1
        self.running[key] = time.monotonic()
        return key

    def start_group(self, key: str, most: int) -> None:
        """Mark a ready job as running, with others of its group, at most `most` in all.

        They are in `groups`.
        """
        group = "" if key in self.ungrouped or key in self.alone else self.specs[key].group
        members = [key]
        for other in self.ready if group else ():
            same = other not in self.ungrouped and self.specs[other].group == group
            if same and other != key and len(members) < most:
                members.append(other)
        for member in members:
            self.start(member)
        self.groups[key] = members

    def retry(self, key: str, alone: bool = False, last: bool = False) -> None:
        """Mark a running job, which ended without a result, as ready again.

        Args:
            key: The job.
            alone: Whether nothing else may run meanwhile.
            last: Whether the other jobs come first.
        """
        self._end(key)
        if alone:
            self.alone.add(key)
        if last:
            self._rank[key] += len(self._rank)
        heapq.heappush(self._heap, self._entry(key))

    def finish(self, key: str, seconds: float | None = None) -> None:
        """Mark a running job as finished, and the jobs that waited for it alone as ready.

        Args:
            key: The job.
            seconds: How long it took; by default, the time since it was started.
        """
        started = self._end(key)
        self.finished_seconds[key] = time.monotonic() - started if seconds is None else seconds
        for child in self._children[key]:
            self._waiting_for[child].discard(key)
            if not self._waiting_for[child]:
                heapq.heappush(self._heap, self._entry(child))

    def fail(self, key: str, error: str) -> None:
        """Mark a running job as failed, and all that need it as blocked."""
        self._end(key)
        self.failures[key] = error
        descendants = list(self._children[key])
        while descendants:
            child = descendants.pop()
            if child not in self.blocked:
                self.blocked.add(child)
                descendants.extend(self._children[child])

    def _end(self, key: str) -> float:
        self.queued.discard(key)
        return self.running.pop(key)

    def raise_failures(self) -> None:
        """Do nothing if no job failed.

        Raises:
            JobsFailedError: A job failed.
        """
        if self.failures:
            lines = [f"{key}: {error}" for key, error in self.failures.items()]
            raise JobsFailedError("\n".join(lines))


def missing_jobs(targets: Sequence[Spec], store: Store) -> JobQueue:
    """Return the queue of all that must be computed for the targets to exist in a store."""
    return JobQueue(missing(list(targets), lambda spec: store.find(spec) is not None))


def run_job(specs: tuple[Spec, ...], workspace: Workspace) -> str | None:
    """Return None, `STOPPED`, or the error in one line, after computing the artifacts of a group.

    The traceback is written to a log. If the error broke the accelerator for this process, as an
    illegal memory access does, the process ends: all later jobs would fail in it.
    """
    try:
        if len(specs) > 1:
            get_group(specs, workspace)
        else:
            get(specs[0], workspace)
    except StoppedError:
        return STOPPED
    except BaseException as error:  # even an exit: other jobs go on, and this one is reported
        log = write_log(workspace.store.root, cache_key(specs[0]), traceback.format_exc())
        if is_broken(workspace.compute.device):
            os._exit(BROKEN_DEVICE)
        return one_line(error) + log
    return None


def is_broken(device: str) -> bool:
    """Return whether this process, after a failure, can no longer use its accelerator."""
    torch = sys.modules.get("torch")
    if device == "cpu" or torch is None:  # without torch, a job has not used the accelerator
        return False
    try:
        torch.ones(1, device=device).item()
    except torch.OutOfMemoryError:
        return False
    except Exception:
        return True
    return False


def one_line(error: BaseException) -> str:
    """Return an exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def log_path(root: Path, key: str) -> Path:
    """Return where a store keeps the log of a job that failed."""
    return root / "logs" / (key.replace("/", "-") + ".log")


def write_log(root: Path, key: str, text: str) -> str:
    """Return " (log: path)" after writing a failed job's log; "" if that is impossible."""
    log = log_path(root, key)
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)  # a symbolic link is not followed
        log.write_text(text, encoding="utf-8", errors="backslashreplace")
        return f" (log: {log})"
    return ""
