"""Weights that were trained elsewhere: files with a state dict, or folders as diffusers saves.

`check_files` looks at files and configs before any image is read, without torch; `check_weights`
compares names, shapes and values with the network; `load_weights` returns it. Everything that
cannot be compared is listed by `unchecked`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from journey.diffusion.checkpoint_files import (
    StoredTensor,
    Tree,
    UnreadableError,
    describe_tree,
    needs_torch,
    read_json,
    read_tree,
    reason,
    shards,
    short_list,
    state_dicts,
    stem_files,
)
from journey.diffusion.lora import (
    adapter_file,
    add_adapters,
    compare_adapter,
    load_adapters,
    read_adapter,
    read_adapters,
)
from journey.diffusion.released import (
    compare_manifest,
    compare_network,
    compare_scheduler,
    constructor_defaults,
)
from journey.engine.checks import ConfigError, require
from journey.engine.store import MANIFEST
from journey.pipeline.pretrained import locate_checkpoint
from journey.pipeline.settings import LoRA

if TYPE_CHECKING:
    import torch

    from journey.pipeline.interfaces import Model

FLOATS = ("float64", "float32", "float16", "bfloat16")
NETWORKS = ("unet", "transformer")  # folders of pipelines
STEM = "diffusion_pytorch_model"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# Files that trainers write beside weights.
NOT_WEIGHTS = ("optimizer", "scheduler", "scaler", "sampler", "random_states", "training_args")
# Names of attention's parameters in diffusers < 0.12, which its folders may still have.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Where training files have settings.
SETTINGS_KEYS = ("hyper_parameters", "hparams", "config", "args")
Shapes = dict[str, tuple[int, ...]]
StateDict = dict[str, StoredTensor]


@dataclass(frozen=True)
class Released:
    """The files of released weights."""

    weights: list[Path]  # one file, or the files into which it was split
    config: Path | None  # of the network
    scheduler: Path | None  # its config
    variant: str = ""  # such as fp16, where there is no other file
    manifest: Path | None = None  # of a model that was trained here


def find_files(path: Path) -> Released:
    """Return the files of released weights.

    Args:
        path: A file; a folder of a network; a pipeline's, with the folder unet or transformer; or
            a trainer's.

    Raises:
        UnreadableError: There are no weights, or several. The message says what there is.
    """
    if not path.is_dir():
        beside = path.parent / "config.json"
        if path.name.startswith(STEM) and beside.is_file():  # a file of a folder of diffusers
            return Released([path], beside, _scheduler(path.parent))
        if path.name.endswith(".index.json"):
            return Released(shards(path), None, None)
        return Released([path], None, None)
    folder = path
    if not (path / "config.json").is_file():
        networks = [p.name for p in sorted(path.iterdir()) if p.is_dir()]
        networks = [name for name in networks if name.startswith(NETWORKS)]
        if len(networks) > 1:
            raise UnreadableError(f"it has the networks {', '.join(networks)}; name one of them")
        if networks:
            folder = path / networks[0]
        elif (path / "model_index.json").is_file():
            raise UnreadableError("it is a pipeline without a folder unet or transformer")
    weights, variant = _weights(folder)
    config, manifest = _first_file(folder / "config.json"), _first_file(folder / MANIFEST)
    return Released(weights, config, _scheduler(folder), variant, manifest)


def pipeline_of(path: Path) -> Path:
    """Return the folder of the pipeline that a network may be in."""
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name.startswith(NETWORKS) else folder


def _scheduler(folder: Path) -> Path | None:
    """Return the config of a scheduler that is saved beside a network, or None."""
    places = [folder / "scheduler_config.json", folder / "scheduler/scheduler_config.json"]
    if folder.name.startswith(NETWORKS):
        places.append(folder.parent / "scheduler/scheduler_config.json")
    return _first_file(*places)


def _first_file(*paths: Path) -> Path | None:
    """Return the first path that is a file, or None."""
    return next(filter(Path.is_file, paths), None)


def _weights(folder: Path) -> tuple[list[Path], str]:
    """Return the files of weights in a folder, and their variant; refuse none, or several."""
    for suffix in (".safetensors", ".bin"):
        if files := stem_files(folder, STEM, suffix):
            return files, ""
    content, candidates = sorted(os.listdir(folder)), []
    for name in content:
        path = folder / name
        if path.is_file() and path.suffix in SUFFIXES and not name.startswith(NOT_WEIGHTS):
            candidates.append(name)
    variants = list(filter(re.compile(rf"{STEM}\.\w+\.(safetensors|bin)").fullmatch, candidates))
    indices = sorted(folder.glob("*.index.json"))
    if len(indices) == 1 and not variants:
        return shards(indices[0]), ""
    candidates = variants or candidates
    one_stem = len({name.rpartition(".")[0] for name in candidates}) == 1
    if one_stem and candidates[-1].endswith(".safetensors"):
        candidates = candidates[-1:]  # the same weights as a pickle are beside them
    if len(candidates) == 1:
        return [folder / candidates[0]], candidates[0].split(".")[1] if variants else ""
    if candidates:
        names = short_list(candidates)
        raise UnreadableError(f"it has several files of weights: {names}; name one of them")
    listed = f"it has {short_list(content)}" if content else "it is empty"
    raise UnreadableError(f"{folder.name} is a folder without weights: {listed}")


def check_files(
    setting: str, model: "Model", names: Iterable[str], lora: LoRA | None = None
) -> None:
    """Check files of weights, and compare their configs with the settings.

    Args:
        setting: The setting that names them.
        model: The model.
        names: Paths, or names in the hub's cache.
        lora: Settings of LoRA, where the files may be adapters.

    Raises:
        ConfigError: A file cannot be read, or a config differs. The message names all differences,
            and the settings that remove them.
    """
    for name in names:
        path, differences = locate_checkpoint(name, setting), []
        try:
            if lora is not None and _is_adapter(path, lora):
                differences += compare_adapter(lora, read_adapter(path))
            else:
                differences += _compare(model, find_files(path))
        except UnreadableError as error:
            raise ConfigError(f"{setting}={name}: {error}") from None
        if differences:
            texts, overrides = zip(*differences, strict=True)
            fixed = [text for text, override in differences if not override]
            advice = f"no setting has {'; '.join(fixed)}" if fixed else f"add {' '.join(overrides)}"
            raise ConfigError(
                f"{setting}={name}: its config differs from these settings: "
                f"{'; '.join(texts)} ({advice})"
            )


def _is_adapter(path: Path, lora: LoRA) -> bool:
    """Return whether released weights are a LoRA; refuse a network where the settings have one."""
    is_adapter = adapter_file(path) is not None
    if lora.rank and not is_adapter:
        raise UnreadableError("it is a network, not a LoRA; set training.lora.rank=0")
    return is_adapter


def _compare(model: "Model", files: Released) -> list[tuple[str, str]]:
    """Return in what the files of a network differ from settings, each with an override or ""."""
    differences: list[tuple[str, str]] = []
    if not any(map(needs_torch, files.weights)):
        _check_first_parameter(model, _read_all(files.weights))
    if model.network and files.config:
        differences += compare_network(model, files.config)
    if model.network and files.scheduler:
        differences += compare_scheduler(model, files.scheduler)
    if model.network and files.manifest:
        differences += compare_manifest(model, files.manifest)
    return differences


def check_sample_size(model: "Model", side: int) -> None:
    """Check that the configs of `model.checkpoints` are of images of a side in pixels.

    The positions that a transformer adds to its tokens depend on it.

    Raises:
        ConfigError: One is of others.
    """
    default = constructor_defaults(model.network)["sample_size"]
    for name in model.checkpoints:
        if (config := find_files(locate_checkpoint(name)).config) is not None:
            size = read_json(config).get("sample_size", default)
            allowed = f"of images of {side} pixels a side: its config has sample_size={size}"
            require(size == side, "model.checkpoints", name, allowed)


def _read_all(files: list[Path]) -> Tree:
    """Return the content of a file, or of the files into which a state dict was split."""
    if len(files) == 1:
        return read_tree(files[0])
    merged: dict = {}
    for file in files:
        if isinstance(tree := read_tree(file), dict):
            merged |= tree
    return merged


def _check_first_parameter(model: "Model", tree: Tree) -> None:
    """Look for the first parameter of the model's network, as far as that needs no torch.

    Raises:
        UnreadableError: There is none, it is of another width, or several networks are the same.
    """
    if not model.network or any(isinstance(group, list) for _, group in state_dicts(tree)):
        return
    first, width = model.first_parameter()
    options = _options(tree, {first: ()}, [])
    if not options:
        raise UnreadableError(f"it has no parameter {first}: {describe_tree(tree)}")
    shapes, widths = set(), set()
    for option in options.values():
        widths.add(option[first].shape[:1])
        shapes.add(tuple(sorted((name, tensor.shape) for name, tensor in option.items())))
    if (width,) not in widths:
        raise UnreadableError(
            f"not the architecture of model={model.label}: {first} has shape "
            f"{next(iter(options.values()))[first].shape}, expected ({width}, …)"
        )
    if len(options) > 1 and len(shapes) == 1 and not model.checkpoint_key:
        raise UnreadableError(_several(options))


def _several(names: Iterable[str]) -> str:
    """Return the message about several state dicts that fit."""
    listed = [name or "the top level" for name in names]
    return (
        f"it has {len(listed)} state dicts that fit: {', '.join(listed)}; choose one by "
        "model.checkpoint_key=…"
    )


def unchecked(model: "Model", path: Path) -> str:
    """Return what the files of released weights do not say, or "" if they say everything."""
    if adapter_file(path) is not None:
        adapter = read_adapter(path)
        return "" if adapter.has_alpha else f"alpha: taken to be the rank, {adapter.rank}"
    if not model.network:
        return "the noise schedule is that of the model, and cannot be checked"
    files, missing, notes = find_files(path), [], []
    if files.config is None:
        missing.append("padding, activation, embedding of t and the like of the network")
    if files.scheduler is None and files.manifest is None:
        missing.append("noise schedule, prediction type and clipping")
    if not model.pixels and not (pipeline_of(path) / "vae").is_dir():
        missing.append("autoencoder and text encoder")
    if missing:
        notes.append(f"{'; '.join(missing)}: taken from model.*, and cannot be checked")
    for file in files.weights:
        tree = None if files.config or needs_torch(file) else read_tree(file)
        for key in SETTINGS_KEYS:
            if isinstance(tree, dict) and key in tree:
                notes.append(f"its {key} are not read")
    if files.variant:
        notes.append(f"only the weights of variant {files.variant} are there")
    return "; ".join(notes)


def other_shape(path: Path, shape: tuple[int, ...]) -> str:
    """Return a note if a network's config is of examples of another shape [C, H, W], or ""."""
    config = find_files(path).config
    if config is None:
        return ""
    fields = read_json(config)
    size = fields.get("sample_size")
    sides = tuple(size) if isinstance(size, list) else (size, size)
    theirs = (fields.get("in_channels"), *sides)
    if None in theirs or theirs == shape:
        return ""
    return f"in_channels and sample_size of its config are {theirs}, those of these images {shape}"


def check_weights(
    setting: str,
    model: "Model",
    path: Path,
    shape: tuple[int, ...],
    lora: LoRA = LoRA(),  # noqa: B008 - a constant
) -> None:
    """Check that weights are those of a model's network, for examples of a shape, and finite.

    With LoRA, they are those of its adapters.

    Raises:
        ConfigError: They are not. The message names the first parameter that differs.
    """
    import torch

    with torch.device("meta"):
        network = model.build(shape)
        if lora.rank:
            add_adapters(network, lora)
    try:
        if lora.rank:
            read_adapters(path, lora, network)
            return
        if not _is_own_folder(model, path):
            _read_state_dict(model, path, network)
            return
        loaded = model.load(path, torch.device("cpu")).state_dict()
        difference = _difference(loaded, _shapes(network))
    except UnreadableError as error:
        raise ConfigError(f"{setting}={path}: {error}") from None
    except Exception as error:  # what a user's model does with a damaged folder
        raise ConfigError(f"{setting}={path}: it cannot be loaded: {reason(error)}") from None
    if difference is not None:
        raise ConfigError(
            f"{setting}={path}: not the architecture of model={model.label}: {difference}"
        )


def check_targets(model: "Model", shape: tuple[int, ...], lora: LoRA) -> None:
    """Check that a model's network has the layers that LoRA adapts.

    Raises:
        ConfigError: It has not.
    """
    import torch

    with torch.device("meta"):
        add_adapters(model.build(shape), lora)


def _is_own_folder(model: "Model", path: Path) -> bool:
    """Return whether only the model itself can load a folder: its network is not of diffusers."""
    return path.is_dir() and not model.network


def _shapes(network: "torch.nn.Module") -> Shapes:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def load_weights(
    model: "Model",
    path: Path,
    shape: tuple[int, ...],
    device: "torch.device",
    lora: LoRA = LoRA(),  # noqa: B008 - a constant
) -> "torch.nn.Module":
    """Return the model's network for examples of a shape with released weights.

    With LoRA, only its adapters have these weights, and the others are random.

    Raises:
        ConfigError: They are not those of the network.
    """
    if lora.rank:
        network = model.build(shape)
        add_adapters(network, lora)
        load_adapters(network, path)
        return network.to(device).eval()
    if _is_own_folder(model, path):
        return model.load(path, device)
    network = model.build(shape)
    try:
        network.load_state_dict(_read_state_dict(model, path, network))
    except UnreadableError as error:
        raise ConfigError(f"model.checkpoints={path}: {error}") from None
    return network.to(device).eval()


def _read_state_dict(
    model: "Model", path: Path, network: "torch.nn.Module"
) -> "dict[str, torch.Tensor]":
    """Return the state dict of released weights that fits a network, and is finite."""
    expected = _shapes(network)
    parameters = list(dict(network.named_parameters()))
    tree = _read_all(find_files(path).weights)
    result = {}
    for name, tensor in _choose(
        model, tree, _options(tree, expected, parameters), expected
    ).items():
        if tensor.dtype not in FLOATS:
            raise UnreadableError(f"{name} is {tensor.dtype}, must be one of {', '.join(FLOATS)}")
        try:
            result[name] = tensor.read()
        except Exception as error:  # a damaged file fails in many ways
            raise UnreadableError(f"{name} cannot be read: {reason(error)}") from None
        if not bool(result[name].isfinite().all()):
            raise UnreadableError(f"{name} has NaN or infinite values")
    return result


def _choose(
    model: "Model", tree: Tree, options: dict[str, StateDict], expected: Shapes
) -> StateDict:
    """Return the only option that fits a network, or the one that `checkpoint_key` names."""
    if key := model.checkpoint_key:
        names = ", ".join(filter(None, options)) or "none"
        if key not in options:
            raise UnreadableError(
                f"no state dict is named model.checkpoint_key={key}, only {names}"
            )
        options = {key: options[key]}
    fitting = {name: o for name, o in options.items() if _difference(o, expected) is None}
    if len(fitting) == 1:
        return fitting.popitem()[1]
    if fitting:
        raise UnreadableError(_several(fitting))
    if not options:
        first = next(iter(expected))
        raise UnreadableError(f"it has no parameter {first}: {describe_tree(tree)}")
    closest = max(options, key=lambda name: len(options[name].keys() & expected.keys()))
    place = f" in {closest}" if closest else ""
    raise UnreadableError(
        f"not the architecture of model={model.label}:{place} "
        f"{_difference(options[closest], expected)}"
    )


def _options(tree: Tree, expected: Shapes, parameters: list[str]) -> dict[str, StateDict]:
    """Return the state dicts in a file that have the network's first parameter, by their names.

    Names of parameters may begin with a prefix, as those of `torch.compile`, of data parallelism
    and of Lightning do. Averages are also lists in the order of the parameters.

    Args:
        tree: The content of the file.
        expected: Shapes of the network's state dict.
        parameters: Names of its parameters in order.
    """
    first, options = next(iter(expected)), {}
    without_dots = {name.replace(".", ""): name for name in expected}  # as LitEma of CompVis
    for title, group in state_dicts(tree):
        if isinstance(group, list):
            named = dict(zip(parameters, group, strict=False))
            if len(group) == len(parameters) and _difference(named, expected) is None:
                options[title] = named
            continue
        for anchor in (first, first.replace(".", "")):
            prefixes = []
            for name in group:
                prefix = name.removesuffix(anchor)
                if name.endswith(anchor) and (not prefix or prefix.endswith(".")):
                    prefixes.append(prefix)
            for prefix in prefixes:
                longer = tuple(p for p in prefixes if p.startswith(prefix) and p != prefix)
                option: StateDict = {}
                for name, tensor in group.items():
                    short = name.removeprefix(prefix)
                    if not name.startswith(prefix) or name.startswith(longer):
                        continue
                    if "." in anchor:
                        option[_present_name(short, expected)] = tensor
                    elif short in without_dots:
                        option[without_dots[short]] = tensor
                parts = filter(None, (title, prefix.removesuffix(".")))
                options[".".join(parts)] = option
    return options


def _present_name(name: str, expected: Shapes) -> str:
    """Return the name that a parameter of attention has today, if the network has it."""
    *path, module, leaf = ["", *name.split(".")]
    present = ".".join([*path[1:], OLD_NAMES.get(module, module), leaf])
    return present if name not in expected and present in expected else name


def _difference(
    stored: "Mapping[str, StoredTensor | torch.Tensor]", expected: Shapes
) -> str | None:
    """Return the first parameter that differs from a network's, or None."""
    for name in [*expected, *stored]:
        shape = tuple(stored[name].shape) if name in stored else None
        if shape != expected.get(name):
            return (
                f"{name} has shape {shape}, expected {expected.get(name)} (None: no such parameter)"
            )
    return None
