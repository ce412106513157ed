"""What faults cost on a cluster: artifacts of half a second, made by array tasks of a real Slurm on this machine, under faults.

    command   OMP_NUM_THREADS=1 python benchmarks/faults.py [artifacts] [seconds between random faults]

First what an array task takes by itself; then a line for each kind of fault, ten artifacts each, and one for all of them at
random: how often, how long it took, artifacts lost, made twice, and rows computed again of all rows. An artifact is five rows of
0.1 s, kept every 0.3 s. Needs root and Debian's slurm-wlm and munge, which it installs. What is simulated: the cluster is one
machine, so a dead node is killed processes and a daemon that is gone, and the file system is local.
"""

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "launch"))

from counting_stages import Count, again
from slurm_cluster import Cluster, client, cluster, finished, kill_all, processes_on, why_not

from journey.artifacts.store import Store

ROWS = 5
PATIENCE = 900  # seconds
SETTINGS = {"pack_seconds": 5.0, "retries": 5}


def preempt(slurm: Cluster) -> None:
    """Every running task, with a warning."""
    slurm.ask("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")


def cancel(slurm: Cluster) -> None:
    """Every task, those that are queued too."""
    slurm.ask("scancel", "--me", "--partition", "low,lost")


def kill(slurm: Cluster) -> None:
    """Everything that runs on one of the nodes."""
    kill_all(processes_on(random.choice(["n1", "n2"]), slurm))


def kill_daemon(slurm: Cluster) -> None:
    """A node's slurmd, which comes again after a second."""
    node = random.choice(["n1", "n2"])
    slurm.kill(node)
    time.sleep(1)
    slurm.start_node(node)


def lose_node(slurm: Cluster) -> None:
    """A node with everything on it, which comes again after two seconds."""
    node = random.choice(["n1", "n2"])
    slurm.kill(node)
    kill_all(processes_on(node, slurm))
    slurm.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=fault")
    time.sleep(2)
    slurm.start_node(node)
    slurm.ask("scontrol", "update", f"nodename={node}", "state=resume")


def kill_client(slurm: Cluster) -> None:
    """The command itself, which is given again."""


FAULTS: dict[str, tuple[Callable[[Cluster], None], str]] = {
    "none": (lambda slurm: None, "low"),
    "preemption, requeued": (preempt, "low"),
    "preemption, cancelled": (preempt, "lost"),
    "scancel": (cancel, "low"),
    "kill -9 of all on a node": (kill, "low"),
    "kill -9 of a slurmd": (kill_daemon, "low"),
    "a node lost": (lose_node, "low"),
    "kill -9 of the client": (kill_client, "low"),
}


def main(num_artifacts: int, between: float) -> None:
    """A line for each kind of fault, then all at random."""
    random.seed(0)
    with cluster() as slurm:
        _overhead(slurm, 8)
        for name, (fault, partition) in FAULTS.items():
            times = 0 if name == "none" else 2
            _report(name, slurm, 10, partition, [fault] * times, 2.0)
        faults = [fault for fault, _ in list(FAULTS.values())[1:]]
        _report("all at random", slurm, num_artifacts, "low", random.choices(faults, k=10_000), between)


def _overhead(slurm: Cluster, number: int) -> None:
    """What a task takes that makes nothing of note, without torch, which takes as long again to import."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        specs = [Count(f"e{i}", rows=1, seconds=0.0, said=f"{folder}/said") for i in range(number)]
        began = time.monotonic()
        with client(slurm, Path(folder) / "store", specs, pack_seconds=1e-9) as process:
            finished(process, PATIENCE)
        took = time.monotonic() - began
    elapsed = [line.split(":") for line in slurm.ask("squeue", "-h", "-r", "-t", "COMPLETED", "-o", "%M").split()]
    seconds = [60 * int(minutes) + int(rest) for minutes, rest in elapsed]
    print(f"overhead: {sum(seconds) / len(seconds):.1f} s a task ({len(seconds)} tasks, {took:.0f} s in all)", flush=True)


def _report(name: str, slurm: Cluster, number: int, partition: str, faults: list, between: float) -> None:
    """Make some artifacts under some faults, one after the other until there are no more, or nothing is left to make."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root, said = Path(folder) / "store", Path(folder) / "said"
        specs = [Count(f"c{i}", rows=ROWS, said=str(said)) for i in range(number)]
        began, times = time.monotonic(), 0
        with contextlib.ExitStack() as stack:
            process = stack.enter_context(_client(slurm, root, specs, partition))
            for fault in faults:
                _wait_for_work(process, slurm, between)
                if process.poll() is not None:
                    break
                times += 1
                fault(slurm)
                if fault is kill_client:
                    process.kill()
                    process = stack.enter_context(_client(slurm, root, specs, partition))
            finished(process, PATIENCE)
        took = time.monotonic() - began
        lost = sum(Store(root).find(spec) is None for spec in specs)
        twice = again(said)
        made, recomputed = twice.pop("made", 0), twice.total()
        tasks = len(list(root.glob("jobs/*/*_submitted.pkl")))
        share = f"{recomputed} of {number * ROWS} rows again ({recomputed / number / ROWS:.1%})"
        print(f"{name}: {times} times, {took:.0f} s, {tasks} tasks, {lost} lost, {made} made twice, {share}", flush=True)


def _client(slurm: Cluster, root: Path, specs: list[Count], partition: str) -> contextlib.AbstractContextManager[Popen]:
    return client(slurm, root, specs, partition=partition, **SETTINGS)


def _wait_for_work(process: Popen, slurm: Cluster, between: float) -> None:
    """Until something has run for a while, or the client has ended."""
    time.sleep(between)
    while process.poll() is None and not slurm.running():
        time.sleep(0.2)


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(reason)
    main(*(kind(word) for kind, word in zip((int, float), (*sys.argv[1:], *("300", "4")[len(sys.argv) - 1 :]), strict=True)))
