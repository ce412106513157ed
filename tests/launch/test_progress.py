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


def agenda_of(*specs: Toy) -> JobQueue:
    return JobQueue({cache_key(spec): spec for spec in specs})


def finish(agenda: JobQueue, seconds: float) -> None:
    key = agenda.take()
    agenda.finish(key)
    agenda.made[key] = seconds


def test_the_lines():
    agenda = agenda_of(*(Train(f"{i}", work=10.0) for i in range(4)), Sample("s"))
    assert progress.summary(agenda) == "5 to make: train x4, sample x1"
    agenda.take()
    assert progress.line(agenda, 2, 20) == "0 of 5 made, 20 s (train x1 running)"
    agenda.finish(next(iter(agenda.running)))
    agenda.made = dict.fromkeys(agenda.made, 600.0)
    assert progress.line(agenda, 2, 610) == "1 of 5 made, 10 min, about 20 min left"
    agenda.fail(agenda.take(), "broken")
    agenda.take()
    assert (
        progress.line(agenda, 2, 610)
        == "1 of 5 made, 1 failed, 10 min, about 15 min left (train x1 running)"
    )


def test_the_rest_goes_at_the_rate_of_its_stage():
    agenda = agenda_of(
        Train("a", work=10.0), Sample("b", work=1.0), Train("c", work=30.0), Sample("d", work=2.0)
    )
    finish(agenda, 100.0)
    assert progress.seconds_left(agenda, 1) == pytest.approx(100 + 300 + 100), (
        "of samples only the mean is known"
    )
    finish(agenda, 4.0)
    assert progress.seconds_left(agenda, 1) == pytest.approx(300 + 8)
    assert progress.seconds_left(agenda, 8) == pytest.approx((300 + 8) / 2), (
        "two jobs keep two workers busy"
    )
    agenda.running[agenda.take()] -= 120
    assert progress.seconds_left(agenda, 1) == pytest.approx(180 + 8, abs=1)
    agenda.running[next(iter(agenda.running))] -= 1000
    assert progress.seconds_left(agenda, 1) == pytest.approx(8), "overdue"


def test_jobs_without_work_take_the_mean():
    agenda = agenda_of(Sample("a", work=0.0), Sample("b", work=0.0))
    finish(agenda, 7.0)
    assert progress.seconds_left(agenda, 1) == pytest.approx(7.0)


def test_at_most_a_line_a_minute(capsys, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    agenda = agenda_of(*(Train(f"{i}") for i in range(3)))
    with progress.show_progress(agenda, 1) as show:
        for _ in range(150):
            show()
            now += 1
    assert capsys.readouterr().out.splitlines() == [
        "3 to make: train x3",
        "0 of 3 made, 1 min",
        "0 of 3 made, 2 min",
    ]


# ---------------------------------------------------------------------------------------------------- whole processes

RUN = (
    "import sys; from journey.launch import progress; progress.INTERVAL = 0.0; "
    "from toy_stages import Toy, ask, workspace; "
    "ask([Toy(str(i)) for i in range(3)], workspace(sys.argv[1], 1))"
)


def command(tmp_path: Path, **environment: str) -> dict:
    words = [sys.executable, "-c", RUN, str(tmp_path / "store")]
    return {"args": words, "env": {**os.environ, "PYTHONPATH": str(HERE), **environment}}


def test_nobody_reads(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(**command(tmp_path), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "store" / "toys").glob("*/said.txt"))) == 3


def test_no_standard_output_at_all(tmp_path):
    words = command(tmp_path)
    words["args"] = ["sh", "-c", 'exec "$@" >&-', "sh", *words["args"]]
    done = subprocess.run(**words, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


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
    assert (b"3/3" if terminal == "xterm" else b"3 to make: toy_stages x3") in text
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
    assert log.splitlines()[0] == "3 to make: toy_stages x3"
    assert " of 3 made, " in log
    assert b"3/3" in text
