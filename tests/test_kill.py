"""Every long stage, killed in the middle and resumed, ends bit-identical to an undisturbed run.

tests/engine/ kills the store itself.
"""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import miniatures
import pytest
from commands import CHILDREN
from conftest import journey_trak, small_run

from journey.attribution import features, gradients, kronecker
from journey.attribution.adjoint import stage as adjoint_stage
from journey.attribution.magic import Magic
from journey.attribution.unlearning import Unlearning
from journey.config.run import RunConfig
from journey.data.coco import COCO
from journey.data.embedded import Digits
from journey.diffusion import autoencoder, sampling, train
from journey.diffusion.latent import LatentDiffusion
from journey.engine.resume import Clock
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

DIGITS = small_run(
    dataset=Digits(num_train=20), training=Training(num_steps=12, batch_size=16, warmup_steps=4)
)
TEXT = small_run(
    dataset=COCO(size=32),
    model=LatentDiffusion(
        block_out_channels=[8, 16],
        autoencoder=Autoencoding(
            num_steps=6, batch_size=4, warmup_steps=1, block_out_channels=[8, 8]
        ),
    ),
    training=Training(num_steps=6, batch_size=4, warmup_steps=1, caption_dropout=0.5),
)
CODED = {
    "kernel": Kernel.ekfac,
    "projection": Projection.kronecker,
    "projection_rank": 4,
    "storage": Storage.int8,
}


def text_run(root: Path) -> RunConfig:
    """Return a run of text whose images are beside a store."""
    return replace(TEXT, dataset=replace(TEXT.dataset, root=str(root.parent / "coco")))


def spec_of(name: str, root: Path) -> Spec:
    """Return the artifact of a stage."""
    digits, text = (load_experiment(run, Store(root)) for run in (DIGITS, text_run(root)))

    def features_of(**changes):
        return digits.scores(journey_trak(**changes)).inputs

    match name:
        case "training":
            return digits.checkpoint(0)
        case "intermediate":
            trajectory = features_of(ensemble=Ensemble.run, num_checkpoints=2)
            return trajectory.train[1][0].checkpoint
        case "sampling":
            return digits.trajectories
        case "featurization":
            return features_of().train[0][0]
        case "featurization of queries":
            return features_of().queries[0]
        case "kronecker":
            return features_of(**CODED).train[0][0]
        case "dense":
            return features_of(projection=Projection.gaussian).train[0][0]
        case "autoencoder":
            return text.latents.autoencoder
        case "encoding":
            return text.latents
        case "training on captions":
            return text.checkpoint(0)
        case "unlearning":
            method = Unlearning(num_samples=4, target=Target.final_sample)
            return digits.scores(method).inputs.increases[0]
        case "magic":
            return digits.scores(Magic(num_samples=4)).inputs.scores[0][0]


def use_several_blocks(name: str, set_attribute: Callable[[object, str, object], None]) -> None:
    """Let a stage process its rows in blocks, after each of which it can be killed."""
    for module, number in ((train, "LOG_INTERVAL"), (autoencoder, "LOG_STEPS")):
        set_attribute(module, number, 2)
    set_attribute(autoencoder, "BATCH_ENCODE", 2)
    set_attribute(sampling, "QUERY_BATCH", 2)
    if name.startswith("featurization") or name == "dense":
        set_attribute(gradients, "ACTIVATIONS", {**gradients.ACTIVATIONS, "vmap": 1})
    if name == "dense":
        set_attribute(features, "_shares", lambda *_: (5, 1.5))
    if name == "adjoint":
        set_attribute(adjoint_stage, "VMAP_BATCHES", (1,))
    if name == "kronecker":
        set_attribute(kronecker, "ACTIVATIONS", 2**20)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a store that all tests share: each removes only the artifact that it computes."""
    root = tmp_path_factory.mktemp("kill") / "store"
    miniatures.coco(root.parent / "coco")
    return root


def make(name: str, root: Path) -> dict:
    """Return the checksums of an artifact."""
    workspace = Workspace(Store(root), DIGITS.compute, DIGITS.tracking, "test")
    return get(spec_of(name, root), workspace).manifest["checksums"]


def make_in_child(name: str, root: Path, before: Callable[[], object]) -> int | None:
    """Compute an artifact in a process, and return its exit code."""
    process = CHILDREN.Process(target=_make, args=(name, root, before))
    process.start()
    process.join(1800)
    return process.exitcode


def _make(name: str, root: Path, before: Callable[[], object]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    use_several_blocks(name, setattr)
    before()
    make(name, root)


def kill_at_second_save() -> None:
    _kill_at_second_call(Clock, "save")


def kill_at_second_batch() -> None:
    _kill_at_second_call(sampling, "trajectory_noise")


def _kill_at_second_call(owner: object, name: str) -> None:
    """Let the second call of a function kill this process before it does anything."""
    function, calls = getattr(owner, name), []

    def wrapper(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    setattr(owner, name, wrapper)


def limit_file_size(num_bytes: int) -> None:
    """Let the kernel refuse to write larger files."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


@pytest.fixture
def undisturbed(root, monkeypatch):
    """Return a function that computes an artifact, removes it, and returns its checksums."""

    def compute(name: str) -> dict:
        use_several_blocks(name, monkeypatch.setattr)
        checksums = make(name, root)
        shutil.rmtree(root / cache_key(spec_of(name, root)))
        return checksums

    return compute


@pytest.mark.parametrize(
    "name",
    [
        "training",
        "intermediate",
        "autoencoder",
        "encoding",
        "training on captions",
        "featurization",
        "featurization of queries",
        "dense",
        "kronecker",
        "unlearning",
        "magic",
    ],
)
def test_killed_in_the_middle_and_resumed_is_bit_identical(root, undisturbed, name):
    """The kill comes with one state saved, and rows, metrics and files of the next one written."""
    expected, spec = undisturbed(name), spec_of(name, root)
    assert make_in_child(name, root, kill_at_second_save) == -signal.SIGKILL
    assert Store(root).find(spec) is None
    assert (root / f"{cache_key(spec)}.partial" / "resume.json").exists()
    assert make(name, root) == expected
    assert not list(root.glob("*/*/resume.*"))


def test_a_stage_without_states_that_was_killed_is_computed_again(root, undisturbed):
    expected, spec = undisturbed("sampling"), spec_of("sampling", root)
    assert make_in_child("sampling", root, kill_at_second_batch) == -signal.SIGKILL
    assert (root / f"{cache_key(spec)}.partial" / "x0_hat.npy").exists()
    assert make("sampling", root) == expected


@pytest.mark.parametrize(("size", "in_a_state"), [(10, False), (100_000, True)])
def test_a_full_disk_loses_nothing(root, undisturbed, size, in_a_state):
    """It fills up in the metrics, or in a state after the first of them."""
    expected, spec = undisturbed("training"), spec_of("training", root)
    assert make_in_child("training", root, partial(limit_file_size, size)) == 1
    assert Store(root).find(spec) is None
    metrics = root / f"{cache_key(spec)}.partial" / "metrics.jsonl"
    assert metrics.read_text().endswith("\n") == in_a_state
    assert make("training", root) == expected
