import json
import subprocess
import sys
from pathlib import Path

from conftest import CHILDREN, small_run

from journey.engine.metrics import track
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.pipeline.settings import Training
from journey.report import write
from journey.tracking import Wandb, WandbMode


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_run_logs_every_step_once(small, workspace, tmp_path):
    spec = small.checkpoint(0)
    with track(spec, tmp_path, workspace) as log:
        for step in (50, 100, 150):
            log(step, loss=step / 100)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 200, "lo')  # cut short by a kill
    with track(spec, tmp_path, workspace, resume_step=100) as log:
        log(150, loss=7.0)
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 50, "loss": 0.5},
        {"step": 100, "loss": 1.0},
        {"step": 150, "loss": 7.0},
    ]


def inspect(directory):
    """Return W&B's own summary of an offline run."""
    command = [
        str(Path(sys.executable).with_name("wandb")),
        "leet",
        "inspect",
        "--summary",
        "--json",
        str(directory),
    ]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_offline_wandb_holds_curves_and_report(workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracking = Wandb(mode=WandbMode.offline)
    quick = Training(num_steps=20, batch_size=16, warmup_steps=4)
    run = small_run(tracking=tracking, training=quick)
    tracked = Workspace(workspace.store, workspace.compute, tracking, "the-experiment")
    experiment = load_experiment(run, workspace.store)
    artifact = get(experiment.checkpoint(0), tracked)
    # Untracked: a W&B run for each artifact would take a second.
    get(experiment.evaluation(run.evaluation, run.all_methods), workspace)
    write.write_report(run, experiment, tracked, tmp_path / "report")

    offline = [inspect(path) for path in sorted(tmp_path.glob("wandb/offline-run-*"))]
    runs = {summary["name"]: summary for summary in offline}
    last = lines(artifact.path / "metrics.jsonl")[-1]
    curve = runs[artifact.path.name]
    assert (curve["step"], curve["summary"]["loss"]) == (20, last["loss"])
    assert curve["config"]["training"]["num_steps"] == 20
    assert b"the-experiment" in Path(curve["file"]).read_bytes()
    report = json.dumps(runs["adhoc-report"]["summary"])
    for expected in ("lds_by_step", "trajectories", "lds/journey/paired_steps", "tables/rows"):
        assert expected in report
    content = Path(runs["adhoc-report"]["file"]).read_bytes()
    assert b"adhoc-report-page" in content, "the page, as an artifact"
    assert not list(tmp_path.glob("wandb/run-*")), "nothing goes online"


def test_disabled_wandb_is_not_even_imported(tmp_path):
    process = CHILDREN.Process(target=train_without_wandb, args=(tmp_path / "store",))
    process.start()
    process.join(600)
    assert process.exitcode == 0


def train_without_wandb(root: Path) -> None:
    run = small_run(training=Training(num_steps=2, batch_size=16, warmup_steps=1))
    workspace = Workspace(Store(root), run.compute, run.tracking, "x")
    get(load_experiment(run, workspace.store).checkpoint(0), workspace)
    assert "torch" in sys.modules
    assert "wandb" not in sys.modules
