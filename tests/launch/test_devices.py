"""Several devices on one machine, pretended: a worker sees the one it is given, and what lacks memory is tried alone."""

from collections import Counter
from pathlib import Path

import pytest
from toy_stages import Nowhere, Toy, ask, workspace

from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Workspace
from journey.launch.jobs import JobsFailedError
from journey.launch.local import Local
from journey.launch.machine import worker_environments


def on_devices(root: Path, devices: list[int], workers: int) -> Workspace:
    return Workspace(
        Store(root), Local(device="cuda", devices=devices, workers=workers), Nowhere(), "test"
    )


def test_workers_are_spread_over_the_devices(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = tmp_path / "seen"
    space = on_devices(tmp_path / "store", [0, 3], workers=1)
    assert space.compute.num_workers == 2
    ask([Toy(f"{i}", (), "see", str(seen)) for i in range(6)], space)
    assert set(seen.read_text().split()) == {"0", "3"}
    assert len(seen.read_text().split()) == 6


def test_devices_take_turns_and_are_those_that_may_be_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    seen = Counter(
        variables["CUDA_VISIBLE_DEVICES"] for variables in worker_environments(6, 1, [0, 2])
    )
    assert seen == {"GPU-a": 3, "GPU-c": 3}
    with pytest.raises(ConfigError, match=r"compute\.devices=3: CUDA_VISIBLE_DEVICES shows 3"):
        worker_environments(1, 1, [3])


def test_what_lacks_memory_is_tried_again_alone(tmp_path):
    at = tmp_path / "at"
    at.mkdir()
    big = Toy("big", (), "exhaust", str(at))
    small = [Toy(f"{i}", (), "stay", str(at)) for i in range(3)]
    labels = ask([big, *small, Toy("after", (big,))], workspace(tmp_path / "store", 2))
    assert labels[-2:] == ["big", "after"], "it came first, and is made last"


def test_what_lacks_memory_alone_fails(tmp_path):
    at = tmp_path / "at"
    at.mkdir()
    (at / "another process").touch()
    space = workspace(tmp_path / "store", 2)
    with pytest.raises(JobsFailedError, match="OutOfMemoryError: 1 more at work"):
        ask([Toy("big", (), "exhaust", str(at)), Toy("other")], space)
    assert space.store.find(Toy("other"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": [0]}, r"compute\.devices=\[0\]: must be left out unless device=cuda"),
        ({"device": "cuda", "devices": [0, 0]}, r"compute\.devices=\[0, 0\]: must be distinct"),
        ({"device": "cuda", "devices": [-1]}, r"compute\.devices=\[-1\]"),
        (
            {"device": "cuda", "devices": [0, 1], "processes": 2},
            r"compute\.devices=\[0, 1\]: must be left out where several",
        ),
        ({"processes": 0}, r"compute\.processes=0"),
    ],
)
def test_settings_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        Local(**settings).check("compute")
