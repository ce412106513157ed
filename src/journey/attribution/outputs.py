"""The outputs f(x0; θ): what is attributed, and what judges retrained models (always the loss that trains them).

draw   one (t, ε), and how the example is seen by it; the same for every example and model that is asked for the same purpose
K      number of draws;  x0  a clean example […]


Ask one model about every query: the outputs that attributions are judged by.

Payload: outputs.npy, float64 [2 halves of the draws, steps + destination, Q].
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from journey.diffusion import network
from journey.diffusion.network import Predict
from journey.diffusion.training import denoising_loss
from journey.diffusion.trajectories import final_samples, query_estimates
from journey.engine.metrics import track
from journey.engine.seeding import generator
from journey.engine.workspace import Workspace, get
from journey.pipeline.examples import Examples, Region, boxes, inside
from journey.pipeline.interfaces import Measure
from journey.pipeline.schedule import Schedule, add_noise, regression_target
from journey.pipeline.settings import Augmentation, Output


@dataclass(frozen=True)
class NoiseSamples:
    """K draws.

    t         int64 [K];  eps  ε, float32 [K, …]
    xi        ξ, which latents are sampled by, float32 [K, …], or None: their mean
    mirrored  whether the example is, bool [K], or None
    caption   which of the example's, int64 [K], or None: the first
    """

    t: Tensor
    eps: Tensor
    xi: Tensor | None = None
    mirrored: Tensor | None = None
    caption: Tensor | None = None

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: torch.device) -> "NoiseSamples":
        return self._each(lambda tensor: tensor.to(device))

    def __getitem__(self, index: Tensor | slice) -> "NoiseSamples":
        return self._each(lambda tensor: tensor[index])

    def split(self, size: int) -> list["NoiseSamples"]:
        """The same draws in chunks of at most `size`."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "NoiseSamples":
        return NoiseSamples(
            **{
                name: None if tensor is None else change(tensor)
                for name, tensor in vars(self).items()
            }
        )


def output(
    predict: Predict,
    schedule: Schedule,
    example: Examples,
    draws: NoiseSamples,
    kind: Output = Output.loss,
    region: Region = (),
) -> Tensor:
    """f(x0; θ) of one example, averaged over draws and elements, or over the elements in a region. Scalar.

    loss      the denoising loss (Georgiev et al. 2023, Section 3)
    square    mean of ε_θ² (Zheng et al. 2024, "D-TRAK")
    mean      mean of ε_θ (Lin et al. 2025, "DAS")
    absolute  mean of |ε − ε_θ| (Xie et al. 2024, "Diffusion-ReTrac")

    example: one, without the first axis; of a network that predicts velocities, ε is v. Draws at one t give the output of a
    step, draws over all t that of a training example or a destination.
    """
    return batch_output(predict, schedule, *augmented(example, draws), draws, kind, region)


def batch_output(
    predict: Predict,
    schedule: Schedule,
    x0: Tensor,
    context: Tensor | None,
    draws: NoiseSamples,
    kind: Output = Output.loss,
    region: Region = (),
) -> Tensor:
    """The same of what draws see, x0 [K, …] and context [K, L, E], of one example or of several. Scalar."""
    if kind is Output.loss:
        return denoising_loss(predict, schedule, x0, draws.t, draws.eps, context, region).mean()
    predicted = inside(
        predict(add_noise(schedule, x0, draws.t, draws.eps), draws.t, context), region
    )
    match kind:
        case Output.square:
            return predicted.square().mean()
        case Output.mean:
            return predicted.mean()
        case Output.absolute:
            return (
                (inside(regression_target(schedule, x0, draws.t, draws.eps), region) - predicted)
                .abs()
                .mean()
            )
        case _:
            assert_never(kind)


@torch.no_grad()
def sample_losses(
    predict: Predict,
    schedule: Schedule,
    examples: Examples,
    draws: Sequence[NoiseSamples],
    region: Region = (),
) -> Tensor:
    """The loss of every example by each of its own draws, as many of each, in one batch. [N, K]"""
    x0, context, every = as_batch(examples, draws)
    return denoising_loss(predict, schedule, x0, every.t, every.eps, context, region).view(
        len(draws), -1
    )


def as_batch(
    examples: Examples, draws: Sequence[NoiseSamples]
) -> tuple[Tensor, Tensor | None, NoiseSamples]:
    """Every example as its own draws see it: x0 [N × K, …], context [N × K, L, E] or None, and all (t, ε) in that order."""
    x0, contexts = zip(*(augmented(examples[i], of) for i, of in enumerate(draws)), strict=True)
    every = NoiseSamples(torch.cat([of.t for of in draws]), torch.cat([of.eps for of in draws]))
    return torch.cat(x0), None if examples.context is None else torch.cat(contexts), every


def half_means(losses: Tensor, antithetic: bool) -> Tensor:
    """Their mean over every other draw (or antithetic pair of draws), and over the rest. [N, K] → [2, N]"""
    second = (
        torch.arange(losses.shape[1], device=losses.device) // (2 if antithetic else 1) % 2 == 1
    )
    return torch.stack([losses[:, ~second].mean(1), losses[:, second].mean(1)])


def augmented(example: Examples, draws: NoiseSamples) -> tuple[Tensor, Tensor | None]:
    """One example as every draw sees it. x0 [K, …], context [K, L, E] or None"""
    x0 = example.x0.expand(len(draws), *example.x0.shape)
    if draws.xi is not None:
        x0 = x0 + example.deviation * draws.xi
    if draws.mirrored is not None:
        x0 = torch.where(draws.mirrored[:, None, None, None], x0.flip(-1), x0)
    if example.context is None:
        return x0, None
    first = torch.zeros_like(draws.t)
    return x0, example.context[first if draws.caption is None else draws.caption]


def with_augmentations(
    draws: NoiseSamples,
    examples: Examples,
    flips: Augmentation,
    captions: Augmentation,
    antithetic: bool,
    seed: int,
    purpose: str,
) -> NoiseSamples:
    """Draws that also say how training examples are seen by them; antithetic partners see the same."""
    each = 2 if antithetic else 1
    count = len(draws) // each

    def random(what: str) -> torch.Generator:
        return generator(seed, purpose, what, count)

    xi = (
        None
        if examples.deviation is None
        else torch.randn(count, *examples.shape, generator=random("latents"))
    )
    mirrored = _augmentation(flips, 2, count, random("flips"))
    caption = (
        None
        if examples.context is None
        else _augmentation(captions, examples.context.shape[1], count, random("captions"))
    )
    seen_by = {
        "xi": xi,
        "mirrored": None if mirrored is None else mirrored == 1,
        "caption": caption,
    }
    return replace(
        draws,
        **{
            what: None if of is None else of.repeat_interleave(each, 0)
            for what, of in seen_by.items()
        },
    )


def _augmentation(
    views: Augmentation, how_many: int, count: int, random: torch.Generator
) -> Tensor | None:
    """Which of so many views each of `count` draws has; None: always the first."""
    match views:
        case Augmentation.none:
            return None
        case Augmentation.both:
            return torch.arange(count) % how_many
        case Augmentation.random:
            return torch.randint(how_many, (count,), generator=random)
        case _:
            assert_never(views)


def sample_noise_at(
    t: int, num_samples: int, shape: tuple[int, ...], seed: int, purpose: str, antithetic: bool
) -> NoiseSamples:
    """K draws of one timestep; antithetic: pairs (ε, −ε)."""
    return _noise_samples(
        [t] * (num_samples // 2 if antithetic else num_samples), shape, seed, purpose, antithetic
    )


def sample_noise(
    window: tuple[int, int],
    num_samples: int,
    shape: tuple[int, ...],
    seed: int,
    purpose: str,
    antithetic: bool = False,
    stratified: bool = True,
) -> NoiseSamples:
    """K draws over the timesteps first … end − 1: one t, uniform, from each of K equal parts, or K independent ones.

    Differs from the paper, which draws t independently: stratification lowers the variance at no cost.
    """
    first, end = window
    unique = num_samples // 2 if antithetic else num_samples
    edges = [k * (end - first) // unique for k in range(unique + 1)]
    parts = list(itertools.pairwise(edges)) if stratified else [(0, end - first)] * unique
    random = generator(seed, purpose, "timesteps", end - first, unique)
    t = [first + int(torch.randint(low, high, (), generator=random)) for low, high in parts]
    return _noise_samples(t, shape, seed, purpose, antithetic)


def _noise_samples(
    timesteps: list[int], shape: tuple[int, ...], seed: int, purpose: str, antithetic: bool
) -> NoiseSamples:
    """Draw d of a timestep is the same wherever it comes up. Antithetic partners stand side by side, so that every
    even-sized chunk is balanced.
    """
    seen: Counter[int] = Counter()
    noise = []
    for t in timesteps:
        noise.append(torch.randn(shape, generator=generator(seed, purpose, t, seen[t])))
        seen[t] += 1
    t, eps = torch.tensor(timesteps), torch.stack(noise)
    if not antithetic:
        return NoiseSamples(t, eps)
    return NoiseSamples(t.repeat_interleave(2), torch.stack([eps, -eps], 1).flatten(0, 1))


TOGETHER = 128  # draws of one batch, or those of one query


def make_outputs(spec: Measure, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if an output is not finite."""
    device = network.get_device(workspace.compute)
    model = spec.checkpoint.model
    guidance = network.get_guidance(model, spec.guidance, device)
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    predict = network.bind(denoiser, spec.checkpoint.precision, guidance=guidance)
    noise_schedule = model.schedule(device)
    targets = [
        *query_estimates(spec.trajectories, spec.steps, workspace),
        final_samples(spec.trajectories, workspace),
    ]

    outputs = np.empty((2, len(targets), spec.trajectories.num_queries))
    with track(spec, partial, workspace) as log:
        for i, (t, queries) in enumerate(zip([*spec.steps, None], targets, strict=True)):
            for some, region in batches(spec.region, len(queries), spec.num_samples):
                draws = [
                    draws_of(spec, t, q, noise_schedule.num_timesteps, queries.shape).to(device)
                    for q in some
                ]
                asked = queries[some.start : some.stop].to(device)
                found = half_means(
                    sample_losses(predict, noise_schedule, asked, draws, region), spec.antithetic
                )
                outputs[:, i, some] = found.cpu()
            log(i, output=float(outputs[:, i].mean()))
    if not np.isfinite(outputs).all():
        raise FloatingPointError(f"outputs of {spec.label} are not finite")
    np.save(partial / "outputs.npy", outputs)


def batches(region: Region, num_queries: int, num_samples: int) -> Iterator[tuple[range, Region]]:
    """Queries that are one batch, and the box they are asked about: few draws at a time are slow, many fill the memory.

    >>> list(batches((), num_queries=5, num_samples=64))
    [(range(0, 2), ()), (range(2, 4), ()), (range(4, 5), ())]
    """
    size = max(1, TOGETHER // num_samples)
    for rows, box in boxes(region, num_queries):
        for first in range(rows.start, rows.stop, size):
            yield range(first, min(first + size, rows.stop)), box


def draws_of(
    spec: Measure, t: int | None, query: int, num_timesteps: int, shape: tuple[int, ...]
) -> NoiseSamples:
    """A query's own draws of a step, or of the destination: noise that queries shared would look like an effect of the subset on
    all of them. No attribution uses these.
    """
    rest = (spec.num_samples, shape, spec.seed, f"measure {query}", spec.antithetic)
    return sample_noise((0, num_timesteps), *rest) if t is None else sample_noise_at(t, *rest)
