"""Array tasks on a real slurmctld with two nodes: what goes wrong costs time, and nothing else."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import small_run
from counting_stages import Count, again, rows
from slurm_cluster import client, cluster, finished, kill_all, processes_on, wait_until, why_not

from journey.artifacts.graph import address
from journey.artifacts.store import Store
from journey.artifacts.workspace import Workspace, get
from journey.config.groups import Training
from journey.experiment import recipes
from journey.launch.local import Local
from journey.launch.slurm import Slurm
from journey.tracking import JSONLines


@pytest.fixture(scope="module")
def slurm():
    if reason := why_not():
        pytest.skip(reason)
    with cluster(most_in_array=5) as found:
        yield found


@pytest.fixture
def said(tmp_path) -> Path:
    return tmp_path / "said"


def counts(said: Path, number: int = 4, **settings) -> list[Count]:
    return [Count(f"c{i}", said=str(said), **settings) for i in range(number)]


def refuse_differences(root: Path, specs: list[Count]) -> None:
    """Payloads are those of an undisturbed run."""
    alone = Workspace(Store(root.parent / "alone"), Local(), JSONLines(), "test")
    for spec in specs:
        undisturbed = get(replace(spec, seconds=0.0, said=os.devnull), alone)
        assert Store(root).find(spec).manifest["checksums"] == undisturbed.manifest["checksums"]


def tasks_in_ledger(root: Path) -> list[list[str]]:
    """The artifacts of every task that was ever submitted."""
    found = (json.loads(path.read_text())["tasks"] for path in root.glob("jobs/*/submission.json"))
    return [task for tasks in found for task in tasks]


# ------------------------------------------------------------------------------------------------- what is submitted


def test_artifacts_are_packed_parents_first_and_arrays_split(slurm, tmp_path, said):
    """Twelve parents of 1/8 s in tasks of 1 s are two tasks; seven of 1 s are more than the five an array may have."""
    short, long = counts(said, 12, rows=1, seconds=0.125), [Count(f"l{i}", rows=10, said=str(said)) for i in range(7)]
    child = Count("child", rows=1, needs=tuple(short), said=str(said))
    root = tmp_path / "store"
    with client(slurm, root, [child, *long]) as process:
        out = finished(process)
    assert sorted(line for line in out if line.startswith("made")) == sorted(f"made {s.label}" for s in [*short, *long, child])
    assert out.index("made child") > max(out.index(f"made {spec.label}") for spec in short)
    sizes = sorted(len(task) for task in tasks_in_ledger(root))
    assert sizes == [1] * 7 + [1, 4, 8]
    assert max(len(json.loads(path.read_text())["tasks"]) for path in root.glob("jobs/*/submission.json")) == 5
    assert again(said) == {}
    refuse_differences(root, [*short, *long, child])


# --------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("partition", ["low", "lost"])
def test_preempted_work_goes_on_where_it_was(slurm, tmp_path, said, partition):
    """Told by the signal: with no timer, what was done before it is kept all the same."""
    specs, root = counts(said, 2, rows=60), tmp_path / "store"
    with client(slurm, root, specs, partition=partition, checkpoint_seconds=1000.0) as process:
        wait_until(lambda: rows(said) > 10)
        slurm.ask("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
        out = finished(process)
    assert sorted(out) == ["made c0", "made c1"]
    assert again(said) == {}
    refuse_differences(root, specs)


def test_a_preempted_training_is_bit_identical_to_an_undisturbed_one(slurm, tmp_path):
    """A real one, which keeps its state at the signal only."""
    run = small_run(training=Training(num_steps=600, batch_size=16))
    spec = recipes(run, Store(tmp_path / "alone")).trained(0)
    undisturbed = get(spec, Workspace(Store(tmp_path / "alone"), run.compute, run.tracking, "test"))
    root = tmp_path / "store"
    with client(slurm, root, [spec], checkpoint_seconds=1000.0) as process:
        wait_until(lambda: any(path.stat().st_size for path in root.glob("models/*.partial/metrics.jsonl")))
        slurm.ask("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
        wait_until(lambda: list(root.glob("models/*.partial/resume.json")))
        out = finished(process)
    assert out == [f"made {spec.images.label}", f"made {spec.label}"]
    assert Store(root).find(spec).manifest["checksums"] == undisturbed.manifest["checksums"]


def test_cancelled_tasks_are_submitted_again(slurm, tmp_path, said):
    specs, root = counts(said, 3, rows=40), tmp_path / "store"
    with client(slurm, root, specs, retries=0) as process:
        wait_until(lambda: rows(said) > 10)
        slurm.ask("scancel", "--me")
        out = finished(process)
    assert sorted(out) == ["made c0", "made c1", "made c2"]
    assert again(said) == {}, "SIGTERM comes first, and is heeded"
    refuse_differences(root, specs)


def test_killed_tasks_are_submitted_again(slurm, tmp_path, said):
    """Everything on one node is killed: what it did since its last checkpoint, 0.3 s before, is done again."""
    specs, root = counts(said, 2, rows=40), tmp_path / "store"
    with client(slurm, root, specs) as process:
        wait_until(lambda: rows(said) > 10)
        kill_all(processes_on("n1", slurm))
        out = finished(process)
    assert sorted(out) == ["made c0", "made c1"]
    assert again(said).pop("made", 0) == 0
    assert again(said).total() <= 10
    refuse_differences(root, specs)


def test_a_dead_node_costs_only_what_it_did(slurm, tmp_path, said):
    specs, root = counts(said, 4, rows=30), tmp_path / "store"
    with client(slurm, root, specs) as process:
        wait_until(lambda: rows(said) > 10)
        slurm.kill("n1")
        kill_all(processes_on("n1", slurm))
        slurm.ask("scontrol", "update", "nodename=n1", "state=down", "reason=test")
        wait_until(lambda: all(node == "n2" for node in slurm.ask("squeue", "-h", "-t", "R", "-o", "%N").split()))
        slurm.start_node("n1")
        slurm.ask("scontrol", "update", "nodename=n1", "state=resume")
        out = finished(process)
    assert sorted(out) == [f"made c{i}" for i in range(4)]
    assert again(said).pop("made", 0) == 0
    refuse_differences(root, specs)


def test_a_killed_client_is_replaced_by_the_same_command(slurm, tmp_path, said, monkeypatch):
    """Two more at once find what the first submitted, as does whoever asks how far it is: no artifact is in two tasks."""
    specs, root = counts(said, 5, rows=40), tmp_path / "store"
    with client(slurm, root, specs) as process:
        wait_until(lambda: rows(said) > 5)
        process.kill()
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    standing = Slurm().at_work(Store(root))
    assert set(standing) <= set(map(address, specs))
    assert set(standing.values()) == {"running", "queued"}, "four CPUs for five artifacts"
    with client(slurm, root, specs) as second, client(slurm, root, specs) as third:
        assert not any(line.startswith("failed") for line in finished(second) + finished(third))
    keys = [key for task in tasks_in_ledger(root) for key in task]
    assert sorted(keys) == sorted(map(address, specs))
    assert again(said) == {}
    refuse_differences(root, specs)


def test_what_fails_is_tried_again_and_named_with_its_log_and_the_rest_is_made(slurm, tmp_path, said):
    from toy_stages import Toy

    broken, root = Toy("broken", (), "fail"), tmp_path / "store"
    blocked, good = Toy("blocked", (broken,)), counts(said, 2, rows=2)
    with client(slurm, root, [blocked, *good], retries=1) as process:
        out = finished(process)
    *made, failed = out
    assert sorted(made) == ["made c0", "made c1"]
    log = root / "logs" / f"{address(broken).replace('/', '-')}.log"
    assert failed == f"failed {address(broken)}: ValueError: this toy is broken (log: {log})"
    assert sum(address(broken) in task for task in tasks_in_ledger(root)) == 2
    assert "Traceback" in log.read_text()


def test_a_task_that_cannot_begin_fails_by_name(slurm, tmp_path, said):
    (spec,), root = counts(said, 1), tmp_path / "store"
    with client(slurm, root, [spec], setup=["echo no such module >&2; exit 3"], retries=0) as process:
        out = finished(process)
    assert out[0].startswith(f"failed {address(spec)}: array task ")
    assert "ended (FAILED) before it was made (log: " in out[0]
    log = Path(out[0].split("(log: ")[1].rstrip(")"))
    assert "no such module" in log.read_text()


def test_what_cannot_be_submitted_is_said(slurm, tmp_path, said):
    with client(slurm, tmp_path / "store", counts(said, 1), partition="nowhere") as process:
        out = finished(process)
    assert out[-1].startswith("failed nothing can be submitted: ")
    assert "partition" in out[-1]
    assert tasks_in_ledger(tmp_path / "store") == []
