import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import small_run

from journey import config, experiment, specs
from journey.stages import Workspace, get
from journey.store import MANIFEST, Store, StoreError, differences, write_json

TESTS = Path(__file__).parent
CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from conftest import small_run
from journey import config, experiment, store
from journey.stages import Workspace, get
run = small_run()
{before}
get({spec}, Workspace(store.Store({root!r}), run.compute, config.JSONLines(), "test"))
"""
TRAIN = "experiment.full_model(run, 0)"
FEATURIZE = "experiment.score(run, run.method['journey']).train_features[0][0]"
SAMPLE = "experiment.journeys(run)"
QUERIES = "experiment.score(run, run.method['journey']).query_features[0]"


def child(root: Path, spec: str, before: str = "") -> subprocess.Popen:
    code = CHILD.format(tests=str(TESTS), root=str(root), spec=spec, before=before)
    return subprocess.Popen([sys.executable, "-c", code])


def kill_when(process: subprocess.Popen, appears: str, root: Path) -> None:
    """SIGKILL as soon as a file matching the pattern exists."""
    deadline = time.monotonic() + 60
    while not list(root.glob(appears)):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
    process.kill()
    process.wait()


@pytest.fixture
def undisturbed(tmp_path_factory):
    def make(spec):
        run = small_run()
        root = tmp_path_factory.mktemp("undisturbed")
        return get(spec, Workspace(Store(root), run.compute, config.JSONLines(), "test")).manifest["checksums"]

    return make


def spec_of(name: str):
    return eval(name, {"experiment": experiment, "run": small_run()})


@pytest.mark.parametrize(
    ("spec", "appears"),
    [
        (TRAIN, "models/*.partial/resume.safetensors"),
        (FEATURIZE, "features/*.partial/resume.json"),
        (QUERIES, "features/*.partial/resume.json"),
    ],
    ids=["training", "featurization", "featurization-of-steps"],
)
def test_killed_in_the_middle_and_resumed_is_bit_identical(workspace, undisturbed, spec, appears):
    kill_when(child(workspace.store.root, spec), appears, workspace.store.root)
    assert workspace.store.find(spec_of(spec)) is None
    assert list(workspace.store.root.glob(appears)), "the interrupted work is kept"
    assert get(spec_of(spec), workspace).manifest["checksums"] == undisturbed(spec_of(spec))
    assert not list(workspace.store.root.glob("*/*/resume.*"))


def test_a_dense_projection_killed_in_the_middle_and_resumed_is_bit_identical(workspace, undisturbed, monkeypatch):
    spec = f"dataclasses.replace({FEATURIZE}, projection=config.Projection.gaussian)"
    monkeypatch.setattr("journey.stages.featurize._at_once", lambda *_: 20)  # several blocks, several times
    before = "import dataclasses; from journey.stages import featurize; featurize._at_once = lambda *_: 20"
    kill_when(child(workspace.store.root, spec, before), "features/*.partial/resume.json", workspace.store.root)
    dense = dataclasses.replace(spec_of(FEATURIZE), projection=config.Projection.gaussian)
    assert workspace.store.find(dense) is None
    assert get(dense, workspace).manifest["checksums"] == undisturbed(dense)


def test_killed_in_a_stage_without_checkpoints_and_done_again_is_bit_identical(workspace, undisturbed):
    kill_when(child(workspace.store.root, SAMPLE), "journeys/*.partial/x0_hat.npy", workspace.store.root)
    assert get(spec_of(SAMPLE), workspace).manifest["checksums"] == undisturbed(spec_of(SAMPLE))


@pytest.mark.parametrize("moment", ["store.os.rename", "store.checksum", "store._fsync", "store.write_json", "store.os.replace"])
def test_killed_in_a_commit_and_resumed_is_bit_identical(workspace, undisturbed, moment):
    before = f"{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    process = child(workspace.store.root, TRAIN, before)
    assert process.wait(60) == -signal.SIGKILL
    assert workspace.store.find(spec_of(TRAIN)) is None
    assert get(spec_of(TRAIN), workspace).manifest["checksums"] == undisturbed(spec_of(TRAIN))


def test_second_call_reads_what_the_first_made(workspace, monkeypatch):
    spec = spec_of(TRAIN)
    made = get(spec, workspace)
    monkeypatch.setattr("journey.stages.train.run", lambda *_: pytest.fail("made again"))
    again = get(spec, Workspace(Store(workspace.store.root), workspace.compute, workspace.tracking, "other"))
    assert again.manifest == made.manifest
    assert made.manifest["contents"]["training"]["num_steps"] == 150


def fresh(workspace) -> Store:
    return Store(workspace.store.root)


def test_other_settings_are_refused_with_the_difference(workspace):
    made = get(spec_of(TRAIN), workspace)
    manifest = json.loads((made.path / MANIFEST).read_text())
    manifest["contents"]["training"]["learning_rate"] = 0.5
    write_json(made.path / MANIFEST, manifest)
    with pytest.raises(StoreError, match=r"training\.learning_rate: stored 0\.5, wanted 0\.001"):
        fresh(workspace).find(spec_of(TRAIN))


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_damage_is_refused_by_name(workspace, damage):
    made = get(spec_of(TRAIN), workspace)
    payload = made.path / "diffusion_pytorch_model.safetensors"
    content = bytearray(payload.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        payload.write_bytes(content)
    elif damage == "truncate":
        payload.write_bytes(content[:100])
    elif damage == "delete":
        payload.unlink()
    else:
        (made.path / MANIFEST).write_text('{"contents": {')
    with pytest.raises(StoreError, match=f"{MANIFEST if damage == 'manifest' else payload.name}|unreadable manifest"):
        fresh(workspace).find(spec_of(TRAIN))


@pytest.mark.parametrize("room", [100, 100_000])
def test_a_disk_without_room_loses_nothing(workspace, undisturbed, room):
    """The kernel refuses to write more than so many bytes: in the log of metrics, and in the middle of the checkpoint."""
    before = (
        "import resource; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    )
    assert child(workspace.store.root, TRAIN, before).wait(60) == 1
    assert workspace.store.find(spec_of(TRAIN)) is None
    assert get(spec_of(TRAIN), workspace).manifest["checksums"] == undisturbed(spec_of(TRAIN))


def test_what_a_kill_left_half_written_is_no_part_of_the_artifact(workspace, undisturbed):
    partial = workspace.store.root / (specs.address(spec_of(TRAIN)) + ".partial")
    partial.mkdir(parents=True)
    for name in ("manifest.json.tmp", "resume.tmp", "resume.json.tmp"):
        (partial / name).write_text("{")
    assert get(spec_of(TRAIN), workspace).manifest["checksums"] == undisturbed(spec_of(TRAIN))


def test_two_runs_at_once_make_it_once(workspace, undisturbed):
    first, second = (child(workspace.store.root, TRAIN) for _ in range(2))
    assert first.wait(60) == second.wait(60) == 0
    assert [p.name for p in (workspace.store.root / "models").iterdir()] == [specs.address(spec_of(TRAIN)).split("/")[1]]
    assert fresh(workspace).find(spec_of(TRAIN)).manifest["checksums"] == undisturbed(spec_of(TRAIN))


def test_a_second_rename_is_dropped(workspace):
    spec = spec_of(TRAIN)
    made = get(spec, workspace)
    late = made.path.with_name("late")
    late.mkdir()
    assert workspace.store.commit(spec, late, 0.0).manifest == made.manifest
    assert not late.exists()


def test_address_changes_with_settings_and_parents_and_nothing_else():
    run = small_run()
    one = experiment.evaluate(run)
    same = small_run(compute=config.Compute(workers=7, device="cuda"), name="x", artifacts="elsewhere")
    assert specs.address(experiment.evaluate(same)) == specs.address(one)
    for changes in (
        {"seed": 1},
        {"training": config.Training(num_steps=151, batch_size=16, warmup_steps=4)},
        {"compute": config.Compute(precision=config.Precision.bf16)},
    ):
        other = small_run(**changes)
        for make in (lambda r: experiment.full_model(r, 0), experiment.journeys, experiment.evaluate):
            assert specs.address(make(other)) != specs.address(make(run))


def test_more_subsets_reuse_the_first_ones():
    def addresses(count):
        run = small_run(evaluation=config.LDS(num_subsets=count, num_draws=4, paired_steps=[600]))
        return [specs.address(m[0]) for m in experiment.evaluate(run).outputs]

    assert addresses(8)[:6] == addresses(6)


def test_differences_name_each_leaf():
    stored, wanted = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert differences(stored, wanted) == [
        "a.c: stored 2, wanted 5",
        "d: stored 3, wanted (nothing)",
        "e: stored (nothing), wanted 4",
    ]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()
