"""A cluster under Slurm: artifacts are made by array tasks, which this submits, finds again and submits once more."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

from journey.engine.checks import require, require_count, require_positive, require_within
from journey.engine.graph import missing
from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Compute, Workspace
from journey.launch import cluster
from journey.launch.jobs import JobQueue
from journey.launch.machine import Allocation, check_compute
from journey.launch.progress import show_progress
from journey.launch.submissions import ArrayTaskID, read_job_state, state_path, submitted_tasks

MOST_MINUTES = 366 * 24 * 60


SIGNAL_SECONDS = 90  # before the time limit, at which a task is told to keep what it has done; a quarter of shorter limits


@dataclass
class Slurm(Compute):
    """Every artifact is made in a worker process of an array task; the command itself only looks and submits.

    The store must be on a file system that the nodes share. Interrupted, the command leaves its tasks to the cluster; the same
    command finds them. Tasks that reach their time limit, or are preempted with a warning, go on in another allocation.
    """

    name: ClassVar[str] = "slurm"
    partition: str = ""  # none: the cluster's default; so with the next two
    account: str = ""
    qos: str = ""
    minutes: int = 240  # time limit of an array task
    gpus: int = 0  # of an array task
    cpus: int = 4
    memory_gib: float = 16.0
    sbatch: dict[str, str] = field(
        default_factory=dict
    )  # further options, such as constraint: a100; "": without a value
    setup: list[str] = field(default_factory=list)  # shell commands before each task
    array_parallelism: int = 256  # tasks of one array that run at once
    workers: int = 1  # processes of a task: on each of its GPUs or, without any, in all
    pack_seconds: float = 600.0  # shorter artifacts share a task, until each of its workers is expected to take so long
    gather_seconds: float = 60.0  # how long those wait for others to share it with
    poll_seconds: float = 5.0  # between looks at the store and the queue
    retries: int = 2  # of what fails; what was preempted, or got further, is not counted

    def check(self, where: str) -> None:
        """Raises: ConfigError."""
        check_compute(self, where)
        require_count(f"{where}.minutes", self.minutes, most=MOST_MINUTES)
        require_count(f"{where}.gpus", self.gpus, least=0, most=1000)
        fits = (self.gpus > 0) == (self.device == "cuda") and self.device in ("cpu", "cuda")
        require(
            fits,
            f"{where}.device",
            self.device,
            f"cuda with GPUs and cpu without: {where}.gpus={self.gpus}",
        )
        for name, value in {
            "cpus": self.cpus,
            "array_parallelism": self.array_parallelism,
            "workers": self.workers,
        }.items():
            require_count(f"{where}.{name}", value, most=100_000)
        require(self.workers <= 64, f"{where}.workers", self.workers, "at most 64")
        fits = self.processes == 1 or self.gpus in (0, self.processes)
        require(
            fits,
            f"{where}.processes",
            self.processes,
            f"1, or the number of GPUs of a task, {where}.gpus={self.gpus}",
        )
        require_count(f"{where}.retries", self.retries, least=0, most=1000)
        require_within(f"{where}.memory_gib", self.memory_gib, 1e-3, 1e6)
        for name, value in {
            "pack_seconds": self.pack_seconds,
            "poll_seconds": self.poll_seconds,
        }.items():
            require_positive(f"{where}.{name}", value)
        require_within(f"{where}.gather_seconds", self.gather_seconds, 0, 1e6)
        for line in self.setup:
            require("\n" not in line, f"{where}.setup", line, "commands of one line")

    def make(self, targets: list[Spec], workspace: Workspace) -> Iterator[Spec]:
        """Make what the targets lack, and yield each artifact's spec once the store has it.

        Raises: JobsFailedError, after all jobs that do not depend on a failed one, or if Slurm takes nothing; ConfigError where
        there is no Slurm.
        """
        agenda = JobQueue(missing(targets, lambda spec: workspace.store.find(spec) is not None))
        if agenda.finished:
            return
        self._require_slurm()
        from journey.launch.client import Client

        shared = replace(workspace, store=Store(workspace.store.root.absolute()))
        limits = (self.retries, self.pack_seconds, self.gather_seconds)
        client = Client(agenda, shared, self._allocation(), self._options(), *limits)
        with show_progress(agenda, self.array_parallelism) as show:
            while not agenda.finished:
                made = client.look()
                show()
                yield from made
                if not agenda.finished:
                    time.sleep(self.poll_seconds)
        agenda.raise_failures()

    def at_work(self, store: Store) -> dict[str, str]:
        states = self._require_slurm()
        found = dict.fromkeys(store.held(), "running")
        for task, state in states.items():
            tasks = submitted_tasks(store.root, task.token)
            if state not in cluster.OVER and task.index < len(tasks):
                running = read_job_state(state_path(store.root, task)).running
                found |= {
                    key: "running" if key in running and state == "RUNNING" else "queued"
                    for key in tasks[task.index]
                }
        return found

    def _require_slurm(self) -> dict[ArrayTaskID, str]:
        """What it says of our tasks. Raises: ConfigError."""
        require(
            cluster.is_there(),
            "compute",
            "slurm",
            "used where sbatch and squeue are found, such as on a login node",
        )
        states = cluster.look()
        require(
            states is not None,
            "compute",
            "slurm",
            "used while Slurm answers; `squeue --me` says why it does not",
        )
        return states

    def _allocation(self) -> Allocation:
        num_devices = max(1, self.gpus // self.processes)
        num_workers = self.workers * num_devices
        num_threads = max(1, self.cpus // (num_workers * self.processes))
        seconds = 60.0 * self.minutes - self._signal_seconds
        return Allocation(num_workers, num_threads, num_devices, seconds, self._signal_seconds)

    @property
    def _signal_seconds(self) -> int:
        return min(SIGNAL_SECONDS, 15 * self.minutes)

    def _options(self) -> dict[str, object]:
        """As submitit names them; None is the cluster's default."""
        return {
            "timeout_min": self.minutes,
            "nodes": 1,
            "tasks_per_node": 1,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory_gib,
            "gpus_per_node": self.gpus or None,
            "slurm_partition": self.partition or None,
            "slurm_account": self.account or None,
            "slurm_qos": self.qos or None,
            "slurm_setup": list(self.setup) or None,
            "slurm_array_parallelism": self.array_parallelism,
            "slurm_signal_delay_s": self._signal_seconds,
            "slurm_srun_args": [
                f"--cpus-per-task={self.cpus}"
            ],  # which srun no longer takes over from sbatch
            "slurm_additional_parameters": {
                name: value or True for name, value in self.sbatch.items()
            }
            or None,
        }
