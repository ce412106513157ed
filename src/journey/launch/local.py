"""This machine: worker processes, each computing one artifact at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from journey.engine.checks import require
from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Compute, Workspace
from journey.launch.jobs import missing_jobs, run_job
from journey.launch.machine import check_compute, num_cores, run_queue, worker_environments
from journey.launch.pool import Pool
from journey.launch.progress import show_progress

MOST_WORKERS = 4  # per core


@dataclass
class Local(Compute):
    """Run every job in a worker with the same number of threads, so that scheduling changes no bit.

    Attributes:
        workers: Processes on each device; 0 is one per core on a CPU, and one on an accelerator.
        devices: With device=cuda, the numbers of the devices to use; by default the first one.
    """

    name: ClassVar[str] = "local"
    workers: int = 0
    devices: list[int] = field(default_factory=list)

    def check(self, where: str) -> None:
        check_compute(self, where)
        most = MOST_WORKERS * num_cores()
        allowed = (
            f"in 0…{most} (this process may use {num_cores()} cores); 0 is one per core or GPU"
        )
        require(0 <= self.workers <= most, f"{where}.workers", self.workers, allowed)
        distinct = len(set(self.devices)) == len(self.devices)
        in_range = all(0 <= device < 1000 for device in self.devices)
        allowed = "distinct numbers of devices, from 0"
        require(distinct and in_range, f"{where}.devices", self.devices, allowed)
        usable = not self.devices or self.device == "cuda"
        require(usable, f"{where}.devices", self.devices, "empty unless device=cuda")
        usable = not self.devices or self.processes == 1
        allowed = "empty where several processes train one model"
        require(usable, f"{where}.devices", self.devices, allowed)

    @property
    def workers_per_device(self) -> int:
        """Return how many workers share an accelerator."""
        return self.workers or 1

    def ready(self) -> None:
        if self.device != "cpu":
            from journey.diffusion import network  # imports torch

            network.require_device(f"compute.device={self.device}", self.device)
            for device in self.devices:
                network.require_device(f"compute.devices={self.devices}", f"cuda:{device}")

    @property
    def num_workers(self) -> int:
        """Return how many worker processes there may be."""
        on_cpu = max(1, num_cores() // self.processes)
        per_device = self.workers or (on_cpu if self.device == "cpu" else 1)
        return per_device * max(1, len(self.devices))

    @property
    def num_threads(self) -> int:
        """Return the threads of each process."""
        return max(1, num_cores() // (self.num_workers * self.processes))

    def make(self, targets: list[Spec], workspace: Workspace) -> Iterator[Spec]:
        """Compute what the targets lack; yield each spec that was computed.

        A job starts once its inputs exist, jobs of the first target first. When the generator is
        closed, or on Ctrl-C, the workers are terminated; the next run resumes from the states that
        they saved.

        Raises:
            JobsFailedError: Some jobs failed; whatever does not depend on them was finished.
        """
        queue = missing_jobs(targets, workspace.store)
        if queue.done:
            return
        beside = 0 if self.device == "cpu" else self.num_workers
        number = self.num_workers + beside
        environments = worker_environments(number, self.num_threads, self.devices)
        pool = Pool(run_job, environments, beside)
        with pool, show_progress(queue, self.num_workers) as show:
            for finished in run_queue(queue, pool, workspace):
                show()
                yield from finished
        queue.raise_failures()

    def at_work(self, store: Store) -> dict[str, str]:
        return dict.fromkeys(store.locked_keys(), "running")
