"""A stage that takes as long as it is told to, can be interrupted and gone on with, and tells what it did and did again."""

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
    """A number of rows, each made from the one before."""

    stage: ClassVar[str] = "counting_stages"
    maker: ClassVar[str] = "counting_stages:make"
    folder: ClassVar[str] = "counts"
    version: ClassVar[int] = 1
    label: str
    rows: int = 10
    needs: "tuple[Count, ...]" = ()
    seconds: float = field(default=0.1, metadata={"not_in_key": True})  # of a row
    said: str = field(default="", metadata={"not_in_key": True})  # the file where it tells
    waits_for: str = field(
        default="", metadata={"not_in_key": True}
    )  # the file without which its second half is not begun

    @property
    def work(self) -> float:
        return 1e9 * self.rows * self.seconds  # as the slowest machine would


def make(spec: Count, partial: Path, workspace: Workspace) -> None:
    state, kept_at = (
        resume.load_state(partial) or {"rows": 0, "digest": spec.label},
        time.monotonic(),
    )
    for row in range(state["rows"], spec.rows):
        if row == spec.rows // 2 and spec.waits_for:
            wait(Path(spec.waits_for))
        time.sleep(spec.seconds)
        state = {
            "rows": row + 1,
            "digest": hashlib.sha256(f"{state['digest']} {row}".encode()).hexdigest(),
        }
        say(spec, str(row))
        if resume.is_due(kept_at, workspace.compute.checkpoint_seconds):
            resume.save_state(partial, state)
            kept_at = time.monotonic()
    (partial / "digest.txt").write_text(state["digest"])
    say(spec, "made")


def wait(file: Path) -> None:
    """Until a file is there, or this is asked to stop."""
    while not (file.exists() or resume.stop_requested()):
        time.sleep(0.02)


def say(spec: Spec, what: str) -> None:
    """Note what was done for an artifact, and where."""
    with open(spec.said, "a") as file:
        file.write(f"{spec.label} {what} {os.environ.get('SLURMD_NODENAME')}\n")


def rows(said: Path) -> int:
    """How much was told so far."""
    return said.read_bytes().count(b"\n") if said.exists() else 0


def again(said: Path) -> Counter:
    """What was done more than once: of each artifact, how many rows too many, and of "made" how many artifacts."""
    done = Counter(tuple(line.split()[:2]) for line in said.read_text().splitlines())
    found: Counter[str] = Counter()
    for (label, what), count in done.items():
        if count > 1:
            found["made" if what == "made" else label] += count - 1
    return found
