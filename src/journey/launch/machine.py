"""The workers of one machine, as all launchers use them."""

import math
import os
import pickle
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from journey.engine.checks import (
    ConfigError,
    require,
    require_count,
    require_positive,
    require_within,
)
from journey.engine.spec import Spec
from journey.engine.workspace import Compute, Workspace
from journey.launch.jobs import BROKEN_DEVICE, STOPPED, JobQueue, log_path, one_line
from journey.launch.pool import Outcome, Pool

MOST_ATTEMPTS = 2  # of a job whose process ends, or that runs out of memory
OUT_OF_MEMORY = ("OutOfMemoryError:", "MemoryError:")  # how such errors begin: torch's, Python's
POLL_SECONDS = 1.0  # between polls of the workers


def check_compute(compute: Compute, where: str) -> None:
    """Check the settings that all launchers share.

    Raises:
        ConfigError: A setting is out of range.
    """
    device, seconds = compute.device, compute.checkpoint_seconds
    device_exists = re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", device) is not None
    require(device_exists, f"{where}.device", device, "cpu, mps, cuda or cuda:N")
    if compute.gradient_memory_gib is not None:
        require_positive(f"{where}.gradient_memory_gib", compute.gradient_memory_gib)
        require_within(f"{where}.gradient_memory_gib", compute.gradient_memory_gib, 1e-6, 1e6)
    finite = 0 <= seconds < math.inf
    require(finite, f"{where}.checkpoint_seconds", seconds, "at least 0 and finite")
    require_count(f"{where}.processes", compute.processes, most=64)
    require_count(f"{where}.stack", compute.stack, most=256)
    possible = compute.stack == 1 or (compute.processes == 1 and not compute.compile)
    allowed = "1 with several processes per model, or with compile=true"
    require(possible, f"{where}.stack", compute.stack, allowed)
    possible = compute.processes == 1 or device != "mps"
    require(possible, f"{where}.processes", compute.processes, "1 with device=mps")


@dataclass(frozen=True)
class Allocation:
    """The resources of an array task.

    Attributes:
        seconds: Until it is asked to stop.
        seconds_to_stop: From then until it is killed.
    """

    num_workers: int
    num_threads: int
    num_devices: int
    seconds: float
    seconds_to_stop: float


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_environments(
    num_workers: int, num_threads: int, devices: Sequence[int]
) -> list[dict[str, str]]:
    """Return each worker's environment variables: threads, and its device if several.

    Variables of OpenMP that are set are left as they are. By default, threads that wait do not
    spin, for another process may need their core.

    Raises:
        ConfigError: `CUDA_VISIBLE_DEVICES` shows fewer devices to this process.
    """
    threads = os.environ.get("OMP_NUM_THREADS", str(num_threads))
    defaults = {
        "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    common = {name: os.environ.get(name, default) for name, default in defaults.items()}
    if not devices:
        return [common] * num_workers
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    environments = []
    for worker in range(num_workers):
        device = devices[worker % len(devices)]
        if visible and device >= len(visible):
            shown = f"CUDA_VISIBLE_DEVICES shows {len(visible)} to this process, from 0"
            raise ConfigError(f"compute.devices={device}: {shown}")
        name = visible[device] if visible else str(device)
        environments.append(common | {"CUDA_VISIBLE_DEVICES": name})
    return environments


def run_queue(queue: JobQueue, pool: Pool, workspace: Workspace) -> Iterator[list[Spec]]:
    """Run all jobs; after each poll of the workers, yield the specs finished since the last.

    It ends early, with jobs still marked as running, if a worker was asked to stop.
    """
    _assign(queue, pool, workspace)
    while not queue.done:
        outcomes = pool.outcomes(POLL_SECONDS)
        if any(outcome.error == STOPPED for outcome in outcomes):
            return
        finished = []
        for outcome in outcomes:
            finished += _conclude(queue, outcome, workspace)
        _assign(queue, pool, workspace)  # before the consumer takes its time
        yield finished


def _assign(queue: JobQueue, pool: Pool, workspace: Workspace) -> None:
    """Give ready jobs to idle workers, and start workers for the others."""
    if queue.next_alone and not queue.running:
        pool.keep(1)  # an idle worker needs memory too
    for beside in (False, True):
        while (jobs := _ready(queue, pool, beside)) and pool.num_idle(beside):
            # A job that another run computes would wait for it: others come first.
            free = (key for key in jobs if not workspace.store.is_locked(key))
            key = next(free, jobs[0])
            queue.start_group(key, workspace.compute.stack)
            specs = tuple(queue.specs[member] for member in queue.groups[key])
            try:
                pool.give(key, beside, specs, workspace)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                for member in queue.groups.pop(key):  # such as a component defined in a function
                    queue.fail(member, one_line(error))
        pool.prepare(len(jobs), beside)


def _ready(queue: JobQueue, pool: Pool, beside: bool) -> list[str]:
    """Return the ready jobs for the workers beside those on devices, or for all other workers."""
    separate = pool.num_beside > 0
    return [key for key in queue.ready if (separate and queue.specs[key].on_cpu) == beside]


def _conclude(queue: JobQueue, outcome: Outcome, workspace: Workspace) -> list[Spec]:
    """Return the specs of a group that was finished, after recording how its jobs ended."""
    members = queue.groups.pop(outcome.key)
    if len(members) > 1 and (outcome.error is not None or outcome.exit_code is not None):
        for member in members:  # one of them may be at fault
            queue.ungrouped.add(member)
            queue.attempts[member] -= 1
            queue.retry(member)
        return []
    killed, code = outcome.exit_code == -signal.SIGKILL, outcome.exit_code
    broken = code == BROKEN_DEVICE
    out_of_memory = killed or (outcome.error or "").startswith(OUT_OF_MEMORY)
    if (code is not None or out_of_memory) and queue.attempts[outcome.key] < MOST_ATTEMPTS:
        # After the other jobs, so that a job at fault breaks no device twice in a row.
        queue.retry(outcome.key, alone=out_of_memory, last=broken)
    elif killed:
        queue.fail(outcome.key, "the worker process was killed twice (out of memory?)")
    elif broken:
        log = log_path(workspace.store.root, outcome.key)
        queue.fail(outcome.key, f"{workspace.compute.device} failed twice (log: {log})")
    elif code is not None and code < 0:
        name = signal.Signals(-code).name
        queue.fail(outcome.key, f"the worker process was killed twice ({name})")
    elif code is not None:
        queue.fail(outcome.key, f"the worker process ended twice (exit code {code})")
    elif outcome.error is not None:
        queue.fail(outcome.key, outcome.error)
    else:
        for member in members:
            queue.finish(member)
        return [queue.specs[member] for member in members]
    return []
