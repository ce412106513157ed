"""Array tasks on a real slurmctld with two nodes: what goes wrong costs time, and nothing else.

Artifacts wait in their middle until a test has done what it does to them, so that none is too fast or slow for it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import TINY, small_run
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
from toy_stages import Toy

from journey.engine.checks import ConfigError
from journey.engine.spec import Spec, cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.launch import pool
from journey.launch.array_task import ArrayTask
from journey.launch.local import Local
from journey.launch.machine import Allocation
from journey.launch.slurm import Slurm
from journey.launch.submissions import read_job_state
from journey.pipeline.settings import Training
from journey.tracking import JSONLines


@pytest.fixture(scope="module")
def slurm():
    if reason := why_not():
        pytest.skip(reason)
    with cluster(most_in_array=5) as found:
        yield found


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def said(tmp_path) -> Path:
    return tmp_path / "said"


@pytest.fixture
def go(tmp_path) -> Path:
    """What artifacts wait for."""
    return tmp_path / "go"


ROWS = 8  # of an artifact, which waits after half of them


def counts(said: Path, number: int, go: Path | str = "") -> list[Count]:
    return [
        Count(f"c{i}", rows=ROWS, seconds=1 / 64, said=str(said), waits_for=str(go))
        for i in range(number)
    ]


def wait_for_middle(said: Path, number: int) -> None:
    """Until so many artifacts wait."""
    wait_until(lambda: rows(said) == number * ROWS // 2)


def preempt(slurm: Cluster) -> None:
    slurm.ask("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")


def made(specs: Sequence[Spec]) -> list[str]:
    """What a client says of artifacts, sorted."""
    return sorted(f"made {spec.label}" for spec in specs)


def refuse_differences(root: Path, specs: Sequence[Spec]) -> None:
    """Payloads are those of an undisturbed run."""
    alone = Workspace(Store(root.parent / "alone"), Local(), JSONLines(), "test")
    for spec in specs:
        undisturbed = get(replace(spec, said=os.devnull, waits_for=""), alone)
        assert Store(root).find(spec).manifest["checksums"] == undisturbed.manifest["checksums"]


def tasks_in_ledger(root: Path) -> list[list[str]]:
    """The artifacts of every task that was ever submitted."""
    found = (json.loads(path.read_text())["tasks"] for path in root.glob("jobs/*/submission.json"))
    return [task for tasks in found for task in tasks]


# -------------------------------------------------------------------------------------------------- without a cluster


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        ((), "used where sbatch and squeue are found"),
        (("sbatch", "squeue"), "used while Slurm answers"),
    ],
    ids=["none", "no answer"],
)
def test_a_machine_without_slurm_is_refused(root, monkeypatch, commands, said):
    root.mkdir()
    for name in commands:
        (root / name).write_text("#!/bin/sh\nexit 1\n")
        (root / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(ConfigError, match=f"^compute=slurm: must be {said}"):
        list(
            Slurm().make(
                counts(root / "said", 1), Workspace(Store(root), Slurm(), JSONLines(), "test")
            )
        )


def test_a_task_that_keeps_nothing_within_its_time_limit_fails_by_name(root, tmp_path, monkeypatch):
    """As submitit does in a task: the signal's handler asks it to checkpoint, and ends it."""
    monkeypatch.setattr(pool, "GRACE", 0.1)
    at, journal = tmp_path / "at", tmp_path / "journal"
    deaf = Toy("deaf", (), "beat", str(at))
    bundle = ArrayTask(
        (deaf,),
        Workspace(Store(root), Local(), JSONLines(), "test"),
        Allocation(1, 1, 1, 0.0, 0.1),
        journal,
    )

    def signalled(*_) -> None:
        if at.exists():
            sys.exit(bundle.checkpoint())
        signal.alarm(1)

    before = signal.signal(signal.SIGALRM, signalled)
    signal.alarm(1)
    with pytest.raises(SystemExit) as ended:
        bundle()
    signal.signal(signal.SIGALRM, before)
    assert ended.value.code is None, "not to be queued again"
    assert (
        read_job_state(journal)
        .failed[cache_key(deaf)]
        .startswith("got no further within the time limit")
    )


# ------------------------------------------------------------------------------------------------- what is submitted


def test_artifacts_are_packed_parents_first_and_arrays_split(slurm, root, said):
    """Twelve parents of 1/64 s in tasks of 1/8 s are two tasks; six of 1/8 s more than the five an array may have."""
    short = [Count(f"s{i}", rows=1, seconds=1 / 64, said=str(said)) for i in range(12)]
    long = counts(said, 6)
    child = Count("child", rows=1, seconds=1 / 64, needs=tuple(short), said=str(said))
    slurm.ask("sbatch", "-J", "of another|kind", "-o", "/dev/null", "--wrap", "true")
    with client(slurm, root, [child, *long], pack_seconds=1 / 8) as process:
        out = finished(process)
    assert sorted(out) == made([*short, *long, child])
    assert out.index("made child") > max(out.index(f"made {spec.label}") for spec in short)
    sizes = sorted(len(task) for task in tasks_in_ledger(root))
    assert sizes == [1] * 6 + [1, 4, 8]
    assert (
        max(
            len(json.loads(path.read_text())["tasks"])
            for path in root.glob("jobs/*/submission.json")
        )
        == 5
    )
    assert again(said) == {}
    refuse_differences(root, [*short, *long, child])


# --------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("partition", ["low", "lost"])
def test_preempted_work_goes_on_where_it_was(slurm, root, said, go, partition):
    """Told by the signal: with no timer, what was done before it is kept all the same."""
    specs = counts(said, 2, go)
    with client(slurm, root, specs, partition=partition, checkpoint_seconds=1000.0) as process:
        wait_for_middle(said, 2)
        preempt(slurm)
        assert sorted(finished(process)) == made(specs)
    assert again(said) == {}
    refuse_differences(root, specs)


def test_a_preempted_training_is_bit_identical_to_an_undisturbed_one(slurm, root, said, go):
    """A real one, which looks whether it should stop every 50 steps."""
    training = load_experiment(
        small_run(training=Training(num_steps=100, batch_size=16)), Store(root)
    ).checkpoint(0)
    settings = {field.name: getattr(training, field.name) for field in fields(training)}
    spec = Told(**settings, said=str(said), waits_for=str(go))
    get(spec.images, Workspace(Store(root), Local(), JSONLines(), "test"))
    with client(slurm, root, [spec], checkpoint_seconds=1000.0) as process:
        wait_until(lambda: rows(said) == 49)
        preempt(slurm)
        assert finished(process) == made([spec])
    assert again(said) == {}
    refuse_differences(root, [spec])


def test_the_smallest_experiment_is_what_it_is_on_one_machine(slurm, tiny, tmp_path):
    """The command itself: its report has the numbers of the same settings without a cluster; asked again, it makes nothing."""
    words = [word for word in TINY if not word.startswith("compute.")]
    words += [
        "compute=slurm",
        "compute.cpus=1",
        "compute.memory_gib=1",
        "compute.poll_seconds=0.5",
        "compute.gather_seconds=1",
    ]
    environment = slurm.environment | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    said = [
        subprocess.run(
            [sys.executable, "-m", "journey", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        for _ in range(2)
    ]
    assert [done.returncode for done in said] == [0, 0], said[0].stderr
    assert ["to make" in done.stdout for done in said] == [True, False]
    ours, theirs = (
        json.loads((of / "reports/smoke/result.json").read_text())["rows"]
        for of in (tmp_path, tiny[0])
    )
    # but for rounding: threads may be others
    assert [row["value"] for row in ours] == pytest.approx(
        [row["value"] for row in theirs], abs=1e-3
    )


def test_cancelled_tasks_are_submitted_again(slurm, root, said, go):
    specs = counts(said, 3, go)
    with client(slurm, root, specs, retries=0, checkpoint_seconds=1000.0) as process:
        wait_for_middle(said, 3)
        slurm.ask("scancel", "--me")
        assert sorted(finished(process)) == made(specs)
    assert again(said) == {}, "SIGTERM comes first, and is heeded"
    refuse_differences(root, specs)


def test_killed_tasks_are_submitted_again(slurm, root, said, go):
    """Everything on both nodes is killed: nothing is done again that was kept."""
    specs = counts(said, 2, go)
    with client(slurm, root, specs, checkpoint_seconds=0.0) as process:
        wait_for_middle(said, 2)
        for node in ("n1", "n2"):
            kill_all(processes_on(node, slurm))
        go.touch()
        assert sorted(finished(process)) == made(specs)
    assert again(said) == {}
    refuse_differences(root, specs)


def test_a_dead_node_costs_only_what_it_did(slurm, root, said, go):
    specs = counts(said, 4, go)
    with client(slurm, root, specs, checkpoint_seconds=0.0) as process:
        wait_for_middle(said, 4)
        slurm.lose("n1")
        go.touch()
        slurm.find("n1")
        assert sorted(finished(process)) == made(specs)
    assert again(said) == {}
    refuse_differences(root, specs)


def test_a_killed_client_is_replaced_by_the_same_command(slurm, root, said, go, monkeypatch):
    """Two more at once find what the first submitted, as does whoever asks how far it is: no artifact is in two tasks."""
    specs = counts(said, 5, go)
    with client(slurm, root, specs) as process:
        wait_for_middle(said, 4)
        process.kill()
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    standing = Slurm().at_work(Store(root))
    assert sorted(standing) == sorted(map(cache_key, specs))
    assert sorted(standing.values()) == ["queued"] + ["running"] * 4, "four CPUs for five artifacts"
    with client(slurm, root, specs) as second, client(slurm, root, specs) as third:
        for process in (second, third):
            wait_until_it_has_looked(process, root)
        go.touch()
        assert not any(line.startswith("failed") for line in finished(second) + finished(third))
    keys = [key for task in tasks_in_ledger(root) for key in task]
    assert sorted(keys) == sorted(map(cache_key, specs))
    assert again(said) == {}
    refuse_differences(root, specs)


def wait_until_it_has_looked(process, root: Path) -> None:
    """Its number is in the lock of whoever looks last."""
    wait_until(lambda: (root / "jobs" / ".lock").read_text() == str(process.pid))


def test_what_fails_is_tried_again_and_named_with_its_log_and_the_rest_is_made(slurm, root, said):
    broken, good = Toy("broken", (), "fail"), counts(said, 2)
    blocked = Toy("blocked", (broken,))
    with client(slurm, root, [blocked, *good], retries=1) as process:
        out = finished(process)
    *others, failed = out
    assert sorted(others) == made(good)
    log = root / "logs" / f"{cache_key(broken).replace('/', '-')}.log"
    assert failed == f"failed {cache_key(broken)}: ValueError: this toy is broken (log: {log})"
    assert sum(cache_key(broken) in task for task in tasks_in_ledger(root)) == 2
    assert "Traceback" in log.read_text()


def test_a_task_that_cannot_begin_fails_by_name(slurm, root, said):
    (spec,) = counts(said, 1)
    with client(
        slurm, root, [spec], setup=["echo no such module >&2; exit 3"], retries=0
    ) as process:
        out = finished(process)
    assert out[0].startswith(f"failed {cache_key(spec)}: array task ")
    assert "ended (FAILED) before it was made (log: " in out[0]
    log = Path(out[0].split("(log: ")[1].rstrip(")"))
    assert "no such module" in log.read_text()


def test_what_cannot_be_submitted_is_said(slurm, root, said):
    with client(slurm, root, counts(said, 1), partition="nowhere") as process:
        out = finished(process)
    assert out[-1].startswith("failed nothing can be submitted: ")
    assert "partition" in out[-1]
    assert tasks_in_ledger(root) == []
