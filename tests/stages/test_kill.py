"""Killed in the middle, every stage that takes long ends bit-identical to an undisturbed run. tests/artifacts/ has the rest."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import journey_trak, small_run

from journey.artifacts.graph import address
from journey.artifacts.specs import Spec
from journey.artifacts.store import Store
from journey.artifacts.workspace import Workspace, get
from journey.attribution import gradients, kronecker
from journey.attribution.methods.magic import Magic
from journey.attribution.methods.unlearning import Unlearning
from journey.config.groups import At, Autoencoding, Ensemble, Projection, Storage, Training
from journey.config.settings import Config
from journey.data.twemoji import Twemoji
from journey.diffusion.latent import LatentDiffusion
from journey.experiment import recipes
from journey.stages import featurize

HERE = Path(__file__).parent
CHILD = """
import signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import test_kill
{before}
test_kill.make({name!r}, Path({root!r}))
"""


def prompted_run() -> Config:
    """A small run of a text-to-image model."""
    return small_run(
        dataset=Twemoji(num_train=300),
        model=LatentDiffusion(
            block_out_channels=[8, 16], autoencoder=Autoencoding(num_steps=150, batch_size=4, block_out_channels=[8, 8])
        ),
        training=Training(num_steps=150, batch_size=4, caption_dropout=0.5),
    )


def spec_of(name: str, root: Path) -> Spec:
    short = small_run(training=Training(num_steps=12, batch_size=16, warmup_steps=4))
    of, prompted, short = (recipes(run, Store(root)) for run in (small_run(), prompted_run(), short))
    features = of.score(journey_trak()).needs
    coded = journey_trak(projection=Projection.kronecker, projection_rows=4, storage=Storage.int8)
    snapshots = of.score(journey_trak(ensemble=Ensemble.run, num_checkpoints=2)).needs["train"]
    specs = {
        "training": of.trained(0),
        "snapshot": snapshots[1][0].checkpoint,
        "sampling": of.journeys,
        "featurization": features["train"][0][0],
        "featurization-of-steps": features["queries"][0],
        "kronecker": of.score(coded).needs["train"][0][0],
        "dense": dataclasses.replace(features["train"][0][0], projection=Projection.gaussian),
        "autoencoder": prompted.encoded.autoencoder,
        "encoding": prompted.encoded,
        "training-on-captions": prompted.trained(0),
        "unlearning": of.score(Unlearning(num_draws=4, at=At.destination)).needs["rises"][0],
        "metagradient": short.score(Magic(num_draws=4)).needs["scores"][0][0],
    }
    return specs[name]


def make(name: str, root: Path) -> dict:
    """The artifact's checksums."""
    run = small_run()
    return get(spec_of(name, root), Workspace(Store(root), run.compute, run.tracking, "test")).manifest["checksums"]


def child(name: str, root: Path, before: str = "") -> subprocess.Popen:
    code = CHILD.format(paths=[str(HERE), str(HERE.parent)], name=name, root=str(root), before=before)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def kill_when(process: subprocess.Popen, appears: str, root: Path) -> None:
    """SIGKILL as soon as a file matching the pattern exists."""
    deadline = time.monotonic() + 120
    while not list(root.glob(appears)):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
    process.kill()
    process.wait()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    return lambda name: make(name, root)


@pytest.mark.parametrize(
    ("name", "appears"),
    [
        ("training", "models/*.partial/resume.json"),
        ("snapshot", "snapshots/*.partial/resume.json"),
        ("autoencoder", "autoencoders/*.partial/resume.json"),
        ("encoding", "encoded/*.partial/resume.json"),
        ("training-on-captions", "models/*.partial/resume.json"),
        ("featurization", "features/*.partial/resume.json"),
        ("featurization-of-steps", "features/*.partial/resume.json"),
        ("unlearning", "unlearned/*.partial/resume.json"),
        ("metagradient", "metagradients/*.partial/resume.json"),
    ],
)
def test_killed_in_the_middle_and_resumed_is_bit_identical(root, undisturbed, monkeypatch, name, appears):
    before = ""
    if name.startswith("featurization"):  # several blocks
        monkeypatch.setitem(gradients.ACTIVATIONS, "vmap", 1)
        before = "test_kill.gradients.ACTIVATIONS['vmap'] = 1"
    kill_when(child(name, root, before), appears, root)
    spec = spec_of(name, root)
    assert Store(root).find(spec) is None
    assert list(root.glob(appears)), "the interrupted work is kept"
    assert make(name, root) == (make(name, root.with_name("alone")) if before else undisturbed(name))
    assert not list(root.glob("*/*/resume.*"))


def test_a_dense_projection_killed_in_the_middle_and_resumed_is_bit_identical(root, monkeypatch):
    monkeypatch.setitem(gradients.ACTIVATIONS, "vmap", 1)
    monkeypatch.setattr(featurize, "_at_once", lambda *_: 20)  # several blocks, several times
    before = "test_kill.gradients.ACTIVATIONS['vmap'] = 1; test_kill.featurize._at_once = lambda *_: 20"
    kill_when(child("dense", root, before), "features/*.partial/resume.json", root)
    assert Store(root).find(spec_of("dense", root)) is None
    assert make("dense", root) == make("dense", root.with_name("alone"))


def test_codes_of_a_kronecker_projection_killed_in_the_middle_and_resumed_is_bit_identical(root, monkeypatch):
    monkeypatch.setattr(kronecker, "ACTIVATIONS", 2**20)  # several blocks
    kill_when(child("kronecker", root, "test_kill.kronecker.ACTIVATIONS = 2**20"), "features/*.partial/resume.json", root)
    assert Store(root).find(spec_of("kronecker", root)) is None
    assert make("kronecker", root) == make("kronecker", root.with_name("alone"))


def test_killed_in_a_stage_without_checkpoints_and_done_again_is_bit_identical(root, undisturbed):
    kill_when(child("sampling", root), "journeys/*.partial/x0_hat.npy", root)
    assert make("sampling", root) == undisturbed("sampling")


@pytest.mark.parametrize("room", [100, 100_000])
def test_a_disk_without_room_loses_nothing(root, undisturbed, room):
    """The kernel refuses to write more than so many bytes: in the log of metrics, and in the middle of the checkpoint."""
    get(recipes(small_run(), Store(root)).images, Workspace(Store(root), None, None, "test"))
    before = (
        "import resource; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    )
    assert child("training", root, before).wait(120) == 1
    assert Store(root).find(spec_of("training", root)) is None
    assert make("training", root) == undisturbed("training")


def test_what_a_kill_left_half_written_is_no_part_of_the_artifact(root, undisturbed):
    partial = root / (address(spec_of("training", root)) + ".partial")
    partial.mkdir(parents=True)
    for name in ("manifest.json.1.tmp", "resume.50.tmp", "resume.json.1.tmp"):
        (partial / name).write_text("{")
    assert make("training", root) == undisturbed("training")


def test_two_runs_at_once_make_it_once(root, undisturbed):
    first, second = (child("training", root) for _ in range(2))
    assert first.wait(120) == second.wait(120) == 0
    spec = spec_of("training", root)
    assert [p.name for p in (root / "models").iterdir()] == [address(spec).split("/")[1]]
    assert Store(root).find(spec).manifest["checksums"] == undisturbed("training")
