"""Shared fixtures: real digits, small real networks, and naive loops to compare with."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import command
from hydra import compose, initialize_config_dir

from journey import __main__ as entry
from journey.attribution.gradient import GradientMethod
from journey.attribution.outputs import NoiseSamples, sample_noise
from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas
from journey.config.run import RunConfig
from journey.data.embedded import Digits
from journey.diffusion.ddpm import DDPM
from journey.diffusion.schedule import make_schedule
from journey.engine.graph import missing
from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds import LDS
from journey.experiment import load_experiment
from journey.launch.local import Local
from journey.pipeline.examples import Examples
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Experiment
from journey.pipeline.schedule import NoiseSchedule, Schedule
from journey.pipeline.settings import Prediction, Retraining, Sampler, Sampling, Training
from journey.tracking import JSONLines

if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    # Each of pytest's workers keeps to a core, with all processes that it starts. Workers beyond
    # the number of cores compute where the others wait.
    cores, index = sorted(os.sched_getaffinity(0)), int(worker.removeprefix("gw"))
    if index < len(cores):
        os.sched_setaffinity(0, {cores[index]})

# Files whose tests take more than six seconds of one core: they start processes or train models.
# The slowest come first, here and in a run of all tests, so that no worker ends long after another.
# Before them come those of the pretended device: autograd counts the devices at its first pass.
SLOW = (
    "test_device", "test_waits", "test_counts", "test_full_size", "test_slurm", "test_kill",
    "test_smoke", "test_latent", "test_readme", "test_user_components", "test_compose",
    "test_tracking", "test_no_torch",
    "test_notebooks", "test_redraw", "test_by_hand", "test_api", "test_workers", "test_features",
    "test_counterfactual", "test_external", "test_magic", "test_report", "test_methods",
    "test_local", "test_first_steps", "test_fuzz", "test_store", "test_distributed",
    "test_regions", "test_sign",
    "test_datasets", "test_continuations", "test_localization", "test_weights", "test_traker",
    "test_page", "test_path", "test_logra", "test_rates", "test_emergence", "test_sampling",
    "test_training", "test_storage", "test_methods_table", "test_run", "test_foreign_files",
    "test_classes", "test_released", "test_schedulers", "test_pipelines",
    "test_folders", "test_accelerator", "test_words", "test_foreign", "test_damage", "test_texts",
    "test_plan", "test_submission", "test_replay",
)  # fmt: skip


def pytest_addoption(parser) -> None:
    parser.addoption("--device", default="cpu", help="accelerator of tests/device, such as cuda")


def pytest_collection_modifyitems(items) -> None:
    """Mark the tests that `make fast` leaves out, and begin with them."""
    order = {name: place for place, name in enumerate(SLOW)}
    for item in items:
        if item.path.stem in order:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    return Digits(num_train=200).load()[0]


@pytest.fixture(scope="session")
def model() -> DDPM:
    return DDPM(block_out_channels=[8, 16])


@pytest.fixture(scope="session")
def clean(digits, model) -> Examples:
    return model.encode(digits)


@pytest.fixture(scope="session")
def linear_schedule() -> Schedule:
    return make_schedule(NoiseSchedule(), 1000, Prediction.noise, torch.device("cpu"))


@pytest.fixture
def net(model) -> torch.nn.Module:
    torch.manual_seed(0)
    return model.build((1, 8, 8)).eval()


@pytest.fixture(scope="session")
def draws() -> NoiseSamples:
    return sample_noise((0, 1000), 6, (1, 8, 8), seed=0, purpose="test")


def naive_loss(net, noise_schedule, x0, t, eps, condition=None) -> torch.Tensor:
    """Return the denoising loss of one example and one noise sample."""
    alpha_bar = noise_schedule.signal_squared[t].float()
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    inputs = (x_t[None], t[None]) if condition is None else (x_t[None], t[None], condition[None])
    return ((eps - net(*inputs).sample[0]) ** 2).mean()


def naive_gradient(net, noise_schedule, x0, draws, condition=None) -> torch.Tensor:
    """Return the gradient [d] of one example, averaged over noise samples, by backward passes."""
    total = 0
    for t, eps in zip(draws.t, draws.eps, strict=True):
        net.zero_grad()
        naive_loss(net, noise_schedule, x0, t, eps, condition).backward()
        total = total + torch.cat([p.grad.flatten() for p in net.parameters()])
    return total / len(draws)


def journey_trak(**changes) -> GradientMethod:
    """Return Journey-TRAK with small settings."""
    settings = {
        "num_checkpoints": 1,
        "num_samples": 8,
        "projection_dim": 256,
        "damping": [0.1, 1.0],
    }
    return GradientMethod(**{**settings, **changes})


@dataclass
class InThisProcess(Local):
    """Computes in this process, which has imported everything."""

    def make(self, targets: list[Spec], workspace: Workspace) -> Iterator[Spec]:
        for spec in missing(targets, lambda spec: workspace.store.find(spec) is not None).values():
            get(spec, workspace)
            yield spec


def small_run(**changes) -> RunConfig:
    """Return a run of seconds: the real stages on 60 digits and 8-channel networks."""
    settings = {
        "dataset": Digits(num_train=60),
        "model": DDPM(block_out_channels=[8, 16]),
        "training": Training(num_steps=150, batch_size=16, warmup_steps=4),
        "sampling": Sampling(Sampler.ddim, 50, num_queries=4, steps=[600, 300]),
        "method": {"journey": journey_trak()},
        "retraining": Retraining(num_subsets=8, num_samples=4),
        "evaluation": LDS(num_bootstrap=100, paired_steps=[600, 300]),
        "compute": InThisProcess(checkpoint_seconds=0),
        "tracking": JSONLines(),
    }
    return RunConfig(**{**settings, **changes})


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    run = small_run()
    return Workspace(Store(tmp_path / "store"), run.compute, run.tracking, "test")


@pytest.fixture
def small(workspace) -> Experiment:
    """Return the experiment of the small run."""
    return load_experiment(small_run(), workspace.store)


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory) -> Path:
    """Return a store with the first model of the small run, and its trajectories."""
    run, store = small_run(), Store(tmp_path_factory.mktemp("trained") / "store")
    workspace = Workspace(store, run.compute, run.tracking, "test")
    get(load_experiment(run, store).trajectories, workspace)
    return store.root


@pytest.fixture
def trained(small, workspace, trained_store) -> Experiment:
    """Return the experiment of the small run, whose first model is trained."""
    shutil.copytree(trained_store, workspace.store.root, dirs_exist_ok=True)
    return small


TINY = (
    "experiment=smoke",
    "dataset.num_train=60",
    "training={num_steps:4,batch_size:16,warmup_steps:1}",
    "retraining.num_samples=4",
    "sampling={num_inference_steps:5,num_queries:4,steps:[600,200]}",
    "evaluation.paired_steps=[600]",
    "evaluation.num_bootstrap=100",
    "attribution={num_samples:2,projection_dim:64}",
)
"""The smallest experiment: most of its time is the start of processes."""


@functools.cache
def composed(*words: str) -> RunConfig:
    """Return the run of a command's words, which nobody may change."""
    register_schemas(COMPONENTS)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("config", list(words)))


def refused(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Return the line that a command is refused with, in this process."""
    monkeypatch.setattr("sys.argv", ["journey", *words])
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    text = str(stopped.value)
    assert text.startswith("error: ")
    assert "\n" not in text
    return text


def python(directory: Path, *words: str) -> subprocess.CompletedProcess:
    """Run Python in a directory, in a new process."""
    words = [sys.executable, *words]
    return subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=1800)


def succeeds(done: subprocess.CompletedProcess) -> str:
    """Return the output of a process, which must have succeeded."""
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[Path, str]:
    """Return a directory with the smallest experiment and its report, and the command's output."""
    directory = tmp_path_factory.mktemp("tiny")
    return directory, succeeds(command(directory, *TINY))
