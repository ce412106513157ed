"""Featurization against its floor and against `trak.TRAKer`, on the same images, draws and networks, a process for each network.

    command    OMP_NUM_THREADS=1 python benchmarks/featurize.py [digits] [middle] [cifar]
    floor      a plain batched forward and backward pass, one gradient for the whole batch
    reference  `trak.TRAKer.featurize`: one vmap pass per timestep, accumulated, and its projector for CPUs
    dattri     `dattri.func.projection.random_project`, of all gradients in one batch: the projection alone
    kronecker  projections inside the layers, at each of some numbers of rows
    bar        ours at most 1.8× the floor on the digits U-Net and 1.15× on larger ones; 7×, 3× and 8× faster than the reference
               kronecker at most 0.75× the floor on the digits and the middle U-Net and 0.80× on the last, there within 2 GiB

What bounds kronecker: of a convolution's three products, forward, back to its inputs and back to its weights, it leaves out the
last alone, so two thirds of the floor's convolutions stay and all of everything else (attention on the last network takes a
quarter of its time, of ours alike). It gains by an order in memory that suits convolutions, channels last, which the floor does
not have; beside it a floor whose network does.

Ours and the floor run at their own best batch size, ours within 2 GiB; they alternate, and medians are printed. The reference
runs once at each of some batch sizes: its projector redraws a matrix for every batch, whatever its size, so larger batches cost
less, and memory. Peaks are what the process held at most (Linux). The 35.7M U-Net needs 18 GiB and a quarter of an hour; there
dattri comes last, and needs more than 24 GiB.
"""

import copy
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from dattri.func.projection import random_project
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from trak import TRAKer
from trak.gradient_computers import FunctionalGradientComputer
from trak.modelout_functions import AbstractModelOutput

from journey.attribution import kronecker
from journey.attribution.gradients import GradientPlan, Objective, choose_plan
from journey.attribution.logra import feature_dimension, project_layers
from journey.attribution.outputs import NoiseSamples, sample_noise
from journey.attribution.projections import Projector, make_projection
from journey.diffusion import network
from journey.diffusion.ddpm import DDPM
from journey.diffusion.schedule import linear_schedule
from journey.diffusion.training import denoising_loss
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import Schedule
from journey.pipeline.settings import Projection

REPETITIONS = 3
ROWS = (8, 16)
MEMORY_GIB = 2.0  # for our gradients
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A network, how many images and draws, and which batch sizes are tried."""

    model: DDPM
    shape: tuple[int, ...]
    num_images: int
    num_samples: int
    floor_batches: tuple[int, ...]
    reference_batches: tuple[int, ...]
    projection_dim: int = 4096


CASES = {
    "digits": Case(DDPM(), (1, 8, 8), 128, 20, (32, 64, 128, 256), (32, 64, 128)),
    "middle": Case(
        DDPM(block_out_channels=[32, 64, 64], attention_blocks=[2], mid_block_attention=True),
        (3, 32, 32), 16, 20, (4, 8, 16, 32), (4, 16),
    ),
    "cifar": Case(
        DDPM(
            block_out_channels=[128, 256, 256, 256], layers_per_block=2, attention_blocks=[1], mid_block_attention=True,
            norm_num_groups=32,
        ),
        (3, 32, 32), 4, 10, (4, 8, 16), (4,), projection_dim=2048,
    ),
}  # fmt: skip


class Loss(AbstractModelOutput):
    """The denoising loss of one draw, which is set from outside, as TRAKer's model output."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def get_output(
        self, model: nn.Module, weights: dict, buffers: dict, x0: Tensor, t: Tensor, eps: Tensor
    ) -> Tensor:
        predict = network.bind(model, Precision.fp32, weights)
        return denoising_loss(predict, self.schedule, x0[None], t[None], eps[None])[0]

    def get_out_to_loss_grad(
        self, model: nn.Module, weights: dict, buffers: dict, batch: list[Tensor]
    ) -> Tensor:
        return torch.ones(len(batch[0]), 1)


class Accumulated(FunctionalGradientComputer):
    """One vmap pass for every draw."""

    draws: NoiseSamples

    def compute_per_sample_grad(self, batch: list[Tensor]) -> dict[str, Tensor]:
        (x0,) = batch
        total: dict[str, Tensor] = {}
        with sdpa_kernel(SDPBackend.MATH):
            for one in self.draws.split(1):
                drawn = [x0, one.t.expand(len(x0)), one.eps.expand(len(x0), *one.eps.shape[1:])]
                for name, gradient in super().compute_per_sample_grad(drawn).items():
                    if name in total:
                        total[name] += (
                            gradient.detach()
                        )  # or the graphs of all draws stay in memory
                    else:
                        total[name] = gradient.detach()
        return total


def setting(case: Case) -> tuple[Objective, Examples, NoiseSamples]:
    """An untrained network, random images and stratified draws."""
    torch.manual_seed(0)
    schedule = linear_schedule(1000, clip=True, device=CPU)
    objective = Objective(case.model.build(case.shape).eval(), schedule, Precision.fp32)
    examples = Examples(torch.rand(case.num_images, *case.shape) * 2 - 1)
    return (
        objective,
        examples,
        sample_noise((0, 1000), case.num_samples, case.shape, 0, "benchmark"),
    )


def sparse(objective: Objective, p: int) -> Projector:
    """Our projection by default."""
    d = sum(p.numel() for p in objective.network.parameters())
    return make_projection(Projection.sparse, d, p, 0, "benchmark", CPU)


def reference(
    objective: Objective, examples: Examples, draws: NoiseSamples, p: int, batch: int
) -> tuple[float, float]:
    """Seconds of TRAKer's featurization, and of its projector within."""
    projecting = 0.0
    with tempfile.TemporaryDirectory() as directory:
        traker = TRAKer(
            objective.network, Loss(objective.schedule), len(examples), directory, device="cpu", gradient_computer=Accumulated,
            proj_dim=p, use_half_precision=False, logging_level=logging.ERROR,
        )  # fmt: skip
        traker.gradient_computer.draws = draws
        traker.load_checkpoint(objective.network.state_dict(), model_id=0)
        project = traker.projector.project

        def timed(*args: object, **kwargs: object) -> Tensor:
            nonlocal projecting
            started = time.perf_counter()
            features = project(*args, **kwargs)
            projecting += time.perf_counter() - started
            return features

        traker.projector.project = timed
        started = time.perf_counter()
        for x0 in examples.x0.split(batch):
            traker.featurize([x0], num_samples=len(x0))
        return time.perf_counter() - started, projecting


def floor(objective: Objective, examples: Examples, draws: NoiseSamples, batch: int) -> None:
    """One gradient for each batch of images × draws, and nothing else."""
    predict = network.bind(objective.network, objective.precision)
    parameters = list(objective.network.parameters())
    x0 = examples.x0.repeat_interleave(len(draws), 0)
    t, eps = (
        draws.t.repeat(len(examples)),
        draws.eps.repeat(len(examples), *[1] * len(examples.shape)),
    )
    for some in zip(x0.split(batch), t.split(batch), eps.split(batch), strict=True):
        torch.autograd.grad(denoising_loss(predict, objective.schedule, *some).mean(), parameters)


def ours(
    objective: Objective,
    examples: Examples,
    draws: NoiseSamples,
    plan: GradientPlan,
    project: Projector,
) -> None:
    """Gradients and their projection."""
    for gradients in objective.gradients(examples, draws, plan):
        project(gradients)


def within_layers(
    objective: Objective, examples: Examples, draws: NoiseSamples, plan: GradientPlan
) -> None:
    """Features of an adapted network."""
    for _ in kronecker.kronecker_features(objective, examples, draws, plan):
        pass


def seconds(function: Callable, *inputs: object) -> float:
    """Of one call."""
    started = time.perf_counter()
    function(*inputs)
    return time.perf_counter() - started


def forget_peak() -> None:
    """Start measuring the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float:
    """The most this process held since."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def compare_kronecker(
    rows: int, objective: Objective, examples: Examples, draws: NoiseSamples, floor_batch: int
) -> None:
    """Print seconds, peak and ratios of projections inside the layers."""
    last = replace(
        objective, network=copy.deepcopy(objective.network).to(memory_format=torch.channels_last)
    )
    adapted = replace(objective, network=project_layers(objective.network, rows, 0, "benchmark"))
    plan = kronecker.choose_kronecker_plan(adapted, examples, draws, MEMORY_GIB)
    forget_peak()
    within_layers(adapted, examples, draws, plan)
    peak, p = peak_gib(), feature_dimension(adapted.network)
    times = [
        (
            seconds(floor, objective, examples, draws, floor_batch),
            seconds(floor, last, examples, draws, floor_batch),
            seconds(within_layers, adapted, examples, draws, plan),
        )
        for _ in range(REPETITIONS)
    ]
    low, low_last, high = (statistics.median(t) for t in zip(*times, strict=True))
    ratios = sorted(b / a for a, _, b in times)
    print(f"  kronecker  {high:7.2f} s, {rows} rows, p = {p}, {plan}; peak {peak:.2f} GiB")
    print(
        f"  kronecker / floor  {high / low:.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}; channels last {high / low_last:.2f}",
        flush=True,
    )


def compare(name: str, case: Case) -> None:
    """Print seconds and peak of each way and the ratios."""
    objective, examples, draws = setting(case)
    d = sum(p.numel() for p in objective.network.parameters())
    print(
        f"{name}: {d:,} parameters, {case.num_images} images × {case.num_samples} draws, {torch.get_num_threads()} threads"
    )

    project = sparse(objective, case.projection_dim)
    plan = choose_plan(objective, examples, draws, MEMORY_GIB)
    forget_peak()
    ours(objective, examples, draws, plan, project)
    peak = peak_gib()
    batch = min(
        case.floor_batches, key=lambda size: seconds(floor, objective, examples, draws, size)
    )
    times = [
        (
            seconds(floor, objective, examples, draws, batch),
            seconds(ours, objective, examples, draws, plan, project),
        )
        for _ in range(REPETITIONS)
    ]
    low, high = (statistics.median(t) for t in zip(*times, strict=True))
    ratios = sorted(b / a for a, b in times)
    block = next(objective.gradients(examples, draws, plan))
    projecting = (
        statistics.median(seconds(project, block) for _ in range(REPETITIONS))
        * case.num_images
        / len(block)
    )
    print(f"  floor      {low:7.2f} s, batch {batch}")
    print(
        f"  ours       {high:7.2f} s, {plan}; projection {100 * projecting / high:.1f}% of it; peak {peak:.2f} GiB"
    )
    print(
        f"  ours / floor  {high / low:.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f} in {REPETITIONS} repetitions",
        flush=True,
    )

    del project, block
    for rows in ROWS:
        compare_kronecker(rows, objective, examples, draws, batch)
    for size in case.reference_batches:
        forget_peak()
        total, its_projecting = reference(objective, examples, draws, case.projection_dim, size)
        accumulating = total - its_projecting
        print(
            f"  reference  {total:7.2f} s, batch {size}; projector {its_projecting:.2f} s of it; peak {peak_gib():.2f} GiB"
        )
        print(
            f"  reference / ours  {total / high:.1f}, gradients alone {accumulating / (high - projecting):.1f}",
            flush=True,
        )
    gradients = torch.randn(case.num_images, d)
    theirs = seconds(
        random_project(gradients, len(gradients), case.projection_dim, 8, device="cpu"), gradients
    )
    print(
        f"  dattri     {theirs:7.2f} s for the projection alone, ours {projecting:.3f}", flush=True
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        compare(sys.argv[1], CASES[sys.argv[1]])
    else:  # a process each, for the peak of one is not the other's
        for name in sys.argv[1:] or CASES:
            subprocess.run([sys.executable, __file__, name], check=True)
