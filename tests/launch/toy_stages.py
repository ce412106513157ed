"""A stage that does what its spec says: workers import it, as they import the real ones."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Tracking, Workspace, get
from journey.launch.local import Local

PATIENCE = 30  # seconds


@dataclass(frozen=True)
class Toy(Spec):
    """An artifact of a few bytes."""

    stage: ClassVar[str] = "toy_stages"
    maker: ClassVar[str] = "toy_stages:make"
    folder: ClassVar[str] = "toys"
    version: ClassVar[int] = 1
    label: str
    needs: "tuple[Toy, ...]" = ()
    deed: str = "nothing"
    target: str = ""  # what the deed is about: a path
    kind: object = None  # something with a `deed` of its own
    work: float = 1.0


def make(spec: Toy, partial: Path, workspace: Workspace) -> None:
    DEEDS[spec.deed](spec)
    said = [get(need, workspace).path.joinpath("said.txt").read_text() for need in spec.needs]
    own = spec.name.deed() if spec.name else spec.label
    (partial / "said.txt").write_text(f"{own}({','.join(said)})")
    (partial / "threads.txt").write_text(os.environ["OMP_NUM_THREADS"])


def nothing(spec: Toy) -> None:
    pass


def fail(spec: Toy) -> None:
    raise ValueError("this toy\nis broken")


def leave(spec: Toy) -> None:
    sys.exit("no more toys")


def die(spec: Toy) -> None:
    with open(spec.target, "a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(spec: Toy) -> None:
    if not Path(spec.target).exists():
        die(spec)


def exit_at_once(spec: Toy) -> None:
    os._exit(3)


def touch(spec: Toy) -> None:
    Path(spec.target).touch()


def await_touch(spec: Toy) -> None:
    end = time.monotonic() + PATIENCE
    while not Path(spec.target).exists():
        assert time.monotonic() < end, f"{spec.target} never came"
        time.sleep(0.02)


def beat(spec: Toy) -> None:
    """Show for ever that this process lives."""
    for count in range(100 * PATIENCE):
        Path(spec.target).write_text(str(count))
        time.sleep(0.05)


def take_turns(spec: Toy) -> None:
    """Note when this began, relative to others."""
    with open(spec.target, "a") as file:
        file.write(f"{spec.label} ")


def see(spec: Toy) -> None:
    """Note which device this can see, and stay a while."""
    with open(spec.target, "a") as file:
        file.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} ")
    time.sleep(0.5)


def exhaust(spec: Toy) -> None:
    """Lack memory while anything else runs."""
    with beside(spec) as others:
        if others:
            raise OutOfMemoryError(f"{others} more at work")


def stay(spec: Toy) -> None:
    """Be there a while."""
    with beside(spec):
        time.sleep(0.5)


@contextlib.contextmanager
def beside(spec: Toy) -> Iterator[int]:
    """How many others do this at the same time, by the files in a directory."""
    own = Path(spec.target, spec.label)
    own.touch()
    time.sleep(0.2)
    try:
        yield len(list(Path(spec.target).iterdir())) - 1
    finally:
        own.unlink()


class OutOfMemoryError(RuntimeError):
    """Called as torch's is."""


DEEDS = {
    deed.__name__: deed
    for deed in (
        nothing,
        fail,
        leave,
        die,
        die_once,
        exit_at_once,
        touch,
        await_touch,
        beat,
        take_turns,
        see,
        exhaust,
        stay,
    )
}


@dataclass
class Nowhere(Tracking):
    name: ClassVar[str] = "nowhere"

    def watch(self, name: str, group: str, job_type: str, settings: dict):
        raise NotImplementedError


def workspace(root: Path, workers: int = 2) -> Workspace:
    return Workspace(Store(root), Local(workers=workers), Nowhere(), "test")


def ask(targets: list[Toy], space: Workspace) -> list[str]:
    """The labels of what is made, in that order."""
    return [spec.label for spec in space.compute.make(targets, space)]
