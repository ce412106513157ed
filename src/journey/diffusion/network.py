"""The denoiser ε_θ(x_t, t, context): diffusers architectures behind one call."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from journey import config

Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t [B, …], t [B], context [B, L, E] or None) → predicted noise [B, …]"""


def build(model: config.Model, shape: tuple[int, ...]) -> nn.Module:
    """An untrained network for examples of a shape (C, H, W), initialised from torch's global generator."""
    match model:
        case config.DDPM():
            return _unet(model, shape)
        case _:
            raise config.ConfigError(f"model.name={model.name}: no such network; available: ddpm_*")


def _unet(model: config.DDPM, shape: tuple[int, ...]) -> UNet2DModel:
    channels, height, width = shape
    attends = [i in model.attention_blocks for i in range(len(model.block_out_channels))]
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(model.block_out_channels),
        layers_per_block=model.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        add_attention=model.mid_block_attention,
        norm_num_groups=model.norm_num_groups,
    )


def load(model: config.Model, path: Path, device: torch.device) -> nn.Module:
    """A trained network, in evaluation mode."""
    match model:
        case config.DDPM():
            network = UNet2DModel.from_pretrained(path, use_safetensors=True, low_cpu_mem_usage=False, local_files_only=True)
        case _:
            raise config.ConfigError(f"model.name={model.name}: no such network; available: ddpm_*")
    return network.to(device).eval()


def bind(network: nn.Module, precision: config.Precision, parameters: dict[str, Tensor] | None = None) -> Predict:
    """The network as a function of its inputs, under autocast if so asked, optionally with other parameters."""

    def predict(x_t: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        inputs = (x_t, t) if context is None else (x_t, t, context)
        half = precision is config.Precision.bf16
        with torch.autocast(x_t.device.type, dtype=torch.bfloat16, enabled=half):
            if parameters is None:
                return network(*inputs, return_dict=False)[0].to(x_t.dtype)
            called = torch.func.functional_call(network, parameters, inputs, {"return_dict": False})
            return called[0].to(x_t.dtype)

    return predict


def device_of(compute: config.Compute) -> torch.device:
    """The device to compute on.

    Raises: ConfigError if this machine has no such device.
    """
    device = torch.device(compute.device)
    module = torch.get_device_module(device)
    if device.type != "cpu" and not (module.is_available() and (device.index or 0) < module.device_count()):
        raise config.ConfigError(f"compute.device={compute.device}: not available on this machine; cpu is")
    return device
