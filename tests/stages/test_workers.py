"""Real stages in worker processes. tests/launch/ has the launcher itself."""

from pathlib import Path

import pytest
from conftest import small_run

from journey.artifacts.graph import address
from journey.artifacts.store import Store
from journey.artifacts.workspace import Workspace, get
from journey.config.groups import Training
from journey.experiment import recipes
from journey.launch.jobs import JobsFailedError
from journey.launch.local import Local


def test_any_number_of_workers_gives_the_same_artifacts_and_a_failure_stops_nothing_else(workspace, tmp_path):
    good = recipes(small_run(), workspace.store)
    bad = recipes(small_run(training=Training(200, 16, learning_rate=10, warmup_steps=0, weight_decay=1000)), workspace.store)
    wanted = [good.trained(0), good.trained(1), good.journeys]
    two = Workspace(workspace.store, Local(workers=2), workspace.tracking, "test")
    made = []
    with pytest.raises(JobsFailedError) as caught:
        made.extend(two.compute.make([bad.journeys, *wanted], two))
    message = str(caught.value)
    assert message.startswith(f"{address(bad.trained(0))}: FloatingPointError: training step")
    assert "Traceback" in Path(message.split("(log: ")[1].rstrip(")")).read_text()
    assert message.count("\n") == 0, "what depends on the failed job is not tried"

    alone = Workspace(Store(tmp_path / "alone"), workspace.compute, workspace.tracking, "test")
    for spec in wanted:
        assert get(spec, alone).manifest["checksums"] == workspace.store.find(spec).manifest["checksums"]
