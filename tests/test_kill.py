"""Every long stage, killed in the middle and resumed, ends bit-identical to an undisturbed run.

tests/engine/ kills the store itself.
"""

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

RUNS = {
    "digits": small_run(),
    "short": small_run(training=Training(num_steps=12, batch_size=16, warmup_steps=4)),
    "text": small_run(
        dataset=Twemoji(num_train=300),
        model=LatentDiffusion(
            block_out_channels=[8, 16],
            autoencoder=Autoencoding(num_steps=150, batch_size=4, block_out_channels=[8, 8]),
        ),
        training=Training(num_steps=150, batch_size=4, caption_dropout=0.5),
    ),
}
CODED = {
    "kernel": Kernel.ekfac,
    "projection": Projection.kronecker,
    "projection_rank": 4,
    "storage": Storage.int8,
}


def spec_of(name: str, root: Path) -> Spec:
    """Return the artifact of a stage."""
    digits, short, text = (load_experiment(run, Store(root)) for run in RUNS.values())

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
            return short.scores(Magic(num_samples=4)).inputs.scores[0][0]


def use_several_blocks(name: str, set_attribute: Callable[[object, str, object], None]) -> None:
    """Let a stage process its rows in blocks, after each of which it can be killed."""
    if name.startswith("featurization") or name == "dense":
        set_attribute(gradients, "ACTIVATIONS", {**gradients.ACTIVATIONS, "vmap": 1})
    if name == "dense":
        set_attribute(features, "_at_once", lambda *_: 20)
    if name == "kronecker":
        set_attribute(kronecker, "ACTIVATIONS", 2**20)


def make(name: str, root: Path) -> dict:
    """Return the checksums of an artifact."""
    run = small_run()
    workspace = Workspace(Store(root), run.compute, run.tracking, "test")
    return get(spec_of(name, root), workspace).manifest["checksums"]


def child(name: str, root: Path, before: Callable[[], object] = int) -> ForkServerProcess:
    """Start a process that computes an artifact."""
    process = CHILDREN.Process(target=_make_quietly, args=(name, root, before))
    process.start()
    return process


def _make_quietly(name: str, root: Path, before: Callable[[], object]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    before()
    use_several_blocks(name, setattr)
    make(name, root)


def kill_when(process: ForkServerProcess, path: Path) -> None:
    """Kill a process as soon as a file exists."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.exitcode is None, "finished before it could be killed"
        assert time.monotonic() < deadline
    process.kill()
    process.join()


def exit_code(process: ForkServerProcess) -> int | None:
    process.join(120)
    return process.exitcode


def limit_file_size(num_bytes: int) -> None:
    """Let the kernel refuse to write larger files."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    return lambda name: make(name, root)


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
def test_killed_in_the_middle_and_resumed_is_bit_identical(root, undisturbed, monkeypatch, name):
    spec = spec_of(name, root)
    state = root / f"{cache_key(spec)}.partial" / "resume.json"
    kill_when(child(name, root), state)
    assert Store(root).find(spec) is None
    assert state.exists()
    use_several_blocks(name, monkeypatch.setattr)
    assert make(name, root) == undisturbed(name)
    assert not list(root.glob("*/*/resume.*"))


def test_a_stage_without_states_that_was_killed_is_computed_again(root, undisturbed):
    partial = root / f"{cache_key(spec_of('sampling', root))}.partial"
    kill_when(child("sampling", root), partial / "x0_hat.npy")
    assert make("sampling", root) == undisturbed("sampling")


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_full_disk_loses_nothing(root, undisturbed, size):
    """It fills up in the metrics, or in a state."""
    images = load_experiment(small_run(), Store(root)).images
    get(images, Workspace(Store(root), None, None, "test"))
    assert exit_code(child("training", root, partial(limit_file_size, size))) == 1
    assert Store(root).find(spec_of("training", root)) is None
    assert make("training", root) == undisturbed("training")
