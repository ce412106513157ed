import os
import signal
from pathlib import Path

import pytest
from conftest import small_run

from journey import config, experiment, launch, specs
from journey.stages import Workspace, get
from journey.store import Store


def with_workers(workspace, num):
    return Workspace(workspace.store, config.Compute(workers=num), workspace.tracking, "test")


def models(run):
    return [experiment.full_model(run, c) for c in range(4)]


def diverging():
    return small_run(training=config.Training(200, 16, 1e30, 0))


def test_any_number_of_workers_gives_the_same_artifacts(workspace, tmp_path):
    run = small_run()
    launch.run(models(run), with_workers(workspace, 2))
    alone = Workspace(Store(tmp_path / "alone"), run.compute, config.JSONLines(), "test")
    for spec in models(run):
        assert get(spec, alone).manifest["checksums"] == workspace.store.find(spec).manifest["checksums"]


def test_waves_hold_everything_missing_once_and_in_order(workspace):
    run = small_run()
    target = experiment.evaluate(run)
    waves = launch.missing([target], workspace.store)
    order = {specs.address(spec): i for i, wave in enumerate(waves) for spec in wave}
    everything = [target, *specs.ancestors(target)]
    assert sorted(order) == sorted(specs.address(spec) for spec in everything)
    for spec in everything:
        assert all(order[specs.address(parent)] < order[specs.address(spec)] for parent in specs.parents(spec))
    get(experiment.full_model(run, 0), workspace)
    left = {specs.address(spec) for wave in launch.missing([target], workspace.store) for spec in wave}
    assert left == set(order) - {specs.address(experiment.full_model(run, 0))}


def test_one_failed_job_stops_no_other_and_is_named_with_its_log(workspace):
    """Neither in its wave nor, where they do not depend on it, in later ones."""
    good, bad = models(small_run()), experiment.full_model(diverging(), 0)
    with pytest.raises(launch.JobsFailedError) as caught:
        launch.run([experiment.journeys(diverging()), experiment.journeys(small_run()), *good], with_workers(workspace, 2))
    message = str(caught.value)
    assert specs.address(bad) in message
    assert "training step" in message
    log = message.split("(log: ")[1].rstrip(")")
    assert "Traceback" in Path(log).read_text()
    assert message.count("\n") == 0, "what depends on the failed job is not tried"
    assert all(workspace.store.find(spec) for spec in [*good, experiment.journeys(small_run())])


def test_a_killed_worker_costs_only_time(workspace, tmp_path, monkeypatch):
    """The first worker that loads the data dies; new ones finish."""
    marker = tmp_path / "died"
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        f"import os, signal, threading, pathlib\n"
        f"if os.environ.get('OMP_NUM_THREADS') and not pathlib.Path({str(marker)!r}).exists():\n"
        f"    pathlib.Path({str(marker)!r}).touch()\n"
        f"    threading.Timer(1.0, os.kill, (os.getpid(), {signal.SIGKILL})).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    launch.run(models(small_run()), with_workers(workspace, 2))
    assert marker.exists()
    assert all(workspace.store.find(spec) for spec in models(small_run()))
