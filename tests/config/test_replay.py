"""A result is made again from its own file, which may set nothing but settings."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import TINY, composed, refused

from journey import __main__ as entry
from journey import replay
from journey.components import COMPONENTS
from journey.config.compose import register_schemas
from journey.engine.spec import describe

ROOT = Path(__file__).parents[2]


def recorded(run) -> dict:
    """Return what a result records of a run, after JSON."""
    settings = {f.name: describe(getattr(run, f.name)) for f in fields(run)}
    return json.loads(json.dumps({"settings": settings, "rows": []}))


EXPERIMENTS = ("ablations", "twemoji", "emergence", "magic", "counterfactual", "adjoint", "methods")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_settings_survive_a_result(name):
    run = composed(f"experiment={name}")
    result = recorded(run)
    again = replay.replayed_run(result, [])
    assert again == replace(run, name=f"{run.name}-replay")
    assert replay.setting_changes(result, again) == []


@pytest.mark.parametrize("folder", ["digits", "counterfactual"])
def test_a_committed_result_is_planned(folder):
    """Settings that were added since have their defaults, which do not change a cache key."""
    register_schemas(COMPONENTS)
    result = replay.read_result(ROOT / "experiments" / folder / "result.json")
    run = replay.replayed_run(result, [])
    assert run.name == f"{result['settings']['name']}-replay"
    for line in replay.setting_changes(result, run):
        assert ": (nothing) → " in line or line.startswith("compute."), line


def test_a_replay_has_the_same_numbers(tiny, tmp_path, monkeypatch, capsys):
    directory = tiny[0]
    path = directory / "reports/smoke/result.json"
    monkeypatch.chdir(tmp_path)
    words = ["replay", str(path), f"artifacts={directory / 'artifacts'}"]
    monkeypatch.setattr(sys, "argv", ["journey", *words])
    entry.main()
    count = len(json.loads(path.read_text())["rows"])
    output = capsys.readouterr().out
    assert output.endswith(f"{count} of {count} numbers are equal\n")
    assert "differs" not in output
    assert (tmp_path / "reports/smoke-replay/index.html").is_file()

    old = json.loads(path.read_text())
    old["versions"]["torch"] = "1.0"
    assert any(line.startswith("versions.torch: 1.0 →") for line in replay.provenance_changes(old))


def changed(**paths):
    """Return a function that sets settings of a result, by their dotted names with __ as dot."""

    def change(result):
        for name, value in paths.items():
            *parents, leaf = name.split("__")
            node = result["settings"]
            for parent in parents:
                node = node[parent]
            node[leaf] = value

    return change


REFUSED = {
    "unknown setting": (changed(training__colour=1), "training.colour=1: no such setting"),
    "type": (changed(training__num_steps="x"), "training.num_steps=x: must be a whole number"),
    "choice": (changed(sampling__sampler="os.system"), "sampling.sampler=os.system: must be one"),
    "component": (changed(dataset={"name": "mine"}), "dataset=mine: must be one of"),
    "range": (changed(training__num_steps=-1), "training.num_steps=-1: must be in"),
    "file": (
        changed(method={"x": {"name": "external", "path": "/etc/passwd"}}),
        "method.x.path=/etc/passwd: must be given by words",
    ),
    "directory": (
        changed(dataset={"name": "folder", "root": "/etc"}),
        "dataset.root=/etc: must be given by words",
    ),
    "bank": (changed(retraining__bank="/etc/passwd"), "retraining.bank=/etc/passwd: must be given"),
    "name": (changed(name="../up"), "name=../up-replay: must be"),
    "no map": (changed(training=[1]), "training=[1]: must be settings by name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_of_others_are_refused_by_name(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, message = REFUSED[case]
    result = recorded(composed(*TINY))
    change(result)
    Path("result.json").write_text(json.dumps(result))
    assert message in refused(monkeypatch, "replay", "result.json")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_where_to_compute_is_said_by_words_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = recorded(composed(*TINY))
    result["settings"]["compute"] = {"name": "slurm", "setup": ["touch ran"], "device": "cuda"}
    result["settings"]["artifacts"] = "/etc"
    run = replay.replayed_run(result, ["compute.workers=3"])
    assert (run.compute.name, run.compute.workers, run.artifacts) == ("local", 3, "artifacts")
    assert "compute.device: cuda → cpu" in replay.setting_changes(result, run)
    Path("result.json").write_text(json.dumps(result))
    text = refused(monkeypatch, "replay", "result.json", "training.num_steps=3")
    assert "journey replay=training.num_steps: must be compute" in text
    assert "must be a result.json" in refused(monkeypatch, "replay", "missing.json")
    Path("broken.json").write_text("{")
    assert "not JSON" in refused(monkeypatch, "replay", "broken.json")
