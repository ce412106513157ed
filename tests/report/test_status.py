"""How far a run is, as its store and a launcher tell."""

import pytest
from conftest import TINY, command, small_run, succeeds

from journey.engine.graph import ancestors
from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import get
from journey.launch.jobs import log_path, write_log
from journey.launch.local import Local
from journey.report.plan import last_line, standings


@pytest.fixture
def target(small):
    run = small_run()
    return small.evaluation(run.evaluation, run.all_methods)


def test_everything_stands_somewhere(target, small, workspace):
    get(small.images, workspace)
    trained, trajectories = cache_key(small.checkpoint(0)), cache_key(small.trajectories)
    write_log(workspace.store.root, trajectories, "Traceback\nValueError: broken\n\n")
    found = standings([target, *ancestors(target)], workspace.store, {trained: "queued"})
    where = {key: standing for key, (_, standing) in found.items()}
    assert where.pop(cache_key(small.images)) == "done"
    assert where.pop(trained) == "queued"
    assert where.pop(trajectories) == "failed"
    assert set(where.values()) == {"not begun"}
    assert last_line(log_path(workspace.store.root, trajectories)) == "ValueError: broken"


def test_what_failed_and_is_tried_again_is_no_failure(small, workspace):
    key = cache_key(small.checkpoint(0))
    write_log(workspace.store.root, key, "broken")
    assert standings([small.checkpoint(0)], workspace.store, {key: "running"})[key][1] == "running"


def test_what_is_being_made_here_is_known_by_its_lock(small, workspace):
    spec = small.checkpoint(0)
    assert Local().at_work(workspace.store) == {}
    with workspace.store.writing(spec):
        assert Local().at_work(Store(workspace.store.root)) == {cache_key(spec): "running"}
    assert Local().at_work(workspace.store) == {}


def test_asking_touches_nothing(tmp_path):
    said = succeeds(command(tmp_path, *TINY, "task=status"))
    assert "not begun" in said
    assert list(tmp_path.iterdir()) == []
