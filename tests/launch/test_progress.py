import contextlib
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from toy_stages import Toy

from journey.engine.spec import cache_key
from journey.launch import progress
from journey.launch.jobs import JobQueue

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Train(Toy):
    stage: ClassVar[str] = "train"


@dataclass(frozen=True)
class Sample(Toy):
    stage: ClassVar[str] = "sample"


def queue_of(*specs: Toy) -> JobQueue:
    return JobQueue({cache_key(spec): spec for spec in specs})


def finish(queue: JobQueue, seconds: float) -> None:
    key = queue.start()
    queue.finish(key)
    queue.finished_seconds[key] = seconds


def test_the_lines():
    queue = queue_of(*(Train(f"{i}", work=10.0) for i in range(4)), Sample("s"))
    assert progress.summary(queue) == "5 to compute: train x4, sample x1"
    queue.start()
    assert progress.line(queue, 2, 20) == "0 of 5 computed, 20 s (train x1 running)"
    queue.finish(next(iter(queue.running)))
    queue.finished_seconds = dict.fromkeys(queue.finished_seconds, 600.0)
    assert progress.line(queue, 2, 610) == "1 of 5 computed, 10 min, more than 15 min left"
    queue.fail(queue.start(), "broken")
    queue.start()
    assert (
        progress.line(queue, 2, 610)
        == "1 of 5 computed, 1 failed, 10 min, more than 10 min left (train x1 running)"
    )


def test_time_left_uses_the_rate_of_each_stage():
    queue = queue_of(
        Train("a", work=10.0), Sample("b", work=1.0), Train("c", work=30.0), Sample("d", work=2.0)
    )
    finish(queue, 100.0)
    assert progress.seconds_left(queue, 1) == (pytest.approx(300), False), "no sample is finished"
    assert progress.time_left(queue, 1) == "more than 5 min left"
    finish(queue, 4.0)
    assert progress.seconds_left(queue, 1) == (pytest.approx(300 + 8), True)
    assert progress.time_left(queue, 1) == "about 5 min left"
    occupied = (pytest.approx((300 + 8) / 2), True)
    assert progress.seconds_left(queue, 8) == occupied, "two jobs occupy two workers"
    queue.running[queue.start()] -= 120
    assert progress.seconds_left(queue, 1) == (pytest.approx(180 + 8, abs=1), True)
    queue.running[next(iter(queue.running))] -= 1000
    assert progress.seconds_left(queue, 1) == (pytest.approx(8), False), "overdue"


def test_a_long_last_job_has_no_time_that_was_not_measured():
    """A job of seconds says nothing of one that then takes minutes."""
    queue = queue_of(Sample("a"), Train("b"))
    finish(queue, 3.0)
    key = queue.start()
    for elapsed in (0, 60, 180):
        queue.running[key] -= elapsed
        assert progress.line(queue, 1, elapsed).count("left") == 0


def test_a_job_without_work_has_no_known_time():
    queue = queue_of(Sample("a", work=0.0), Sample("b", work=0.0))
    finish(queue, 7.0)
    assert progress.seconds_left(queue, 1) == (0.0, False)
    assert progress.time_left(queue, 1) == ""


def test_at_most_a_line_a_minute(capsys, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    queue = queue_of(*(Train(f"{i}") for i in range(3)))
    with progress.show_progress(queue, 1) as show:
        for _ in range(150):
            show()
            now += 1
    assert capsys.readouterr().out.splitlines() == [
        "3 to compute: train x3",
        "0 of 3 computed, 1 min",
        "0 of 3 computed, 2 min",
    ]


# A whole process.
RUN = (
    "import sys; from journey.launch import progress; progress.INTERVAL = 0.0; "
    "from toy_stages import Toy, compute, workspace; "
    "compute([Toy(str(i)) for i in range(3)], workspace(sys.argv[1], 1))"
)


def command(tmp_path: Path, **environment: str) -> dict:
    words = [sys.executable, "-c", RUN, str(tmp_path / "store")]
    return {"args": words, "env": {**os.environ, "PYTHONPATH": str(HERE), **environment}}


def test_a_closed_reader_changes_nothing(tmp_path):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(**command(tmp_path), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (process.returncode, process.stderr) == (0, "")
    assert len(list((tmp_path / "store" / "toys").glob("*/text.txt"))) == 3


def test_a_missing_standard_output_changes_nothing(tmp_path):
    arguments = command(tmp_path)
    arguments["args"] = ["sh", "-c", 'exec "$@" >&-', "sh", *arguments["args"]]
    process = subprocess.run(**arguments, stderr=subprocess.PIPE, text=True)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
def test_an_ascii_terminal(tmp_path, terminal):
    ours, theirs = pty.openpty()
    environment = {"PYTHONIOENCODING": "ascii", "TERM": terminal, "COLUMNS": "120"}
    with subprocess.Popen(
        **command(tmp_path, **environment), stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(ours, 4096):
                text += part
    os.close(ours)
    assert process.returncode == 0
    assert text.isascii()
    assert b"Traceback" not in text
    assert (b"3/3" if terminal == "xterm" else b"3 to compute: toy_stages x3") in text
    assert (b"\x1b[" in text) == (terminal == "xterm")


def test_the_bar_is_on_the_terminal_and_the_lines_in_the_log(tmp_path):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        **command(tmp_path, TERM="xterm"), stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        os.close(theirs)
        log = process.stdout.read()
        text = b""
        with contextlib.suppress(OSError):
            while part := os.read(ours, 4096):
                text += part
    os.close(ours)
    assert log.splitlines()[0] == "3 to compute: toy_stages x3"
    assert " of 3 computed, " in log
    assert b"3/3" in text
