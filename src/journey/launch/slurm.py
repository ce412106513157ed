"""Slurm: submit array tasks that compute artifacts, find them again, and resubmit them."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

from journey.engine.checks import (
    ConfigError,
    require,
    require_count,
    require_positive,
    require_within,
)
from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Compute, Workspace
from journey.launch import cluster
from journey.launch.jobs import missing_jobs
from journey.launch.machine import Allocation, check_compute
from journey.launch.progress import show_progress
from journey.launch.submissions import ArrayTaskID, read_job_state, state_path, submitted_tasks

OPTIONS = {  # of sbatch that follow from other settings (""): those that the launcher needs
    "partition": "partition", "account": "account", "qos": "qos", "time": "minutes",
    "gpus-per-node": "gpus", "cpus-per-task": "cpus", "mem": "memory_gib",
    "array": "array_parallelism", "nodes": "", "ntasks": "", "ntasks-per-node": "", "job-name": "",
    "output": "", "error": "", "open-mode": "", "signal": "", "wrap": "", "chdir": "",
    "parsable": "", "test-only": "", "wait": "", "help": "", "version": "", "usage": "",
}  # fmt: skip
MOST_MINUTES = 366 * 24 * 60
SIGNAL_SECONDS = 90  # before the time limit, when tasks are told to save; a quarter of short limits


@dataclass
class Slurm(Compute):
    """Compute every artifact in an array task; the command itself submits and polls.

    The store must be on a file system that the nodes share. An interrupted command leaves its tasks
    to the cluster, and the same command finds them. Tasks that reach their time limit, or are
    preempted with a warning, continue in another allocation.

    Attributes:
        partition: As for sbatch; "" is the cluster's default.
        account: Likewise.
        qos: Likewise.
        minutes: Time limit of an array task.
        gpus: GPUs of an array task.
        cpus: Its cores.
        memory_gib: Its memory.
        sbatch: Further options, such as `constraint: a100`; "" for an option without a value.
        setup: Shell commands before each task.
        array_parallelism: Tasks of one array that run at once.
        workers: Processes of a task: on each of its GPUs or, without any, in all.
        pack_seconds: Artifacts that take less share a task, until each worker is expected to take
            so long.
        gather_seconds: How long those wait for others to share a task with.
        poll_seconds: Between polls of the store and the queue.
        retries: Of what fails; what was preempted, or progressed, is not counted.
    """

    name: ClassVar[str] = "slurm"
    partition: str = ""
    account: str = ""
    qos: str = ""
    minutes: int = 240
    gpus: int = 0
    cpus: int = 4
    memory_gib: float = 16.0
    sbatch: dict[str, str] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    array_parallelism: int = 256
    workers: int = 1
    pack_seconds: float = 600.0
    gather_seconds: float = 60.0
    poll_seconds: float = 5.0
    retries: int = 2

    def check(self, where: str) -> None:
        check_compute(self, where)
        require_count(f"{where}.minutes", self.minutes, most=MOST_MINUTES)
        require_count(f"{where}.gpus", self.gpus, least=0, most=1000)
        fits = (self.gpus > 0) == (self.device == "cuda") and self.device in ("cpu", "cuda")
        allowed = f"cuda with GPUs and cpu without: {where}.gpus={self.gpus}"
        require(fits, f"{where}.device", self.device, allowed)
        for name in ("cpus", "array_parallelism", "workers"):
            require_count(f"{where}.{name}", getattr(self, name), most=100_000)
        require(self.workers <= 64, f"{where}.workers", self.workers, "at most 64")
        fits = self.processes == 1 or self.gpus in (0, self.processes)
        allowed = f"1, or the number of GPUs of a task, {where}.gpus={self.gpus}"
        require(fits, f"{where}.processes", self.processes, allowed)
        require_count(f"{where}.retries", self.retries, least=0, most=1000)
        require_within(f"{where}.memory_gib", self.memory_gib, 1e-3, 1e6)
        require_positive(f"{where}.pack_seconds", self.pack_seconds)
        require_positive(f"{where}.poll_seconds", self.poll_seconds)
        require_within(f"{where}.gather_seconds", self.gather_seconds, 0, 1e6)
        for name in ("partition", "account", "qos"):
            value, allowed = getattr(self, name), "letters, digits and ._-+:@,"
            valid = re.fullmatch(r"[\w.+:@,-]*", value) is not None
            require(valid, f"{where}.{name}", repr(value), allowed)
        for option, value in self.sbatch.items():
            self._check_option(f"{where}.sbatch.{option}", option.replace("_", "-"), value)
        for line in self.setup:
            allowed = "commands of one line, of printable characters"
            require(line.isprintable(), f"{where}.setup", repr(line), allowed)

    @property
    def workers_per_device(self) -> int:
        """Return how many workers share an accelerator."""
        return self.workers

    def _check_option(self, name: str, option: str, value: str) -> None:
        """Check an option of sbatch, which becomes a line of the batch script."""
        allowed = "a long option without its dashes, such as constraint"
        require(re.fullmatch(r"[a-z][a-z0-9-]+", option) is not None, name, repr(value), allowed)
        setting = OPTIONS.get(option, "")
        allowed = f"left out; {f'use compute.{setting}' if setting else 'journey sets it itself'}"
        require(option not in OPTIONS, name, value, allowed)
        is_flag = value.lower() in ("true", "false")
        require(not is_flag, name, value, "'' to pass the option without a value, or left out")
        require(value.isprintable(), name, repr(value), "of printable characters")

    def make(self, targets: list[Spec], workspace: Workspace) -> Iterator[Spec]:
        """Compute what the targets lack; yield each spec once the store has its artifact.

        Raises:
            JobsFailedError: Some jobs failed, or Slurm accepts nothing.
            ConfigError: There is no Slurm here, or it would change the path of the store.
        """
        queue = missing_jobs(targets, workspace.store)
        if queue.done:
            return
        root, allowed = workspace.store.root, "a path without %, which Slurm replaces in paths"
        require("%" not in str(root.absolute()), "artifacts", root, allowed)
        self._task_states()
        from journey.launch.client import Client  # imports submitit

        shared = replace(workspace, store=Store(workspace.store.root.absolute()))
        limits = (self.retries, self.pack_seconds, self.gather_seconds)
        client = Client(queue, shared, self._allocation(), self._options(), *limits)
        with show_progress(queue, self.array_parallelism) as show:
            while not queue.done:
                finished = client.poll()
                show()
                yield from finished
                if not queue.done:
                    time.sleep(self.poll_seconds)
        queue.raise_failures()

    def at_work(self, store: Store) -> dict[str, str]:
        at_work = dict.fromkeys(store.locked_keys(), "running")
        for task, state in self._task_states().items():
            tasks = submitted_tasks(store.root, task.token)
            if state not in cluster.OVER and task.index < len(tasks):
                running = read_job_state(state_path(store.root, task)).running
                for key in tasks[task.index]:
                    runs = key in running and state == "RUNNING"
                    at_work[key] = "running" if runs else "queued"
        return at_work

    def _task_states(self) -> dict[ArrayTaskID, str]:
        if not cluster.is_there():
            needed = "needs sbatch and squeue, as on a login node"
            raise ConfigError(f"compute=slurm: {needed}; this machine has none")
        states = cluster.task_states()
        if states is None:
            raise ConfigError("compute=slurm: Slurm does not answer; `squeue --me` says why")
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
        """Return the settings as submitit names them; None is the cluster's default."""
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
            "slurm_srun_args": [f"--cpus-per-task={self.cpus}"],  # srun does not inherit it
            "slurm_additional_parameters": {k: v or True for k, v in self.sbatch.items()} or None,
        }
