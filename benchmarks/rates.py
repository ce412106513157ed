"""Measure how fast the stages of an experiment run on this machine, for `task=plan`.

    command   python benchmarks/rates.py experiment=cifar10 compute.device=cuda artifacts=…
    writes    rates.json in `artifacts`: for this network, kind of device and precision, the seconds
              of some work of each stage
    cost      SECONDS for each stage, after WARM_UP of its units (steps, blocks of images, queries)

It takes the overrides of an experiment, and uses its batch sizes and numbers of noise samples.
Weights are untrained and images random. The settings of datasets that no package carries give the
shape of their images, so no data is needed. The eigenvectors of EK-FAC take the same time whatever
the number of images: they are computed once for its rate, and once for that of preconditioned
features. The start of workers is not measured, nor are reading and writing, which take some seconds
per artifact. A pipeline's text encoder encodes captions when they are used, as for COCO. If the
pipeline is not on this machine, the network is measured without encoders.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from journey.__main__ import one_line_errors
from journey.attribution.ekfac import EKFAC, EKFACBatch, ekfac_batches, estimate_ekfac
from journey.attribution.features import feature_blocks, noise_batches
from journey.attribution.gradient import EKFACFactors, Featurize
from journey.attribution.gradients import Objective
from journey.attribution.outputs import measurement_noise, query_batches, sample_losses
from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas
from journey.config.run import RunConfig
from journey.data.archive import Archive, TorchvisionArchive
from journey.data.coco import COCO, NUM_CAPTIONS
from journey.diffusion import autoencoder, sampling, training
from journey.diffusion.autoencoder import BATCH_ENCODE
from journey.diffusion.network import Denoiser, Guidance, bind, get_device, gradient_memory
from journey.diffusion.sampling import QUERY_BATCH
from journey.diffusion.text import LazyCaptions, TextEncoder
from journey.engine.checks import ConfigError
from journey.engine.costs import RATES, Rate, Rates, write_rates
from journey.engine.graph import ancestors
from journey.engine.spec import Spec
from journey.engine.workspace import Compute, Precision
from journey.pipeline.examples import Examples
from journey.pipeline.interfaces import (
    Dataset,
    Experiment,
    FullData,
    Images,
    Latents,
    Measure,
    Model,
    Sample,
    Train,
)
from journey.pipeline.pretrained import locate
from journey.pipeline.schedule import Schedule
from journey.pipeline.settings import Autoencoding, visited_timesteps

SECONDS, WARM_UP = 10.0, 2
NUM_IMAGES = 256
# Latents of Stable Diffusion: an eighth of an image's side, in 4 channels.
STABLE_DIFFUSION = Autoencoding(block_out_channels=[8] * 4)


@dataclass(frozen=True)
class Setting:
    """What all stages are measured with."""

    model: Model
    shape: tuple[int, int, int]  # of an image
    compute: Compute
    device: torch.device
    schedule: Schedule
    examples: Examples  # random, on the device
    null_condition: Tensor | None  # of no text [L, E], or of no class []

    def network(self) -> nn.Module:
        """Return a new network, in training mode."""
        return self.model.build(self.examples.shape).to(self.device)

    def denoiser(self, precision: Precision, scale: float) -> Denoiser:
        """Return a new denoiser with a scale of guidance."""
        guidance = None if scale == 1 else Guidance(scale, self.null_condition)
        net = self.network().eval()
        predict = bind(net, precision, guidance=guidance)
        return Denoiser(net, predict, self.schedule, guidance, self.device)


def setting(model: Model, shape: tuple[int, int, int], compute: Compute) -> Setting:
    """Return a setting. Raises ConfigError if this machine does not have the device."""
    device = get_device(compute)
    training.initialise(0, "benchmark")
    x0 = torch.rand(NUM_IMAGES, *model.example_shape(shape)) * 2 - 1
    examples, null_condition = Examples(x0), None
    if model.reads_text:
        size = (model.text_length, model.context_width)
        condition = torch.randn(NUM_IMAGES, NUM_CAPTIONS, *size)
        if model.pretrained:
            pipeline = locate("model.pretrained", model.pretrained, "a pipeline")
            encoder = TextEncoder.from_pipeline(pipeline, model.text_length)
            captions = ["a photograph of this and of that"] * NUM_IMAGES * NUM_CAPTIONS
            tokens = torch.stack(encoder.tokens(captions))
            condition = LazyCaptions(tokens.unflatten(1, (NUM_IMAGES, NUM_CAPTIONS)), encoder)
        deviation = torch.rand_like(x0) if model.samples_latents else None
        examples = Examples(x0, deviation, condition)
        null_condition = torch.randn(size).to(device)
    if model.num_classes:
        labels = torch.randint(model.num_classes, (NUM_IMAGES, 1))
        examples, null_condition = Examples(x0, condition=labels), model.null_condition().to(device)
    schedule = model.schedule(device)
    return Setting(model, shape, compute, device, schedule, examples.to(device), null_condition)


def image_shape(dataset: Dataset) -> tuple[int, int, int]:
    """Return the shape [C, H, W] of one image."""
    match dataset:
        case TorchvisionArchive():
            return 3 if dataset.archive is Archive.cifar10 else 1, dataset.size, dataset.size
        case COCO():
            return 3, dataset.size, dataset.size
        case _:
            return dataset.load()[0].images.shape[1:]


def at_hand(model: Model, shape: tuple[int, int, int]) -> tuple[Model, str]:
    """Return the model, or one with the same network if its encoders are not on this machine.

    The text says so.
    """
    try:
        model.fits(shape)
    except ConfigError as error:
        if model.pixels or not model.pretrained:
            raise
        print(f"without encoders: {error}", file=sys.stderr)
        return replace(model, pretrained="", autoencoder=STABLE_DIFFUSION), ", without encoders"
    return model, ""


# ------------------------------------------------------- stages, which yield the work of each unit


def train(spec: Train, on: Setting) -> Iterator[float]:
    """Take training steps."""
    settings, count = spec.training, len(on.examples)
    batches = training.Batches(
        batching=spec.batches,
        rows=torch.arange(count),
        num_examples=count,
        size=settings.batch_size,
        num_timesteps=on.schedule.num_timesteps,
        seed=spec.seed,
        stream="benchmark",
        samples_latents=on.examples.deviation is not None,
    )
    null_condition = on.null_condition if settings.caption_dropout else None
    inputs = training.TrainingInputs(
        on.examples, batches, settings, spec.precision, on.schedule, null_condition
    )
    state = training.new_state(on.network(), settings)
    for _ in training.train(state, inputs, sys.maxsize):
        yield spec.work / settings.num_steps


def featurize(spec: Featurize, on: Setting) -> Iterator[float]:
    """Compute features of blocks of training images."""
    settings, seed, net = spec.settings, spec.seed, on.network().eval()
    objective = Objective(net, on.schedule, settings.precision, spec.output, spec.normalize)
    timesteps = (0, on.schedule.num_timesteps)
    batches = noise_batches(settings, on.examples, timesteps, False, seed, (), on.device)
    ekfac = None
    if spec.curvature is not None:
        first = on.examples[: spec.curvature.batch_size]
        ekfac = estimate(objective, lambda: ekfac_batches(first, timesteps[1], seed, len(first)))
    random = (seed, 0, gradient_memory(on.compute, on.device))
    for _ in itertools.count():
        for block in feature_blocks(settings, objective, batches, *random, ekfac, spec.damping)[2]:
            yield len(block.cpu()) * spec.work / spec.num_rows


def estimate(objective: Objective, batches: Callable[[], Iterator[EKFACBatch]]) -> EKFAC:
    """Return the EK-FAC factors of a network."""
    return estimate_ekfac(objective.network, objective.predict(), objective.schedule, batches)


def sample(spec: Sample, on: Setting) -> Iterator[float]:
    """Take sampling steps of a batch of queries."""
    size = min(QUERY_BATCH, spec.num_queries)
    denoiser = on.denoiser(spec.checkpoint.precision, spec.guidance)
    condition = None
    if on.null_condition is not None:
        condition = on.null_condition.expand(size, *on.null_condition.shape)
    timesteps = visited_timesteps(
        on.schedule.num_timesteps, spec.num_inference_steps, on.model.is_flow
    )
    for _ in itertools.count():
        noise = sampling.trajectory_noise(range(size), on.examples.shape, spec.seed)
        for step in sampling.sample_trajectories(
            denoiser, spec.sampler, timesteps, noise, condition
        ):
            step.x0_hat.isfinite().all()  # the stage checks every step, too
            yield spec.work / spec.num_inference_steps * size / spec.num_queries


@torch.no_grad()
def measure(spec: Measure, on: Setting) -> Iterator[float]:
    """Measure outputs of batches of queries at a step."""
    predict = on.denoiser(spec.checkpoint.precision, spec.guidance).predict
    step, num_timesteps, shape = spec.steps[0], on.schedule.num_timesteps, on.examples.shape
    num_outputs = spec.trajectories.num_queries * (len(spec.steps) + 1)
    for batch, region in itertools.cycle(query_batches((), NUM_IMAGES, spec.num_samples)):
        noise = []
        for query in batch:
            noise.append(measurement_noise(spec, step, query, num_timesteps, shape).to(on.device))
        examples = on.examples[batch.start : batch.stop]
        sample_losses(predict, on.schedule, examples, noise, region).cpu()
        yield spec.work * len(batch) / num_outputs


def encode(spec: Latents, on: Setting) -> Iterator[float]:
    """Encode batches of images. Captions take no time, because tokens are stored."""
    path = locate("model.pretrained", spec.pretrained, "a pipeline") / "vae"
    vae = autoencoder.load(path, on.device)
    images = torch.rand(BATCH_ENCODE, *on.shape)
    for _ in itertools.count():
        autoencoder.encode(vae, images.to(on.device))[0].cpu()
        yield BATCH_ENCODE * spec.work / spec.images.num_train


UNITS = {Train: train, Featurize: featurize, Sample: sample, Measure: measure, Latents: encode}


def ekfac_rate(spec: EKFACFactors, on: Setting) -> Rate:
    """Return the rate of EK-FAC, whose eigenvectors are the same work whatever the images."""
    objective = Objective(on.network().eval(), on.schedule, spec.precision)
    passes: list[list[float]] = []  # times at which each batch began, and of the end

    def batches() -> Iterator[EKFACBatch]:
        times: list[float] = []
        passes.append(times)
        for first in itertools.cycle(range(0, len(on.examples), spec.batch_size)):
            synchronize(on.device)
            times.append(time.perf_counter())
            if len(times) > WARM_UP + 1 and times[-1] - times[WARM_UP] >= SECONDS / 2:
                return
            part = on.examples[first : first + spec.batch_size]
            yield from ekfac_batches(part, on.schedule.num_timesteps, spec.seed, spec.batch_size)

    estimate(objective, batches)
    count, seconds = 0, 0.0
    for times in passes:
        count += len(times) - 1 - WARM_UP
        seconds += times[-1] - times[WARM_UP]
    images = count * spec.batch_size / len(passes)  # of both passes
    work = images * spec.work / spec.checkpoint.images.num_train
    return Rate(work, seconds, fixed_seconds=passes[1][0] - passes[0][-1])


# ---------------------------------------------------------------------------------------- the rates


def is_measured(spec: Spec) -> bool:
    """Return whether the rate of an artifact's stage is measured by that artifact.

    Queries are featurized as images are. An autoencoder that is part of the experiment is not
    trained yet.
    """
    match spec:
        case Featurize():
            return spec.trajectories is None
        case Latents():
            return spec.pretrained != ""
        case Train():
            return spec.subset == FullData()
        case _:
            return type(spec) in (*UNITS, EKFACFactors)


def measure_rate(units: Iterator[float], device: torch.device) -> Rate:
    """Return the rate of as many units as take SECONDS, after the warm-up."""
    for _ in range(WARM_UP):
        next(units)
    synchronize(device)
    started, work = time.perf_counter(), 0.0
    while not work or time.perf_counter() - started < SECONDS:
        work += next(units)
    synchronize(device)
    return Rate(work, time.perf_counter() - started)


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished."""
    torch.get_device_module(device).synchronize()


def measure_all(run: RunConfig) -> None:
    """Measure, print and write the rates. Raises ConfigError."""
    if run.compute.device == "cpu":
        torch.set_num_threads(run.compute.num_threads)
    shape, precision = image_shape(run.dataset), run.compute.precision
    model, note = at_hand(run.model, shape)
    on = setting(model, shape, run.compute)
    threads, machine = torch.get_num_threads(), on.device.type
    if machine == "cuda":
        machine = torch.cuda.get_device_name(on.device)
    elif machine == "cpu":
        machine = f"{threads} thread{'s' * (threads > 1)} of a CPU"
    machine += note
    print(f"{run.model.label} in {precision.value} on {machine}: seconds for 10¹² multiply-adds")

    # One artifact for each rate.
    images = Images("random", run.dataset, NUM_IMAGES, shape)
    settings = (model, run.training, run.sampling, run.retraining, precision, run.seed)
    target = Experiment(images, *settings).evaluation(run.evaluation, run.all_methods)
    specs = {spec.rate_name: spec for spec in ancestors(target) if is_measured(spec)}
    rates = {}
    for name, spec in specs.items():
        if isinstance(spec, EKFACFactors):
            rate = ekfac_rate(spec, on)
        else:
            rate = measure_rate(UNITS[type(spec)](spec, on), on.device)
        rates[name] = rate
        fixed = f", and {rate.fixed_seconds:.3g} s each" if rate.fixed_seconds else ""
        print(f"  {name:34}{1e12 * rate.seconds / rate.work:8.3g}{fixed}", flush=True)

    # The size of a stored model.
    with tempfile.TemporaryDirectory() as directory:
        on.network().save_pretrained(directory)
        num_bytes = sum(path.stat().st_size for path in Path(directory).iterdir())
    rates["train"] = replace(rates["train"], size=num_bytes)
    print(f"  bytes of a model {num_bytes:,}")

    source = f"as benchmarks/rates.py measured on {machine}"
    write_rates(Path(run.artifacts), run.model.label, run.compute, Rates(source, rates))
    print(f"{Path(run.artifacts) / RATES}: task=plan with the same overrides uses these rates")


if __name__ == "__main__":
    register_schemas(COMPONENTS)
    with one_line_errors():
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = parse(compose("config", sys.argv[1:]))
        measure_all(config)
