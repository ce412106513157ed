"""Features φ of gradient methods: projected per-example gradients under one model.

Payload: features.npy, float32 [rows, p] or, preconditioned by EK-FAC, [rows, damping, p]. Rows are
the training images, or the queries [step × query] or [query]. With `storage`, these are codes, and
scales.npy, float32 […, 1], is what they are multiplied by.

B  examples;  K  noise samples;  d  parameters;  p  dimension of the features
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from journey.attribution.ekfac import EKFAC, EKFAC_FILE, load_ekfac
from journey.attribution.gradient import Featurize
from journey.attribution.gradients import (
    GradientPlan,
    Objective,
    choose_plan,
    require_one_gradient,
)
from journey.attribution.kernel import Features
from journey.attribution.kronecker import (
    choose_kronecker_plan,
    kronecker_features,
    project_layers_kfac,
)
from journey.attribution.logra import feature_dimension, project_layers
from journey.attribution.outputs import (
    NoiseSamples,
    noise_in_trajectory,
    sample_noise,
    with_augmentations,
)
from journey.attribution.projections import (
    DTYPES,
    Projector,
    QuantizedFeatures,
    make_projection,
    quantize,
)
from journey.diffusion.lora import add_adapters
from journey.diffusion.network import Guidance, gradient_memory, load_denoiser, num_trained
from journey.diffusion.trajectories import (
    continuation_samples,
    final_samples,
    query_conditions,
    query_examples,
    train_examples,
)
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.resume import Clock, load_state
from journey.engine.workspace import Workspace, get
from journey.pipeline.examples import Examples, Region, boxes, query_region
from journey.pipeline.settings import FeatureSettings, Projection, QueryExample, Storage

JOINED_MEMORY = 0.25  # share of the memory budget for gradients that wait for a dense projection
PRECONDITION_BATCH = 4  # gradients that are preconditioned at once: they fit a CPU's cache


@dataclass(frozen=True)
class Batch:
    """Examples that share their noise samples and the region of their output."""

    examples: Examples
    noise: NoiseSamples
    region: Region


def make_features(spec: Featurize, partial: Path, workspace: Workspace) -> dict:
    """Compute the features of all training images or queries.

    Returns:
        The number of gradients, and the plan by which they were computed.

    Raises:
        FloatingPointError: A feature is not finite.
    """
    # Load the model and the examples, without the rows that an interrupted run has computed.
    settings = spec.settings
    denoiser = load_denoiser(spec.checkpoint, workspace, spec.guidance)
    function = (settings.precision, spec.output, spec.normalize, denoiser.guidance)
    objective = Objective(denoiser.network, denoiser.schedule, *function)
    state = load_state(partial)
    row = 0 if state is None else state["rows"]
    batches = feature_batches(spec, denoiser.schedule.num_timesteps, workspace, denoiser.device)
    ekfac = None
    if spec.curvature is not None:
        path = get(spec.curvature, workspace).path / EKFAC_FILE
        ekfac = load_ekfac(path, denoiser.network, denoiser.device)
    random = (spec.seed, spec.checkpoint.training_run.training_seed)
    memory_gib = gradient_memory(workspace.compute, denoiser.device)
    dimension, plan, blocks = feature_blocks(
        settings, objective, batches, *random, memory_gib, ekfac, spec.damping, row
    )

    # Open the arrays.
    names = ["features.npy"] if settings.storage is Storage.fp32 else ["features.npy", "scales.npy"]
    if state is not None:
        arrays = [open_memmap(partial / name, "r+") for name in names]
    else:
        rows = (spec.num_rows, len(spec.damping)) if spec.damping else (spec.num_rows,)
        arrays = [new_array(partial / names[0], (*rows, dimension), DTYPES[settings.storage])]
        if settings.storage is not Storage.fp32:
            arrays.append(new_array(partial / names[1], (*rows, 1), np.float32))

    # Compute the rows, block by block.
    clock = Clock(partial, workspace.compute.checkpoint_seconds)
    with track(spec, partial, workspace) as log:
        for features in blocks:
            block = _finite(features, row, spec.normalize)
            end = row + len(block)
            if settings.storage is Storage.fp32:
                arrays[0][row:end] = block
            else:
                arrays[0][row:end], arrays[1][row:end] = quantize(block, settings.storage)
            row = end
            log(row, norm=float(np.linalg.norm(block, axis=-1).mean()))
            if clock.due():
                for array in arrays:
                    array.flush()
                clock.save({"rows": row}, filled=dict.fromkeys(names, row))
    for array in arrays:
        array.flush()
    return {"gradients": spec.num_rows * spec.num_samples, "plan": vars(plan)}


def feature_batches(
    spec: Featurize, num_timesteps: int, workspace: Workspace, device: torch.device
) -> list[Batch]:
    """Return the examples whose gradients are computed, with their noise samples.

    Those of training images and final samples are at all timesteps, or at some. Those of a query
    at step t are at t, or are the one that makes the trajectory's x_t of its final sample.
    """
    settings, trajectories, steps = spec.settings, spec.trajectories, spec.steps or ()

    # The examples: of all training images or final samples, or of every step.
    examples: list[tuple[int | None, Examples]]
    if trajectories is None:
        examples = [(None, train_examples(spec.checkpoint.training_run, workspace))]
    elif spec.query_example is QueryExample.estimate:
        examples = query_examples(trajectories, spec.steps, workspace)
    elif spec.query_example is QueryExample.mean:
        condition = query_conditions(trajectories, workspace)
        examples = []
        for step, continuations in zip(steps, spec.continuations, strict=True):
            mean = torch.from_numpy(continuation_samples(continuations, workspace).mean(1))
            examples.append((step, Examples(mean, condition=condition)))
    else:
        final = final_samples(trajectories, workspace)
        examples = [(t, final) for t in steps]

    batches = []
    for t, clean in examples:
        if trajectories is not None and t is not None and spec.query_example is QueryExample.noisy:
            eps = noise_in_trajectory(trajectories, t, clean.x0, workspace).to(device)
            clean, timesteps = clean.to(device), torch.full((len(clean),), t, device=device)
            for q in range(len(clean)):
                noise = NoiseSamples(timesteps[q : q + 1], eps[q : q + 1])
                batches.append(Batch(clean[q : q + 1], noise, query_region(spec.region, q)))
            continue
        count = settings.train_timesteps or num_timesteps
        window = (spec.first_timestep, spec.first_timestep + count) if t is None else (t, t + 1)
        is_query, rest = trajectories is not None, (spec.seed, spec.region, device)
        batches += noise_batches(settings, clean, window, is_query, *rest)
    return batches


def noise_batches(
    settings: FeatureSettings,
    clean: Examples,
    timesteps: tuple[int, int],
    is_query: bool,
    seed: int,
    region: Region,
    device: torch.device,
) -> list[Batch]:
    """Return training images or queries on a device, with their noise samples.

    Args:
        settings: Settings of the features.
        clean: The training images, or the queries.
        timesteps: First timestep, and the one after the last.
        is_query: Whether the examples are queries. These are not augmented, and have other noise
            samples than training images: common ones would look like influence.
        seed: Seed of the noise.
        region: Region of the output: one box, or one for each example; (): the whole output.
        device: Where gradients are computed.
    """
    purpose = "attribute queries" if is_query and not settings.share_noise else "attribute"
    if settings.noise_set:
        purpose += f" again {settings.noise_set}"
    stratified = settings.stratified and timesteps[1] - timesteps[0] > 1
    rest = (settings.num_samples, clean.shape, seed, purpose, settings.antithetic)
    noise = sample_noise(timesteps, *rest, stratified)
    if not is_query:
        views = (settings.flips, settings.captions, settings.antithetic)
        noise = with_augmentations(noise, clean, *views, seed, purpose)
    return [
        Batch(clean[rows].to(device), noise.to(device), box)
        for rows, box in boxes(region, len(clean))
    ]


def feature_blocks(
    settings: FeatureSettings,
    objective: Objective,
    batches: list[Batch],
    seed: int,
    checkpoint: int,
    memory_gib: float,
    ekfac: EKFAC | None = None,
    damping: Sequence[float] = (),
    done: int = 0,
) -> tuple[int, GradientPlan, Iterator[Tensor]]:
    """Return p, the plan, and blocks of features [B, p] or, with `ekfac`, [B, damping, p].

    Args:
        settings: Settings of the features.
        objective: The function whose gradient is taken.
        batches: Examples with their noise samples.
        seed: Seed of the projection.
        checkpoint: Index of the network: each has a projection of its own.
        memory_gib: Memory for gradients.
        ekfac: G, whose inverse square root preconditions gradients.
        damping: Values of λ that are added to G, relative to its mean eigenvalue.
        done: Examples to skip, which must be whole blocks.
    """
    network, first = objective.network, batches[0]
    key = f"checkpoint {checkpoint}"

    # Kronecker projections are computed inside the layers, without gradients of weights.
    if settings.projection is Projection.kronecker:
        projection = (settings.projection_rank, seed, key)
        if ekfac is None:
            networks = [project_layers(network, *projection)]
        else:
            networks = [
                project_layers_kfac(network, ekfac, relative, *projection) for relative in damping
            ]
        objectives = [replace(objective, network=projected) for projected in networks]
        plan = choose_kronecker_plan(objectives[0], first.examples, first.noise, memory_gib)
        blocks = _layer_blocks(objectives, _remaining(batches, done), plan, ekfac is not None)
        return feature_dimension(networks[0]), plan, blocks

    # Other projections are of gradients.
    d = num_trained(network)
    p = d if settings.projection is Projection.none else settings.projection_dim
    device = first.examples.x0.device
    project = make_projection(settings.projection, d, p, seed, key, device)
    dense = settings.projection in (Projection.gaussian, Projection.rademacher)
    on_cpu, num_rows, gradient_gib = device.type == "cpu", 1, memory_gib
    if dense or not on_cpu:
        num_rows, gradient_gib = _shares(d, ekfac is not None, memory_gib)
    if ekfac is not None:
        project = precondition(project, ekfac, damping, max(num_rows, PRECONDITION_BATCH))
    elif not on_cpu:
        project = _in_parts(project, num_rows)
    plan = choose_plan(objective, first.examples, first.noise, gradient_gib)
    gradients = itertools.chain.from_iterable(
        replace(objective, region=batch.region).gradients(batch.examples, batch.noise, plan)
        for batch in _remaining(batches, done)
    )
    return p, plan, map(project, join_blocks(gradients, num_rows if dense else 1))


def _shares(d: int, preconditioned: bool, memory_gib: float) -> tuple[int, float]:
    """Return how many gradients a projection takes at once, and the memory to compute gradients.

    A dense one draws its matrix each time, and an accelerator is dispatched operations each time.
    These gradients are in memory twice; preconditioned, four times.
    """
    copies = 4 if preconditioned else 2
    num_rows = int(JOINED_MEMORY * memory_gib * 2**30 / (4 * copies * d))
    return (num_rows, memory_gib * (1 - JOINED_MEMORY)) if num_rows > 1 else (1, memory_gib)


def _in_parts(project: Projector, num_rows: int) -> Projector:
    """Return a projection that takes at most `num_rows` gradients at once."""
    return lambda gradients: torch.cat([project(part) for part in gradients.split(num_rows)])


def features_in_memory(
    settings: FeatureSettings,
    objective: Objective,
    batches: list[Batch],
    advance: Callable[[float], None],
    seed: int,
    checkpoint: int,
    memory_gib: float,
    ekfac: EKFAC | None,
    damping: Sequence[float],
) -> Features:
    """Return all features as an array, or as codes, as `make_features` would store them.

    Arguments are those of `feature_blocks`; `advance` is called with the rows of every block.

    Raises:
        FloatingPointError: A feature is not finite.
    """
    blocks = []
    computed = feature_blocks(
        settings, objective, batches, seed, checkpoint, memory_gib, ekfac, damping
    )
    row = 0
    for block in computed[2]:
        blocks.append(_finite(block, row, objective.normalize))
        row += len(block)
        advance(len(block))
    features = np.concatenate(blocks)
    if settings.storage is Storage.fp32:
        return features
    return QuantizedFeatures(*quantize(features, settings.storage))


def require_memory(specs: Sequence[Featurize], memory_gib: float) -> None:
    """Check that an accelerator has memory for the features, all of one architecture.

    It takes an untrained network on the CPU, and two forward passes of one or two noise samples.
    With bf16, a CPU's autocast saves other numbers for the backward pass than an accelerator's.

    Raises:
        ConfigError: They do not fit.
    """
    run = specs[0].checkpoint.training_run
    model, shape = run.model, run.model.example_shape(run.images.shape)
    condition = None
    if model.condition_shape is not None:
        dtype = torch.int64 if model.num_classes else torch.float32
        condition = torch.zeros(1, 1, *model.condition_shape, dtype=dtype)
    example = Examples(torch.zeros(1, *shape), condition=condition)
    network, schedule = model.build(shape).eval(), model.schedule(torch.device("cpu"))
    if run.training.lora.rank:
        add_adapters(network, run.training.lora)
    checked = set()
    for spec in specs:
        settings = spec.settings
        function = (settings.precision, spec.output, spec.normalize)
        projection = (settings.projection, settings.projection_rank)
        key = (*function, *projection, settings.num_samples, spec.guidance, spec.curvature is None)
        if key in checked:
            continue
        checked.add(key)
        guidance = None
        if condition is not None and spec.guidance != 1:
            guidance = Guidance(spec.guidance, condition[0, 0])
        objective = Objective(network, schedule, *function, guidance)
        noise = sample_noise((0, schedule.num_timesteps), settings.num_samples, shape, 0, "memory")
        if settings.projection is Projection.kronecker:
            projected = project_layers(network, settings.projection_rank, 0, "memory")
            objective = replace(objective, network=projected)
            choose_kronecker_plan(objective, example, noise, memory_gib)
        else:
            _, gradient_gib = _shares(num_trained(network), spec.curvature is not None, memory_gib)
            require_one_gradient(objective, example, noise, gradient_gib)


def _finite(features: Tensor, row: int, normalize: bool) -> np.ndarray:
    """Return a block of features, which begins with a row, in the memory of the CPU.

    It is all that waits for an accelerator.

    Raises:
        FloatingPointError: A feature is not finite.
    """
    block = features.cpu().numpy()
    if not np.isfinite(block).all():
        rows = f"rows {row}…{row + len(block) - 1}"
        cause = ": normalize=true, and the gradient at a noise sample is zero or NaN" * normalize
        raise FloatingPointError(f"features of {rows} are not finite{cause}")
    return block


def _remaining(batches: list[Batch], done: int) -> Iterator[Batch]:
    """Yield the batches without their first `done` examples."""
    for batch in batches:
        skip = min(done, len(batch.examples))
        done -= skip
        yield replace(batch, examples=batch.examples[skip:])


def _layer_blocks(
    objectives: list[Objective], batches: Iterator[Batch], plan: GradientPlan, stacked: bool
) -> Iterator[Tensor]:
    """Yield the features under one network [B, p], or under several, stacked [B, damping, p]."""
    for batch in batches:
        parts = []
        for objective in objectives:
            of_region = replace(objective, region=batch.region)
            parts.append(kronecker_features(of_region, batch.examples, batch.noise, plan))
        for blocks in zip(*parts, strict=True):
            yield torch.stack(blocks, 1) if stacked else blocks[0]


def join_blocks(blocks: Iterator[Tensor], num_rows: int) -> Iterator[Tensor]:
    """Yield blocks [B, d] joined to at most `num_rows` rows, or as they are if it is 1.

    A block that is larger stays as it is.
    """
    if num_rows == 1:
        yield from blocks
        return
    waiting: list[Tensor] = []
    for block in blocks:
        if waiting and sum(map(len, waiting)) + len(block) > num_rows:
            yield torch.cat(waiting)
            waiting.clear()
        waiting.append(block)
    if waiting:
        yield torch.cat(waiting)


def precondition(
    project: Projector, ekfac: EKFAC, damping: Sequence[float], num_rows: int
) -> Projector:
    """Return the projection of (G + λI)^{−1/2} g in the eigenbasis of G, for every λ.

    It maps gradients [B, d] to features [B, damping, p], whose inner products are those of EK-FAC.

    Args:
        project: Projection of gradients [B, d] to [B, p].
        ekfac: G.
        damping: λ relative to the mean eigenvalue.
        num_rows: How many gradients to project at once.
    """
    factors = [ekfac.damped(relative).rsqrt() for relative in damping]

    def preconditioned(gradients: Tensor) -> Tensor:
        blocks = []
        for part in ekfac.rotate(gradients).split(num_rows):
            blocks.append(torch.stack([project(part * factor) for factor in factors], 1))
        return torch.cat(blocks)

    return preconditioned
