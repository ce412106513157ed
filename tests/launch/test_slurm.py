"""Array tasks on a real slurmctld with two nodes: faults cost time and nothing else.

Artifacts wait at half of their rows until a test has caused its fault.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import TINY, command, small_run, succeeds
from counting_stages import Count, repeated_rows, rows, waiting
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
    if reason := reason_unavailable():
        pytest.skip(reason)
    with cluster(most_in_array=5) as running:
        yield running


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def go(tmp_path) -> Path:
    """Return the file that artifacts wait for."""
    return tmp_path / "go"


ROWS = 8  # of an artifact


def counts(log: Path, number: int, go: Path | str = "") -> list[Count]:
    return [
        Count(f"c{i}", rows=ROWS, seconds=1 / 64, log=str(log), waits_for=str(go))
        for i in range(number)
    ]


def wait_for_middle(log: Path, number: int) -> None:
    """Wait until so many artifacts wait."""
    wait_until(lambda: waiting(log) == number)


def preempt(slurm: Cluster) -> None:
    slurm.command("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")


def computed(specs: Sequence[Spec]) -> list[str]:
    """Return the lines that a client prints for artifacts, sorted."""
    return sorted(f"computed {spec.label}" for spec in specs)


def assert_undisturbed(root: Path, specs: Sequence[Spec]) -> None:
    """Fail unless the artifacts equal those of an undisturbed run."""
    alone = Workspace(Store(root.parent / "alone"), Local(), JSONLines(), "test")
    for spec in specs:
        undisturbed = get(replace(spec, log=os.devnull, waits_for=""), alone)
        assert Store(root).find(spec).manifest["checksums"] == undisturbed.manifest["checksums"]


def recorded_tasks(root: Path) -> list[list[str]]:
    """Return the artifacts of every task that was ever submitted."""
    submissions = (
        json.loads(path.read_text())["tasks"] for path in root.glob("jobs/*/submission.json")
    )
    return [task for tasks in submissions for task in tasks]


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ((), "needs sbatch and squeue"),
        (("sbatch", "squeue"), "Slurm does not answer"),
    ],
    ids=["none", "no answer"],
)
def test_a_machine_without_slurm_is_refused(root, monkeypatch, commands, message):
    root.mkdir()
    for name in commands:
        (root / name).write_text("#!/bin/sh\nexit 1\n")
        (root / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(ConfigError, match=f"^compute=slurm: {message}"):
        list(
            Slurm().make(
                counts(root / "log", 1), Workspace(Store(root), Slurm(), JSONLines(), "test")
            )
        )


def test_a_task_without_progress_within_its_time_limit_fails_by_name(root, tmp_path, monkeypatch):
    """Like submitit in a task, the signal's handler calls `checkpoint` and exits."""
    monkeypatch.setattr(pool, "GRACE_SECONDS", 0.1)
    heartbeat, state_file = tmp_path / "heartbeat", tmp_path / "state"
    deaf = Toy("deaf", (), "beat", str(heartbeat))
    task = ArrayTask(
        (deaf,),
        Workspace(Store(root), Local(), JSONLines(), "test"),
        Allocation(1, 1, 1, 0.0, 0.1),
        state_file,
    )

    def signalled(*_) -> None:
        if heartbeat.exists():
            sys.exit(task.checkpoint())
        signal.alarm(1)

    before = signal.signal(signal.SIGALRM, signalled)
    signal.alarm(1)
    with pytest.raises(SystemExit) as ended:
        task()
    signal.signal(signal.SIGALRM, before)
    assert ended.value.code is None, "not to be queued again"
    assert (
        read_job_state(state_file)
        .failed[cache_key(deaf)]
        .startswith("no progress within the time limit")
    )


def test_short_jobs_share_tasks_parents_first_and_arrays_are_split(slurm, root, log):
    """Twelve parents of 1/64 s fill two tasks of 1/8 s; with six long jobs, two arrays of five."""
    short = [Count(f"s{i}", rows=1, seconds=1 / 64, log=str(log)) for i in range(12)]
    long = counts(log, 6)
    child = Count("child", rows=1, seconds=1 / 64, needs=tuple(short), log=str(log))
    slurm.command("sbatch", "-J", "of another|kind", "-o", "/dev/null", "--wrap", "true")
    with client(slurm, root, [child, *long], pack_seconds=1 / 8) as process:
        out = finished(process)
    assert sorted(out) == computed([*short, *long, child])
    assert out.index("computed child") > max(out.index(f"computed {spec.label}") for spec in short)
    sizes = sorted(len(task) for task in recorded_tasks(root))
    assert sizes == [1] * 6 + [1, 4, 8]
    assert (
        max(
            len(json.loads(path.read_text())["tasks"])
            for path in root.glob("jobs/*/submission.json")
        )
        == 5
    )
    assert repeated_rows(log) == {}
    assert_undisturbed(root, [*short, *long, child])


@pytest.mark.parametrize("partition", ["low", "lost"])
def test_preempted_jobs_resume_where_they_were(slurm, root, log, go, partition):
    """The signal makes a job save its state, even without a timer."""
    specs = counts(log, 2, go)
    with client(slurm, root, specs, partition=partition, checkpoint_seconds=1000.0) as process:
        wait_for_middle(log, 2)
        preempt(slurm)
        assert sorted(finished(process)) == computed(specs)
    assert repeated_rows(log) == {}
    assert_undisturbed(root, specs)


def test_a_preempted_training_is_bit_identical_to_an_undisturbed_one(slurm, root, log, go):
    """A real training run, which checks every 50 steps whether it should stop."""
    training = load_experiment(
        small_run(training=Training(num_steps=100, batch_size=16)), Store(root)
    ).checkpoint(0)
    settings = {field.name: getattr(training, field.name) for field in fields(training)}
    spec = LoggedTrain(**settings, log=str(log), waits_for=str(go))
    get(spec.images, Workspace(Store(root), Local(), JSONLines(), "test"))
    with client(slurm, root, [spec], checkpoint_seconds=1000.0) as process:
        wait_until(lambda: rows(log) == 49)
        preempt(slurm)
        assert finished(process) == computed([spec])
    assert repeated_rows(log) == {}
    assert_undisturbed(root, [spec])


def test_the_smoke_experiment_gives_the_numbers_of_one_machine(slurm, tiny, tmp_path, monkeypatch):
    """The whole command; a second one computes nothing."""
    words = [word for word in TINY if not word.startswith("compute.")]
    words += [
        "compute=slurm",
        "compute.cpus=1",
        "compute.memory_gib=1",
        "compute.poll_seconds=0.5",
        "compute.gather_seconds=1",
    ]
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    outputs = [succeeds(command(tmp_path, *words)) for _ in range(2)]
    assert ["to compute" in output for output in outputs] == [True, False]
    ours, theirs = (
        json.loads((folder / "reports/smoke/result.json").read_text())["rows"]
        for folder in (tmp_path, tiny[0])
    )
    # Up to rounding: the number of threads may differ.
    assert [row["value"] for row in ours] == pytest.approx(
        [row["value"] for row in theirs], abs=1e-3
    )


def test_cancelled_tasks_are_submitted_again(slurm, root, log, go):
    specs = counts(log, 3, go)
    with client(slurm, root, specs, retries=0, checkpoint_seconds=1000.0) as process:
        wait_for_middle(log, 3)
        slurm.command("scancel", "--me")
        assert sorted(finished(process)) == computed(specs)
    assert repeated_rows(log) == {}, "SIGTERM comes first, and the job saves its state"
    assert_undisturbed(root, specs)


def test_killed_tasks_are_submitted_again(slurm, root, log, go):
    """Everything on both nodes is killed: saved rows are not computed again."""
    specs = counts(log, 2, go)
    with client(slurm, root, specs, checkpoint_seconds=0.0) as process:
        wait_for_middle(log, 2)
        for node in ("n1", "n2"):
            kill_all(processes_on(node, slurm))
        go.touch()
        assert sorted(finished(process)) == computed(specs)
    assert repeated_rows(log) == {}
    assert_undisturbed(root, specs)


def test_a_lost_node_costs_no_saved_rows(slurm, root, log, go):
    specs = counts(log, 4, go)
    with client(slurm, root, specs, checkpoint_seconds=0.0) as process:
        wait_for_middle(log, 4)
        slurm.take_down("n1")
        go.touch()
        slurm.bring_up("n1")
        assert sorted(finished(process)) == computed(specs)
    assert repeated_rows(log) == {}
    assert_undisturbed(root, specs)


def test_a_killed_client_is_replaced_by_the_same_command(slurm, root, log, go, monkeypatch):
    """Two more clients at once find the tasks of the first: no artifact is in two tasks."""
    specs = counts(log, 5, go)
    with client(slurm, root, specs) as process:
        wait_for_middle(log, 4)
        process.kill()
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    states = Slurm().at_work(Store(root))
    assert sorted(states) == sorted(map(cache_key, specs))
    assert sorted(states.values()) == ["queued"] + ["running"] * 4, "four CPUs for five artifacts"
    with client(slurm, root, specs) as second, client(slurm, root, specs) as third:
        for process in (second, third):
            wait_until_it_has_polled(process, root)
        go.touch()
        assert not any(line.startswith("failed") for line in finished(second) + finished(third))
    keys = [key for task in recorded_tasks(root) for key in task]
    assert sorted(keys) == sorted(map(cache_key, specs))
    assert repeated_rows(log) == {}
    assert_undisturbed(root, specs)


def wait_until_it_has_polled(process, root: Path) -> None:
    """Wait until the client's process ID is in the lock."""
    wait_until(lambda: (root / "jobs" / ".lock").read_text() == str(process.pid))


def test_a_failing_job_is_retried_and_named_with_its_log(slurm, root, log):
    broken, good = Toy("broken", (), "fail"), counts(log, 2)
    blocked = Toy("blocked", (broken,))
    with client(slurm, root, [blocked, *good], retries=1) as process:
        out = finished(process)
    *others, failed = out
    assert sorted(others) == computed(good)
    log = root / "logs" / f"{cache_key(broken).replace('/', '-')}.log"
    assert failed == f"failed {cache_key(broken)}: ValueError: this toy is broken (log: {log})"
    assert sum(cache_key(broken) in task for task in recorded_tasks(root)) == 2
    assert "Traceback" in log.read_text()


def test_a_task_that_cannot_begin_fails_by_name(slurm, root, log):
    (spec,) = counts(log, 1)
    with client(
        slurm, root, [spec], setup=["echo no such module >&2; exit 3"], retries=0
    ) as process:
        out = finished(process)
    assert out[0].startswith(f"failed {cache_key(spec)}: array task ")
    assert "ended (FAILED) before the artifact was computed (log: " in out[0]
    log = Path(out[0].split("(log: ")[1].rstrip(")"))
    assert "no such module" in log.read_text()


def test_a_refused_submission_is_reported(slurm, root, log):
    with client(slurm, root, counts(log, 1), partition="nowhere") as process:
        out = finished(process)
    assert out[-1].startswith("failed nothing can be submitted: ")
    assert "partition" in out[-1]
    assert recorded_tasks(root) == []
