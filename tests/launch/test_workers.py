"""Real stages in worker processes. tests/launch/ has the launcher itself."""

from pathlib import Path

import pytest
from conftest import small_run

from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.launch.jobs import JobsFailedError
from journey.launch.local import Local
from journey.pipeline.settings import Training


def test_artifacts_do_not_depend_on_the_workers_and_a_failure_stops_no_other_job(
    workspace, tmp_path
):
    quick = Training(num_steps=20, batch_size=16, warmup_steps=4)
    good = load_experiment(small_run(training=quick), workspace.store)
    bad = load_experiment(
        small_run(training=Training(200, 16, learning_rate=10, warmup_steps=0, weight_decay=1000)),
        workspace.store,
    )
    targets = [good.checkpoint(0), good.checkpoint(1), good.trajectories]
    two = Workspace(workspace.store, Local(workers=2), workspace.tracking, "test")
    with pytest.raises(JobsFailedError) as caught:
        list(two.compute.make([bad.trajectories, *targets], two))
    message = str(caught.value)
    assert message.startswith(f"{cache_key(bad.checkpoint(0))}: FloatingPointError: training step")
    assert "Traceback" in Path(message.split("(log: ")[1].rstrip(")")).read_text()
    assert message.count("\n") == 0, "a job that needs the failed one is not tried"

    alone = Workspace(Store(tmp_path / "alone"), workspace.compute, workspace.tracking, "test")
    for spec in targets:
        assert (
            get(spec, alone).manifest["checksums"]
            == workspace.store.find(spec).manifest["checksums"]
        )
