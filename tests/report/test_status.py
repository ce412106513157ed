"""The states of artifacts, from the store and a launcher."""

import pytest
from conftest import TINY, command, small_run, succeeds

from journey.engine.graph import ancestors
from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import get
from journey.launch.jobs import log_path, write_log
from journey.launch.local import Local
from journey.report.plan import artifact_states, last_line


@pytest.fixture
def target(small):
    run = small_run()
    return small.evaluation(run.evaluation, run.all_methods)


def test_every_artifact_has_a_state(target, small, workspace):
    get(small.images, workspace)
    trained, trajectories = cache_key(small.checkpoint(0)), cache_key(small.trajectories)
    write_log(workspace.store.root, trajectories, "Traceback\nValueError: broken\n\n")
    specs = [target, *ancestors(target)]
    states = artifact_states(specs, workspace.store, {trained: "queued"})
    assert states.pop(cache_key(small.images)) == "done"
    assert states.pop(trained) == "queued"
    assert states.pop(trajectories) == "failed"
    assert set(states.values()) == {"not started"}
    assert last_line(log_path(workspace.store.root, trajectories)) == "ValueError: broken"


def test_a_failed_artifact_that_is_retried_is_running(small, workspace):
    key = cache_key(small.checkpoint(0))
    write_log(workspace.store.root, key, "broken")
    assert artifact_states([small.checkpoint(0)], workspace.store, {key: "running"}) == {
        key: "running"
    }


def test_a_lock_marks_an_artifact_that_is_computed_here(small, workspace):
    spec = small.checkpoint(0)
    assert Local().at_work(workspace.store) == {}
    with workspace.store.writing(spec):
        assert Local().at_work(Store(workspace.store.root)) == {cache_key(spec): "running"}
    assert Local().at_work(workspace.store) == {}


def test_the_status_writes_nothing(tmp_path):
    output = succeeds(command(tmp_path, *TINY, "task=status"))
    assert "not started" in output
    assert list(tmp_path.iterdir()) == []
