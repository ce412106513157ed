"""A stage that performs the action of its spec; workers import it like a real stage."""

import os
import signal
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Tracking, Workspace, get
from journey.launch.local import Local

TIMEOUT = 600  # seconds: long, for a busy machine


@dataclass(frozen=True)
class Toy(Spec):
    """An artifact of a few bytes."""

    stage: ClassVar[str] = "toy_stages"
    maker: ClassVar[str] = "toy_stages:act"
    group_maker: ClassVar[str] = "toy_stages:act_together"
    folder: ClassVar[str] = "toys"
    version: ClassVar[int] = 1
    label: str
    needs: "tuple[Toy, ...]" = ()
    action: str = "nothing"
    target: str = ""  # path for the action
    component: object = None  # has an `action` method
    work: float = 1.0
    family: str = ""

    @property
    def group(self) -> str:
        return self.family


@dataclass(frozen=True)
class ToyOnCPU(Toy):
    """One that uses no accelerator."""

    on_cpu: ClassVar[bool] = True


def act(spec: Toy, partial: Path, workspace: Workspace) -> None:
    ACTIONS[spec.action](spec)
    texts = [get(need, workspace).path.joinpath("text.txt").read_text() for need in spec.needs]
    own = spec.component.action() if spec.component else spec.label
    (partial / "text.txt").write_text(f"{own}({','.join(texts)})")
    (partial / "threads.txt").write_text(os.environ["OMP_NUM_THREADS"])


def act_together(jobs: "Sequence[tuple[Toy, Path]]", workspace: Workspace) -> None:
    for spec, partial in jobs:
        act(spec, partial, workspace)
    for _, partial in jobs:
        (partial / "together.txt").write_text(str(len(jobs)))


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


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_for_file(spec: Toy) -> None:
    wait_until(Path(spec.target).exists)


def beat(spec: Toy) -> None:
    """Count in a file, for ever, while this process lives."""
    for count in range(20 * TIMEOUT):
        Path(spec.target).write_text(str(count))
        time.sleep(0.05)


def append_label(spec: Toy) -> None:
    """Append the label to a file."""
    with open(spec.target, "a") as file:
        file.write(f"{spec.label} ")


def append_device(spec: Toy) -> None:
    """Append the visible device to a file, and wait until it has another one, too."""
    with open(spec.target, "a") as file:
        file.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} ")
    wait_until(lambda: len(set(Path(spec.target).read_text().split())) > 1)


def use_device(spec: Toy) -> None:
    """Append the visible device to a file. Device 3 is broken."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES")
    with open(spec.target, "a") as file:
        file.write(f"{device} ")
    if device == "3":
        break_device(spec)
    time.sleep(0.3)  # so that the other device gets jobs, too


def break_device(spec: Toy) -> None:
    """Fail, and let all later operations on the accelerator of this process fail, too."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    sys.modules["torch"] = types.SimpleNamespace(ones=fail, OutOfMemoryError=OutOfMemoryError)
    fail()


def exhaust(spec: Toy) -> None:
    """Run out of memory while another job has a file in a folder; at first, wait for one."""
    folder, tried = Path(spec.target), Path(f"{spec.target}-tried")
    wait_until(lambda: tried.exists() or any(folder.iterdir()))
    others = len(list(folder.iterdir()))
    tried.touch()
    if others:
        raise OutOfMemoryError(f"{others} other jobs run")


def run_a_while(spec: Toy) -> None:
    """Run until after another job has run out of memory."""
    own = Path(spec.target, spec.label)
    own.touch()
    wait_until(Path(f"{spec.target}-tried").exists)
    time.sleep(0.5)
    own.unlink()


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's error."""


ACTIONS = {
    action.__name__: action
    for action in (
        nothing,
        fail,
        leave,
        die,
        die_once,
        exit_at_once,
        touch,
        wait_for_file,
        beat,
        append_label,
        append_device,
        use_device,
        break_device,
        exhaust,
        run_a_while,
    )
}


@dataclass
class NoTracking(Tracking):
    name: ClassVar[str] = "none"

    def watch(self, key: str, name: str, group: str, job_type: str, settings: dict):
        raise NotImplementedError


def workspace(root: Path, workers: int = 2, stack: int = 1) -> Workspace:
    return Workspace(Store(root), Local(workers=workers, stack=stack), NoTracking(), "test")


def compute(targets: list[Toy], space: Workspace) -> list[str]:
    """Return the labels of the computed artifacts, in order."""
    return [spec.label for spec in space.compute.make(targets, space)]
