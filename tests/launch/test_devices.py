"""Several devices on one machine: each worker sees one. They are simulated."""

from collections import Counter
from pathlib import Path

import pytest
from toy_stages import NoTracking, Toy, ToyOnCPU, compute, workspace

from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace
from journey.launch.jobs import JobsFailedError
from journey.launch.local import Local
from journey.launch.machine import worker_environments


def on_devices(root: Path, devices: list[int], workers: int) -> Workspace:
    return Workspace(
        Store(root), Local(device="cuda", devices=devices, workers=workers), NoTracking(), "test"
    )


def test_workers_are_spread_over_the_devices(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = tmp_path / "seen"
    space = on_devices(tmp_path / "store", [0, 3], workers=1)
    assert space.compute.num_workers == 2
    compute([Toy(f"{i}", (), "append_device", str(seen)) for i in range(6)], space)
    assert set(seen.read_text().split()) == {"0", "3"}
    assert len(seen.read_text().split()) == 6


def test_jobs_without_an_accelerator_run_beside_those_that_use_one(tmp_path):
    """The worker of the only device waits for what a job of lower priority writes."""
    space, file = on_devices(tmp_path / "store", [], workers=1), str(tmp_path / "file")
    on_device, on_cpu = Toy("0", (), "wait_for_file", file), ToyOnCPU("1", (), "touch", file)
    assert set(compute([on_device, on_cpu], space)) == {"0", "1"}


def test_workers_alternate_between_visible_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    seen = Counter(
        variables["CUDA_VISIBLE_DEVICES"] for variables in worker_environments(6, 1, [0, 2])
    )
    assert seen == {"GPU-a": 3, "GPU-c": 3}
    with pytest.raises(ConfigError, match=r"compute\.devices=3: CUDA_VISIBLE_DEVICES shows 3"):
        worker_environments(1, 1, [3])


def test_workers_do_not_spin_and_leave_the_settings_of_openmp(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    (variables,) = worker_environments(1, 3, [])
    assert list(variables.values()) == ["3", "3", "PASSIVE"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    (variables,) = worker_environments(1, 3, [])
    assert list(variables.values()) == ["1", "1", "ACTIVE"]


def test_a_broken_device_is_dropped_and_costs_no_job(tmp_path, monkeypatch):
    """Every job on it breaks its process, whose next operation would fail whatever the job."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = tmp_path / "seen"
    space = on_devices(tmp_path / "store", [0, 3], workers=1)
    labels = compute([Toy(f"{i}", (), "use_device", str(seen)) for i in range(12)], space)
    assert sorted(labels, key=int) == [f"{i}" for i in range(12)]
    assert Counter(seen.read_text().split()) == {"0": 12, "3": 2}


def test_a_job_that_breaks_a_sound_device_fails_alone(tmp_path):
    """Its worker ends: the next job in the same process would fail."""
    culprit, others = Toy("culprit", (), "break_device"), [Toy(f"{i}") for i in range(3)]
    space = on_devices(tmp_path, [], workers=1)
    with pytest.raises(JobsFailedError) as caught:
        compute([culprit, *others], space)
    log = tmp_path / "logs" / f"{cache_key(culprit).replace('/', '-')}.log"
    assert str(caught.value) == f"{cache_key(culprit)}: cuda failed twice (log: {log})"
    assert "CUDA error: an illegal memory access" in log.read_text()
    assert all(space.store.find(spec) for spec in others)


def test_a_run_ends_when_its_last_device_is_broken(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = tmp_path / "seen"
    space = on_devices(tmp_path / "store", [3], workers=1)
    with pytest.raises(JobsFailedError, match="2 jobs in a row broke the accelerator"):
        compute([Toy(f"{i}", (), "use_device", str(seen)) for i in range(12)], space)
    assert seen.read_text() == "3 3 "


def test_a_job_out_of_memory_is_retried_alone(tmp_path):
    folder = tmp_path / "running"
    folder.mkdir()
    big = Toy("big", (), "exhaust", str(folder))
    small = [Toy(f"{i}", (), "run_a_while", str(folder)) for i in range(3)]
    labels = compute([big, *small, Toy("after", (big,))], workspace(tmp_path / "store", 2))
    assert labels[-2:] == ["big", "after"], "first in priority, but computed last"


def test_a_job_out_of_memory_alone_fails(tmp_path):
    folder = tmp_path / "running"
    folder.mkdir()
    (folder / "another process").touch()
    space = workspace(tmp_path / "store", 2)
    with pytest.raises(JobsFailedError, match="OutOfMemoryError: 1 other jobs run"):
        compute([Toy("big", (), "exhaust", str(folder)), Toy("other")], space)
    assert space.store.find(Toy("other"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": [0]}, r"compute\.devices=\[0\]: must be empty unless device=cuda"),
        ({"device": "cuda", "devices": [0, 0]}, r"compute\.devices=\[0, 0\]: must be distinct"),
        ({"device": "cuda", "devices": [-1]}, r"compute\.devices=\[-1\]"),
        (
            {"device": "cuda", "devices": [0, 1], "processes": 2},
            r"compute\.devices=\[0, 1\]: must be empty where several",
        ),
        ({"processes": 0}, r"compute\.processes=0"),
    ],
)
def test_settings_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        Local(**settings).check("compute")
