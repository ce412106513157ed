"""A resumable stage that takes a given time and logs every row that it computes."""

import hashlib
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from journey.engine import resume
from journey.engine.spec import Spec
from journey.engine.workspace import Workspace


@dataclass(frozen=True)
class Count(Spec):
    """A number of rows, each computed from the one before."""

    stage: ClassVar[str] = "counting_stages"
    maker: ClassVar[str] = "counting_stages:count"
    folder: ClassVar[str] = "counts"
    version: ClassVar[int] = 1
    label: str
    rows: int = 10
    needs: "tuple[Count, ...]" = ()
    seconds: float = field(default=0.1, metadata={"not_in_key": True})  # of a row
    log: str = field(default="", metadata={"not_in_key": True})  # path
    # The second half begins once this file exists.
    waits_for: str = field(default="", metadata={"not_in_key": True})

    @property
    def work(self) -> float:
        return 1e9 * self.rows * self.seconds  # as the slowest machine would


def count(spec: Count, partial: Path, workspace: Workspace) -> None:
    state = resume.load_state(partial) or {"rows": 0, "digest": spec.label}
    clock = resume.Clock(partial, workspace.compute.checkpoint_seconds)
    for row in range(state["rows"], spec.rows):
        if row == spec.rows // 2 and spec.waits_for:
            write_log(spec, "waits")  # with a state saved, if `checkpoint_seconds` is 0
            wait(Path(spec.waits_for))
        time.sleep(spec.seconds)
        state = {
            "rows": row + 1,
            "digest": hashlib.sha256(f"{state['digest']} {row}".encode()).hexdigest(),
        }
        write_log(spec, str(row))
        if clock.due():
            clock.save(state)
    (partial / "digest.txt").write_text(state["digest"])
    write_log(spec, "done")


def wait(file: Path) -> None:
    """Wait until a file exists or a stop is requested."""
    while not (file.exists() or resume.stop_requested()):
        time.sleep(0.02)


def write_log(spec: Spec, event: str) -> None:
    """Log an event of an artifact, and its node."""
    with open(spec.log, "a") as file:
        file.write(f"{spec.label} {event} {os.environ.get('SLURMD_NODENAME')}\n")


def rows(log: Path) -> int:
    """Return how many rows were logged so far."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def waiting(log: Path) -> int:
    """Return how many artifacts began to wait so far."""
    return log.read_text().count(" waits ") if log.exists() else 0


def repeated_rows(log: Path) -> Counter[str]:
    """Return how many rows of each artifact were computed again; "done": artifacts done again."""
    events = Counter(tuple(line.split()[:2]) for line in log.read_text().splitlines())
    repeated: Counter[str] = Counter()
    for (label, event), count in events.items():
        if count > 1 and event != "waits":
            repeated["done" if event == "done" else label] += count - 1
    return repeated
