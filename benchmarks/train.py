"""Our training loop against a bare loop: batch, forward, backward, clipping, optimizer, and nothing else.

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
    """steps: in one repetition."""

    model: Model
    examples: Examples
    batch_size: int
    steps: int
    settings: Training


def cases() -> dict[str, Case]:
    """By name: the digits U-Net, the one of latents with captions of which some are left out, the paper's for CIFAR-10."""
    latents = Examples(
        torch.randn(1000, 4, 8, 8), torch.rand(1000, 4, 8, 8), torch.randn(1000, 1, 12, 384)
    )
    most = 10**6
    return {
        "tiny": Case(
            DDPM(), Examples(torch.rand(1000, 1, 8, 8) * 2 - 1), 64, 40, Training(num_steps=most)
        ),
        "latent": Case(
            LatentDiffusion(), latents, 64, 8, Training(num_steps=most, caption_dropout=0.1)
        ),
        "cifar": Case(
            CIFAR,
            Examples(torch.rand(100, 3, 32, 32) * 2 - 1),
            4,
            1,
            Training(num_steps=most, flip=True),
        ),
    }


def bare(state: training.TrainingState, case: Case) -> None:
    """Some steps on the first images."""
    schedule = case.model.schedule(torch.device("cpu"))
    predict = network.bind(state.network, Precision.fp32)
    some = case.examples[: case.batch_size]
    context = None if some.context is None else some.context[:, 0]
    for _ in range(case.steps):
        t, eps = torch.randint(1000, (case.batch_size,)), torch.randn(some.x0.shape)
        x0 = (
            some.x0
            if some.deviation is None
            else some.x0 + some.deviation * torch.randn(some.x0.shape)
        )
        loss = training.denoising_loss(predict, schedule, x0, t, eps, context).mean()
        state.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(state.network.parameters(), max_norm=1.0)
        state.optimizer.step()


def main() -> None:
    """Print images per second of both, alternating, and the median ratio."""
    for name, case in cases().items():
        if name in (sys.argv[1:] or cases()):
            print(f"{name}: {compared(case)}, {torch.get_num_threads()} threads", flush=True)


def compared(case: Case) -> str:
    """Both loops, in turn, on one network."""
    training.initialise(0, "benchmark")
    state = training.new_state(case.model.build(case.examples.shape), case.settings)
    batches = training.Batches(
        kind=Batching.independent,
        rows=torch.arange(len(case.examples)),
        num_examples=len(case.examples),
        size=case.batch_size,
        num_timesteps=1000,
        seed=0,
        stream="benchmark",
        samples_latents=case.examples.deviation is not None,
    )
    nothing = (
        None if case.examples.context is None else torch.zeros(case.examples.context.shape[2:])
    )
    schedule = case.model.schedule(torch.device("cpu"))
    course = training.TrainingInputs(
        case.examples, batches, case.settings, Precision.fp32, schedule, nothing
    )
    ours = training.train(state, course, case.settings.num_steps)
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
    return f"bare {floor:.1f} images/s, ours {per_second:.1f}, ratio {ratio:.3f}"


if __name__ == "__main__":
    main()
