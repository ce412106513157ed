"""Measure what faults cost on a cluster: array tasks of a real Slurm on this machine.

    OMP_NUM_THREADS=1 python benchmarks/faults.py [trainings] [mean seconds between random faults]

It prints the overhead of an array task, then a table with a row for each kind of fault, twice each,
and a row for random faults: how many faults, seconds, array tasks, artifacts lost, and rows that
were computed again. For one kind of fault, an artifact is ten rows of 0.1 s, saved every 0.3 s; for
random faults it is a real training run of 20 steps, too short to be saved before its end, and some
are compared with undisturbed ones. A fault comes only after rows were computed since the last one.

Needs root and Debian's slurm-wlm and munge, which it installs. Simulated: the cluster is one
machine, so a lost node is killed processes and a stopped daemon; the file system is local.
"""

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from subprocess import Popen

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "launch"))

from conftest import small_run
from counting_stages import Count, repeated_rows, rows
from logged_training import LoggedTrain
from slurm_cluster import (
    Cluster,
    client,
    cluster,
    finished,
    kill_all,
    processes_on,
    reason_unavailable,
    wait_until,
)

from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.pipeline.settings import Training

STEPS = 20
NUM_COMPARED = 5  # trainings that are made once more, undisturbed
TIMEOUT = 1800  # seconds


def preempt(slurm: Cluster) -> None:
    """Preempt every running task, after a signal."""
    slurm.command("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")


def cancel(slurm: Cluster) -> None:
    """Cancel every task, also queued ones."""
    slurm.command("scancel", "--me")


def kill(slurm: Cluster) -> None:
    """Kill every process on a node."""
    kill_all(processes_on(_busy_node(slurm), slurm))


def kill_daemon(slurm: Cluster) -> None:
    """Kill a node's slurmd, and restart it after a second."""
    node = _busy_node(slurm)
    slurm.kill(node)
    time.sleep(1)
    slurm.start_node(node)


def lose_node(slurm: Cluster) -> None:
    """Kill a node with everything on it, and restart it after two seconds."""
    node = _busy_node(slurm)
    slurm.take_down(node)
    time.sleep(2)
    slurm.bring_up(node)


def kill_client(slurm: Cluster) -> None:
    """Kill the client (`_run` does it), and start it again."""


# Each kind of fault, twice, and the partition of the tasks.
FAULTS: dict[str, tuple[list[Callable[[Cluster], None]], str]] = {
    "preemption, requeued": ([preempt] * 2, "low"),
    "preemption, cancelled": ([preempt] * 2, "lost"),
    "`scancel`": ([cancel] * 2, "low"),
    "`kill -9` of all on a node": ([kill] * 2, "low"),
    "`kill -9` of a slurmd": ([kill_daemon] * 2, "low"),
    "a node lost": ([lose_node] * 2, "low"),
    "`kill -9` of the client": ([kill_client] * 2, "low"),
}


@dataclass(frozen=True)
class Trial:
    """Artifacts, and the faults while they are computed."""

    name: str
    specs: Sequence[Spec]
    num_rows: int  # of each
    faults: Sequence[Callable[[Cluster], None]]  # one after the other
    mean_wait: float  # seconds from new rows to the next fault
    folder: Path
    settings: dict[str, object]  # of the client


def main(num_trainings: int, mean_wait: float) -> None:
    """Print a row for each kind of fault, then one for random faults."""
    random.seed(0)
    with cluster() as slurm:
        _overhead(slurm, 8)
        print("| fault | times | seconds | array tasks | lost | rows again |", flush=True)
        print("|---|---|---|---|---|---|", flush=True)
        for name, (faults, partition) in {"none": ([], "low"), **FAULTS}.items():
            with _folder() as folder:
                settings = {"pack_seconds": 3.0, "partition": partition}
                _run(Trial(name, _counts(folder, 24, 10), 10, faults, 0.5, folder, settings), slurm)
        with _folder() as folder:
            name, settings = "limit of a minute, 90 s of work", {"minutes": 1}
            _run(Trial(name, _counts(folder, 2, 900), 900, [], 0.0, folder, settings), slurm)
        with _folder() as folder:
            name = f"{num_trainings} trainings, random faults"
            specs = _trainings(folder, num_trainings)
            faults = random.choices([faults[0] for faults, _ in FAULTS.values()], k=1000)
            settings = {"pack_seconds": 120.0, "retries": 5}
            _run(Trial(name, specs, STEPS, faults, mean_wait, folder, settings), slurm)
            _compare(random.sample(specs, min(NUM_COMPARED, num_trainings)), folder)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _counts(folder: Path, number: int, num_rows: int) -> list[Count]:
    return [Count(f"c{i}", rows=num_rows, log=f"{folder}/log") for i in range(number)]


def _overhead(slurm: Cluster, number: int) -> None:
    """Print how long a task takes that computes nearly nothing, without torch."""
    with _folder() as folder:
        specs = [Count(f"e{i}", rows=1, seconds=0.001, log=f"{folder}/log") for i in range(number)]
        start = time.monotonic()
        with client(slurm, folder / "store", specs, pack_seconds=1e-9) as process:
            finished(process, TIMEOUT)
        total = time.monotonic() - start
        wait_until(lambda: slurm.queue() == [])
    seconds = []
    for line in slurm.command("squeue", "-h", "-r", "-t", "COMPLETED", "-o", "%M").split():
        minutes, rest = line.split(":")
        seconds.append(60 * int(minutes) + int(rest))
    mean, count = sum(seconds) / len(seconds), len(seconds)
    print(f"overhead: {mean:.1f} s a task ({count} tasks, {total:.0f} s in all)\n", flush=True)


def _trainings(folder: Path, number: int) -> list[LoggedTrain]:
    """Return training runs that differ by their seed."""
    run = small_run(training=Training(num_steps=STEPS, batch_size=8, warmup_steps=4))
    training = load_experiment(run, Store(folder / "store")).checkpoint(0)
    settings = {field.name: getattr(training, field.name) for field in fields(training)}
    return [
        LoggedTrain(**settings | {"training_seed": seed, "log": f"{folder}/log"})
        for seed in range(number)
    ]


def _run(trial: Trial, slurm: Cluster) -> None:
    """Compute the artifacts under the faults, and print a row of the table."""
    start, times = time.monotonic(), 0
    log, root = trial.folder / "log", trial.folder / "store"
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(client(slurm, root, trial.specs, **trial.settings))
        for fault in trial.faults:
            _wait_for_rows(process, log, random.uniform(0, 2 * trial.mean_wait))
            if process.poll() is not None:
                break
            times += 1
            fault(slurm)
            if fault is kill_client:
                process.kill()
                process = stack.enter_context(client(slurm, root, trial.specs, **trial.settings))
        lines = finished(process, TIMEOUT)
    seconds = time.monotonic() - start
    print("".join(f"{line}\n" for line in lines if not line.startswith("computed ")), end="")

    lost = sum(Store(root).find(spec) is None for spec in trial.specs)
    tasks = len(list(root.glob("jobs/*/*_submitted.pkl")))
    recomputed = repeated_rows(log)
    del recomputed["done"]  # of tasks killed before the artifact was in the store
    all_rows = trial.num_rows * len(trial.specs)
    share = f"{recomputed.total()} of {all_rows} ({recomputed.total() / all_rows:.1%})"
    print(f"| {trial.name} | {times} | {seconds:.0f} | {tasks} | {lost} | {share} |", flush=True)


def _wait_for_rows(process: Popen, log: Path, seconds: float) -> None:
    """Wait for new rows, and some seconds more, or until the client has ended."""
    before = rows(log)
    while process.poll() is None and rows(log) == before:
        time.sleep(0.1)
    time.sleep(seconds)


def _compare(specs: Sequence[LoggedTrain], folder: Path) -> None:
    """Compare artifacts with those computed here without a fault."""
    run = small_run()
    alone = Workspace(Store(folder / "alone"), run.compute, run.tracking, "test")
    store = Store(folder / "store")
    same = sum(
        store.find(spec).manifest["checksums"] == get(spec, alone).manifest["checksums"]
        for spec in specs
    )
    print(f"\n{same} of {len(specs)} compared are bit-identical to undisturbed ones")


def _busy_node(slurm: Cluster) -> str:
    return random.choice(slurm.command("squeue", "-h", "-t", "R", "-o", "%N").split() or ["n1"])


if __name__ == "__main__":
    if reason := reason_unavailable():
        sys.exit(reason)
    arguments = [*sys.argv[1:], *("300", "10")[len(sys.argv) - 1 :]]
    main(int(arguments[0]), float(arguments[1]))
