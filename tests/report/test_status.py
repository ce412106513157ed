"""How far a run is, as its store and a launcher tell."""

import pytest
from conftest import TINY, command, small_run, succeeds

from journey.artifacts.graph import address, ancestors
from journey.artifacts.store import Store
from journey.artifacts.workspace import get
from journey.launch.jobs import log_of, logged
from journey.launch.local import Local
from journey.report import status


@pytest.fixture
def target(small):
    run = small_run()
    return small.evaluate(run.evaluation, run.judged)


def test_everything_stands_somewhere(target, small, workspace):
    get(small.images, workspace)
    trained, journeys = address(small.trained(0)), address(small.journeys)
    logged(workspace.store.root, journeys, "Traceback\nValueError: broken\n\n")
    found = status.standings([target, *ancestors(target)], workspace.store, {trained: "queued"})
    where = {key: standing for key, (_, standing) in found.items()}
    assert where.pop(address(small.images)) == "done"
    assert where.pop(trained) == "queued"
    assert where.pop(journeys) == "failed"
    assert set(where.values()) == {"not begun"}
    assert status.last_line(log_of(workspace.store.root, journeys)) == "ValueError: broken"


def test_what_failed_and_is_tried_again_is_no_failure(small, workspace):
    key = address(small.trained(0))
    logged(workspace.store.root, key, "broken")
    assert status.standings([small.trained(0)], workspace.store, {key: "running"})[key][1] == "running"


def test_what_is_being_made_here_is_known_by_its_lock(small, workspace):
    spec = small.trained(0)
    assert Local().at_work(workspace.store) == {}
    with workspace.store.writing(spec):
        assert Local().at_work(Store(workspace.store.root)) == {address(spec): "running"}
    assert Local().at_work(workspace.store) == {}


def test_asking_touches_nothing(tmp_path):
    said = succeeds(command(tmp_path, *TINY, "task=status"))
    assert "not begun" in said
    assert list(tmp_path.iterdir()) == []
