"""What faults cost on a cluster: artifacts made by array tasks of a real Slurm on this machine, under faults.

    command   OMP_NUM_THREADS=1 python benchmarks/faults.py [trainings] [seconds of rest between random faults]

First what an array task takes by itself. Then a line of a table for each kind of fault, twice each, and one for all of them at
random: how often, how long it took, in how many array tasks, artifacts lost, and rows computed again of all rows. For one kind an
artifact is ten rows of 0.1 s, kept every 0.3 s; at random it is a real training of 20 steps, too short to be kept before its end,
and some of them are compared with undisturbed ones. A fault comes only when rows have been made since the one before. Needs root
and Debian's slurm-wlm and munge, which it installs. What is simulated: the cluster is one machine, so a lost node is killed
processes and a daemon that is gone, and the file system is local.
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
from counting_stages import Count, again, rows
from slurm_cluster import (
    Cluster,
    client,
    cluster,
    finished,
    kill_all,
    processes_on,
    wait_until,
    why_not,
)
from told_training import Told

from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.pipeline.settings import Training

STEPS = 20
NUM_COMPARED = 5  # trainings that are made once more, undisturbed
PATIENCE = 1800  # seconds


def preempt(slurm: Cluster) -> None:
    """Every running task, with a warning."""
    slurm.ask("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")


def cancel(slurm: Cluster) -> None:
    """Every task, those that are queued too."""
    slurm.ask("scancel", "--me")


def kill(slurm: Cluster) -> None:
    """Everything that runs on a node."""
    kill_all(processes_on(_busy_node(slurm), slurm))


def kill_daemon(slurm: Cluster) -> None:
    """A node's slurmd, which comes again after a second."""
    node = _busy_node(slurm)
    slurm.kill(node)
    time.sleep(1)
    slurm.start_node(node)


def lose_node(slurm: Cluster) -> None:
    """A node with everything on it, which comes again after two seconds."""
    node = _busy_node(slurm)
    slurm.lose(node)
    time.sleep(2)
    slurm.find(node)


def kill_client(slurm: Cluster) -> None:
    """The command itself, which is given again."""


FAULTS: dict[str, tuple[Callable[[Cluster], None], str]] = {
    "preemption, requeued": (preempt, "low"),
    "preemption, cancelled": (preempt, "lost"),
    "`scancel`": (cancel, "low"),
    "`kill -9` of all on a node": (kill, "low"),
    "`kill -9` of a slurmd": (kill_daemon, "low"),
    "a node lost": (lose_node, "low"),
    "`kill -9` of the client": (kill_client, "low"),
}


@dataclass(frozen=True)
class Trial:
    """Some artifacts, and what befalls them."""

    name: str
    specs: Sequence[Spec]
    num_rows: int  # of each
    faults: Sequence[Callable[[Cluster], None]]  # one after the other, until all is made
    rest: float  # mean seconds from rows that are made to the next fault
    folder: Path
    settings: dict[str, object]  # of the client


def main(num_trainings: int, rest: float) -> None:
    """A line for each kind of fault, then all at random."""
    random.seed(0)
    with cluster() as slurm:
        _overhead(slurm, 8)
        print(
            "| fault | times | seconds | array tasks | lost | rows again |\n|---|---|---|---|---|---|",
            flush=True,
        )
        with _folder() as folder:
            _run(
                Trial("none", _counts(folder, 24, 10), 10, [], 0.0, folder, {"pack_seconds": 3.0}),
                slurm,
            )
        for name, (fault, partition) in FAULTS.items():
            with _folder() as folder:
                settings = {"pack_seconds": 3.0, "partition": partition}
                _run(
                    Trial(name, _counts(folder, 24, 10), 10, [fault, fault], 0.5, folder, settings),
                    slurm,
                )
        with _folder() as folder:
            _run(
                Trial(
                    "limit of a minute, 90 s of work",
                    _counts(folder, 2, 900),
                    900,
                    [],
                    0.0,
                    folder,
                    {"minutes": 1},
                ),
                slurm,
            )
        with _folder() as folder:
            specs = _trainings(folder, num_trainings)
            faults = random.choices([fault for fault, _ in FAULTS.values()], k=1000)
            settings = {"pack_seconds": 120.0, "retries": 5}
            _run(
                Trial(
                    f"{num_trainings} trainings, all at random",
                    specs,
                    STEPS,
                    faults,
                    rest,
                    folder,
                    settings,
                ),
                slurm,
            )
            _compare(random.sample(specs, min(NUM_COMPARED, num_trainings)), folder)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _counts(folder: Path, number: int, num_rows: int) -> list[Count]:
    return [Count(f"c{i}", rows=num_rows, said=f"{folder}/said") for i in range(number)]


def _overhead(slurm: Cluster, number: int) -> None:
    """What a task takes from its begin to its end that has next to nothing to make, and that without torch."""
    with _folder() as folder:
        specs = [
            Count(f"e{i}", rows=1, seconds=0.001, said=f"{folder}/said") for i in range(number)
        ]
        began = time.monotonic()
        with client(slurm, folder / "store", specs, pack_seconds=1e-9) as process:
            finished(process, PATIENCE)
        took = time.monotonic() - began
        wait_until(lambda: slurm.queue() == [])
    elapsed = [
        line.split(":")
        for line in slurm.ask("squeue", "-h", "-r", "-t", "COMPLETED", "-o", "%M").split()
    ]
    seconds = [60 * int(minutes) + int(rest) for minutes, rest in elapsed]
    print(
        f"overhead: {sum(seconds) / len(seconds):.1f} s a task ({len(seconds)} tasks, {took:.0f} s in all)\n",
        flush=True,
    )


def _trainings(folder: Path, number: int) -> list[Told]:
    """Trainings that differ by their repeat."""
    run = small_run(training=Training(num_steps=STEPS, batch_size=8, warmup_steps=4))
    one = load_experiment(run, Store(folder / "store")).checkpoint(0)
    settings = {field.name: getattr(one, field.name) for field in fields(one)}
    return [
        Told(**settings | {"repeat": repeat, "said": f"{folder}/said"}) for repeat in range(number)
    ]


def _run(trial: Trial, slurm: Cluster) -> None:
    """Make the artifacts under the faults, and tell what that cost."""
    began, times = time.monotonic(), 0
    said, root = trial.folder / "said", trial.folder / "store"
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(client(slurm, root, trial.specs, **trial.settings))
        for fault in trial.faults:
            _wait_for_rows(process, said, random.uniform(0, 2 * trial.rest))
            if process.poll() is not None:
                break
            times += 1
            fault(slurm)
            if fault is kill_client:
                process.kill()
                process = stack.enter_context(client(slurm, root, trial.specs, **trial.settings))
        lines = finished(process, PATIENCE)
    seconds = time.monotonic() - began
    print("".join(f"{line}\n" for line in lines if not line.startswith("made ")), end="")

    lost = sum(Store(root).find(spec) is None for spec in trial.specs)
    tasks = len(list(root.glob("jobs/*/*_submitted.pkl")))
    recomputed = again(said)
    del recomputed["made"]  # by those that were killed before they were in the store
    all_rows = trial.num_rows * len(trial.specs)
    share = f"{recomputed.total()} of {all_rows} ({recomputed.total() / all_rows:.1%})"
    print(f"| {trial.name} | {times} | {seconds:.0f} | {tasks} | {lost} | {share} |", flush=True)


def _wait_for_rows(process: Popen, said: Path, seconds: float) -> None:
    """Until there are more rows than now, and some seconds more, or the client has ended."""
    before = rows(said)
    while process.poll() is None and rows(said) == before:
        time.sleep(0.1)
    time.sleep(seconds)


def _compare(specs: Sequence[Told], folder: Path) -> None:
    """With the same, made here without a fault."""
    run = small_run()
    alone = Workspace(Store(folder / "alone"), run.compute, run.tracking, "test")
    made = Store(folder / "store")
    same = sum(
        made.find(one).manifest["checksums"] == get(one, alone).manifest["checksums"]
        for one in specs
    )
    print(f"\n{same} of {len(specs)} compared are bit-identical to undisturbed ones")


def _busy_node(slurm: Cluster) -> str:
    return random.choice(slurm.ask("squeue", "-h", "-t", "R", "-o", "%N").split() or ["n1"])


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(reason)
    main(
        *(
            kind(word)
            for kind, word in zip(
                (int, float), (*sys.argv[1:], *("300", "10")[len(sys.argv) - 1 :]), strict=True
            )
        )
    )
