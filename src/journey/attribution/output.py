"""The outputs f(x0; θ): what is attributed, and what judges retrained models (always the loss that trains them).

draw   one (t, ε), and how the example is seen by it; the same for every example and model that is asked for the same purpose
K      number of draws;  x0  a clean example […]
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from journey.config.groups import Output, Views
from journey.diffusion.examples import Examples
from journey.diffusion.network import Predict
from journey.diffusion.regions import Region, inside
from journey.diffusion.schedule import Schedule, add_noise, target
from journey.diffusion.training import denoising_loss
from journey.seeding import generator


@dataclass(frozen=True)
class Draws:
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

    def to(self, device: torch.device) -> "Draws":
        return self._each(lambda tensor: tensor.to(device))

    def __getitem__(self, index: Tensor | slice) -> "Draws":
        return self._each(lambda tensor: tensor[index])

    def split(self, size: int) -> list["Draws"]:
        """The same draws in chunks of at most `size`."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        return Draws(**{name: None if tensor is None else change(tensor) for name, tensor in vars(self).items()})


def output(
    predict: Predict,
    schedule: Schedule,
    example: Examples,
    draws: Draws,
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
    return output_of(predict, schedule, *seen(example, draws), draws, kind, region)


def output_of(
    predict: Predict,
    schedule: Schedule,
    x0: Tensor,
    context: Tensor | None,
    draws: Draws,
    kind: Output = Output.loss,
    region: Region = (),
) -> Tensor:
    """The same of what draws see, x0 [K, …] and context [K, L, E], of one example or of several. Scalar."""
    if kind is Output.loss:
        return denoising_loss(predict, schedule, x0, draws.t, draws.eps, context, region).mean()
    predicted = inside(predict(add_noise(schedule, x0, draws.t, draws.eps), draws.t, context), region)
    match kind:
        case Output.square:
            return predicted.square().mean()
        case Output.mean:
            return predicted.mean()
        case Output.absolute:
            return (inside(target(schedule, x0, draws.t, draws.eps), region) - predicted).abs().mean()
        case _:
            assert_never(kind)


@torch.no_grad()
def losses(predict: Predict, schedule: Schedule, examples: Examples, draws: Sequence[Draws], region: Region = ()) -> Tensor:
    """The loss of every example by each of its own draws, as many of each, in one batch. [N, K]"""
    x0, context, every = together(examples, draws)
    return denoising_loss(predict, schedule, x0, every.t, every.eps, context, region).view(len(draws), -1)


def together(examples: Examples, draws: Sequence[Draws]) -> tuple[Tensor, Tensor | None, Draws]:
    """Every example as its own draws see it: x0 [N × K, …], context [N × K, L, E] or None, and all (t, ε) in that order."""
    x0, contexts = zip(*(seen(examples[i], of) for i, of in enumerate(draws)), strict=True)
    every = Draws(torch.cat([of.t for of in draws]), torch.cat([of.eps for of in draws]))
    return torch.cat(x0), None if examples.context is None else torch.cat(contexts), every


def halves(losses: Tensor, antithetic: bool) -> Tensor:
    """Their mean over every other draw (or antithetic pair of draws), and over the rest. [N, K] → [2, N]"""
    second = torch.arange(losses.shape[1], device=losses.device) // (2 if antithetic else 1) % 2 == 1
    return torch.stack([losses[:, ~second].mean(1), losses[:, second].mean(1)])


def seen(example: Examples, draws: Draws) -> tuple[Tensor, Tensor | None]:
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


def with_views(
    draws: Draws, examples: Examples, flips: Views, captions: Views, antithetic: bool, seed: int, purpose: str
) -> Draws:
    """Draws that also say how training examples are seen by them; antithetic partners see the same."""
    each = 2 if antithetic else 1
    count = len(draws) // each

    def random(what: str) -> torch.Generator:
        return generator(seed, purpose, what, count)

    xi = None if examples.deviation is None else torch.randn(count, *examples.shape, generator=random("latents"))
    mirrored = _view(flips, 2, count, random("flips"))
    caption = None if examples.context is None else _view(captions, examples.context.shape[1], count, random("captions"))
    seen_by = {"xi": xi, "mirrored": None if mirrored is None else mirrored == 1, "caption": caption}
    return replace(draws, **{what: None if of is None else of.repeat_interleave(each, 0) for what, of in seen_by.items()})


def _view(views: Views, how_many: int, count: int, random: torch.Generator) -> Tensor | None:
    """Which of so many views each of `count` draws has; None: always the first."""
    match views:
        case Views.none:
            return None
        case Views.both:
            return torch.arange(count) % how_many
        case Views.random:
            return torch.randint(how_many, (count,), generator=random)
        case _:
            assert_never(views)


def step_draws(t: int, num_draws: int, shape: tuple[int, ...], seed: int, purpose: str, antithetic: bool) -> Draws:
    """K draws of one timestep; antithetic: pairs (ε, −ε)."""
    return _draws([t] * (num_draws // 2 if antithetic else num_draws), shape, seed, purpose, antithetic)


def window_draws(
    window: tuple[int, int],
    num_draws: int,
    shape: tuple[int, ...],
    seed: int,
    purpose: str,
    antithetic: bool = False,
    stratified: bool = True,
) -> Draws:
    """K draws over the timesteps first … end − 1: one t, uniform, from each of K equal parts, or K independent ones.

    Differs from the paper, which draws t independently: stratification lowers the variance at no cost.
    """
    first, end = window
    unique = num_draws // 2 if antithetic else num_draws
    edges = [k * (end - first) // unique for k in range(unique + 1)]
    parts = list(itertools.pairwise(edges)) if stratified else [(0, end - first)] * unique
    random = generator(seed, purpose, "timesteps", end - first, unique)
    t = [first + int(torch.randint(low, high, (), generator=random)) for low, high in parts]
    return _draws(t, shape, seed, purpose, antithetic)


def _draws(timesteps: list[int], shape: tuple[int, ...], seed: int, purpose: str, antithetic: bool) -> Draws:
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
        return Draws(t, eps)
    return Draws(t.repeat_interleave(2), torch.stack([eps, -eps], 1).flatten(0, 1))
