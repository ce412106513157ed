"""Killed in the middle, every stage that takes long ends bit-identical to an undisturbed run. tests/artifacts/ has the rest."""

import dataclasses
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from conftest import CHILDREN, journey_trak, small_run

from journey.attribution import features, gradients, kronecker
from journey.attribution.magic import Magic
from journey.attribution.unlearning import Unlearning
from journey.config.run import RunConfig
from journey.data.embedded import Twemoji
from journey.diffusion.latent import LatentDiffusion
from journey.engine.spec import Spec, cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.pipeline.settings import (
    Autoencoding,
    Ensemble,
    Kernel,
    Projection,
    Storage,
    Target,
    Training,
)


def prompted_run() -> RunConfig:
    """A small run of a text-to-image model."""
    return small_run(
        dataset=Twemoji(num_train=300),
        model=LatentDiffusion(
            block_out_channels=[8, 16],
            autoencoder=Autoencoding(num_steps=150, batch_size=4, block_out_channels=[8, 8]),
        ),
        training=Training(num_steps=150, batch_size=4, caption_dropout=0.5),
    )


def spec_of(name: str, root: Path) -> Spec:
    short = small_run(training=Training(num_steps=12, batch_size=16, warmup_steps=4))
    of, prompted, short = (
        load_experiment(run, Store(root)) for run in (small_run(), prompted_run(), short)
    )
    features = of.scores(journey_trak()).inputs
    coded = journey_trak(
        kernel=Kernel.ekfac,
        projection=Projection.kronecker,
        projection_rank=4,
        storage=Storage.int8,
    )
    snapshots = of.scores(journey_trak(ensemble=Ensemble.run, num_checkpoints=2)).inputs.train
    specs = {
        "training": of.checkpoint(0),
        "snapshot": snapshots[1][0].checkpoint,
        "sampling": of.trajectories,
        "featurization": features["train"][0][0],
        "featurization-of-steps": features["queries"][0],
        "kronecker": of.scores(coded).inputs.train[0][0],
        "dense": dataclasses.replace(features["train"][0][0], projection=Projection.gaussian),
        "autoencoder": prompted.latents.autoencoder,
        "encoding": prompted.latents,
        "training-on-captions": prompted.checkpoint(0),
        "unlearning": of.scores(
            Unlearning(num_samples=4, target=Target.final_sample)
        ).inputs.increases[0],
        "metagradient": short.score(Magic(num_samples=4)).inputs.scores[0][0],
    }
    return specs[name]


def make(name: str, root: Path) -> dict:
    """The artifact's checksums."""
    run = small_run()
    return get(
        spec_of(name, root), Workspace(Store(root), run.compute, run.tracking, "test")
    ).manifest["checksums"]


def child(name: str, root: Path, before: Callable[[], object] = int) -> ForkServerProcess:
    """A process that makes an artifact, after something else."""
    process = CHILDREN.Process(target=_make_quietly, args=(name, root, before))
    process.start()
    return process


def _make_quietly(name: str, root: Path, before: Callable[[], object]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    before()
    make(name, root)


def kill_when(process: ForkServerProcess, appears: str, root: Path) -> None:
    """SIGKILL as soon as a file matching the pattern exists."""
    deadline = time.monotonic() + 120
    while not list(root.glob(appears)):
        assert process.exitcode is None, "finished before it could be killed"
        assert time.monotonic() < deadline
    process.kill()
    process.join()


def ended(process: ForkServerProcess) -> int | None:
    """How it ended by itself, in time."""
    process.join(120)
    return process.exitcode


# ------------------------------------------------------------------------------------- what children do before


def several_blocks() -> None:
    gradients.ACTIVATIONS["vmap"] = 1


def several_blocks_at_once() -> None:
    several_blocks()
    _at_once = lambda *_: 20


def several_kronecker_blocks() -> None:
    kronecker.ACTIVATIONS = 2**20


def no_room(num_bytes: int) -> None:
    """The kernel refuses to write files of more than so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


# ------------------------------------------------------------------------------------------------------- tests


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
def test_killed_in_the_middle_and_resumed_is_bit_identical(
    root, undisturbed, monkeypatch, name, appears
):
    in_blocks = name.startswith("featurization")
    if in_blocks:
        monkeypatch.setitem(gradients.ACTIVATIONS, "vmap", 1)
    kill_when(child(name, root, several_blocks if in_blocks else int), appears, root)
    spec = spec_of(name, root)
    assert Store(root).find(spec) is None
    assert list(root.glob(appears)), "the interrupted work is kept"
    assert make(name, root) == (
        make(name, root.with_name("alone")) if in_blocks else undisturbed(name)
    )
    assert not list(root.glob("*/*/resume.*"))


def test_a_dense_projection_killed_in_the_middle_and_resumed_is_bit_identical(root, monkeypatch):
    monkeypatch.setitem(gradients.ACTIVATIONS, "vmap", 1)
    monkeypatch.setattr(features, "_at_once", lambda *_: 20)  # several blocks, several times
    kill_when(child("dense", root, several_blocks_at_once), "features/*.partial/resume.json", root)
    assert Store(root).find(spec_of("dense", root)) is None
    assert make("dense", root) == make("dense", root.with_name("alone"))


def test_codes_of_a_kronecker_projection_killed_in_the_middle_and_resumed_is_bit_identical(
    root, monkeypatch
):
    monkeypatch.setattr(kronecker, "ACTIVATIONS", 2**20)  # several blocks
    kill_when(
        child("kronecker", root, several_kronecker_blocks), "features/*.partial/resume.json", root
    )
    assert Store(root).find(spec_of("kronecker", root)) is None
    assert make("kronecker", root) == make("kronecker", root.with_name("alone"))


def test_killed_in_a_stage_without_checkpoints_and_done_again_is_bit_identical(root, undisturbed):
    kill_when(child("sampling", root), "journeys/*.partial/x0_hat.npy", root)
    assert make("sampling", root) == undisturbed("sampling")


@pytest.mark.parametrize("room", [100, 100_000])
def test_a_disk_without_room_loses_nothing(root, undisturbed, room):
    """In the log of metrics, and in the middle of the checkpoint."""
    get(
        load_experiment(small_run(), Store(root)).images, Workspace(Store(root), None, None, "test")
    )
    assert ended(child("training", root, partial(no_room, room))) == 1
    assert Store(root).find(spec_of("training", root)) is None
    assert make("training", root) == undisturbed("training")


def test_what_a_kill_left_half_written_is_no_part_of_the_artifact(root, undisturbed):
    unfinished = root / (cache_key(spec_of("training", root)) + ".partial")
    unfinished.mkdir(parents=True)
    for name in ("manifest.json.1.tmp", "resume.50.tmp", "resume.json.1.tmp"):
        (unfinished / name).write_text("{")
    assert make("training", root) == undisturbed("training")


def test_two_runs_at_once_make_it_once(root, undisturbed):
    first, second = (child("training", root) for _ in range(2))
    assert ended(first) == ended(second) == 0
    spec = spec_of("training", root)
    assert [p.name for p in (root / "models").iterdir()] == [cache_key(spec).split("/")[1]]
    assert Store(root).find(spec).manifest["checksums"] == undisturbed("training")
