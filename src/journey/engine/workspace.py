"""Where and how to compute, and `get`, which returns or computes the artifact of a spec."""

from __future__ import annotations

import contextlib
import importlib
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum

from journey.engine.provenance import watch_device
from journey.engine.spec import Component, Spec, cache_key
from journey.engine.store import Artifact, Store


class Precision(Enum):
    """Number format of forward and backward passes."""

    fp32 = "fp32"
    tf32 = "tf32"  # fp32, but factors of products are rounded to 10 bits on CUDA
    bf16 = "bf16"


LogMetrics = Callable[..., None]
"""Called as log(values, step), with values by name: numbers, rows, paths of images or a page."""


@dataclass
class Compute(Component):
    """What to compute on. Only the precision changes numbers, and only it is in cache keys."""

    device: str = "cpu"
    precision: Precision = Precision.fp32
    # Of each worker. By default, 2 on a CPU, and a share of what is free on a GPU.
    gradient_memory_gib: float | None = None
    checkpoint_seconds: float = 60.0  # between the states that an interrupted stage resumes from
    processes: int = 1  # that train one model together; on CUDA, each on a device of its own
    compile: bool = False  # whether torch compiles networks for training, if it can
    stack: int = 1  # small networks that a worker trains at once, as stacked weights

    @property
    def workers_per_device(self) -> int:
        """Return how many workers share an accelerator."""
        return 1

    def ready(self) -> None:
        """Check once, before any compute, that the devices exist.

        Raises:
            ConfigError: A device is missing.
        """

    @abstractmethod
    def make(self, targets: list[Spec], workspace: Workspace) -> Iterator[Spec]:
        """Compute the targets and everything they need; yield each spec once its artifact exists.

        Raises:
            JobsFailedError: Some jobs failed; whatever does not depend on them was finished.
        """

    @abstractmethod
    def at_work(self, store: Store) -> dict[str, str]:
        """Return, by cache key, which artifacts are "running" or "queued". Changes nothing."""


@dataclass
class Tracking(Component):
    """Where metrics are logged, beside the JSON lines in every artifact."""

    def ready(self) -> None:
        """Check once, before any compute, that the tracker can be reached.

        Raises:
            ConfigError: It cannot.
        """

    @abstractmethod
    def watch(
        self, key: str, name: str, group: str, job_type: str, settings: dict[str, object]
    ) -> AbstractContextManager[LogMetrics | None]:
        """Return a context that follows one job; it yields None if nothing is logged.

        Args:
            key: The cache key of the artifact. A job that was interrupted has the same one again.
            name: What the job is called.
            group: The name of the experiment.
            job_type: The stage, or "report".
            settings: What the job computes.
        """


@dataclass(frozen=True)
class Workspace:
    """The store, and how to compute missing artifacts. No number depends on it beyond rounding."""

    store: Store
    compute: Compute
    tracking: Tracking
    group: str  # the experiment's name


def get(spec: Spec, workspace: Workspace) -> Artifact:
    """Return the artifact of a spec, computing it if the store does not have it."""
    store = workspace.store
    if (artifact := store.find(spec)) is not None:
        return artifact
    with store.writing(spec) as partial:
        if (artifact := store.find(spec)) is not None:  # computed while this process waited
            with contextlib.suppress(OSError):  # removed, or used by a third process
                partial.rmdir()
            return artifact
        started = time.perf_counter()
        make = _import_maker(spec.maker)
        with watch_device(workspace.compute.device) as device:
            metadata = make(spec, partial, workspace)
        seconds = time.perf_counter() - started
        return store.commit(spec, partial, seconds, metadata or {}, device)


def get_group(specs: Sequence[Spec], workspace: Workspace) -> None:
    """Compute those artifacts of specs with one `group` that the store does not have, together."""
    store = workspace.store
    with contextlib.ExitStack() as locks:
        jobs = []
        for spec in sorted(specs, key=cache_key):  # in one order: no two processes can wait
            partial = locks.enter_context(store.writing(spec))  # for each other
            if store.find(spec) is None:
                jobs.append((spec, partial))
            else:
                with contextlib.suppress(OSError):
                    partial.rmdir()
        started = time.perf_counter()
        if jobs:
            make = _import_maker(specs[0].group_maker)
            with watch_device(workspace.compute.device) as device:
                make(jobs, workspace)
        seconds = (time.perf_counter() - started) / max(1, len(jobs))
        for spec, partial in jobs:
            store.commit(spec, partial, seconds, {}, device)


def _import_maker(name: str) -> Callable:
    """Return a maker, `module:function`. It is imported only now, since makers import torch."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)
