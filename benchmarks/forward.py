"""Measuring outputs and sampling trajectories, compared with the bare forward passes they need.

    command    OMP_NUM_THREADS=1 python benchmarks/forward.py [digits] [latent]
    measuring  64 noise samples of each query at one step, including the generation of noise
    sampling   all trajectories side by side, 10 steps of a DDPM
    floor      the network alone on as many images, in batches of the best size for measuring, and
               of the number of trajectories for sampling
    bar        at most 1.1× the floor

Ours and the floor alternate; medians are printed.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from journey.attribution.outputs import half_means, query_batches, sample_losses, sample_noise_at
from journey.diffusion import network, training
from journey.diffusion.ddpm import DDPM
from journey.diffusion.latent import LatentDiffusion
from journey.diffusion.sampling import sample_trajectories, trajectory_noise
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples
from journey.pipeline.interfaces import Model
from journey.pipeline.settings import Sampler

REPETITIONS = 5
CPU = torch.device("cpu")
STEP, NUM_SAMPLES, NUM_STEPS = 400, 64, 10


@dataclass(frozen=True)
class Case:
    """A model, the queries, and the batch sizes of the floor that are tried."""

    model: Model
    queries: Examples
    batch_sizes: tuple[int, ...]


CASES = {
    "digits": Case(DDPM(), Examples(torch.rand(24, 1, 8, 8)), (16, 32, 64, 128, 256, 512)),
    "latent": Case(
        LatentDiffusion(),
        Examples(torch.rand(8, 4, 8, 8), None, torch.randn(8, 1, 12, 384)),
        (16, 32, 64, 128),
    ),
}


def measuring(queries: Examples, denoiser: network.Denoiser) -> None:
    """Measure outputs as `journey.attribution.outputs.make_outputs` does."""
    for batch, region in query_batches((), len(queries), NUM_SAMPLES):
        noise = []
        for q in batch:
            noise.append(
                sample_noise_at(STEP, NUM_SAMPLES, queries.shape, 0, f"measure {q}", False)
            )
        examples = queries[batch.start : batch.stop]
        losses = sample_losses(denoiser.predict, denoiser.schedule, examples, noise, region)
        half_means(losses, False)


def sampling(queries: Examples, denoiser: network.Denoiser) -> None:
    """Sample trajectories as `journey.diffusion.sampling.make_trajectories` does."""
    noise = trajectory_noise(range(len(queries)), queries.shape, 0)
    timesteps = list(range(999, 999 - NUM_STEPS, -1))
    condition = None if queries.condition is None else queries.condition[:, 0]
    for _ in sample_trajectories(denoiser, Sampler.ddpm, timesteps, noise, condition):
        pass


def forward(queries: Examples, denoiser: network.Denoiser, num_images: int, size: int) -> None:
    """Compute forward passes of the network only, in batches of a size."""
    x, t = torch.randn(size, *queries.shape), torch.full((size,), STEP)
    condition = None
    if queries.condition is not None:
        condition = queries.condition[:1, 0].repeat(size, 1, 1)
    for _ in range(num_images // size):
        denoiser.predict(x, t, condition)


def seconds(function: Callable[..., None], *arguments: object) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


@torch.no_grad()
def compare(name: str) -> None:
    """Print a line for measuring and one for sampling."""
    case = CASES[name]
    training.initialise(0, "benchmark")
    model, queries = case.model, case.queries
    net = model.build(queries.shape).eval()
    predict = network.bind(net, Precision.fp32)
    inputs = (queries, network.Denoiser(net, predict, model.schedule(CPU), None, CPU))

    # The best batch size of the floor.
    num_measured, trials = len(queries) * NUM_SAMPLES, {}
    for size in case.batch_sizes:
        if size <= num_measured:
            times = [seconds(forward, *inputs, num_measured, size) for _ in range(2)]
            trials[size] = min(times)
    best = min(trials, key=trials.get)

    for ours, num_images, size in (
        (measuring, num_measured, best),
        (sampling, len(queries) * NUM_STEPS, len(queries)),
    ):
        ours(*inputs)
        pairs = []
        for _ in range(REPETITIONS):
            pairs.append((seconds(ours, *inputs), seconds(forward, *inputs, num_images, size)))
        median, ratio = (
            statistics.median(a for a, _ in pairs),
            statistics.median(a / b for a, b in pairs),
        )
        print(f"{name}, {ours.__name__}: {median:.3f} s, ", end="")
        print(f"{ratio:.2f}× the floor in batches of {size}", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        compare(name)
