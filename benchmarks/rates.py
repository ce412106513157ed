"""How fast an experiment goes on this machine: training, sampling, featurizing, measuring, encoding. `task=plan` estimates by it.

command   python benchmarks/rates.py experiment=cifar10 compute.device=cuda compute.precision=bf16 artifacts=…
writes    rates.json in `artifacts`: for this network, kind of device and precision, seconds of some work of each stage
cost      SECONDS for each stage, after WARM_UP of its units: steps, blocks of images, queries

It takes the words of an experiment, whose sizes of batches and draws it keeps. Weights are untrained and images random, and of
datasets that no package carries settings say the shape, so it needs no data. Left out is EK-FAC, the start of workers, and what
they read and write, some seconds an artifact. A pipeline's text encoder reads captions as they are asked for, as for COCO; where
the pipeline is not on this machine, the network is measured without.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from journey.__main__ import one_line_errors
from journey.attribution.gradient import Featurize
from journey.attribution.gradients import Objective, choose_plan
from journey.attribution.outputs import (
    batches,
    measurement_noise,
    sample_losses,
    sample_noise,
    with_augmentations,
)
from journey.attribution.projections import make_projection
from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas
from journey.config.run import RunConfig
from journey.data.archive import Archive, TorchvisionArchive
from journey.data.coco import COCO, NUM_CAPTIONS
from journey.diffusion import autoencoder, network, sampling, training
from journey.diffusion.autoencoder import BATCH_ENCODE
from journey.diffusion.network import Predict
from journey.diffusion.sampling import TOGETHER
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
AS_STABLE_DIFFUSION = Autoencoding(block_out_channels=[8] * 4)  # an eighth of a side, in 4 channels


@dataclass(frozen=True)
class Setting:
    """What all stages are measured with. examples: random ones, on the device; nothing: the context of no text."""

    model: Model
    shape: tuple[int, int, int]  # of an image
    compute: Compute
    device: torch.device
    schedule: Schedule
    examples: Examples
    nothing: Tensor | None

    def network(self) -> nn.Module:
        """A new one, as it is trained."""
        return self.model.build(self.examples.shape).to(self.device)

    def predict(self, precision: Precision, guidance: float) -> Predict:
        """Of a new one, as it is asked."""
        guided = None if guidance == 1 else network.Guidance(guidance, self.nothing)
        return network.bind(self.network().eval(), precision, guidance=guided)


def setting(model: Model, shape: tuple[int, int, int], compute: Compute) -> Setting:
    """Raises: ConfigError if this machine has no such device."""
    device = network.get_device(compute)
    training.initialise(0, "benchmark")
    return Setting(
        model,
        shape,
        compute,
        device,
        model.schedule(device),
        *random_examples(model, shape, device),
    )


def random_examples(
    model: Model, shape: tuple[int, int, int], device: torch.device
) -> tuple[Examples, Tensor | None]:
    """As a model sees them, and the context of no text, if it reads any."""
    x0 = torch.rand(NUM_IMAGES, *model.example_shape(shape)) * 2 - 1
    if not model.reads_text:
        return Examples(x0).to(device), None
    context = torch.randn(NUM_IMAGES, NUM_CAPTIONS, model.text_length, model.context_width)
    if model.pretrained:
        encoder = TextEncoder.from_pipeline(
            locate("model.pretrained", model.pretrained, "a pipeline"), model.text_length
        )
        tokens = torch.stack(
            encoder.tokens(["a photograph of this and of that"] * NUM_IMAGES * NUM_CAPTIONS)
        )
        context = LazyCaptions(tokens.unflatten(1, (NUM_IMAGES, NUM_CAPTIONS)), encoder)
    deviation = torch.rand_like(x0) if model.samples_latents else None
    return Examples(x0, deviation, context).to(device), torch.randn(
        model.text_length, model.context_width
    ).to(device)


def shape_of(dataset: Dataset) -> tuple[int, int, int]:
    """Of one image, C, H, W."""
    match dataset:
        case TorchvisionArchive():
            return 3 if dataset.archive is Archive.cifar10 else 1, dataset.size, dataset.size
        case COCO():
            return 3, dataset.size, dataset.size
        case _:
            return dataset.load()[0].images.shape[1:]


def at_hand(model: Model, shape: tuple[int, int, int]) -> tuple[Model, str]:
    """A model, or one of the same network if its encoders are not on this machine; and what there is to say of it."""
    try:
        model.fits(shape)
    except ConfigError as error:
        if model.pixels or not model.pretrained:
            raise
        print(f"without encoders: {error}", file=sys.stderr)
        return replace(model, pretrained="", autoencoder=AS_STABLE_DIFFUSION), ", without encoders"
    return model, ""


# ---------------------------------------------------------------------- stages, which yield the work of each unit


def train(spec: Train, on: Setting) -> Iterator[float]:
    """Steps."""
    settings, count = spec.training, len(on.examples)
    batches = training.Batches(
        spec.batches, torch.arange(count), count, settings.batch_size, on.schedule.num_timesteps, spec.seed, "benchmark",
        samples_latents=on.examples.deviation is not None,
    )  # fmt: skip
    state, nothing = (
        training.new_state(on.network(), settings),
        on.nothing if settings.caption_dropout else None,
    )
    course = training.TrainingInputs(
        on.examples, batches, settings, spec.precision, on.schedule, nothing
    )
    for _ in training.train(state, course, sys.maxsize):
        yield spec.work / settings.num_steps


def featurize(spec: Featurize, on: Setting) -> Iterator[float]:
    """Blocks of training images."""
    denoiser = on.network().eval()
    draws = sample_noise(
        (0, on.schedule.num_timesteps),
        spec.num_samples,
        on.examples.shape,
        spec.seed,
        "benchmark",
        spec.antithetic,
    )
    draws = with_augmentations(
        draws, on.examples, spec.flips, spec.captions, spec.antithetic, spec.seed, "benchmark"
    ).to(on.device)
    objective = Objective(denoiser, on.schedule, spec.precision, spec.output, spec.normalize)
    d = sum(p.numel() for p in denoiser.parameters())
    project = make_projection(
        spec.projection, d, spec.projection_dim or d, spec.seed, "benchmark", on.device
    )
    plan = choose_plan(objective, on.examples, draws, on.compute.gradient_memory_gib)
    for _ in itertools.count():
        for gradients in objective.gradients(on.examples, draws, plan):
            yield len(project(gradients).cpu()) * spec.work / spec.num_rows


def sample(spec: Sample, on: Setting) -> Iterator[float]:
    """Steps of as many queries as are sampled together."""
    together = min(TOGETHER, spec.num_queries)
    predict = on.predict(spec.checkpoint.precision, spec.guidance)
    context = None if on.nothing is None else on.nothing.expand(together, *on.nothing.shape)
    timesteps = visited_timesteps(on.schedule.num_timesteps, spec.num_inference_steps)
    for _ in itertools.count():
        noise = sampling.trajectory_noise(range(together), on.examples.shape, spec.seed)
        for step in sampling.sample_trajectories(
            predict, on.schedule, spec.sampler, timesteps, noise, on.device, context
        ):
            step.x0_hat.isfinite().all().item()  # as the stage looks at each
            yield spec.work / spec.num_inference_steps * together / spec.num_queries


@torch.no_grad()
def measure(spec: Measure, on: Setting) -> Iterator[float]:
    """Outputs of some queries at a step."""
    predict = on.predict(spec.checkpoint.precision, spec.guidance)
    for some, region in itertools.cycle(batches((), NUM_IMAGES, spec.num_samples)):
        draws = [
            measurement_noise(
                spec, spec.steps[0], q, on.schedule.num_timesteps, on.examples.shape
            ).to(on.device)
            for q in some
        ]
        sample_losses(
            predict, on.schedule, on.examples[some.start : some.stop], draws, region
        ).cpu()
        yield spec.work * len(some) / (spec.trajectories.num_queries * (len(spec.steps) + 1))


def encode(spec: Latents, on: Setting) -> Iterator[float]:
    """Batches of images; their captions take no time if they are not kept."""
    vae = autoencoder.load(
        locate("model.pretrained", spec.pretrained, "a pipeline") / "vae", on.device
    )
    images = torch.rand(BATCH_ENCODE, *on.shape)
    for _ in itertools.count():
        autoencoder.encode(vae, images.to(on.device))[0].cpu()
        yield BATCH_ENCODE * spec.work / spec.images.num_train


UNITS = {Train: train, Featurize: featurize, Sample: sample, Measure: measure, Latents: encode}


def specs_of(run: RunConfig, model: Model, shape: tuple[int, int, int]) -> dict[str, Spec]:
    """What an experiment makes, one of each rate that can be measured."""
    images = Images("random", run.dataset, NUM_IMAGES, shape)
    experiment = Experiment(
        images, model, run.training, run.sampling, run.retraining, run.compute.precision, run.seed
    )
    everything = ancestors(experiment.evaluation(run.evaluation, run.all_methods))
    return {spec.rate_name: spec for spec in everything if is_measured(spec)}


def is_measured(spec: Spec) -> bool:
    """Queries are featurized as images are; whitening takes a curvature; an autoencoder of one's own is not trained yet."""
    match spec:
        case Featurize():
            return spec.trajectories is None and spec.curvature is None
        case Latents():
            return spec.pretrained != ""
        case Train():
            return spec.subset == FullData()
        case _:
            return type(spec) in UNITS


def rate(units: Iterator[float], device: torch.device) -> Rate:
    """Of so many units as take SECONDS, the first ones left out."""
    for _ in range(WARM_UP):
        next(units)
    wait = torch.get_device_module(device).synchronize
    wait()
    started, work = time.perf_counter(), 0.0
    while not work or time.perf_counter() - started < SECONDS:
        work += next(units)
    wait()
    return Rate(work, time.perf_counter() - started)


def size_of(model: nn.Module) -> int:
    """Bytes of a network as it is kept."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return sum(path.stat().st_size for path in Path(directory).iterdir())


def name_of(device: torch.device) -> str:
    """What it is, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return (
        device.type if device.type != "cpu" else f"{threads} thread{'s' * (threads > 1)} of a CPU"
    )


def measure_all(run: RunConfig) -> None:
    """Measure, print and write. Raises: ConfigError."""
    if run.compute.device == "cpu":
        torch.set_num_threads(run.compute.num_threads)
    shape = shape_of(run.dataset)
    model, said = at_hand(run.model, shape)
    on = setting(model, shape, run.compute)
    machine = f"{name_of(on.device)}{said}"
    print(
        f"{run.model.label} in {run.compute.precision.value} on {machine}: seconds for 10¹² multiply-adds"
    )
    found = {}
    for name, spec in specs_of(run, model, shape).items():
        found[name] = rate(UNITS[type(spec)](spec, on), on.device)
        print(f"  {name:22}{1e12 * found[name].seconds / found[name].work:8.3g}", flush=True)
    found["train"] = replace(found["train"], size=size_of(on.network()))
    print(f"  bytes of a model {found['train'].size:,}")
    write_rates(
        Path(run.artifacts),
        run.model.label,
        run.compute,
        Rates(f"as benchmarks/rates.py measured on {machine}", found),
    )
    print(f"{Path(run.artifacts) / RATES}: task=plan with the same words estimates by it")


if __name__ == "__main__":
    register_schemas(COMPONENTS)
    with one_line_errors():
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = parse(compose("config", sys.argv[1:]))
        measure_all(composed)
