"""The Python interface: attribute and evaluate networks of your own, without configuration files.

S steps;  Q queries;  N training images;  M retrained models
"""

import copy
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from journey.attribution.ekfac import ekfac_batches, estimate_ekfac
from journey.attribution.features import feature_blocks, noise_batches
from journey.attribution.gradient import EKFACFactors, GradientMethod
from journey.attribution.gradients import Objective
from journey.attribution.projections import QuantizedFeatures, quantize
from journey.attribution.targets import with_aggregates
from journey.diffusion.network import require_device
from journey.engine.checks import require, require_count, require_region_inside, require_types
from journey.evaluation.lds import datamodeling, reliability
from journey.evaluation.statistics import interval
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import PREDICTIONS, Schedule
from journey.pipeline.settings import Ensemble, Kernel, QueryExample, Storage, Target

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

Array = np.ndarray | Tensor
SCHEMA = "/schema/method/gradient@_here_"  # in `conf/method`, the files of gradient methods have it
PREDICTION_TYPES = {"epsilon": "noise", "v_prediction": "velocity", "sample": "sample"}


def method(name: str = "journey", **settings: object) -> GradientMethod:
    """Return a gradient method with the settings of `conf/method/<name>.yaml`.

    Args:
        name: Such as `journey`, `trak`, `ekfac`, `dtrak` or `gradient_cosine`.
        **settings: Other values of its settings; choices are texts, such as `kernel="ekfac"`.
            Without `damping`, λ is the middle one of the default values.
    """
    from omegaconf import OmegaConf

    from journey.config.compose import CONF

    methods: dict[str, dict[str, Any]] = {}
    for path in sorted((CONF / "method").glob("*.yaml")):
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        if SCHEMA in content.pop("defaults"):
            methods[path.stem] = content
    require(name in methods, "method", name, f"one of {', '.join(methods)}")

    values, types = methods[name] | settings, get_type_hints(GradientMethod)
    names = [f.name for f in fields(GradientMethod)]
    for key, value in values.items():
        where = f"method.{name}.{key}"
        require(key in names, where, value, f"a setting: {', '.join(names)}")
        if isinstance(types[key], type) and issubclass(types[key], Enum) and isinstance(value, str):
            options = types[key].__members__
            require(value in options, where, value, f"one of {', '.join(options)}")
            values[key] = options[value]
    result = GradientMethod(**values)
    require_types(result, f"method.{name}.")
    result.check(f"method.{name}")
    if "damping" not in settings:
        result.damping = [result.damping[len(result.damping) // 2]]
    return result


def JourneyTRAK(**settings: object) -> GradientMethod:
    """Return Journey-TRAK (Georgiev et al. 2023): `method("journey", **settings)`."""
    return method("journey", **settings)


def attribute(
    networks: nn.Module | Sequence[nn.Module],
    scheduler: "DDPMScheduler | Schedule",
    train_images: Array,
    queries: Array,
    steps: Sequence[int],
    method: GradientMethod | None = None,
    device: str = "cpu",
    memory_gib: float = 2.0,
    seed: int = 0,
    train_conditions: Array | None = None,
    query_conditions: Array | None = None,
) -> np.ndarray:
    """Return the scores of training images for queries, float32 [S, Q, N]; positive: proponent.

    Gradients take at most `memory_gib`; the features of one network, [N, p], are in memory, too.

    Args:
        networks: A network ε(x_t, t) or ε(x_t, t, condition), of diffusers or any that returns a
            tensor; or several checkpoints, over which scores are averaged. They are not changed.
        scheduler: A diffusers scheduler that has `alphas_cumprod`, or a `Schedule`.
        train_images: Training images in −1…1, or latents. [N, C, H, W]
        queries: Clean images, generated or not, for all steps [Q, C, H, W]; or, for each step, the
            estimates x̂0_t of a trajectory [S, Q, C, H, W].
        steps: Timesteps t. They have no effect with target=final_sample, where S = 1.
        method: A method with one value of damping; by default `JourneyTRAK()`.
        device: Where gradients are computed, such as "cuda".
        memory_gib: Memory for gradients.
        seed: Seed of noise samples and projections.
        train_conditions: Labels [N] or text states [N, L, E] of the training images.
        query_conditions: Those of the queries. [Q, …]
    """
    # Check the method, which has one output per step, and no artifacts of a run.
    method = JourneyTRAK() if method is None else method
    schedule, ensemble, example = _schedule(scheduler, device), method.ensemble, method.query_example
    method.check("method")
    require(ensemble is Ensemble.seeds, "method.ensemble", ensemble.value, "seeds")
    whole = method.target is Target.trajectory
    require(not whole, "method.target", method.target.value, "step or final_sample")
    allowed = "estimate; pass other examples as queries"
    require(example is QueryExample.estimate, "method.query_example", example.value, allowed)
    single = len(method.candidates()) == 1
    require(single, "method.damping", method.damping, "one value, such as [0.1]")
    num_timesteps = schedule.num_timesteps
    require_count("method.num_samples", method.num_samples, most=num_timesteps)
    require_count("method.train_timesteps", method.train_timesteps, least=0, most=num_timesteps)

    # Range of timesteps and clean queries of each output, and the training images.
    train, x0 = _examples("train_images", train_images, train_conditions), _tensor(queries)
    ranges = [(t, t + 1) for t in steps]
    if method.target is Target.final_sample:
        ranges = [(0, num_timesteps)]
    require(len(ranges) > 0, "steps", steps, "a non-empty list of timesteps")
    for first, _ in ranges:
        require_count("steps", first, least=0, most=num_timesteps - 1)
    shape = tuple(x0.shape)
    if x0.ndim == train.x0.ndim:
        x0 = x0.expand(len(ranges), *shape)
    fits = len(x0) == len(ranges) and x0.shape[2:] == train.x0.shape[1:]
    allowed = f"[Q, …] or [{len(ranges)}, Q, …], where … is {train.shape} as of training images"
    require(fits, "queries.shape", shape, allowed)
    if method.region:
        require_region_inside("method.region", method.region, *x0.shape[-2:], x0.shape[1])

    # Their noise samples.
    settings, query_settings = method.feature_settings()
    query_batches = []
    for timesteps, clean in zip(ranges, x0, strict=True):
        examples, region = _examples("queries", clean, query_conditions), tuple(method.region)
        rest = (timesteps, True, seed, region, schedule.device)
        query_batches += noise_batches(query_settings, examples, *rest)
    count = method.train_timesteps or num_timesteps
    train_batches = [
        noise_batches(settings, train, (t, t + count), False, seed, (), schedule.device)
        for t in method.first_timesteps(steps, num_timesteps)
    ]

    # The features and scores of every network.
    checkpoints = [networks] if isinstance(networks, nn.Module) else list(networks)
    out = np.zeros((1, *x0.shape[:2], len(train)), np.float32)
    total = len(checkpoints) * (len(train_batches) * len(train) + len(x0) * x0.shape[1])
    hidden = not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task("gradients", total=total)
        for k, network in enumerate(checkpoints, method.first_checkpoint):
            objective = Objective(
                _prepared(network, schedule.device, train, num_timesteps),
                schedule,
                method.precision,
                method.output,
                method.normalize,
            )
            ekfac = None
            if method.kernel is Kernel.ekfac:
                on_device, size = train.to(schedule.device), EKFACFactors.batch_size
                ekfac = estimate_ekfac(
                    objective.network,
                    objective.predict(),
                    schedule,
                    lambda: ekfac_batches(on_device, num_timesteps, seed, size),
                )
            damping = method.damping if ekfac is not None else []
            features = []
