"""Featurization against its floor, a plain batched forward and backward pass of the same images × draws.

    command   OMP_NUM_THREADS=1 python benchmarks/featurize.py
    claim     per-example gradients, projected, cost at most 2× the floor on the digits U-Net and 1.2× on one of a
              million parameters, where the floor computes one gradient for the whole batch

Both run in one process on the same images, draws and network, alternating, each at its own best batch size; the
median of the repetitions is printed.
"""

import statistics
import time
from collections.abc import Callable

import torch

from journey import config
from journey.attribution.gradients import Objective, candidates, choose
from journey.attribution.output import Draws, all_timestep_draws, denoising_loss
from journey.attribution.projection import projection
from journey.diffusion import network
from journey.diffusion.examples import Examples
from journey.diffusion.schedule import linear_schedule

CASES = {
    "digits 8×8×1": (config.DDPM(), (1, 8, 8), 128, 20),
    "middle 32×32×3": (
        config.DDPM(block_out_channels=[32, 64, 96], attention_blocks=[2], mid_block_attention=True), (3, 32, 32), 8, 20
    ),
}  # fmt: skip
REPETITIONS = 5


def floor(objective: Objective, examples: Examples, draws: Draws, batch: int) -> None:
    """One gradient for each batch of images × draws, and nothing else."""
    predict = network.bind(objective.network, objective.precision)
    parameters = list(objective.network.parameters())
    x0 = examples.x0.repeat_interleave(len(draws), 0)
    t, eps = draws.t.repeat(len(examples)), draws.eps.repeat(len(examples), *[1] * len(examples.shape))
    for some in zip(x0.split(batch), t.split(batch), eps.split(batch), strict=True):
        torch.autograd.grad(denoising_loss(predict, objective.schedule, *some).mean(), parameters)


def seconds(function: Callable, *inputs: object) -> float:
    """Of one call."""
    started = time.perf_counter()
    function(*inputs)
    return time.perf_counter() - started


def compare(name: str, model: config.DDPM, shape: tuple[int, ...], num_images: int, num_draws: int) -> None:
    """Print the times of both ways, per image × draw, and their ratio."""
    torch.manual_seed(0)
    objective = Objective(
        network.build(model, shape).eval(), linear_schedule(1000, clip=True, device=torch.device("cpu")), config.Precision.fp32
    )
    examples = Examples(torch.rand(num_images, *shape) * 2 - 1)
    draws = all_timestep_draws(1000, num_draws, shape, 0, "benchmark", antithetic=False)
    d = sum(p.numel() for p in objective.network.parameters())
    project = projection(config.Projection.sparse, d, 4096, 0, "benchmark", torch.device("cpu"))
    plan = choose(objective, examples, draws, config.Gradient.auto, 1.0)
    batch = min((4, 8, 16, 32, 64, 128, 256), key=lambda size: seconds(floor, objective, examples, draws, size))

    def ours() -> list[torch.Tensor]:
        return [project(gradients) for gradients in objective.gradients(examples, draws, plan)]

    times = [(seconds(floor, objective, examples, draws, batch), seconds(ours)) for _ in range(REPETITIONS)]
    gradients = next(objective.gradients(examples, draws, plan))
    projecting = seconds(project, gradients) / len(gradients) * num_images
    unit = 1e3 / (num_images * num_draws)
    low, high = (statistics.median(t) for t in zip(*times, strict=True))
    ratios = sorted(b / a for a, b in times)
    print(f"{name}: {d:,} parameters, {num_images} images × {num_draws} draws, {torch.get_num_threads()} threads")
    print(f"  floor {low * unit:8.3f} ms per image × draw, batch {batch}")
    print(f"  ours  {high * unit:8.3f} ms, {plan}; of which projection {100 * projecting / high:.1f}%")
    print(f"  ratio {high / low:8.2f}  (from {ratios[0]:.2f} to {ratios[-1]:.2f} in {REPETITIONS} alternating repetitions)")
    print(f"  plans {[f'{p.strategy} {p.batch}' for p in candidates(objective, examples, draws, 1.0)]}", flush=True)


if __name__ == "__main__":
    for name, case in CASES.items():
        compare(name, *case)
