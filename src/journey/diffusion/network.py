"""The denoiser ε_θ(x_t, t, context): any architecture behind one call."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from journey.engine.checks import ConfigError
from journey.engine.workspace import Compute, Precision, Workspace, get
from journey.pipeline.interfaces import IntermediateCheckpoint, Model, Train
from journey.pipeline.schedule import Schedule

Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t [B, …], t [B], context [B, L, E] or None) → predicted noise, or velocity [B, …]"""


@dataclass(frozen=True)
class Guidance:
    """Away from no prompt, `scale` times as far as to the prompt. nothing: the context of no prompt, [L, E]."""

    scale: float
    nothing: Tensor


def bind(
    network: nn.Module,
    precision: Precision,
    parameters: dict[str, Tensor] | None = None,
    guidance: Guidance | None = None,
) -> Predict:
    """The network as a function of its inputs, under autocast if so asked, optionally with other parameters, or guided."""

    def predict(x_t: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        inputs = (x_t, t) if context is None else (x_t, t, context)
        half = precision is Precision.bf16
        with torch.autocast(x_t.device.type, dtype=torch.bfloat16, enabled=half):
            if parameters is None:
                return network(*inputs, return_dict=False)[0].to(x_t.dtype)
            called = torch.func.functional_call(network, parameters, inputs, {"return_dict": False})
            return called[0].to(x_t.dtype)

    return predict if guidance is None else guided(predict, guidance)


def guided(predict: Predict, guidance: Guidance) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022, Equation 6)."""

    def predict_guided(x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        contexts = torch.cat([guidance.nothing.expand_as(context), context])
        without, with_prompt = predict(torch.cat([x_t, x_t]), torch.cat([t, t]), contexts).chunk(2)
        return without + guidance.scale * (with_prompt - without)

    return predict_guided


@dataclass(frozen=True)
class Denoiser:
    """A trained network on its device, as a function, with the schedule it was trained on."""

    network: nn.Module
    predict: Predict
    schedule: Schedule
    guidance: Guidance | None
    device: torch.device


def load_denoiser(
    checkpoint: Train | IntermediateCheckpoint,
    workspace: Workspace,
    guidance: float = 1.0,
    precision: Precision | None = None,
) -> Denoiser:
    """Return the network of a checkpoint, trained now if the store does not have it.

    Args:
        guidance: Scale of classifier-free guidance; 1 is the conditional prediction alone.
        precision: Of the forward passes; by default that of the training.
    """
    device, model = get_device(workspace.compute), checkpoint.training_run.model
    network = model.load(get(checkpoint, workspace).path, device)
    guide = get_guidance(model, guidance, device)
    predict = bind(network, precision or checkpoint.training_run.precision, guidance=guide)
    return Denoiser(network, predict, model.schedule(device), guide, device)


def get_guidance(model: Model, scale: float, device: torch.device) -> Guidance | None:
    """None where there is none: at scale 1."""
    return None if scale == 1 else Guidance(scale, model.read([""])[0].to(device))


def get_device(compute: Compute) -> torch.device:
    """The device to compute on.

    Raises: ConfigError if this machine has no such device.
    """
    require_device(f"compute.device={compute.device}", compute.device)
    return torch.device(compute.device)


def require_device(setting: str, name: str) -> None:
    """Raises: ConfigError, naming the setting, if this machine has no such device."""
    device = torch.device(name)
    module = torch.get_device_module(device)
    if device.type != "cpu" and not (
        module.is_available() and (device.index or 0) < module.device_count()
    ):
        raise ConfigError(f"{setting}: not available on this machine; cpu is")
