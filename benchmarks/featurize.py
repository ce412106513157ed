"""Featurization, compared with its floor and with `trak.TRAKer`, on the same images and networks.

    command    OMP_NUM_THREADS=1 python benchmarks/featurize.py [digits] [middle] [cifar]
    floor      a plain batched forward and backward pass, one gradient for the whole batch
    reference  `trak.TRAKer.featurize`: one vmap pass per noise sample, accumulated, and its
               projector for CPUs
    dattri     `dattri.func.projection.random_project` of all gradients in one batch: the projection
               alone
    kronecker  LoGra projections, at some ranks
    bar        ours: at most 1.8× the floor on the digits U-Net and 1.15× on larger ones; 7×, 3× and
               8× faster than the reference
               kronecker: at most 0.75× the floor on the digits and middle U-Nets; at most 0.80× on
               the last, within 2 GiB

What limits kronecker: of the three products of a convolution (forward, backward to its inputs,
backward to its weights) it leaves out only the last. Two thirds of the floor's convolutions and all
other operations remain; attention takes a quarter of the time on the last network. Kronecker also
gains by a memory order that suits convolutions, channels last. The floor is therefore measured with
that order too.

Ours and the floor run at their own best batch sizes, ours within 2 GiB. They alternate, and medians
are printed. The reference runs once at each of some batch sizes: its projector generates its matrix
anew for every batch, so larger batches cost less time and more memory. Peaks are the most memory
that the process held (Linux), so each network has its own process. The reference needs 18 GiB and a
quarter of an hour on the 35.7M U-Net; dattri, which comes last, needs more than 24 GiB there.
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
from journey.diffusion.schedule import make_schedule
from journey.diffusion.training import denoising_loss
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import NoiseSchedule, Schedule
from journey.pipeline.settings import Prediction, Projection

REPETITIONS = 3
RANKS = (8, 16)
MEMORY_GIB = 2.0  # for our gradients
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A network, the numbers of images and noise samples, and the batch sizes that are tried."""

    model: DDPM
    shape: tuple[int, ...]
    num_images: int
    num_samples: int
    floor_batches: tuple[int, ...]
    reference_batches: tuple[int, ...]
    projection_dim: int = 4096


MIDDLE = DDPM(block_out_channels=[32, 64, 64], attention_blocks=[2], mid_block_attention=True)
CIFAR = DDPM(
    block_out_channels=[128, 256, 256, 256],
    layers_per_block=2,
    attention_blocks=[1],
    mid_block_attention=True,
    norm_num_groups=32,
)
CASES = {
    "digits": Case(DDPM(), (1, 8, 8), 128, 20, (32, 64, 128, 256), (32, 64, 128)),
    "middle": Case(MIDDLE, (3, 32, 32), 16, 20, (4, 8, 16, 32), (4, 16)),
    "cifar": Case(CIFAR, (3, 32, 32), 4, 10, (4, 8, 16), (4,), projection_dim=2048),
}


class Loss(AbstractModelOutput):
    """TRAKer's model output: the denoising loss at one noise sample of each image."""

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


class SumOverNoise(FunctionalGradientComputer):
    """TRAKer's gradients: the sum of one vmap pass for every noise sample."""

    noise: NoiseSamples  # set from outside

    def compute_per_sample_grad(self, batch: list[Tensor]) -> dict[str, Tensor]:
        (x0,) = batch
        total: dict[str, Tensor] = {}
        with sdpa_kernel(SDPBackend.MATH):
            for sample in self.noise.split(1):
                t, eps = sample.t.expand(len(x0)), sample.eps.expand(len(x0), *sample.eps.shape[1:])
                for name, gradient in super().compute_per_sample_grad([x0, t, eps]).items():
                    gradient = gradient.detach()  # or the graphs of all samples stay in memory
                    if name in total:
                        total[name] += gradient
                    else:
                        total[name] = gradient
        return total


def setting(case: Case) -> tuple[Objective, Examples, NoiseSamples]:
    """Return an untrained network, random images and stratified noise samples."""
    torch.manual_seed(0)
    schedule = make_schedule(NoiseSchedule(), 1000, Prediction.noise, CPU)
    objective = Objective(case.model.build(case.shape).eval(), schedule, Precision.fp32)
    examples = Examples(torch.rand(case.num_images, *case.shape) * 2 - 1)
    return (
        objective,
        examples,
        sample_noise((0, 1000), case.num_samples, case.shape, 0, "benchmark"),
    )


def sparse_projection(objective: Objective, p: int) -> Projector:
    """Return our default projection."""
    d = sum(parameter.numel() for parameter in objective.network.parameters())
    return make_projection(Projection.sparse, d, p, 0, "benchmark", CPU)


def reference(
    objective: Objective, examples: Examples, noise: NoiseSamples, p: int, batch: int
) -> tuple[float, float]:
    """Return the seconds of TRAKer's featurization, and of its projector within."""
    projection_seconds = 0.0
    with tempfile.TemporaryDirectory() as directory:
        traker = TRAKer(
            objective.network,
            Loss(objective.schedule),
            len(examples),
            directory,
            device="cpu",
            gradient_computer=SumOverNoise,
            proj_dim=p,
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        traker.gradient_computer.noise = noise
        traker.load_checkpoint(objective.network.state_dict(), model_id=0)
        project = traker.projector.project

        def timed(*args: object, **kwargs: object) -> Tensor:
            nonlocal projection_seconds
            started = time.perf_counter()
            features = project(*args, **kwargs)
            projection_seconds += time.perf_counter() - started
            return features

        traker.projector.project = timed
        started = time.perf_counter()
        for x0 in examples.x0.split(batch):
            traker.featurize([x0], num_samples=len(x0))
        return time.perf_counter() - started, projection_seconds


def floor(objective: Objective, examples: Examples, noise: NoiseSamples, size: int) -> None:
    """Compute one gradient for each batch of images × noise samples."""
    predict = network.bind(objective.network, objective.precision)
    parameters = list(objective.network.parameters())
    x0 = examples.x0.repeat_interleave(len(noise), 0)
    t = noise.t.repeat(len(examples))
    eps = noise.eps.repeat(len(examples), *[1] * len(examples.shape))
    for batch in zip(x0.split(size), t.split(size), eps.split(size), strict=True):
        torch.autograd.grad(denoising_loss(predict, objective.schedule, *batch).mean(), parameters)


def ours(
    objective: Objective,
    examples: Examples,
    noise: NoiseSamples,
    plan: GradientPlan,
    project: Projector,
) -> None:
    """Compute gradients and their projections."""
    for gradients in objective.gradients(examples, noise, plan):
        project(gradients)


def logra(
    objective: Objective, examples: Examples, noise: NoiseSamples, plan: GradientPlan
) -> None:
    """Compute the features of a network with projected layers."""
    for _ in kronecker.kronecker_features(objective, examples, noise, plan):
        pass


def seconds(function: Callable, *inputs: object) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    function(*inputs)
    return time.perf_counter() - started


def alternate(*calls: tuple[Callable, tuple]) -> list[list[float]]:
    """Return the seconds of each call, in turn, for every repetition. [call][repetition]"""
    times = []
    for _ in range(REPETITIONS):
        times.append([seconds(function, *inputs) for function, inputs in calls])
    return [list(column) for column in zip(*times, strict=True)]


def reset_peak() -> None:
    """Start a new measurement of the peak memory."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float:
    """Return the most memory that this process held since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def ratio_range(numerators: list[float], denominators: list[float]) -> str:
    """Return the ratio of the medians, and the smallest and largest ratio."""
    ratios = sorted(a / b for a, b in zip(numerators, denominators, strict=True))
    median = statistics.median(numerators) / statistics.median(denominators)
    return f"{median:.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}"


def compare_kronecker(
    rank: int, objective: Objective, examples: Examples, noise: NoiseSamples, floor_batch: int
) -> None:
    """Print the seconds, peak memory and ratios of LoGra projections."""
    channels_last = copy.deepcopy(objective.network).to(memory_format=torch.channels_last)
    projected = replace(objective, network=project_layers(objective.network, rank, 0, "benchmark"))
    plan = kronecker.choose_kronecker_plan(projected, examples, noise, MEMORY_GIB)
    reset_peak()
    logra(projected, examples, noise, plan)
    peak, p = peak_gib(), feature_dimension(projected.network)
    low, low_channels_last, high = alternate(
        (floor, (objective, examples, noise, floor_batch)),
        (floor, (replace(objective, network=channels_last), examples, noise, floor_batch)),
        (logra, (projected, examples, noise, plan)),
    )
    median = statistics.median(high)
    print(f"  kronecker  {median:7.2f} s, rank {rank}, p = {p}, {plan}; peak {peak:.2f} GiB")
    print(f"  kronecker / floor  {ratio_range(high, low)}; ", end="")
    print(f"channels last {median / statistics.median(low_channels_last):.2f}", flush=True)


def compare(name: str, case: Case) -> None:
    """Print the seconds and peak memory of each implementation, and their ratios."""
    objective, examples, noise = setting(case)
    inputs = (objective, examples, noise)
    d = sum(p.numel() for p in objective.network.parameters())
    print(
        f"{name}: {d:,} parameters, {case.num_images} images × {case.num_samples} noise samples, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads")

    # Ours and the floor.
    project = sparse_projection(objective, case.projection_dim)
    plan = choose_plan(*inputs, MEMORY_GIB)
    reset_peak()
    ours(*inputs, plan, project)
    peak = peak_gib()
    batch = min(case.floor_batches, key=lambda size: seconds(floor, *inputs, size))
    low, high = alternate((floor, (*inputs, batch)), (ours, (*inputs, plan, project)))
    median = statistics.median(high)
    block = next(objective.gradients(examples, noise, plan))
    (times,) = alternate((project, (block,)))
    projection_seconds = statistics.median(times) * case.num_images / len(block)
    print(f"  floor      {statistics.median(low):7.2f} s, batch {batch}")
    print(f"  ours       {median:7.2f} s, {plan}; ", end="")
    print(f"projection {100 * projection_seconds / median:.1f}% of it; peak {peak:.2f} GiB")
    print(f"  ours / floor  {ratio_range(high, low)} in {REPETITIONS} repetitions", flush=True)
    del project, block

    # Others.
    for rank in RANKS:
        compare_kronecker(rank, *inputs, batch)
    for size in case.reference_batches:
        reset_peak()
        total, theirs = reference(*inputs, case.projection_dim, size)
        gradients_ratio = (total - theirs) / (median - projection_seconds)
        print(f"  reference  {total:7.2f} s, batch {size}; ", end="")
        print(f"projector {theirs:.2f} s of it; peak {peak_gib():.2f} GiB")
        print(f"  reference / ours  {total / median:.1f}, ", end="")
        print(f"gradients alone {gradients_ratio:.1f}", flush=True)
    gradients = torch.randn(case.num_images, d)
    project = random_project(gradients, len(gradients), case.projection_dim, 8, device="cpu")
    print(f"  dattri     {seconds(project, gradients):7.2f} s for the projection alone, ", end="")
    print(f"ours {projection_seconds:.3f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        compare(sys.argv[1], CASES[sys.argv[1]])
    else:
        for name in sys.argv[1:] or CASES:
            subprocess.run([sys.executable, __file__, name], check=True)
