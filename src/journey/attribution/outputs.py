"""The output f(x0; θ) of an example: what is attributed, and what evaluates retrained models.

Symbols:
    t, ε     timestep and Gaussian noise; one pair is a noise sample
    K, N, Q  number of noise samples, of examples, of queries
    x0       clean example; "…" in a shape stands for its axes
    L, E     length and width of a text condition

The stage `make_outputs` writes outputs.npy, float64 [2, steps + 1, Q]: the output of every query
under one model at each step and, last, that of its final sample. The first axis is two halves of
the noise samples, whose difference is the error of the measurement.
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

from journey.diffusion.network import Predict, copies_ahead, load_denoiser, send
from journey.diffusion.training import denoising_loss
from journey.diffusion.trajectories import final_samples, query_examples, trajectory_at
from journey.engine.metrics import track
from journey.engine.seeding import generator
from journey.engine.workspace import Workspace
from journey.pipeline.examples import Examples, Region, boxes, inside
from journey.pipeline.interfaces import Measure, Sample
from journey.pipeline.schedule import Schedule, add_noise, noise_between, regression_target
from journey.pipeline.settings import Augmentation, Output

# Noise samples evaluated at once by `make_outputs`, on a CPU and on an accelerator; one query may
# have more.
BATCH_SIZE, ACCELERATOR_BATCH_SIZE = 128, 1024


@dataclass(frozen=True)
class NoiseSamples:
    """K pairs (t, ε), and how an example is augmented for each of them."""

    t: Tensor  # timesteps, int64 [K]
    eps: Tensor  # ε, float32 [K, …]
    latent_noise: Tensor | None = None  # latents are mean + deviation × this [K, …]; None: the mean
    mirrored: Tensor | None = None  # flipped left to right, bool [K]; None: never
    caption_index: Tensor | None = None  # caption of the example, int64 [K]; None: the first

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: torch.device) -> "NoiseSamples":
        """Return the samples on a device."""
        return self._map(lambda tensor: send(tensor, device))

    def __getitem__(self, index: Tensor | slice) -> "NoiseSamples":
        return self._map(lambda tensor: tensor[index])

    def split(self, size: int) -> list["NoiseSamples"]:
        """Return the samples, in order, in chunks of at most `size`."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def _map(self, function: Callable[[Tensor], Tensor]) -> "NoiseSamples":
        optional = (self.latent_noise, self.mirrored, self.caption_index)
        mapped = (None if tensor is None else function(tensor) for tensor in optional)
        return NoiseSamples(function(self.t), function(self.eps), *mapped)


def output(
    predict: Predict,
    schedule: Schedule,
    example: Examples,
    noise: NoiseSamples,
    function: Output = Output.loss,
    region: Region = (),
) -> Tensor:
    """Return f(x0; θ) of one example, a scalar: a mean over noise samples and elements.

    | function | mean of      | source                                           |
    |----------|--------------|--------------------------------------------------|
    | loss     | (ε − ε_θ)²   | Georgiev et al. 2023 ("Journey-TRAK"), Section 3 |
    | square   | ε_θ²         | Zheng et al. 2024 ("D-TRAK")                     |
    | mean     | ε_θ          | Lin et al. 2025 ("DAS")                          |
    | absolute | abs(ε − ε_θ) | Xie et al. 2024 ("Diffusion-ReTrac")             |

    Args:
        predict: The network ε_θ; if it predicts velocities, ε above stands for v.
        schedule: The noise schedule of the network.
        example: One example, without the axis of examples.
        noise: Samples at one t for the output of a step; over all t for that of a training example
            or of a final sample.
        function: Which function of the prediction is averaged.
        region: Box of rows and columns whose elements are averaged; () is all of them.
    """
    x0, condition = augment(example, noise)
    return batch_output(predict, schedule, x0, condition, noise, function, region)


def batch_output(
    predict: Predict,
    schedule: Schedule,
    x0: Tensor,
    condition: Tensor | None,
    noise: NoiseSamples,
    function: Output = Output.loss,
    region: Region = (),
) -> Tensor:
    """Return the mean output, a scalar, of augmented examples x0 [K, …] and condition [K, L, E]."""
    if function is Output.loss:
        return denoising_loss(predict, schedule, x0, noise.t, noise.eps, condition, region).mean()
    x_t = add_noise(schedule, x0, noise.t, noise.eps)
    predicted = inside(predict(x_t, noise.t, condition), region)
    match function:
        case Output.square:
            return predicted.square().mean()
        case Output.mean:
            return predicted.mean()
        case Output.absolute:
            target = regression_target(schedule, x0, noise.t, noise.eps)
            return (inside(target, region) - predicted).abs().mean()
        case _:
            assert_never(function)


@torch.no_grad()
def sample_losses(
    predict: Predict,
    schedule: Schedule,
    examples: Examples,
    noise: Sequence[NoiseSamples],
    region: Region = (),
) -> Tensor:
    """Return the loss of N examples at K noise samples of each, computed in one batch. [N, K]"""
    x0, condition, pairs = as_batch(examples, noise)
    losses = denoising_loss(predict, schedule, x0, pairs.t, pairs.eps, condition, region)
    return losses.view(len(noise), -1)


def as_batch(
    examples: Examples, noise: Sequence[NoiseSamples]
) -> tuple[Tensor, Tensor | None, NoiseSamples]:
    """Return N examples, augmented for K noise samples of each, and all pairs (t, ε), as one batch.

    Shapes: x0 [N × K, …], condition [N × K, L, E] or None, noise samples [N × K].
    """
    augmented = [augment(examples[i], samples) for i, samples in enumerate(noise)]
    conditions = [condition for _, condition in augmented if condition is not None]
    t, eps = torch.cat([samples.t for samples in noise]), torch.cat([s.eps for s in noise])
    x0 = torch.cat([x0 for x0, _ in augmented])
    return x0, torch.cat(conditions) if conditions else None, NoiseSamples(t, eps)


def all_pairs(
    examples: Examples, noise: NoiseSamples
) -> tuple[Tensor, Tensor | None, NoiseSamples]:
    """Return `as_batch` of N examples that share their K noise samples, without a loop."""
    count, shape = len(examples), examples.shape
    x0 = examples.x0[:, None].expand(count, len(noise), *shape)
    if noise.latent_noise is not None:
        assert examples.deviation is not None, "only latents have latent noise"
        x0 = x0 + examples.deviation[:, None] * noise.latent_noise
    if noise.mirrored is not None:
        x0 = torch.where(noise.mirrored[:, None, None, None], x0.flip(-1), x0)
    condition = None
    if examples.condition is not None:
        if noise.caption_index is not None:
            condition = examples.condition[:, :][:, noise.caption_index]
        else:
            first = examples.condition[:, :1]
            condition = first.expand(count, len(noise), *first.shape[2:])
        condition = condition.flatten(0, 1)
    eps = noise.eps.repeat(count, *[1] * len(shape))
    return x0.flatten(0, 1), condition, NoiseSamples(noise.t.repeat(count), eps)


def half_means(losses: Tensor, antithetic: bool) -> Tensor:
    """Return the means over every other noise sample (or antithetic pair), and over the others.

    [N, K] → [2, N]
    """
    groups = losses.unflatten(1, (-1, 2 if antithetic else 1))
    halves = [groups[:, half::2].flatten(1).contiguous() for half in (0, 1)]
    return torch.stack([half.mean(1) for half in halves])


def augment(example: Examples, noise: NoiseSamples) -> tuple[Tensor, Tensor | None]:
    """Return one example, augmented for K noise samples: x0 [K, …], condition [K, L, E] or None."""
    x0 = example.x0.expand(len(noise), *example.x0.shape)
    if noise.latent_noise is not None:
        assert example.deviation is not None, "only latents have latent noise"
        x0 = x0 + example.deviation * noise.latent_noise
    if noise.mirrored is not None:
        x0 = torch.where(noise.mirrored[:, None, None, None], x0.flip(-1), x0)
    if example.condition is None:
        return x0, None
    if noise.caption_index is not None:
        return x0, example.condition[:][noise.caption_index]
    first = example.condition[:1]
    return x0, first.expand(len(noise), *first.shape[1:])


def with_augmentations(
    noise: NoiseSamples,
    examples: Examples,
    flips: Augmentation,
    captions: Augmentation,
    antithetic: bool,
    seed: int,
    purpose: str,
) -> NoiseSamples:
    """Return noise samples that also augment training examples; antithetic pairs do so alike."""
    repeats = 2 if antithetic else 1
    count = len(noise) // repeats

    def choices(augmentation: Augmentation, num_options: int, name: str) -> Tensor:
        if augmentation is Augmentation.both:
            return torch.arange(count) % num_options
        random = generator(seed, purpose, name, count)
        return torch.randint(num_options, (count,), generator=random)

    augmentations = {}
    if examples.deviation is not None:
        random = generator(seed, purpose, "latents", count)
        augmentations["latent_noise"] = torch.randn(count, *examples.shape, generator=random)
    if flips is not Augmentation.none:
        augmentations["mirrored"] = choices(flips, 2, "flips") == 1
    if examples.condition is not None and captions is not Augmentation.none:
        num_captions = examples.condition.shape[1]
        augmentations["caption_index"] = choices(captions, num_captions, "captions")
    repeated = {name: x.repeat_interleave(repeats, 0) for name, x in augmentations.items()}
    return replace(noise, **repeated)


def sample_noise_at(
    t: int, num_samples: int, shape: tuple[int, ...], seed: int, purpose: str, antithetic: bool
) -> NoiseSamples:
    """Return noise samples at one timestep; the arguments are those of `sample_noise`."""
    return sample_noise((t, t + 1), num_samples, shape, seed, purpose, antithetic, stratified=False)


def sample_noise(
    timesteps: tuple[int, int],
    num_samples: int,
    shape: tuple[int, ...],
    seed: int,
    purpose: str,
    antithetic: bool = False,
    stratified: bool = True,
) -> NoiseSamples:
    """Return noise samples over timesteps; the n-th ε of a timestep is always the same.

    Differs from the paper, which draws t independently: stratification reduces the variance at no
    cost.

    Args:
        timesteps: First timestep, and the one after the last.
        num_samples: K.
        shape: Shape of one example.
        seed: Seed of the random numbers.
        purpose: Purpose of the random numbers, which differ between purposes.
        antithetic: Whether samples are pairs (ε, −ε), side by side, so that chunks are balanced.
        stratified: Whether each t is uniform in its own one of K equal parts of the range, or all
            are uniform in the range.
    """
    first, end = timesteps
    unique = num_samples // 2 if antithetic else num_samples
    edges = [k * (end - first) // unique for k in range(unique + 1)]
    parts = list(itertools.pairwise(edges)) if stratified else [(0, end - first)] * unique
    random = generator(seed, purpose, "timesteps", end - first, unique)
    counts: Counter[int] = Counter()
    steps, noise = [], []
    for low, high in parts:
        step = first + int(torch.randint(low, high, (), generator=random))
        steps.append(step)
        noise.append(torch.randn(shape, generator=generator(seed, purpose, step, counts[step])))
        counts[step] += 1
    t, eps = torch.tensor(steps), torch.stack(noise)
    if not antithetic:
        return NoiseSamples(t, eps)
    return NoiseSamples(t.repeat_interleave(2), torch.stack([eps, -eps], 1).flatten(0, 1))


def measurement_noise(
    spec: Measure, t: int | None, query: int, num_timesteps: int, shape: tuple[int, ...]
) -> NoiseSamples:
    """Return a query's own noise samples at a step, or (t=None) for its final sample.

    No attribution uses them, nor does another query: shared noise would look like an effect of the
    training subset on all queries.
    """
    timesteps = (0, num_timesteps) if t is None else (t, t + 1)
    purpose, stratified = f"measure {query}", t is None
    return sample_noise(
        timesteps, spec.num_samples, shape, spec.seed, purpose, spec.antithetic, stratified
    )


def noise_in_trajectory(
    trajectories: Sample, t: int, final: Tensor, workspace: Workspace
) -> Tensor:
    """Return the ε that makes x_t of the trajectories of their final samples. [Q, …]"""
    x_t = trajectory_at("x_t", trajectories, (t,), workspace)[0]
    schedule = trajectories.checkpoint.model.schedule(x_t.device)
    return noise_between(schedule, final, torch.full((len(x_t),), t), x_t)


def query_batches(
    region: Region, num_queries: int, num_samples: int, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[range, Region]]:
    """Yield the queries to evaluate at once, so that memory is bounded, and their region.

    >>> list(query_batches((), num_queries=5, num_samples=64))
    [(range(0, 2), ()), (range(2, 4), ()), (range(4, 5), ())]
    """
    size = max(1, batch_size // num_samples)
    for queries, box in boxes(region, num_queries):
        for first in range(queries.start, queries.stop, size):
            yield range(first, min(first + size, queries.stop)), box


def make_outputs(spec: Measure, partial: Path, workspace: Workspace) -> None:
    """Measure the outputs of every query under one model.

    Raises:
        FloatingPointError: If an output is not finite.
    """
    denoiser = load_denoiser(spec.checkpoint, workspace, spec.guidance)
    predict, schedule, device = denoiser.predict, denoiser.schedule, denoiser.device
    targets = query_examples(spec.trajectories, spec.steps, workspace)
    targets += query_examples(spec.trajectories, None, workspace)

    num_timesteps = schedule.num_timesteps
    size = ACCELERATOR_BATCH_SIZE if copies_ahead(device) else BATCH_SIZE
    outputs = np.empty((2, len(targets), spec.trajectories.num_queries))
    with track(spec, partial, workspace) as log:
        for i, (t, queries) in enumerate(targets):
            eps = None
            if spec.noisy and t is not None:
                queries = final_samples(spec.trajectories, workspace)
                eps = noise_in_trajectory(spec.trajectories, t, queries.x0, workspace)
            on_device, means = queries.to(device), []
            for batch, region in query_batches(spec.region, len(queries), spec.num_samples, size):
                noise = []
                for query in batch:
                    if eps is None or t is None:
                        samples = measurement_noise(spec, t, query, num_timesteps, queries.shape)
                    else:  # there is one such noise sample: both halves are its loss
                        samples = NoiseSamples(torch.tensor([t, t]), eps[[query, query]])
                    noise.append(samples.to(device))
                examples = on_device[batch.start : batch.stop]
                losses = sample_losses(predict, schedule, examples, noise, region)
                means.append(half_means(losses, spec.antithetic))
            outputs[:, i] = torch.cat(means, 1).cpu()  # all queries in turn; the only wait
            log(i, output=float(outputs[:, i].mean()))

    if not np.isfinite(outputs).all():
        raise FloatingPointError(f"outputs of {spec.label} are not finite")
    np.save(partial / "outputs.npy", outputs)
