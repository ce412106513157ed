"""This machine: worker processes, each making one artifact at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from journey.engine.checks import require
from journey.engine.graph import missing
from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Compute, Workspace
from journey.launch.jobs import JobQueue, run_job
from journey.launch.machine import check_compute, num_cores, run_queue, worker_environments
from journey.launch.pool import Pool
from journey.launch.progress import show_progress

MOST_WORKERS = 4  # for each core


@dataclass
class Local(Compute):
    """Every job runs in a worker with the same number of threads, so that how work is scheduled changes no bit."""

    name: ClassVar[str] = "local"
    workers: int = 0  # processes on each device; 0: one per core on a CPU, one on an accelerator
    devices: list[int] = field(
        default_factory=list
    )  # with device=cuda: which of those there are; none: the first

    def check(self, where: str) -> None:
        """Raises: ConfigError."""
        check_compute(self, where)
        most = MOST_WORKERS * num_cores()
        allowed = f"in 0…{most}: this process may use {num_cores()} cores; 0 is one each, or one on an accelerator"
        require(0 <= self.workers <= most, f"{where}.workers", self.workers, allowed)
        known = len(set(self.devices)) == len(self.devices) and all(
            0 <= device < 1000 for device in self.devices
        )
        require(known, f"{where}.devices", self.devices, "distinct numbers of devices, from 0")
        require(
            not self.devices or self.device == "cuda",
            f"{where}.devices",
            self.devices,
            "left out unless device=cuda",
        )
        spread = not self.devices or self.processes == 1
        require(
            spread,
            f"{where}.devices",
            self.devices,
            "left out where several processes train one model",
        )

    def ready(self) -> None:
        if self.device != "cpu":
            from journey.diffusion import network

            network.require_device(f"compute.device={self.device}", self.device)
            for device in self.devices:
                network.require_device(f"compute.devices={self.devices}", f"cuda:{device}")

    @property
    def num_workers(self) -> int:
        """How many processes there may be."""
        each = self.workers or (
            max(1, num_cores() // self.processes) if self.device == "cpu" else 1
        )
        return each * max(1, len(self.devices))

    @property
    def num_threads(self) -> int:
        """Of each process, those that train one model together counted too."""
        return max(1, num_cores() // (self.num_workers * self.processes))

    def make(self, targets: list[Spec], workspace: Workspace) -> Iterator[Spec]:
        """Make what the targets lack, and yield each artifact's spec once it is there; what was there before is not yielded.

        Jobs start as soon as what they need is there, those first that the first target needs. When the generator is closed,
        or on Ctrl-C, the workers are terminated; the next run continues from what they kept.

        Raises: JobsFailedError, after all jobs that do not depend on a failed one; StoreError.
        """
        agenda = JobQueue(missing(targets, lambda spec: workspace.store.find(spec) is not None))
        if agenda.finished:
            return
        of_workers = worker_environments(self.num_workers, self.num_threads, self.devices)
        with Pool(run_job, of_workers) as pool, show_progress(agenda, self.num_workers) as show:
            for made in run_queue(agenda, pool, workspace):
                show()
                yield from made
        agenda.raise_failures()

    def at_work(self, store: Store) -> dict[str, str]:
        return dict.fromkeys(store.held(), "running")
