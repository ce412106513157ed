"""The loops of training, sampling and measuring do not wait for an accelerator, but to log."""

import itertools
from collections import Counter
from dataclasses import replace

import miniatures
import pretended
import pytest
import torch
from conftest import small_run
from waits import counted_waits

from journey.diffusion import train, training
from journey.diffusion.ddpm import DDPM
from journey.diffusion.latent import LatentDiffusion
from journey.diffusion.text import LazyCaptions, TextEncoder
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.experiment import load_experiment
from journey.launch.local import Local
from journey.pipeline.examples import Examples
from journey.pipeline.interfaces import Model
from journey.pipeline.settings import Batching, Retraining, Sampler, Sampling, Training

SETTINGS = Training(num_steps=20, batch_size=8, warmup_steps=4, ema_decay=0.9, flip=True)
PIXELS = DDPM(block_out_channels=[8, 16], dropout=0.1)
NUM_IMAGES, L = 20, 6


@pytest.fixture(scope="module")
def device(request) -> str:
    return pretended.accelerator(request.config.getoption("--device"))


def state_and_inputs(model: Model, examples: Examples, settings: Training, device: str):
    """Return a training before its first step, as `train.start` returns it."""
    training.initialise(0, "test")
    network = model.build(examples.shape).to(device, memory_format=torch.channels_last)
    state, rows = training.new_state(network, settings), torch.arange(0, NUM_IMAGES, 2)
    sizes = (NUM_IMAGES, settings.batch_size, 1000)
    latents = examples.deviation is not None
    batches = training.Batches(Batching.coupled, rows, *sizes, 0, "test", latents)
    null = None if examples.condition is None else torch.zeros(examples.condition.shape[2:])
    schedule = model.schedule(torch.device(device))
    inputs = (examples.to(torch.device(device)), batches, settings, Precision.bf16, schedule)
    return state, training.TrainingInputs(
        *inputs, null_condition=null if null is None else null.to(device)
    )


def text_model(width: int) -> LatentDiffusion:
    return LatentDiffusion(block_out_channels=[8, 16], context_width=width)


@pytest.fixture(params=["pixels", "text states", "captions"])
def case(request, tmp_path) -> tuple[Model, Examples, Training]:
    """A model, its examples, and how it is trained."""
    if request.param == "pixels":
        return PIXELS, Examples(torch.rand(NUM_IMAGES, 1, 8, 8)), SETTINGS
    x0, settings = torch.randn(NUM_IMAGES, 4, 4, 4), replace(SETTINGS, caption_dropout=0.3)
    if request.param == "text states":
        condition = torch.randn(NUM_IMAGES, 2, L, 32)
    else:
        miniatures.pipeline(tmp_path)
        encoder = TextEncoder.from_pipeline(tmp_path, L)
        tokens = torch.stack(encoder.tokens(["a dog", "two dogs on a bench"] * NUM_IMAGES))
        condition = LazyCaptions(tokens.unflatten(1, (NUM_IMAGES, 2)), encoder)
    return (
        text_model(condition.shape[-1]),
        Examples(x0, torch.rand_like(x0), condition),
        settings,
    )


def test_a_training_step_waits_for_nothing(device, case):
    model, examples, settings = case
    state, inputs = state_and_inputs(model, examples, settings, device)
    steps = training.train(state, inputs, 1000)
    for _ in itertools.islice(steps, 2):
        pass
    with counted_waits(device) as waits:
        for _ in itertools.islice(steps, 5):
            pass
    assert waits == Counter()


def test_what_waits_is_counted(device):
    x = torch.rand(4)
    with counted_waits(device) as waits:
        for _ in range(3):
            on_device = x.to(device)  # of memory that is not pinned
        torch.isfinite(on_device).all().item()
        on_device[on_device > 0]
        x.pin_memory().to(device, non_blocking=True)
    assert waits.total() == 5


def waits_of(root, device: str, name: str, **changes) -> int:
    """Return the waits of the stage that computes an artifact of a small run."""
    run = small_run(**changes)
    on_cpu = Workspace(Store(root), Local(), run.tracking, "test")
    experiment = load_experiment(run, on_cpu.store)
    checkpoint, trajectories = experiment.checkpoint(0), experiment.trajectories
    needed = {"train": experiment.images, "sample": checkpoint, "measure": trajectories}
    get(needed[name], on_cpu)
    on_device = replace(on_cpu, compute=Local(device=device))
    specs = {"train": checkpoint, "sample": trajectories, "measure": experiment.outputs(checkpoint)}
    with counted_waits(device) as waits:
        get(specs[name], on_device)
    return waits.total()


def test_a_training_waits_where_it_logs(device, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "LOG_INTERVAL", 5)
    counts = []
    for steps in (10, 20):
        settings = replace(SETTINGS, num_steps=steps)
        counts.append(waits_of(tmp_path / str(steps), device, "train", training=settings))
    assert counts[1] - counts[0] == 2


def test_sampling_waits_at_stored_steps_only(device, tmp_path):
    counts = []
    for steps in (10, 20):
        sampling = Sampling(Sampler.ddpm, steps, num_queries=4, steps=[600, 300])
        few = {"training": SETTINGS, "sampling": sampling}
        counts.append(waits_of(tmp_path / str(steps), device, "sample", **few))
    assert counts[0] == counts[1]


def test_measuring_waits_once_for_all_queries_of_a_step(device, tmp_path):
    counts = []
    for num_samples in (64, 256):  # 16 queries in one batch, or four
        sampling = Sampling(Sampler.ddim, 10, num_queries=16, steps=[600, 300])
        retraining = Retraining(num_samples=num_samples)
        few = {"training": SETTINGS, "sampling": sampling, "retraining": retraining}
        counts.append(waits_of(tmp_path / str(num_samples), device, "measure", **few))
    assert counts[0] == counts[1]
