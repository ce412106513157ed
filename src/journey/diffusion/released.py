"""What the folders of diffusers say of a network beside its weights, compared with settings.

Nothing here imports torch or diffusers: the defaults of the classes of diffusers, which a config
may leave out, are read from their source.
"""

import ast
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, cast

from journey.diffusion.checkpoint_files import UnreadableError, read_json, read_tree, stem_files
from journey.engine.checks import ConfigError, require
from journey.engine.spec import describe
from journey.pipeline.pretrained import files_hash, package_directory
from journey.pipeline.schedule import PREDICTION_TYPES, BetaSchedule, NoiseSchedule

if TYPE_CHECKING:
    from journey.pipeline.interfaces import Model

Config = dict[str, object]

# Schedulers whose x_t is that of a variance-preserving schedule, maybe scaled, and whose network is
# called with integer timesteps.
VARIANCE_PRESERVING = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler",
    "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler",
    "UniPCMultistepScheduler", "SASolverScheduler", "UnCLIPScheduler",
)  # fmt: skip
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
# Fields of a scheduler that change x̂0_t and that a `Schedule` does not have, with the only value
# that is allowed.
FIXED = {"thresholding": False, "timestep_type": "discrete", "invert_sigmas": False}
BETAS = ("beta_schedule", "beta_start", "beta_end")
# Fields of early versions of diffusers, with the values that change nothing.
RETIRED: dict[str, tuple] = {"predict_epsilon": (True,), "tensor_format": ("pt", "np")}
LEARNED_VARIANCES = ("learned", "learned_range")
# Fields of a network's config that change nothing of what it computes for an example.
NO_EFFECT = ("sample_size", "num_train_timesteps")
# What diffusers' EMAModel adds to the config of the network that it averages.
EMA_FIELDS = (
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma",
    "power",
)  # fmt: skip


@functools.cache
def constructor_defaults(class_name: str) -> Config:
    """Return the arguments of a class of diffusers, with their defaults.

    A default that is not a literal is returned as its source.

    Raises:
        UnreadableError: This version of diffusers does not have the class.
    """
    if class_name not in (paths := _files_of_classes()):
        raise UnreadableError(f"{class_name} is not a class of the installed diffusers")
    for node in ast.walk(ast.parse(paths[class_name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            methods = {m.name: m.args for m in node.body if isinstance(m, ast.FunctionDef)}
    constructor, defaults = methods["__init__"], {}
    with_default = constructor.args[-len(constructor.defaults) :]
    for argument, value in zip(with_default, constructor.defaults, strict=True):
        try:
            defaults[argument.arg] = ast.literal_eval(value)
        except ValueError:
            defaults[argument.arg] = ast.unparse(value)
    return defaults


@functools.cache
def _files_of_classes() -> dict[str, Path]:
    """Return the source file of every scheduler, U-Net and DiT of diffusers."""
    root, paths = package_directory("diffusers"), {}
    patterns = ("schedulers/scheduling_*", "models/unets/unet_2d*", "models/transformers/dit_*")
    for pattern in patterns:
        for path in root.glob(f"{pattern}.py"):
            source = path.read_text(encoding="utf-8")
            for name in re.findall(r"^class (\w+)\(", source, re.MULTILINE):
                paths[name] = path
    return paths


@dataclass(frozen=True)
class Process:
    """The noise of a scheduler of diffusers, and what its network predicts."""

    num_timesteps: int
    prediction: str  # of `PREDICTIONS`
    flow: bool  # x_t = (1 − t / T) x_0 + t / T ε, instead of a variance-preserving schedule
    betas: Config  # how β_t is made, by the names of diffusers
    clip: float | None  # bound of x̂0


def read_process(class_name: str, config: Mapping[str, object]) -> Process:
    """Return the noise and the prediction type of a scheduler.

    What only its sampler uses, such as its solver and the spacing of timesteps, is ignored.

    Args:
        class_name: The class of the scheduler.
        config: Its config; what it leaves out has the default of the class.

    Raises:
        UnreadableError: A `Schedule` does not have a field of it. The message names it.
    """
    supported = (*VARIANCE_PRESERVING, *FLOWS)
    if class_name not in supported:
        names = ", ".join(name.removesuffix("Scheduler") for name in supported)
        raise UnreadableError(
            f"{class_name or 'a scheduler without _class_name'} has no known schedule of signal "
            f"and noise at integer timesteps; supported are {names}"
        )
    defaults = constructor_defaults(class_name)
    for name, value in config.items():
        is_field = name in defaults or name.startswith("_") or name in _fields_of_schedulers()
        if not (is_field or value is None or value in RETIRED.get(name, ())):
            raise UnreadableError(f"{name}={value} is no field of a scheduler of diffusers")
    # A field of another class, which diffusers keeps when schedulers are exchanged, has no effect.
    settings = defaults | {name: config[name] for name in defaults if name in config}
    for name, allowed in FIXED.items():
        if settings.get(name, allowed) != allowed:
            raise UnreadableError(f"{name}={settings[name]} is not supported, only {allowed}")
    if (variance := settings.get("variance_type")) in LEARNED_VARIANCES:
        raise UnreadableError(
            f"variance_type={variance} is not supported: the network predicts it beside the noise"
        )
    flow = class_name in FLOWS or settings.get("use_flow_sigmas") is True
    predicted = "flow_prediction" if class_name in FLOWS else str(settings["prediction_type"])
    undefined = "velocity" if flow else "flow"
    supported_types = {v: k for k, v in PREDICTION_TYPES.items() if k != undefined}
    if predicted not in supported_types:
        raise UnreadableError(
            f"prediction_type={predicted} is not one of {', '.join(supported_types)}"
        )
    if predicted == "epsilon" and settings.get("rescale_betas_zero_snr"):
        raise UnreadableError(
            "prediction_type=epsilon gives no x̂0 with rescale_betas_zero_snr: x_t has no signal at "
            "the last timestep"
        )
    clip = settings.get("clip_sample_range", 1.0) if settings.get("clip_sample") else None
    betas: Config = {"rescale_betas_zero_snr": False, "trained_betas": None}
    betas |= {name: settings[name] for name in (*BETAS, *betas) if name in settings}
    num_timesteps = cast(int, settings["num_train_timesteps"])
    return Process(num_timesteps, supported_types[predicted], flow, betas, cast(float | None, clip))


@functools.cache
def _fields_of_schedulers() -> set[str]:
    names: set[str] = {"clip_sample", "clip_sample_range", "skip_prk_steps"}
    for class_name in (*VARIANCE_PRESERVING, *FLOWS):
        names |= constructor_defaults(class_name).keys()
    return names


def compare_scheduler(model: "Model", path: Path) -> list[tuple[str, str]]:
    """Return what a scheduler's config says otherwise than the model's settings.

    Args:
        model: A model with the settings `prediction` and `noise_schedule`.
        path: The config.

    Returns:
        For each field, what differs, and the override of the setting.

    Raises:
        UnreadableError: The config has a field that no setting has.
    """
    noise: NoiseSchedule = vars(model)["noise_schedule"]
    differences = []
    for setting, (name, value) in scheduler_settings(path).items():
        holder = noise if setting.startswith("noise_schedule.") else model
        ours = getattr(holder, setting.rpartition(".")[2])
        if not _equal(value, ours.value if isinstance(ours, Enum) else ours):
            shown = PREDICTION_TYPES[str(value)] if name == "prediction_type" else value
            difference = f"{name}={_shown(shown)}, not {_shown(ours)}"
            differences.append((difference, f"model.{setting}={_shown(value)}"))
    return differences


def scheduler_settings(path: Path) -> dict[str, tuple[str, object]]:
    """Return the field of a scheduler's config and its value, by the model's setting for it.

    Raises:
        UnreadableError: The config has a field that no setting has.
    """
    config = read_json(path)
    process = read_process(str(config.get("_class_name", "")), config)
    if process.flow:
        raise UnreadableError(
            f"{config['_class_name']} is of a flow that is called with t = s T; with "
            "model.prediction=flow, networks are called with t = s T − 1"
        )
    if process.betas.pop("trained_betas") is not None:
        raise UnreadableError("trained_betas is not supported, only null: a named beta_schedule")
    theirs = process.betas | {"clip_sample": process.clip is not None}
    if process.clip is not None:
        theirs["clip_sample_range"] = process.clip
    schedules, beta_schedule = list(BetaSchedule.__members__), theirs["beta_schedule"]
    if beta_schedule not in schedules:
        raise UnreadableError(f"beta_schedule={beta_schedule} is not one of {', '.join(schedules)}")
    noise_of_config = NoiseSchedule(
        BetaSchedule(beta_schedule), clip_sample=process.clip is not None
    )
    settings: dict[str, tuple[str, object]] = {}
    for name, value in theirs.items():
        if noise_of_config.has_effect(name):
            settings[f"noise_schedule.{name}"] = name, value
    settings["num_timesteps"] = ("num_train_timesteps", process.num_timesteps)
    settings["prediction"] = ("prediction_type", process.prediction)
    return settings


def _equal(a: object, b: object) -> bool:
    """Return whether two values of configs are equal: lists and tuples, 1 and 1.0 are."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _shown(value: object) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_shown, value))}]"
    if value is None:
        return "null"
    value = value.value if isinstance(value, Enum) else value
    return str(value).lower() if isinstance(value, bool) else str(value)


def compare_network(model: "Model", path: Path) -> list[tuple[str, str]]:
    """Return in which fields a network's config differs from the model's settings.

    Channels of inputs and outputs are those of the images, and are compared with the weights.

    Args:
        model: A model whose `network_config` has the arguments of a class of diffusers.
        path: The config.

    Returns:
        For each field, what differs, and the override of the setting, or "" if there is none.

    Raises:
        UnreadableError: It is the config of another class, or has a field that the class has not.
    """
    differences = []
    for name, (theirs, ours) in _different_fields(model, path).items():
        settings = _settings(model, name, theirs)
        overrides = [f"model.{setting}={_shown(value)}" for setting, value in settings.items()]
        differences.append((f"{name}={_shown(theirs)}, not {_shown(ours)}", " ".join(overrides)))
    return differences


def network_settings(model: "Model", path: Path) -> dict[str, object]:
    """Return the settings that give a model the network of a config, as far as there are some.

    Raises:
        UnreadableError: It is the config of another class, or has a field that the class has not.
    """
    settings: dict[str, object] = {}
    for name, (theirs, _) in _different_fields(model, path).items():
        settings |= _settings(model, name, _per_level(name, theirs))
    return settings


def _different_fields(model: "Model", path: Path) -> dict[str, tuple[object, object]]:
    """Return the values of a network's config, and of a model, of the fields that differ."""
    config = read_json(path)
    if config.get("_class_name", model.network) != model.network:
        raise UnreadableError(
            f"{path.name} is of a {config['_class_name']}, model={model.name} is a {model.network}"
        )
    defaults = constructor_defaults(model.network)
    ours = defaults | (model.network_config((1, 1, 1)) or {})
    differences: dict[str, tuple[object, object]] = {}
    for name, value in config.items():
        ignored = name.startswith("_") or name in EMA_FIELDS or value is None
        if not (ignored or name in defaults):
            raise UnreadableError(f"{name}={value} in {path.name} is no field of {model.network}")
    for name in defaults:
        if name in (*NO_EFFECT, "in_channels", "out_channels"):
            continue
        theirs = config.get(name, defaults[name])
        if not _equal(_per_level(name, theirs), _per_level(name, ours[name])):
            differences[name] = theirs, ours[name]
    return differences


def _per_level(name: str, value: object) -> object:
    """Return a list of equal numbers, one for each level, as this number."""
    lists = ("block_out_channels", "down_block_types", "up_block_types")
    if isinstance(value, list | tuple) and name not in lists and value:
        return value[0] if all(item == value[0] for item in value) else value
    return value


def _settings(model: "Model", name: str, value: object) -> dict[str, object]:
    """Return the settings that give a model a config's field; none, if no setting does."""
    if name == "num_class_embeds" and isinstance(value, int) and "null_class" in vars(model):
        classes = {} if value == model.num_classes else {"num_classes": value}
        return {**classes, "null_class": False}
    settings = {
        "add_attention": "mid_block_attention",
        "cross_attention_dim": "context_width",
        "down_block_types": "attention_blocks",
        "num_embeds_ada_norm": "num_classes",
    }
    if model.network == "UNet2DConditionModel":
        settings["attention_head_dim"] = "attention_heads"
    setting = settings.get(name, name)
    if setting not in vars(model):
        return {}
    if name == "down_block_types" and isinstance(value, list | tuple):
        value = [i for i, block in enumerate(value) if "Attn" in str(block)]
    scalar = name not in ("block_out_channels", "down_block_types")
    if scalar and isinstance(value, list | tuple):
        return {}
    return {setting: value}


ENCODER_CLASSES = {
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "BertModel"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast", "BertTokenizer", "BertTokenizerFast"),
}
WEIGHTS = {"vae": "diffusion_pytorch_model", "text_encoder": "model"}
# Fields of an autoencoder that change its latents beside `scaling_factor`.
OTHER_SCALES = ("shift_factor", "latents_mean", "latents_std")


def check_encoders(name: str, pipeline: Path) -> None:
    """Check the autoencoder, the text encoder and the tokenizer of a pipeline by their files.

    Args:
        name: The value of `model.pretrained`.
        pipeline: Its folder.

    Raises:
        ConfigError: One is missing, of another class, or has no weights that can be read.
    """
    missing = [part for part in ENCODER_CLASSES if not (pipeline / part).is_dir()]
    allowed = f"a pipeline with {', '.join(ENCODER_CLASSES)}; {', '.join(missing)} missing"
    require(not missing, "model.pretrained", name, allowed)
    try:
        _check_index(pipeline)
        for part in WEIGHTS:
            _check_encoder(pipeline / part)
        _check_tokenizer(pipeline / "tokenizer")
    except UnreadableError as error:
        raise ConfigError(f"model.pretrained={name}: {error}") from None


def check_encoders_of_network(network: str, folder: Path, pretrained: Path | None) -> None:
    """Check that the encoders beside a network are those that a model is given.

    Args:
        network: The network's setting and value, such as `model.checkpoints=path`.
        folder: Its folder, or that of its pipeline. Without encoders, there is nothing to check.
        pretrained: The pipeline with the encoders of the model, or None: they are trained here.

    Raises:
        ConfigError: They are others: the network would be given latents that it does not know.
    """
    for part, stem in WEIGHTS.items():
        theirs = folder / part
        if not theirs.is_dir():
            continue
        advice = f"add model.pretrained={folder}"
        if pretrained is None:
            raise ConfigError(f"{network}: it works with its own {part}; {advice}")
        try:
            hashes = [files_hash(*weight_files(f, stem)) for f in (theirs, pretrained / part)]
        except UnreadableError as error:
            raise ConfigError(f"{network}: {error}") from None
        if hashes[0] != hashes[1]:
            message = f"its {part} is not that of model.pretrained={pretrained}; {advice}"
            raise ConfigError(f"{network}: {message}")


def compare_manifest(model: "Model", path: Path) -> list[tuple[str, str]]:
    """Return what the manifest of a model that was trained here says otherwise of its noise.

    Raises:
        UnreadableError: The manifest cannot be read.
    """
    recorded = read_json(path).get("key_fields")
    theirs = recorded.get("model") if isinstance(recorded, dict) else None
    if not isinstance(theirs, dict):
        return []
    ours = cast(Config, describe(model))
    differences = []
    for name in ("num_timesteps", "prediction", "noise_schedule"):
        value, setting = theirs.get(name, "its default"), ours.get(name, "its default")
        if value != setting:
            differences.append((f"{name}={_shown(value)}, not {_shown(setting)}", ""))
            if name != "noise_schedule" and name in theirs:
                differences[-1] = (differences[-1][0], f"model.{name}={_shown(value)}")
    return differences


def _check_index(pipeline: Path) -> None:
    """Refuse classes in model_index.json that are not supported."""
    if not (index := pipeline / "model_index.json").exists():
        return
    for part, entry in read_json(index).items():
        if not isinstance(entry, list) or entry[-1:] in ([None], []):
            continue
        if part in ENCODER_CLASSES:
            _require_class(part, entry[-1], f"model_index.json: {part} is")
        if part.startswith(("text_encoder_", "tokenizer_")):
            raise UnreadableError(f"model_index.json: it has a {part}, which is not supported")


def _require_class(part: str, class_name: object, text: str) -> None:
    if class_name not in ENCODER_CLASSES[part]:
        allowed = " or ".join(ENCODER_CLASSES[part])
        raise UnreadableError(f"{text} {class_name}, must be {allowed}")


def _check_encoder(folder: Path) -> None:
    """Refuse an encoder whose config or weights are not those of a supported class."""
    part, path = folder.name, f"{folder.name}/config.json"
    if not (folder / "config.json").is_file():
        raise UnreadableError(f"{path} is missing")
    try:
        config = read_json(folder / "config.json")
    except UnreadableError as error:
        raise UnreadableError(f"{part}/{error}") from None
    if part == "vae":
        _require_class(part, config.get("_class_name", "AutoencoderKL"), f"{path} is of")
        for field in OTHER_SCALES:
            if config.get(field) is not None:
                raise UnreadableError(f"{path}: {field}={config[field]} must be null")
        for field, kind in (("latent_channels", int), ("block_out_channels", list)):
            if not isinstance(config.get(field, kind()), kind):
                raise UnreadableError(f"{path}: {field}={config[field]} has a wrong type")
    elif not isinstance(config.get("hidden_size"), int):
        raise UnreadableError(f"{path} has no hidden_size, the width of its states")
    else:
        classes = config.get("architectures")
        for class_name in classes if isinstance(classes, list) else ():
            _require_class(part, class_name, f"{path} is of")
    for file in weight_files(folder, WEIGHTS[part]):
        try:
            read_tree(file)
        except UnreadableError as error:
            raise UnreadableError(f"{part}/{file.name}: {error}") from None


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Return the safetensors file `stem`, or the files into which it was split.

    Raises:
        UnreadableError: There are none. The message says what there is instead.
    """
    if files := stem_files(folder, stem):
        return files
    others = sorted(p.name for p in folder.iterdir() if p.name.startswith((stem, "pytorch_model")))
    content = ", ".join(others) or "no weights"
    raise UnreadableError(f"{folder.name}/{stem}.safetensors is missing; it has {content}")


def _check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer without a vocabulary."""
    names = ("tokenizer.json", "vocab.json", "vocab.txt")
    vocabularies = list(filter(Path.is_file, map(folder.joinpath, names)))
    if not vocabularies:
        raise UnreadableError(f"tokenizer has none of {', '.join(names)}")
    for path in vocabularies:
        if path.suffix == ".json":
            read_json(path)
