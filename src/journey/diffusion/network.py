"""The denoiser ε_θ(x_t, t, context): any architecture behind one call."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from journey.config.checks import ConfigError
from journey.config.contracts import Compute
from journey.config.groups import Precision

Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t [B, …], t [B], context [B, L, E] or None) → predicted noise, or velocity [B, …]"""


def bind(network: nn.Module, precision: Precision, parameters: dict[str, Tensor] | None = None) -> Predict:
    """The network as a function of its inputs, under autocast if so asked, optionally with other parameters."""

    def predict(x_t: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        inputs = (x_t, t) if context is None else (x_t, t, context)
        half = precision is Precision.bf16
        with torch.autocast(x_t.device.type, dtype=torch.bfloat16, enabled=half):
            if parameters is None:
                return network(*inputs, return_dict=False)[0].to(x_t.dtype)
            called = torch.func.functional_call(network, parameters, inputs, {"return_dict": False})
            return called[0].to(x_t.dtype)

    return predict


def guided(predict: Predict, scale: float, nothing: Tensor) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022, Equation 6): from the prediction without a prompt, `scale` times as far as
    to the one with it.

    nothing: the context of no prompt, [L, E].
    """

    def predict_guided(x_t: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        contexts = torch.cat([nothing.expand_as(context), context])
        without, with_prompt = predict(x_t.repeat(2, *[1] * (x_t.ndim - 1)), t.repeat(2), contexts).chunk(2)
        return without + scale * (with_prompt - without)

    return predict_guided


def device_of(compute: Compute) -> torch.device:
    """The device to compute on.

    Raises: ConfigError if this machine has no such device.
    """
    device = torch.device(compute.device)
    module = torch.get_device_module(device)
    if device.type != "cpu" and not (module.is_available() and (device.index or 0) < module.device_count()):
        raise ConfigError(f"compute.device={compute.device}: not available on this machine; cpu is")
    return device
