"""The progress of a launcher: a bar on a terminal, a line per minute elsewhere."""

import contextlib
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from journey.engine.text import printable
from journey.launch.jobs import JobQueue

INTERVAL = 60.0  # seconds from line to line


def summary(queue: JobQueue) -> str:
    """Return how many artifacts will be computed, by stage."""
    return f"{len(queue.specs)} to compute: {_by_stage(queue, list(queue.specs))}"


def line(queue: JobQueue, num_workers: int, seconds: float) -> str:
    """Return the progress after so many seconds."""
    parts = [f"{len(queue.finished_seconds)} of {len(queue.specs)} computed"]
    if queue.failures:
        parts.append(f"{len(queue.failures)} failed")
    parts.append(duration(seconds))
    if left := time_left(queue, num_workers):
        parts.append(left)
    return ", ".join(parts) + (f" ({_running(queue)})" if queue.running else "")


def _running(queue: JobQueue) -> str:
    running = [key for key in queue.running if key not in queue.queued]
    parts = []
    if running:
        parts.append(f"{_by_stage(queue, running)} running")
    if queue.queued:
        parts.append(f"{_by_stage(queue, list(queue.queued))} queued")
    return ", ".join(parts)


def _by_stage(queue: JobQueue, keys: list[str]) -> str:
    stages = Counter(queue.specs[key].stage for key in keys)
    return ", ".join(f"{stage} x{count}" for stage, count in stages.items())  # x: ASCII terminals


def time_left(queue: JobQueue, num_workers: int) -> str:
    """Return how long the remaining jobs take, as far as that is known; "" if nothing is."""
    seconds, all_known = seconds_left(queue, num_workers)
    if not seconds:
        return ""
    return f"{'about' if all_known else 'more than'} {duration(seconds)} left"


def seconds_left(queue: JobQueue, num_workers: int) -> tuple[float, bool]:
    """Return how long the remaining jobs of known duration take, and whether those are all.

    All workers are busy. A stage proceeds at the rate of its finished jobs, by their `work`. Jobs
    of a stage without any are of unknown duration; so is one that takes longer than expected.
    """
    remaining, finished = queue.remaining, queue.finished_seconds
    seconds: defaultdict[str, float] = defaultdict(float)
    work: defaultdict[str, float] = defaultdict(float)
    for key, elapsed in finished.items():
        spec = queue.specs[key]
        seconds[spec.stage] += elapsed
        work[spec.stage] += spec.work
    now, total, num_known = time.monotonic(), 0.0, 0
    for key in remaining:
        spec = queue.specs[key]
        if work[spec.stage] > 0:
            expected = seconds[spec.stage] / work[spec.stage] * spec.work
            left = expected - (now - queue.running.get(key, now))
            total += max(0.0, left)
            num_known += left > 0
    return total / min(num_workers, max(1, num_known)), num_known == len(remaining)


def duration(seconds: float) -> str:
    """Return seconds for people.

    >>> [duration(seconds) for seconds in (40, 200, 7500, 190000)]
    ['40 s', '3 min', '2 h 5 min', '2 d 4 h']
    """
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


@contextlib.contextmanager
def show_progress(queue: JobQueue, num_workers: int) -> Iterator[Callable[[], None]]:
    """Yield a function that, called every second or so, shows the progress of a queue.

    A bar on standard output or standard error, whichever is a terminal; lines on a standard output
    that is none.
    """
    output = sys.stdout  # now: the bar may replace it
    terminal = next((stream for stream in (output, sys.stderr) if _is_terminal(stream)), None)
    with contextlib.ExitStack() as stack:
        displays = []
        if terminal is not None:
            displays.append(stack.enter_context(_bar(queue, num_workers, terminal)))
        if terminal is not output:
            displays.append(_lines(queue, num_workers, output))

        def show() -> None:
            for display in displays:
                display()

        yield show


def _is_terminal(stream: TextIO | None) -> bool:
    if stream is None or stream.closed or not stream.isatty():
        return False
    return os.environ.get("TERM") not in ("dumb", "unknown")


@contextlib.contextmanager
def _bar(queue: JobQueue, num_workers: int, terminal: TextIO) -> Iterator[Callable[[], None]]:
    remaining = TextColumn("{task.fields[left]}", markup=False)
    description = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), remaining, description)
    console = Console(file=terminal)
    with Progress(*columns, console=console, redirect_stdout=terminal is sys.stdout) as progress:
        bar = progress.add_task(summary(queue), total=len(queue.specs), left="")

        def show() -> None:
            failed = f", {len(queue.failures)} failed" if queue.failures else ""
            completed, left = len(queue.finished_seconds), time_left(queue, num_workers)
            progress.update(
                bar, completed=completed, description=printable(_running(queue) + failed), left=left
            )

        yield show


def _lines(queue: JobQueue, num_workers: int, output: TextIO | None) -> Callable[[], None]:
    started = last = time.monotonic()
    _print(summary(queue), output)

    def show() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= INTERVAL and queue.remaining:
            _print(line(queue, num_workers, now - started), output)
            last = now

    return show


def _print(text: str, output: TextIO | None) -> None:
    """Print a line at once; drop all output once the reader has gone (`| head`)."""
    if output is None or output.closed:
        return
    try:
        print(printable(text), file=output, flush=True)
    except BrokenPipeError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, output.fileno())  # buffered text would be an error when Python ends
        os.close(null)
