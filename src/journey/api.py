"""The Python interface: attribute and evaluate networks of your own, without configuration files.

S steps;  Q queries;  N training images;  M retrained models
"""

import copy
import functools
import inspect
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from journey.attribution.ekfac import ekfac_batches, estimate_ekfac
from journey.attribution.features import features_in_memory, noise_batches
from journey.attribution.gradient import EKFACFactors, GradientMethod
from journey.attribution.gradients import Objective
from journey.diffusion.checkpoint_files import UnreadableError
from journey.diffusion.network import gradient_memory, require_device
from journey.diffusion.released import read_process
from journey.engine.checks import (
    ConfigError,
    require,
    require_count,
    require_region_inside,
    require_seed,
)
from journey.evaluation.lds.standalone import LDSResult, lds
from journey.launch.local import Local
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import PREDICTIONS, Schedule
from journey.pipeline.settings import Kernel, Target

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

__all__ = ["JourneyTRAK", "LDSResult", "attribute", "lds", "method"]

Array = np.ndarray | Tensor


def method(name: str = "journey", **settings: object) -> GradientMethod:
    """Return a gradient method with the settings of `conf/method/<name>.yaml`, or with others.

    Choices may be texts, such as `kernel="ekfac"`. By default, damping is the middle one of the
    values among which an evaluation would choose.
    """
    from omegaconf import OmegaConf

    from journey.config.compose import CONF

    methods: dict[str, dict] = {}
    for path in sorted((CONF / "method").glob("*.yaml")):
        values = cast(dict, OmegaConf.to_container(OmegaConf.load(path)))
        if "/schema/method/gradient@_here_" in values.pop("defaults"):
            methods[path.stem] = values
    require(name in methods, "method", name, f"one of {', '.join(methods)}")
    result = GradientMethod.from_values(f"method.{name}", methods[name] | settings)
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
    memory_gib: float | None = None,
    seed: int = 0,
    train_conditions: Array | None = None,
    query_conditions: Array | None = None,
) -> np.ndarray:
    """Return the scores of training images for queries, float32 [S, Q, N]; positive: proponent.

    Args:
        networks: A network ε(x_t, t) or ε(x_t, t, condition), of diffusers or any that returns a
            tensor; or several checkpoints, over which scores are averaged. They are not changed.
            Gradients are of the parameters that require them, such as those of LoRA, or of all.
        scheduler: A scheduler of diffusers, variance-preserving or of a flow, or a `Schedule`.
        train_images: Training images in −1…1, or latents. [N, C, H, W]
        queries: Clean images, generated or not, for all steps [Q, C, H, W]; or, for each step, the
            estimates x̂0_t of a trajectory [S, Q, C, H, W].
        steps: Timesteps t. They have no effect with target=final_sample, where S = 1.
        method: A method with one value of damping; by default `JourneyTRAK()`.
        device: Where gradients are computed, such as "cuda".
        memory_gib: Memory for gradients; by default, 2 on a CPU, and a share of what is free on a
            GPU. The features of one network, [N, p], are in memory, too.
        seed: Seed of noise samples and projections.
        train_conditions: Labels [N] or text states [N, L, E] of the training images.
        query_conditions: Those of the queries. [Q, …]
    """
    method = JourneyTRAK() if method is None else method
    require_seed("seed", seed)
    schedule = _schedule(scheduler, device)
    place, num_timesteps = schedule.device, schedule.num_timesteps
    method.check_standalone("method", num_timesteps)
    checkpoints = [networks] if isinstance(networks, nn.Module) else list(networks)
    require_count("number of networks", len(checkpoints))

    # The training images, and for each output its range of timesteps and its queries.
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
    fits = x0.shape[:1] == (len(ranges),) and x0.shape[2:] == train.x0.shape[1:]
    allowed = f"[Q, …] or [{len(ranges)}, Q, …], where … is {train.shape}, as of train_images"
    require(fits, "queries.shape", shape, allowed)
    if method.region:
        height, width = x0.shape[-2:]
        require_region_inside("method.region", method.region, height, width, x0.shape[1])

    # The queries of each output.
    clean_queries = [_examples("queries", images, query_conditions) for images in x0]
    first_timesteps = method.first_timesteps(steps, num_timesteps)

    # Features and scores, network by network.
    out = np.zeros((1, *x0.shape[:2], len(train)), np.float32)
    total = len(checkpoints) * (len(first_timesteps) * len(train) + len(x0) * x0.shape[1])
    curvature = (train.to(place), num_timesteps, seed, EKFACFactors.batch_size)
    sample_curvature = functools.partial(ekfac_batches, *curvature)
    hidden = not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=hidden) as progress:
        advance = functools.partial(progress.advance, progress.add_task("gradients", total=total))
        for k, user_network in enumerate(checkpoints, method.first_checkpoint):
            network = _prepared(user_network, train[:1].to(place))
            function = (method.precision, method.output, method.normalize)
            objective, ekfac = Objective(network, schedule, *function), None
            if method.kernel is Kernel.ekfac:
                ekfac = estimate_ekfac(network, objective.predict(), schedule, sample_curvature)
            compute = Local(device=device, gradient_memory_gib=memory_gib)
            memory = gradient_memory(compute, place)
            options = (advance, seed, k, memory, ekfac, method.damping)
            train_settings, query_settings = method.feature_settings(k)
            phi = []
            for t in first_timesteps:
                timesteps = (t, t + (method.train_timesteps or num_timesteps))
                batches = noise_batches(train_settings, train, timesteps, False, seed, (), place)
                phi.append(features_in_memory(train_settings, objective, batches, *options))
            batches = []
            for timesteps, clean in zip(ranges, clean_queries, strict=True):
                rest = (timesteps, True, seed, tuple(method.region), place)
                batches += noise_batches(query_settings, clean, *rest)
            phi_q = features_in_memory(query_settings, objective, batches, *options)
            method.add_scores(out, [phi], [phi_q[:]], [1 / len(checkpoints)])
    method.transform_scores(out)
    return out[0]


class Plain(nn.Module):
    """A network that returns a tensor, called like those of diffusers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (self.network(*inputs),)


def _prepared(user_network: nn.Module, example: Examples) -> nn.Module:
    """Return a copy of a network in evaluation mode, float32, on the device of an example.

    Parameters that are frozen stay frozen, unless all are.
    """
    network = copy.deepcopy(user_network).to(example.x0.device).float().eval()
    if not any(p.requires_grad for p in network.parameters()):
        network.requires_grad_()
    if "return_dict" not in inspect.signature(network.forward).parameters:
        network = Plain(network)
    inputs = [example.x0, torch.zeros(1, dtype=torch.int64, device=example.x0.device)]
    if example.condition is not None:
        inputs.append(example.condition[:, 0])
    with torch.no_grad():
        shape = tuple(network(*inputs, return_dict=False)[0].shape[1:])
    require(shape == example.shape, "shape of a prediction", shape, f"{example.shape}, as an image")
    return network


def _tensor(values: Array) -> Tensor:
    """Return an array as a tensor; NumPy's are copied, as they may be read-only."""
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _examples(name: str, images: Array, conditions: Array | None) -> Examples:
    """Return images [N, …] with their conditions, if they have any."""
    x0 = _tensor(images)
    require(x0.is_floating_point(), f"{name}.dtype", x0.dtype, "floating point, of −1…1")
    require(bool(x0.isfinite().all()), name, "NaN or infinite", "finite")
    if conditions is None:
        return Examples(x0.float())
    condition = _tensor(conditions)[:, None]
    require(
        len(condition) == len(x0), f"conditions of {name}", len(condition), f"{len(x0)}, one each"
    )
    return Examples(x0.float(), condition=condition)


def _schedule(scheduler: "DDPMScheduler | Schedule", device: str) -> Schedule:
    """Return the schedule of a scheduler on a device; refuse what a `Schedule` does not have."""
    require_device(f"device={device}", device)
    place = torch.device(device)
    if isinstance(scheduler, Schedule):
        return replace(scheduler, device=place)
    name = type(scheduler).__name__
    try:
        process = read_process(name, getattr(scheduler, "config", {}))
    except UnreadableError as error:
        raise ConfigError(f"scheduler={name}: {error}; or pass a Schedule") from None
    if process.flow:
        noise = torch.arange(process.num_timesteps, dtype=torch.float64) / process.num_timesteps
        squares = (1 - noise) ** 2, noise**2
    else:
        signal = torch.as_tensor(scheduler.alphas_cumprod).cpu().double()
        squares = signal, 1 - signal
    prediction, bound = PREDICTIONS[process.prediction], process.clip
    try:
        return Schedule(*squares, place, bound is not None, prediction, bound or 1.0)
    except ValueError as error:
        raise ConfigError(f"scheduler={name}: {error}") from None
