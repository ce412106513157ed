"""Measuring outputs and sampling journeys against the bare forward passes that they take.

command    OMP_NUM_THREADS=1 python benchmarks/forward.py [digits] [latent]
measuring  64 draws of each of some queries at a step, in two halves, their making included
sampling   some journeys side by side, 10 steps of a DDPM
floor      the network alone, on as many images, measuring's at its own best batch and sampling's at the journeys'
bar        at most 1.1× the floor

Ours and the floor alternate; medians are printed.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from journey.attribution.outputs import batches, half_means, sample_losses, sample_noise_at
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
STEP, NUM_DRAWS, NUM_STEPS = 400, 64, 10


@dataclass(frozen=True)
class Case:
    """A network, the queries, and which batch sizes of the floor are tried."""

    model: Model
    queries: Examples
    batches: tuple[int, ...]


CASES = {
    "digits": Case(DDPM(), Examples(torch.rand(24, 1, 8, 8)), (16, 32, 64, 128, 256, 512)),
    "latent": Case(
        LatentDiffusion(),
        Examples(torch.rand(8, 4, 8, 8), None, torch.randn(8, 1, 12, 384)),
        (16, 32, 64, 128),
    ),
}


def measuring(case: Case, predict: network.Predict) -> None:
    """As the stage does it."""
    schedule, shape = case.model.schedule(CPU), case.queries.shape
    for some, region in batches((), len(case.queries), NUM_DRAWS):
        draws = [sample_noise_at(STEP, NUM_DRAWS, shape, 0, f"measure {q}", False) for q in some]
        half_means(
            sample_losses(predict, schedule, case.queries[some.start : some.stop], draws, region),
            False,
        )


def sampling(case: Case, predict: network.Predict) -> None:
    """As the stage does it, for some steps."""
    noise = trajectory_noise(range(len(case.queries)), case.queries.shape, 0)
    timesteps = list(range(999, 999 - NUM_STEPS, -1))
    context = None if case.queries.context is None else case.queries.context[:, 0]
    for _ in sample_trajectories(
        predict, case.model.schedule(CPU), Sampler.ddpm, timesteps, noise, CPU, context
    ):
        pass


def forward(case: Case, predict: network.Predict, num_images: int, batch: int) -> None:
    """Nothing but the network."""
    x, t = torch.randn(batch, *case.queries.shape), torch.full((batch,), STEP)
    context = (
        None if case.queries.context is None else case.queries.context[:1, 0].repeat(batch, 1, 1)
    )
    for _ in range(num_images // batch):
        predict(x, t, context)


def seconds(run: Callable[..., None], *arguments: object) -> float:
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def best_batch(case: Case, predict: network.Predict, num_images: int) -> int:
    """That of the quickest forward passes."""
    tried = [batch for batch in case.batches if batch <= num_images]
    return min(
        tried,
        key=lambda batch: min(seconds(forward, case, predict, num_images, batch) for _ in range(2)),
    )


def compared(
    case: Case, predict: network.Predict, ours: Callable[..., None], num_images: int, batch: int
) -> str:
    """Both, in turn."""
    ours(case, predict)
    pairs = [
        (seconds(ours, case, predict), seconds(forward, case, predict, num_images, batch))
        for _ in range(REPETITIONS)
    ]
    ratio = statistics.median(a / b for a, b in pairs)
    return f"{statistics.median(a for a, _ in pairs):.3f} s, {ratio:.2f}× the floor in batches of {batch}"


@torch.no_grad()
def main() -> None:
    """Two lines for each network."""
    for name in sys.argv[1:] or CASES:
        case = CASES[name]
        training.initialise(0, "benchmark")
        predict = network.bind(case.model.build(case.queries.shape).eval(), Precision.fp32)
        num_queries = len(case.queries)
        num_measured = num_queries * NUM_DRAWS
        best = best_batch(case, predict, num_measured)
        print(
            f"{name}, measuring: {compared(case, predict, measuring, num_measured, best)}",
            flush=True,
        )
        print(
            f"{name}, sampling: {compared(case, predict, sampling, num_queries * NUM_STEPS, num_queries)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
