"""LoRA: adapters of peft in a frozen network, and the files in which diffusers and peft save them.

    W + (alpha / rank) B A      A [rank, in] and B [out, rank] of an adapted layer with weights W

An adapter is stored as `StableDiffusionPipeline.save_lora_weights` writes it, so that
`load_lora_weights` of any pipeline reads it. Files are read without torch, as those of weights.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from journey.diffusion.checkpoint_files import (
    StoredTensor,
    UnreadableError,
    needs_torch,
    read_json,
    read_metadata,
    read_tree,
    reason,
    state_dicts,
)
from journey.engine.checks import ConfigError
from journey.pipeline.settings import LoRA

if TYPE_CHECKING:
    import torch

ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
PEFT_CONFIG = "adapter_config.json"
FILES = (ADAPTER_FILE, "adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin")
METADATA = "lora_adapter_metadata"  # in the header of a file of diffusers: peft's config, as JSON
PREFIX = "unet."  # of the names of diffusers
PREFIXES = re.compile(r"^(base_model\.model\.)?(unet\.)?")
PARAMETER = re.compile(r"(.+)\.lora_([AB])\.weight")
# Fields of peft's LoraConfig that change the network, with the values that are allowed.
FIXED: dict[str, tuple] = {
    "peft_type": ("LORA",), "use_rslora": (False,), "use_dora": (False,), "lora_bias": (False,),
    "bias": ("none",), "rank_pattern": ({},), "alpha_pattern": ({},), "fan_in_fan_out": (False,),
    "modules_to_save": (None,), "target_parameters": (None,),
    "init_lora_weights": (True, False, "gaussian"),
}  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """The content of an adapter's file."""

    tensors: dict[str, StoredTensor]  # by <layer>.lora_A.weight and <layer>.lora_B.weight
    rank: int
    alpha: float
    has_alpha: bool  # whether the file says alpha; else it is the rank, as in diffusers

    @property
    def targets(self) -> list[str]:
        """Return the shortest ends of the names of its layers that say what they are."""
        ends = set()
        for name in self.tensors:
            *_, parent, last = ["", *name.rpartition(".lora_")[0].split(".")]
            ends.add(f"{parent}.{last}" if last.isdigit() else last)
        return sorted(ends)


def adapter_file(path: Path) -> Path | None:
    """Return the file of a LoRA adapter, or None: the path is none of one.

    Args:
        path: A file, or a folder that diffusers or peft wrote.
    """
    if path.is_dir():
        return next(filter(Path.is_file, map(path.joinpath, FILES)), None)
    if needs_torch(path):
        return None
    try:
        named = "\n".join(str(name) for _, group in state_dicts(read_tree(path)) for name in group)
    except UnreadableError:  # its reader says why
        return None
    return path if "lora" in named else None


def read_adapter(path: Path) -> Adapter:
    """Return an adapter of a U-Net from the file, or the folder, that diffusers or peft wrote.

    Raises:
        UnreadableError: It is none, or is not supported. The message names what is not.
    """
    file = adapter_file(path)
    if file is None:
        raise UnreadableError(f"it has none of {', '.join(FILES)}")
    tree, tensors, ranks = read_tree(file), {}, set()
    if not isinstance(tree, dict):
        raise UnreadableError(f"{file.name} is not a dictionary of tensors")
    for key, tensor in tree.items():
        name = PREFIXES.sub("", str(key))
        parts = PARAMETER.fullmatch(name)
        if name.startswith("text_encoder") or ".text_model." in name:
            raise UnreadableError(f"it adapts the text encoder, which is not supported: {key}")
        if parts is None or not isinstance(tensor, StoredTensor) or len(tensor.shape) < 2:
            raise UnreadableError(
                f"{key} is no parameter of a LoRA by peft, such as unet.….to_q.lora_A.weight; load "
                "it with diffusers, and save it with save_lora_weights"
            )
        tensors[name] = tensor
        ranks.add(tensor.shape[0 if parts[2] == "A" else 1])
    if len(ranks) != 1:
        raise UnreadableError(f"its layers have the ranks {sorted(ranks)}, must be one")
    (rank,) = ranks
    config = _config(file)
    for field, allowed in FIXED.items():
        if config.get(field, allowed[0]) not in allowed and config[field] != []:
            raise UnreadableError(f"{field}={config[field]} is not supported, only {allowed[0]}")
    if config.get("r", rank) != rank:
        raise UnreadableError(f"r={config['r']}, but its layers have the rank {rank}")
    alpha = config.get("lora_alpha", rank)
    if not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
        raise UnreadableError(f"lora_alpha={alpha} must be a positive number")
    return Adapter(tensors, rank, alpha, "lora_alpha" in config)


def _config(file: Path) -> dict:
    """Return the fields of peft's LoraConfig that are beside, or in, an adapter's file."""
    if (path := file.parent / PEFT_CONFIG).is_file():
        return read_json(path)
    if file.suffix != ".safetensors":
        return {}
    try:
        packed = json.loads(read_metadata(file).get(METADATA, "{}"))
        return {name.removeprefix(PREFIX): value for name, value in packed.items()}
    except (ValueError, AttributeError) as error:
        raise UnreadableError(f"its {METADATA} cannot be read: {reason(error)}") from None


def compare_adapter(lora: LoRA, adapter: Adapter) -> list[tuple[str, str]]:
    """Return in what an adapter differs from the settings, each with the override of the setting.

    Which layers it adapts is compared as far as it needs no network.
    """
    differences = []
    if adapter.rank != lora.rank:
        text = f"rank={adapter.rank}, not {lora.rank}"
        differences.append((text, f"training.lora.rank={adapter.rank}"))
    alpha = lora.alpha or lora.rank or adapter.rank
    if adapter.alpha != alpha:
        text = f"alpha={adapter.alpha:g}, not {alpha:g}"
        differences.append((text, f"training.lora.alpha={adapter.alpha:g}"))
    layers = {name.rpartition(".lora_")[0] for name in adapter.tensors}
    others = sorted(layer for layer in layers if not _is_target(layer, lora))
    if others or not all(target in adapter.targets for target in lora.targets):
        targets = f"[{','.join(adapter.targets)}]"
        text = f"targets={targets}, not [{','.join(lora.targets)}]"
        differences.append((text, f"'training.lora.targets={targets}'"))
    return differences


def _is_target(layer: str, lora: LoRA) -> bool:
    """Return whether a layer is adapted, as peft decides it."""
    return any(f".{layer}".endswith(f".{target}") for target in lora.targets)


def add_adapters(network: "torch.nn.Module", lora: LoRA) -> None:
    """Freeze a network, and add adapters: random A, and B = 0, so that it computes what it did.

    Raises:
        ConfigError: The network has no layers of these names, or they cannot be adapted.
    """
    from peft import LoraConfig, inject_adapter_in_model

    alpha = cast("int", lora.alpha or lora.rank)  # peft divides it, whatever its type
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=list(lora.targets))
    try:
        inject_adapter_in_model(config, network)
    except ValueError as error:
        targets = f"[{','.join(lora.targets)}]"
        raise ConfigError(f"training.lora.targets={targets}: {reason(error)}") from None


def adapter_parameters(network: "torch.nn.Module") -> "dict[str, torch.nn.Parameter]":
    """Return the parameters of a network's adapters by their names in files, without prefix."""
    parameters = {}
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameters[name.replace(".default.", ".")] = parameter
    return parameters


def read_adapters(path: Path, lora: LoRA, network: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """Return the tensors of a file, which must be all adapters of a network, and finite.

    Args:
        path: The file or folder.
        lora: The settings of the adapters.
        network: A network with adapters, maybe without values.

    Raises:
        UnreadableError: They are not. The message names the first that differs.
    """
    adapter = read_adapter(path)
    if differences := compare_adapter(lora, adapter):
        raise UnreadableError("; ".join(text for text, _ in differences))
    expected = adapter_parameters(network)
    tensors = {}
    for name in [*expected, *adapter.tensors]:
        shape = adapter.tensors[name].shape if name in adapter.tensors else None
        if name not in expected or shape != tuple(expected[name].shape):
            theirs = tuple(expected[name].shape) if name in expected else None
            raise UnreadableError(
                f"{name} has shape {shape}, expected {theirs} (None: no such parameter)"
            )
    for name, stored in adapter.tensors.items():
        tensors[name] = stored.read()
        if not bool(tensors[name].isfinite().all()):
            raise UnreadableError(f"{name} has NaN or infinite values")
    return tensors


def load_adapters(network: "torch.nn.Module", path: Path) -> None:
    """Copy the adapters of a file, or folder, into those of a network."""
    import torch

    stored = read_adapter(path).tensors
    with torch.no_grad():
        for name, parameter in adapter_parameters(network).items():
            parameter.copy_(stored[name].read())


def save_adapters(tensors: "Mapping[str, torch.Tensor]", lora: LoRA, folder: Path) -> None:
    """Write adapters, by the names of `adapter_parameters`, as diffusers does."""
    from safetensors.torch import save_file

    alpha = lora.alpha or lora.rank
    config = {"r": lora.rank, "lora_alpha": alpha, "target_modules": sorted(lora.targets)}
    packed = json.dumps({f"{PREFIX}{name}": value for name, value in config.items()})
    named = {f"{PREFIX}{name}": t.detach().float().contiguous() for name, t in tensors.items()}
    save_file(named, folder / ADAPTER_FILE, {"format": "pt", METADATA: packed})
