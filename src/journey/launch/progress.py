"""How far a launcher is, for people: a bar on a terminal, a line a minute elsewhere."""

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from journey.launch.jobs import JobQueue

INTERVAL = 60.0  # seconds from line to line


def summary(agenda: JobQueue) -> str:
    """What will be made, by stage."""
    return f"{len(agenda.specs)} to make: {_by_stage(agenda, list(agenda.specs))}"


def line(agenda: JobQueue, num_workers: int, seconds: float) -> str:
    """How far it is after so many seconds."""
    parts = [f"{len(agenda.made)} of {len(agenda.specs)} made"]
    if agenda.failures:
        parts.append(f"{len(agenda.failures)} failed")
    parts.append(duration(seconds))
    if (left := seconds_left(agenda, num_workers)) is not None:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts) + (f" ({_running(agenda)})" if agenda.running else "")


def _running(agenda: JobQueue) -> str:
    """What runs, and what in truth is queued."""
    running = [key for key in agenda.running if key not in agenda.queued]
    standing = {"running": running, "queued": list(agenda.queued)}
    return ", ".join(f"{_by_stage(agenda, keys)} {how}" for how, keys in standing.items() if keys)


def _by_stage(agenda: JobQueue, keys: list[str]) -> str:
    """How many of each stage: plain characters, which every terminal has."""
    stages = Counter(agenda.specs[key].stage for key in keys)
    return ", ".join(f"{stage} x{count}" for stage, count in stages.items())


def seconds_left(agenda: JobQueue, num_workers: int) -> float | None:
    """How long the rest takes if all workers are busy; None before anything is made.

    A stage goes at the rate its jobs so far went, by their `work`; a job of a stage that none is made of takes the mean.
    """
    left = agenda.left
    if not agenda.made or not left:
        return None
    now, expected = time.monotonic(), _expected(agenda)
    seconds = sum(max(0.0, expected(key) - (now - agenda.running.get(key, now))) for key in left)
    return seconds / min(num_workers, len(left))


def _expected(agenda: JobQueue) -> Callable[[str], float]:
    """The seconds that a job takes, as far as those that are made tell."""
    seconds, work = Counter(), Counter()
    for key, took in agenda.made.items():
        seconds[agenda.specs[key].stage] += took
        work[agenda.specs[key].stage] += agenda.work[key]
    mean = sum(agenda.made.values()) / len(agenda.made)

    def expected(key: str) -> float:
        stage = agenda.specs[key].stage
        return seconds[stage] / work[stage] * agenda.work[key] if work[stage] > 0 else mean

    return expected


def duration(seconds: float) -> str:
    """Seconds for people.

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
def show_progress(agenda: JobQueue, num_workers: int) -> Iterator[Callable[[], None]]:
    """A function that, called every second or so, shows how far an agenda is.

    A bar where standard output or standard error is a terminal; lines on a standard output that is none.
    """
    output = sys.stdout  # now: the bar may put its own in place
    terminal = next((stream for stream in (output, sys.stderr) if _is_terminal(stream)), None)
    with contextlib.ExitStack() as stack:
        displays = []
        if terminal is not None:
            displays.append(stack.enter_context(_bar(agenda, num_workers, terminal)))
        if terminal is not output:
            displays.append(_lines(agenda, num_workers, output))

        def show() -> None:
            for display in displays:
                display()

        yield show


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether a line on it can be written over."""
    return (
        stream is not None
        and not stream.closed
        and stream.isatty()
        and os.environ.get("TERM") not in ("dumb", "unknown")
    )


@contextlib.contextmanager
def _bar(agenda: JobQueue, num_workers: int, terminal: TextIO) -> Iterator[Callable[[], None]]:
    left = TextColumn("{task.fields[left]}")
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        left,
        TextColumn("{task.description}"),
    )
    console = Console(file=terminal)
    with Progress(*columns, console=console, redirect_stdout=terminal is sys.stdout) as progress:
        bar = progress.add_task(summary(agenda), total=len(agenda.specs), left="")

        def show() -> None:
            seconds = seconds_left(agenda, num_workers)
            failed = f", {len(agenda.failures)} failed" if agenda.failures else ""
            estimate = "" if seconds is None else f"about {duration(seconds)} left"
            progress.update(
                bar,
                completed=len(agenda.made),
                description=_running(agenda) + failed,
                left=estimate,
            )

        yield show


def _lines(agenda: JobQueue, num_workers: int, output: TextIO | None) -> Callable[[], None]:
    began = said = time.monotonic()
    _say(summary(agenda), output)

    def show() -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= INTERVAL and agenda.left:
            _say(line(agenda, num_workers, now - began), output)
            said = now

    return show


def _say(text: str, output: TextIO | None) -> None:
    """Print a line, at once; where nobody reads any more (`| head`), this and all that follows goes nowhere."""
    if output is None or output.closed:
        return
    try:
        print(text, file=output, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(
            nowhere, output.fileno()
        )  # what is still buffered would otherwise be an error when Python ends
        os.close(nowhere)
