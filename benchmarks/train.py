"""Our training loop, compared with a bare loop: forward, backward, clipping and optimizer only.

command   OMP_NUM_THREADS=1 python benchmarks/train.py [tiny|latent|cifar]…
bar       at least 0.97 of the images per second, on every model
"""

import statistics
import sys
import time
from dataclasses import dataclass

import torch
from torch import nn

from journey.diffusion import network, training
from journey.diffusion.ddpm import DDPM
from journey.diffusion.latent import LatentDiffusion
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples
from journey.pipeline.interfaces import Model
from journey.pipeline.settings import Batching, Training

REPETITIONS = 7
NUM_STEPS = 10**6  # more than are taken
CIFAR = DDPM(
    block_out_channels=[128, 256, 256, 256],
    layers_per_block=2,
    attention_blocks=[1],
    mid_block_attention=True,
    norm_num_groups=32,
    dropout=0.1,
)


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    model: Model
    examples: Examples
    batch_size: int
    steps: int  # of one repetition
    settings: Training


def make_case(name: str) -> Case:
    """Return a case: digits, latents with caption dropout, or the paper's network for CIFAR-10."""
    if name == "tiny":
        examples = Examples(torch.rand(1000, 1, 8, 8) * 2 - 1)
        return Case(DDPM(), examples, 64, 40, Training(num_steps=NUM_STEPS))
    if name == "cifar":
        examples = Examples(torch.rand(100, 3, 32, 32) * 2 - 1)
        return Case(CIFAR, examples, 4, 1, Training(num_steps=NUM_STEPS, flip=True))
    mean, deviation = torch.randn(1000, 4, 8, 8), torch.rand(1000, 4, 8, 8)
    examples = Examples(mean, deviation, torch.randn(1000, 1, 12, 384))
    settings = Training(num_steps=NUM_STEPS, caption_dropout=0.1)
    return Case(LatentDiffusion(), examples, 64, 8, settings)


def bare(state: training.TrainingState, case: Case) -> None:
    """Take some steps on the first images."""
    schedule = case.model.schedule(torch.device("cpu"))
    predict = network.bind(state.network, Precision.fp32)
    batch = case.examples[: case.batch_size]
    condition = None if batch.condition is None else batch.condition[:, 0]
    for _ in range(case.steps):
        t, eps = torch.randint(1000, (case.batch_size,)), torch.randn(batch.x0.shape)
        x0 = batch.x0
        if batch.deviation is not None:
            x0 = x0 + batch.deviation * torch.randn(x0.shape)
        loss = training.denoising_loss(predict, schedule, x0, t, eps, condition).mean()
        state.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(state.network.parameters(), max_norm=1.0)
        state.optimizer.step()


def compare(name: str) -> None:
    """Print the images per second of both loops, alternating, and the median ratio."""
    case = make_case(name)
    training.initialise(0, "benchmark")
    state = training.new_state(case.model.build(case.examples.shape), case.settings)
    condition = case.examples.condition
    batches = training.Batches(
        batching=Batching.independent,
        rows=torch.arange(len(case.examples)),
        num_examples=len(case.examples),
        size=case.batch_size,
        num_timesteps=1000,
        seed=0,
        stream="benchmark",
        samples_latents=case.examples.deviation is not None,
    )
    inputs = training.TrainingInputs(
        examples=case.examples,
        batches=batches,
        training=case.settings,
        precision=Precision.fp32,
        schedule=case.model.schedule(torch.device("cpu")),
        null_condition=None if condition is None else torch.zeros(condition.shape[2:]),
    )
    ours = training.train(state, inputs, NUM_STEPS)
    bare(state, case)
    next(ours)
    times = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        bare(state, case)
        middle = time.perf_counter()
        for _ in range(case.steps):
            next(ours)
        times.append((middle - started, time.perf_counter() - middle))
    images = case.steps * case.batch_size
    floor, per_second = (images / statistics.median(t) for t in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(f"{name}: bare {floor:.1f} images/s, ours {per_second:.1f}, ratio {ratio:.3f}, ", end="")
    print(f"{torch.get_num_threads()} threads", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or ("tiny", "latent", "cifar"):
        compare(name)
