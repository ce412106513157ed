"""Toy specs, the stage that makes them, and ways to die: the store is tested without the rest of the code."""

import os
import signal
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


@dataclass(frozen=True)
class Toy(Spec):
    stage: ClassVar[str] = "stages_for_tests"
    maker: ClassVar[str] = "stages_for_tests:make"
    folder: ClassVar[str] = "toys"
    version: ClassVar[int] = 1
    value: int
    size: int = 1000
    of: "Toy | None" = None
    pause: float = omitted_default(0.0)  # seconds

    @property
    def label(self) -> str:
        return f"toy{self.value}"

    @property
    def work(self) -> float:
        return 2.0 * self.size


def make(spec: Toy, partial: Path, workspace: Workspace) -> dict:
    """An array filled in two steps, a text in a folder, and a line for every time that this is run."""
    with open(workspace.store.root / "runs.txt", "a") as runs:
        runs.write(f"{os.getpid()}\n")
    path = partial / "values.npy"
    begun = (load_state(partial) or {"step": 0})["step"]
    values = open_memmap(path, "r+") if begun else new_array(path, (spec.size,))
    for step in range(begun, 2):
        values[step::2] = spec.value + step  # half of them
        values.flush()
        (partial / f"resume.{step + 1}.bin").write_bytes(bytes([step] * 100))
        save_state(partial, {"step": step + 1}, [f"resume.{step + 1}.bin"])
    time.sleep(spec.pause)
    (partial / "notes").mkdir(exist_ok=True)
    (partial / "notes" / "text.txt").write_text(f"value {spec.value}\n")
    return {"begun": begun}


def ask(spec: Spec, root: Path) -> Artifact:
    """An artifact of a store that remembers nothing yet."""
    return get(spec, Workspace(Store(root), None, None, "test"))


def deaths(deed: Callable[[int], object], files: tuple[str, ...]) -> Iterator[int]:
    """Kill a process of its own that does the deed at the first line it reaches in some files, then another at the second, …

    Yields the number of each death, until one survives: the deed is done with that number.
    """
    number = 0
    while True:
        if (child := os.fork()) == 0:
            sys.settrace(_killer(number, files))
            deed(number)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        assert os.WIFSIGNALED(status), f"line {number}: the deed failed"
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield number
        number += 1


def _killer(number: int, files: tuple[str, ...]) -> Callable:
    reached = -1

    def trace(frame, event, argument):
        nonlocal reached
        if not frame.f_code.co_filename.endswith(files):
            return None
        reached += event == "line"
        if reached == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace
