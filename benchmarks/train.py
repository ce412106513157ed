"""Our training loop against a bare loop: batch, forward, backward, optimizer, and nothing else.

command   OMP_NUM_THREADS=1 python benchmarks/train.py
bar       at least 0.95 of the images per second
"""

import statistics
import time

import torch

from journey.config.groups import Batching, Precision, Training
from journey.diffusion import network, training
from journey.diffusion.ddpm import DDPM
from journey.diffusion.examples import Examples
from journey.diffusion.schedule import linear_schedule

STEPS, REPETITIONS = 40, 5


def bare(state: training.State, examples: Examples, batch_size: int, predict: network.Predict, schedule: object) -> None:
    """STEPS steps on the first images."""
    for _ in range(STEPS):
        t, eps = torch.randint(1000, (batch_size,)), torch.randn(batch_size, *examples.shape)
        loss = training.denoising_loss(predict, schedule, examples.x0[:batch_size], t, eps).mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()


def main() -> None:
    """Print images per second of both, alternating, and the median ratio."""
    settings = Training(num_steps=10**6)
    examples = Examples(torch.rand(1000, 1, 8, 8) * 2 - 1)
    schedule = linear_schedule(1000, clip=True, device=torch.device("cpu"))
    training.initialise(0, "benchmark")
    state = training.new_state(DDPM().build((1, 8, 8)), settings)
    predict = network.bind(state.network, Precision.fp32)
    batches = training.Batches(Batching.own, torch.arange(1000), 1000, settings.batch_size, 1000, 0, "benchmark")
    loop = training.train(state, examples, batches, settings, settings.num_steps, Precision.fp32, schedule)
    bare(state, examples, settings.batch_size, predict, schedule)
    times = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        bare(state, examples, settings.batch_size, predict, schedule)
        middle = time.perf_counter()
        for _ in range(STEPS):
            next(loop)
        times.append((middle - started, time.perf_counter() - middle))
    images = STEPS * settings.batch_size
    floor, ours = (images / statistics.median(t) for t in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(f"bare {floor:.0f} images/s, ours {ours:.0f}, ratio {ratio:.3f}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
