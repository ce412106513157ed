"""Weights that others trained, in networks of ours."""

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
    """A network for examples of a shape with weights from a file, or as a directory says: its own, or in unet/ of a pipeline."""
    if path.is_dir():
        return _in_directory(model, path, device)
    network = model.build(shape)
    network.load_state_dict(_state_dict(path))
    return network.to(device).eval()


def check_weights(setting: str, model: "Model", path: Path, shape: tuple[int, ...]) -> None:
    """Raises: ConfigError naming the first parameter that is not what the model's settings ask for."""
    import torch

    with torch.device("meta"):
        wanted = model.build(shape).state_dict()
    found = (
        _in_directory(model, path, torch.device("cpu")).state_dict()
        if path.is_dir()
        else _state_dict(path)
    )
    for name in [*wanted, *found]:
        shapes = [tuple(of[name].shape) if name in of else None for of in (found, wanted)]
        if shapes[0] != shapes[1]:
            has, needs = ("no such parameter" if of is None else f"shape {of}" for of in shapes)
            raise ConfigError(
                f"{setting}={path}: of another architecture than model={model.label}: {name}: {has}, not {needs}"
            )


def _in_directory(model: "Model", directory: Path, device: "torch.device") -> "torch.nn.Module":
    """Raises: ConfigError if there is no network."""
    network = directory / "unet" if (directory / "unet").is_dir() else directory
    try:
        return model.load(network, device)
    except Exception as error:  # what is none fails in many ways
        raise ConfigError(
            f"model.checkpoints={directory}: no network as diffusers saves it ({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _state_dict(path: Path) -> "dict[str, Tensor]":
    """Raises: ConfigError if a file holds anything else."""
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(found, dict) and all(
            isinstance(value, torch.Tensor) for value in found.values()
        ):
            return found
        raise ValueError("not a dictionary of tensors")
    except Exception as error:  # a damaged file fails in many ways
        raise ConfigError(f"model.checkpoints={path}: no state dict ({_reason(error)})") from None
