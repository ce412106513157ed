"""A toy spec, the stage that computes it, and processes that are killed before every change."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from numpy.lib.format import open_memmap

from journey.engine.files import new_array
from journey.engine.resume import load_state, save_state
from journey.engine.spec import Spec, omitted_default
from journey.engine.store import Artifact, Store
from journey.engine.workspace import Workspace, get
from journey.launch.local import Local


@dataclass(frozen=True)
class Toy(Spec):
    stage: ClassVar[str] = "toy"
    maker: ClassVar[str] = "stages_for_tests:make"
    folder: ClassVar[str] = "toys"
    version: ClassVar[int] = 1
    value: int
    size: int = 1000
    parent: "Toy | None" = None
    pause: float = omitted_default(0.0)  # seconds

    @property
    def label(self) -> str:
        return f"toy{self.value}"

    @property
    def work(self) -> float:
        return 2.0 * self.size


def make(spec: Toy, partial: Path, workspace: Workspace) -> dict:
    """Fill an array in two steps, write a text in a folder, and log the run in runs.txt."""
    with open(workspace.store.root / "runs.txt", "a") as runs:
        runs.write(f"{os.getpid()}\n")
    path = partial / "values.npy"
    first = (load_state(partial) or {"step": 0})["step"]
    values = open_memmap(path, "r+") if first else new_array(path, (spec.size,))
    for step in range(first, 2):
        values[step::2] = spec.value + step
        values.flush()
        (partial / f"resume.{step + 1}.bin").write_bytes(bytes([step] * 100))
        save_state(partial, {"step": step + 1}, [f"resume.{step + 1}.bin"])
    time.sleep(spec.pause)
    (partial / "notes").mkdir(exist_ok=True)
    (partial / "notes" / "text.txt").write_text(f"value {spec.value}\n")
    return {"first": first}


def compute(spec: Spec, root: Path) -> Artifact:
    """Return an artifact of a store that was just opened."""
    return get(spec, Workspace(Store(root), Local(), None, "test"))


CHANGES = {"open", "mkdir", "posix_fallocate", "write", "flush", "truncate"}
CHANGES |= {"rename", "replace", "unlink", "remove", "rmdir"}


def killed_at_each_change(action: Callable[[int], object]) -> Iterator[int]:
    """Call action(n) in a process that is killed before its n-th change of a file system.

    A kill between two changes leaves what one before the second leaves.

    Yields:
        n = 0, 1, … after each kill, until a process survives.
    """
    number = 0
    while True:
        if (child := os.fork()) == 0:
            sys.setprofile(_killer(number))
            action(number)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        assert os.WIFSIGNALED(status), f"change {number}: the action failed"
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield number
        number += 1


def _killer(number: int) -> Callable:
    earlier = iter(range(number))

    def profile(frame, event, argument):
        """Called before every function that is written in C."""
        changes = event == "c_call" and argument.__name__ in CHANGES
        if changes and not isinstance(argument.__self__, str) and next(earlier, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    return profile


def in_a_process(module: str, function: str, root: Path) -> None:
    """Call a function of a test module in a process without threads, which may fork."""
    code = f"from pathlib import Path; import {module}; {module}.{function}(Path({str(root)!r}))"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])
    }
    subprocess.run([sys.executable, "-c", code], check=True, timeout=1800, env=environment)
