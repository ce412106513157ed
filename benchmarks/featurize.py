"""Featurization against its floor and against the usual way, on the same images, draws and networks, in one process.

    command   OMP_NUM_THREADS=1 python benchmarks/featurize.py [digits] [middle] [cifar]
    floor     a plain batched forward and backward pass, one gradient for the whole batch
    usual     one vmap pass per timestep, accumulated, as `trak.TRAKer` does it, and traker's projector for CPUs
    bar       ours at most 1.8× the floor on the digits U-Net and 1.15× on larger ones; 7× and 3× faster than the usual way

Each way runs at its own best batch size; ours and the floor alternate, and medians are printed. Where the projector of
the usual way cannot run (35.7M × 2,048 needs 14 GB and minutes), only its gradients are timed.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
from trak.projectors import BasicProjector, ProjectionType

from journey import config
from journey.attribution.gradients import Objective, choose, vmap_gradients
from journey.attribution.output import Draws, window_draws
from journey.attribution.projection import projection
from journey.diffusion import network
from journey.diffusion.examples import Examples
from journey.diffusion.schedule import linear_schedule
from journey.diffusion.training import denoising_loss

P = 4096
CASES = {
    "digits": (config.DDPM(), (1, 8, 8), 128, 20),
    "middle": (
        config.DDPM(block_out_channels=[32, 64, 64], attention_blocks=[2], mid_block_attention=True), (3, 32, 32), 8, 20
    ),
    "cifar": (
        config.DDPM(
            block_out_channels=[128, 256, 256, 256], layers_per_block=2, attention_blocks=[1], mid_block_attention=True,
            norm_num_groups=32,
        ), (3, 32, 32), 2, 10,
    ),
}  # fmt: skip
REPETITIONS = 3


def usual_gradients(objective: Objective, examples: Examples, draws: Draws, batch: int) -> list[torch.Tensor]:
    """One pass of vmap over a batch of images for every draw, accumulated."""
    return [
        sum(vmap_gradients(objective, examples[first : first + batch], one, 1) for one in draws.split(1))
        for first in range(0, len(examples), batch)
    ]


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
    """Print seconds of each way and the ratios."""
    torch.manual_seed(0)
    schedule = linear_schedule(1000, clip=True, device=torch.device("cpu"))
    objective = Objective(network.build(model, shape).eval(), schedule, config.Precision.fp32)
    examples = Examples(torch.rand(num_images, *shape) * 2 - 1)
    draws = window_draws((0, 1000), num_draws, shape, 0, "benchmark")
    d = sum(p.numel() for p in objective.network.parameters())
    big = d > 10_000_000
    project = projection(config.Projection.sparse, d, P, 0, "benchmark", torch.device("cpu"))
    plan = choose(objective, examples, draws, config.Gradient.auto, 2.0)
    batch = min(
        (4, 8, 16) if big else (4, 8, 16, 32, 64, 128, 256), key=lambda size: seconds(floor, objective, examples, draws, size)
    )

    def ours() -> list[torch.Tensor]:
        return [project(gradients) for gradients in objective.gradients(examples, draws, plan)]

    times = [(seconds(floor, objective, examples, draws, batch), seconds(ours)) for _ in range(REPETITIONS)]
    gradients = next(objective.gradients(examples, draws, plan))
    projecting = seconds(project, gradients) / len(gradients) * num_images
    low, high = (statistics.median(t) for t in zip(*times, strict=True))
    ratios = sorted(b / a for a, b in times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {d:,} parameters, {num_images} images × {num_draws} draws, {torch.get_num_threads()} threads")
    print(f"  floor {low:8.2f} s, batch {batch}")
    print(f"  ours  {high:8.2f} s, {plan}; of which projection {100 * projecting / high:.1f}%; process peak {peak:.2f} GiB")
    print(
        f"  ours / floor  {high / low:.2f}  (from {ratios[0]:.2f} to {ratios[-1]:.2f} in {REPETITIONS} repetitions)", flush=True
    )

    few = draws.split(4)[0]  # the best batch size is found on a part
    sizes = [size for size in (1, 2) if big] or [size for size in (8, 16, 32, 64) if size <= num_images]
    usual_batch = min(sizes, key=lambda size: seconds(usual_gradients, objective, examples, few, size))
    accumulating = seconds(usual_gradients, objective, examples, draws, usual_batch)
    usual_projecting = 0.0
    if not big:
        projector = BasicProjector(d, P, 0, ProjectionType.normal, "cpu", dtype=torch.float32)
        usual_projecting = seconds(projector.project, torch.randn(num_images, d), 0)
        del projector
    total = accumulating + usual_projecting
    print(f"  usual {total:8.2f} s: gradients {accumulating:.2f} in batches of {usual_batch}, projection {usual_projecting:.2f}")
    print(f"  usual / ours  {total / high:.1f}  (gradients alone {accumulating / (high - projecting):.1f})", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        compare(name, *CASES[name])
