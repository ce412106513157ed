import contextlib
import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from commands import CHILDREN
from conftest import small_run

from journey.engine.metrics import track
from journey.engine.provenance import package_versions
from journey.engine.resume import StoppedError, load_state, save_state
from journey.engine.spec import digest
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds.datamodeling import PRIMARY
from journey.evaluation.rows import select
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
            if step == 100:
                save_state(tmp_path, {"step": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 200, "lo')  # cut short by a kill
    assert load_state(tmp_path) == {"step": 100}
    with track(spec, tmp_path, workspace) as log:
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


def decoded(path: Path) -> list:
    """Return the records of an offline file: a log of LevelDB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record  # a test below imports this file without it

    content, place, records, begun = path.read_bytes(), 7, [], b""
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:  # the end of a block is filled with zeros
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        begun += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            records.append(Record.FromString(begun))
            begun = b""
    return records


def test_offline_wandb_holds_curves_and_report(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    import wandb  # a test below imports this file without it

    wandb.teardown()  # else it keeps the directory of an earlier test
    tracking = Wandb(mode=WandbMode.offline)
    quick = Training(num_steps=20, batch_size=16, warmup_steps=4)
    run = small_run(tracking=tracking, training=quick)
    tracked = Workspace(workspace.store, workspace.compute, tracking, "the-experiment")
    experiment = load_experiment(run, workspace.store)
    artifact = get(experiment.checkpoint(0), tracked)
    # Untracked: a W&B run for each artifact would take a second.
    get(experiment.evaluation(run.evaluation, run.all_methods), workspace)
    result = write.write_report(run, experiment, tracked, tmp_path / "report")
    directories = sorted(tmp_path.glob("wandb/offline-run-*"))
    get(experiment.checkpoint(0), tracked)
    write._track(run, experiment, result, tmp_path / "report", [], tracked)
    assert sorted(tmp_path.glob("wandb/offline-run-*")) == directories, "a cached rerun adds none"

    offline = [inspect(path) for path in directories]
    runs = {summary["name"]: summary for summary in offline}
    last = lines(artifact.path / "metrics.jsonl")[-1]
    curve = runs[artifact.path.name]
    assert curve["run_id"] == digest(experiment.checkpoint(0))
    assert result["cache_keys"]["evaluation"].endswith(f"-{runs['adhoc-report']['run_id']}")
    assert (curve["step"], curve["summary"]["loss"]) == (20, last["loss"])
    assert curve["config"]["training"]["num_steps"] == 20
    assert b"the-experiment" in Path(curve["file"]).read_bytes()
    report = json.dumps(runs["adhoc-report"]["summary"])
    headline = "query_centred/journey/paired_steps"
    for expected in ("lds_by_step", "trajectories", headline, "tables/rows", "tables/queries"):
        assert expected in report
    (row,) = select(result["rows"], **PRIMARY, method="journey", target="paired_steps")
    for end in ("low", "high"):
        logged = runs["adhoc-report"]["summary"][f"paired_steps/query_centred/journey/{end}"]
        assert logged == row[end]

    # The history, configuration, page and lineage, as they are in the file.
    records = decoded(Path(runs["adhoc-report"]["file"]))
    history = [record.history for record in records if record.HasField("history")]
    curve = []
    for entry in history:
        values = {item.key or item.nested_key[0]: item.value_json for item in entry.item}
        if (name := "by_timestep/query_centred/journey") in values:
            curve.append((json.loads(values["t"]), json.loads(values[name])))
    rows = select(result["rows"], **PRIMARY, method="journey", target="step")
    assert curve == [(row["step"], row["value"]) for row in rows]
    metrics = [record.metric for record in records if record.HasField("metric")]
    assert ("by_timestep/*", "t") in [(metric.glob_name, metric.step_metric) for metric in metrics]
    config = runs["adhoc-report"]["config"]
    assert config["versions"] == package_versions()
    assert config["command"] == "journey"
    keys = result["cache_keys"]
    logged = [record.artifact for record in records if record.HasField("artifact")]
    (artifact,) = [artifact for artifact in logged if artifact.type == "result"]
    assert artifact.name == "the-experiment-result"
    assert json.loads(artifact.metadata) == {"inputs": [keys["images"], *keys["checkpoints"]]}
    output = capsys.readouterr().out
    assert f"{runs['adhoc-report']['file'].rpartition('/')[0]}: this run, offline" in output
    pages = list(tmp_path.glob("wandb/offline-run-*/files/media/html/page_*.html"))
    assert len(pages) == 1
    assert "training images that influenced each step" in pages[0].read_text()
    assert not list(tmp_path.glob("wandb/run-*")), "nothing goes online"


def test_an_interrupted_artifact_continues_its_run_and_shows_texts_as_they_are(
    small, workspace, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    import wandb  # a test below imports this file without it

    wandb.teardown()  # else it keeps the directory of an earlier test
    tracked = replace(workspace, tracking=Wandb(), group="g\nx" * 100)
    started = []
    init = wandb.init

    def starting(**settings):
        started.append(settings)
        return init(**settings)

    monkeypatch.setattr(wandb, "init", starting)
    spec = small.checkpoint(0)
    bad = {"a.b": 1.0, "a_b": 2.0, "lds/x $y$\u202e/z": 3.0}
    with contextlib.suppress(StoppedError), track(spec, tmp_path, tracked) as log:
        log(50, **bad)
        save_state(tmp_path, {"step": 50})
        raise StoppedError
    with track(spec, tmp_path, tracked) as log:
        log(100, loss=1.0)
    with track(spec, tmp_path, tracked) as log:  # logged to its end: no third run
        log(100, loss=1.0)
    rows = [{"method": "[red]\udc80", "value": 1.0}]
    with Wandb().watch("x/y-0123456789ab", "n" * 300, "g", "report", {"\udc80": "\n"}) as log:
        log({"tables/rows": rows})
    assert [settings["id"] for settings in started] == [digest(spec)] * 2 + ["0123456789ab"]
    assert {settings["resume"] for settings in started} == {"allow"}
    assert all(len(settings["name"]) <= 128 >= len(settings["group"]) for settings in started)

    summaries = [inspect(path) for path in tmp_path.glob("wandb/offline-run-*")]
    summaries.sort(key=lambda summary: summary["start_time"])
    assert [summary["run_id"] for summary in summaries] == [digest(spec)] * 2 + ["0123456789ab"]
    assert {key: summaries[0]["summary"][key] for key in ("a_b", "a_b_", "lds/x _y__/z")} == {
        "a_b": 1.0, "a_b_": 2.0, "lds/x _y__/z": 3.0,
    }  # fmt: skip
    assert summaries[2]["config"].items() >= {" ": " "}.items()
    assert "tables/rows" in summaries[2]["summary"]


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
