"""Weights that were trained elsewhere: a file with a state dict, or a folder as diffusers saves."""

from pathlib import Path
from typing import TYPE_CHECKING

from journey.engine.checks import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from journey.pipeline.interfaces import Model


def load_weights(
    model: "Model", path: Path, shape: tuple[int, ...], device: "torch.device"
) -> "torch.nn.Module":
    """Return the model's network for examples of a shape with the weights of a file.

    The network in a folder, or in a pipeline's folder, is built as its own configuration says.
    """
    if path.is_dir():
        return _load_folder(model, path, device)
    network = model.build(shape)
    network.load_state_dict(_load_state_dict(path))
    return network.to(device).eval()


def check_weights(setting: str, model: "Model", path: Path, shape: tuple[int, ...]) -> None:
    """Check that weights have the architecture of a model, for examples of a shape.

    Raises:
        ConfigError: They do not. The message names the first parameter that differs.
    """
    import torch

    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in model.build(shape).state_dict().items()}
    if path.is_dir():
        state_dict = _load_folder(model, path, torch.device("cpu")).state_dict()
    else:
        state_dict = _load_state_dict(path)
    shapes = {name: tuple(p.shape) for name, p in state_dict.items()}
    for name in [*expected, *shapes]:
        if shapes.get(name) != expected.get(name):
            raise ConfigError(
                f"{setting}={path}: not the architecture of model={model.label}: {name} has shape "
                f"{shapes.get(name)}, expected {expected.get(name)} (None: no such parameter)"
            )


def _load_folder(model: "Model", folder: Path, device: "torch.device") -> "torch.nn.Module":
    network = folder / "unet" if (folder / "unet").is_dir() else folder
    try:
        return model.load(network, device)
    except Exception as error:  # a damaged folder fails in many ways
        raise _refused(folder, "a network as diffusers saves it", error) from None


def _load_state_dict(path: Path) -> "dict[str, Tensor]":
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise ValueError("not a dictionary of tensors")
        return content
    except Exception as error:  # a damaged file fails in many ways
        raise _refused(path, "a state dict", error) from None


def _refused(path: Path, allowed: str, error: Exception) -> ConfigError:
    """Return the error for a path, with the first line of what went wrong."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ConfigError(f"model.checkpoints={path}: must be {allowed} ({reason})")
