"""Checkpoints as people have them: the right weights, or one line that says what the file is."""

import argparse
import dataclasses
import json
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.optim.swa_utils import AveragedModel

from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas
from journey.diffusion import checkpoint_files, weights
from journey.diffusion.ddpm import DDPM
from journey.diffusion.latent import LatentDiffusion
from journey.engine.checks import ConfigError
from journey.engine.spec import describe
from journey.pipeline.schedule import BetaSchedule, NoiseSchedule
from journey.pipeline.settings import Prediction

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
MODEL = DDPM(block_out_channels=[8, 16], attention_blocks=[1])


def network(seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    return MODEL.build(SHAPE).eval()


NET, EMA = network(0), network(1)
STATE, AVERAGE = NET.state_dict(), EMA.state_dict()


def prefixed(prefix, state=STATE):
    return {prefix + name: value for name, value in state.items()}


def converted(dtype, state=STATE):
    return {name: value.to(dtype) for name, value in state.items()}


def lightning(state, **more):
    return {
        "epoch": 3, "global_step": 1000, "pytorch-lightning_version": "2.4.0", "loops": {"a": {}},
        "state_dict": state, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "lr_schedulers": [], "callbacks": {}, "hyper_parameters": {"lr": 1e-4, "betas": (1, 2)},
    } | more  # fmt: skip


def run_by_unpickling():
    raise AssertionError("a pickle was run")


class Anything:
    """What unpickling could run."""

    def __reduce__(self):
        return (run_by_unpickling, ())


def shadow(parameters):
    return EMAModel(parameters).state_dict()


SHADOWED = {"decay": 0.99, "num_updates": 7, "shadow_params": [*EMA.parameters()]}
LIT_EMA = {f"model_ema.{name.replace('.', '')}": value for name, value in AVERAGE.items()}
OLD = {
    name.replace("to_q", "query").replace("to_k", "key").replace("to_v", "value")
    .replace("to_out.0", "proj_attn"): value for name, value in STATE.items()
}  # fmt: skip
VIEWS = dict(zip(STATE, torch.cat([v.flatten() for v in STATE.values()]).split(
    [v.numel() for v in STATE.values()]), strict=True))  # fmt: skip

# Content of a file of torch.save: the weights it has, and the key that has to be named.
LOADED = {
    "state dict": (STATE, STATE, ""),
    "ordered": (OrderedDict(STATE), STATE, ""),
    "parameters": (dict(NET.named_parameters()), STATE, ""),
    "compiled": (torch.compile(NET).state_dict(), STATE, ""),
    "data parallel": (torch.nn.DataParallel(NET).state_dict(), STATE, ""),
    "both": (prefixed("module._orig_mod."), STATE, ""),
    "both, the other way": (prefixed("_orig_mod.module."), STATE, ""),
    "views of one storage": ({k: v.view(STATE[k].shape) for k, v in VIEWS.items()}, STATE, ""),
    "transposed in memory": (
        {k: v.T.contiguous().T if v.ndim == 2 else v for k, v in STATE.items()}, STATE, ""),
    "old names of attention": (OLD, STATE, ""),
    "double": (converted(torch.float64), STATE, ""),
    "half": (converted(torch.float16), converted(torch.float16), ""),
    "bfloat16": (converted(torch.bfloat16), converted(torch.bfloat16), ""),
    "model": ({"model": STATE, "epoch": 3}, STATE, ""),
    "net": ({"net": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, STATE, ""),
    "nested": ({"state": {"unet": prefixed("module.")}}, STATE, ""),
    "lightning": (lightning(prefixed("model.")), STATE, ""),
    "lightning net": (lightning(prefixed("net.")), STATE, ""),
    "lightning unet": (lightning(prefixed("unet.") | {"vae.w": torch.ones(1)}), STATE, ""),
    "lightning compiled": (lightning(prefixed("model._orig_mod.")), STATE, ""),
    "lightning with a class": (
        lightning(prefixed("model."), hyper_parameters=argparse.Namespace(lr=1)), STATE, ""),
    "lightning with code": (lightning(prefixed("model."), callbacks=Anything()), STATE, ""),
    "numpy beside": ({"model": STATE, "loss": np.float64(0.1), "x": np.ones(3)}, STATE, ""),
    "averaged model": (AveragedModel(NET).state_dict(), STATE, ""),
    "EMAModel of diffusers": (shadow(EMA.parameters()), AVERAGE, ""),
    "torch-ema": (SHADOWED | {"collected_params": None}, AVERAGE, ""),
    "EMA in a dictionary": ({"ema": SHADOWED}, AVERAGE, ""),
    "ema-pytorch": (
        {"initted": torch.ones(1), "step": torch.ones(1)} | prefixed("ema_model.", AVERAGE),
        AVERAGE, ""),
    "the average by name": ({"model": STATE, "ema": AVERAGE}, AVERAGE, "ema"),
    "the model by name": ({"model": STATE, "ema": AVERAGE}, STATE, "model"),
    "shadow by name": ({"model": STATE, "ema": SHADOWED}, AVERAGE, "ema.shadow_params"),
    "online by name": (
        prefixed("online_model.") | prefixed("ema_model.", AVERAGE), STATE, "online_model"),
    "lightning by name": (
        lightning(prefixed("model.") | prefixed("ema.", AVERAGE)), AVERAGE, "state_dict.ema"),
    "LitEma by name": (prefixed("model.") | LIT_EMA, AVERAGE, "model_ema"),
    "inside by name": (STATE | prefixed("ema.", AVERAGE), AVERAGE, "ema"),
}  # fmt: skip


def loaded(path, model: DDPM = MODEL):
    """Return the state dict that is loaded, after all checks."""
    model = dataclasses.replace(model, checkpoints=[str(path)])
    model.check("model")
    model.ready()
    weights.check_weights("model.checkpoints", model, path, SHAPE)
    return weights.load_weights(model, path, SHAPE, CPU).state_dict()


def assert_loaded(path, expected, model: DDPM = MODEL) -> None:
    actual = loaded(path, model)
    assert actual.keys() == STATE.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value.float()), name


@pytest.mark.parametrize("legacy", [False, True], ids=["", "torch < 1.6"])
@pytest.mark.parametrize("name", LOADED)
def test_a_file_of_torch_is_loaded_where_it_is_unambiguous(name, legacy, tmp_path):
    content, expected, key = LOADED[name]
    torch.save(content, tmp_path / "epoch=3.ckpt", _use_new_zipfile_serialization=not legacy)
    model = dataclasses.replace(MODEL, checkpoint_key=key)
    if legacy and name in ("lightning with a class", "lightning with code", "numpy beside"):
        with pytest.raises(ConfigError, match="pickled objects beside tensors, which are not run"):
            assert_loaded(tmp_path / "epoch=3.ckpt", expected, model)
        return
    assert_loaded(tmp_path / "epoch=3.ckpt", expected, model)


SAFE = (
    "state dict", "compiled", "both", "half", "bfloat16", "double", "averaged model",
    "LitEma by name",
)  # fmt: skip


@pytest.mark.parametrize("name", SAFE)
def test_a_safetensors_file_is_loaded_whatever_its_name(name, tmp_path):
    content, expected, key = LOADED[name]
    content = {k: v.contiguous() for k, v in content.items()}
    safetensors.torch.save_file(content, tmp_path / "weights.bin")
    model = dataclasses.replace(MODEL, checkpoint_key=key)
    assert_loaded(tmp_path / "weights.bin", expected, model)


FIRST = "conv_in.weight"
LACKING = {name: value for name, value in STATE.items() if name != "conv_out.bias"}
REFUSED = {
    "two": ({"model": STATE, "ema": AVERAGE}, "2 state dicts that fit: model, ema; choose one by "),
    "two of Lightning": (
        lightning(prefixed("model.") | prefixed("ema.")), "fit: state_dict.model, state_dict.ema"),
    "two averages": (SHADOWED | {"collected_params": [*NET.parameters()]}, "shadow_params, co"),
    "with its average": (prefixed("model.") | LIT_EMA, "fit: model, model_ema"),
    "whole module": (NET, "is a pickled diffusers.*UNet2DModel, which is not run; save its st"),
    "module inside": ({"model": NET}, "model is a pickled diffusers.*UNet2DModel, which is not"),
    "code": (Anything(), "is a pickled .*run_by_unpickling, which is not run"),
    "code inside": ({"a": Anything()}, "a is a pickled .*run_by_unpickling, which is not run"),
    "numbers": ({"a": 1, "b": 2}, "no parameter conv_in.weight: its keys are a, b"),
    "a list": ([torch.zeros(1)], "it is a list, not a dictionary of tensors"),
    "a tensor": (torch.zeros(1), "it is a single tensor"),
    "nothing": ({}, "no parameter conv_in.weight"),
    "arrays": ({k: v.numpy() for k, v in STATE.items()}, "conv_in.weight is a pickled numpy.*"),
    "lora": ({"unet.down.lora_A.weight": torch.ones(1)}, "no parameter of a LoRA"),
    "CompVis": (
        {"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}},
        "no parameter conv_in.weight"),
    "missing": (LACKING, r"conv_out.bias has shape None, expected \(1,\)"),
    "extra": (STATE | {"more": torch.ones(1)}, r"more has shape \(1,\), expected None"),
    "shape": (STATE | {FIRST: torch.ones(8, 3, 3, 3)}, r"conv_in.weight has shape \(8, 3, 3"),
    "integers": (converted(torch.int8), "conv_in.weight is int8, must be one of float64, float32"),
    "NaN": (STATE | {FIRST: torch.full((8, 1, 3, 3), torch.nan)}, "conv_in.weight has NaN or inf"),
    "infinite": (STATE | {FIRST: torch.full((8, 1, 3, 3), torch.inf)}, "conv_in.weight has NaN or"),
    "shorter list": ({"shadow_params": [*EMA.parameters()][:-1]}, "no parameter conv_in.weight"),
}  # fmt: skip


def refusal(path, model: DDPM = MODEL) -> str:
    """Return the message, which is a line with the setting, the file and no advice of torch."""
    with pytest.raises(ConfigError) as error:
        loaded(path, model)
    message = str(error.value)
    assert message.startswith(f"model.checkpoints={path}: ")
    assert "\n" not in message
    assert "weights_only" not in message
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_does_not_fit_is_refused_by_what_it_is(name, tmp_path):
    content, message = REFUSED[name]
    torch.save(content, tmp_path / "w.pt")
    assert re.search(message, refusal(tmp_path / "w.pt"))


@pytest.mark.parametrize("key", ["", "nothing", "ema"])
def test_a_key_that_a_file_does_not_have_is_refused_with_those_it_has(key, tmp_path):
    torch.save({"model": STATE, "average": AVERAGE}, tmp_path / "w.pt")
    message = refusal(tmp_path / "w.pt", dataclasses.replace(MODEL, checkpoint_key=key))
    assert "model, average" in message
    with pytest.raises(ConfigError, match=r"model\.checkpoint_key=ema: must be left out"):
        dataclasses.replace(MODEL, checkpoint_key="ema").check("model")


def saved(directory):
    NET.save_pretrained(directory)
    return directory / "diffusion_pytorch_model.safetensors"


def whole(tmp_path):
    torch.save(STATE, tmp_path / "whole.pt")
    return (tmp_path / "whole.pt").read_bytes()


def header_only(tmp_path):
    content = saved(tmp_path / "x").read_bytes()
    return content[: 8 + int.from_bytes(content[:8], "little")]


def script(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"")
    return (tmp_path / "script.pt").read_bytes()


def arrays(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    return (tmp_path / "a.npz").read_bytes()


def without_storage(tmp_path):
    whole(tmp_path)
    with zipfile.ZipFile(tmp_path / "whole.pt") as old, zipfile.ZipFile(tmp_path / "n", "w") as new:
        for name in old.namelist()[:-4]:
            if not name.endswith("data/3"):
                new.writestr(name, old.read(name))
    return (tmp_path / "n").read_bytes()


BYTES = {
    "empty": (lambda path: b"", "it is empty"),
    "Git LFS": (lambda path: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                "a Git LFS pointer, not the weights; run git lfs pull"),
    "page": (lambda path: b"<!DOCTYPE html><html>", "a web page"),
    "JSON": (lambda path: b'{"weight_map": {}}', "a JSON file"),
    "text": (lambda path: b"weights\n", "neither a safetensors file nor one that torch.save wrote"),
    "GGUF": (lambda path: b"GGUF\3\0\0\0", "a GGUF file"),
    "HDF5": (lambda path: b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "gzip": (lambda path: b"\x1f\x8b\x08\0", "a gzip archive"),
    "pickle": (lambda path: pickle.dumps({"a": 1}), "a pickle that torch did not write"),
    "pickled module": (lambda path: pickle.dumps(NET), "a pickle that torch did not write"),
    "TorchScript": (script, "a TorchScript program"),
    "npz": (arrays, "a NumPy archive"),
    "truncated torch": (lambda path: whole(path)[:-500], "it is damaged"),
    "truncated at the start": (lambda path: whole(path)[:20], "it is damaged"),
    "no storage": (without_storage, "it is damaged: .*is missing"),
    "truncated header": (lambda path: header_only(path)[:100], "truncated, in the header"),
    "header only": (header_only, "its header says .*: truncated"),
    "truncated safetensors": (lambda path: saved(path / "y").read_bytes()[:-1], "truncated"),
    "longer safetensors": (lambda path: saved(path / "y").read_bytes() + b"x", "header says"),
    "damaged header": (lambda path: b"\x09\0\0\0\0\0\0\0{not json", "it is damaged"),
    "nested header": (lambda path: (5000).to_bytes(8, "little") + b'{"a":' * 1000, "damaged"),
    "random": (lambda path: np.random.default_rng(0).bytes(1000), "neither a safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("where", ["w.pt", "folder/diffusion_pytorch_model.safetensors"])
def test_a_file_that_has_no_weights_is_refused_without_torch(name, where, tmp_path, monkeypatch):
    make, message = BYTES[name]
    content = make(tmp_path)
    (tmp_path / "folder").mkdir()
    shutil.copy(saved(tmp_path / "whole").parent / "config.json", tmp_path / "folder")
    (tmp_path / where).write_bytes(content)
    monkeypatch.setattr(weights, "_read_state_dict", None)  # it is refused before
    path = (tmp_path / where).parent if "folder" in where else tmp_path / where
    assert re.search(message, refusal(path))


def test_a_damaged_file_is_refused_in_a_line_or_has_numbers_of_the_right_shapes(tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "w"
    for content in (whole(tmp_path), saved(tmp_path / "x").read_bytes()):
        for _ in range(25):
            changed = bytearray(content[: random.integers(1, len(content))])
            path.write_bytes(changed)
            with pytest.raises(checkpoint_files.UnreadableError):
                checkpoint_files.read_tree(path)
        for place in random.integers(0, 3000, 25):
            changed = bytearray(content)
            changed[place] ^= 1 << random.integers(8)
            path.write_bytes(changed)
            message = ""
            try:
                loaded(path)
            except ConfigError as error:
                message = str(error)
            assert "\n" not in message


# ---------------------------------------------------------------------------------------- folders


def shards(folder, suffix="safetensors"):
    """Split the weights of a folder in two, as diffusers does with large ones."""
    stem = "diffusion_pytorch_model"
    names = list(STATE)
    parts = {f"{stem}-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
    for file, keys in parts.items():
        save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
        save({key: STATE[key] for key in keys}, folder / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / f"{stem}.safetensors").unlink()


def renamed(folder, name):
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / name)


def as_pickle(folder, name="diffusion_pytorch_model.bin"):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(STATE, folder / name)


def trainer(folder):
    """What accelerate saves of a training."""
    (folder / "config.json").unlink()
    renamed(folder, "model.safetensors")
    for name in ("optimizer.bin", "scheduler.bin", "scaler.pt", "training_args.bin"):
        torch.save({"state": {}}, folder / name)
    (folder / "random_states_0.pkl").write_bytes(b"")


def both(folder):
    as_pickle(folder)
    NET.save_pretrained(folder)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"")


FOLDERS = {
    "as saved": lambda folder: None,
    "pickle": as_pickle,
    "shards": shards,
    "shards of pickles": lambda folder: shards(folder, "bin"),
    "fp16 only": lambda folder: renamed(folder, "diffusion_pytorch_model.fp16.safetensors"),
    "fp16 too": lambda folder: safetensors.torch.save_file(
        AVERAGE, folder / "diffusion_pytorch_model.fp16.safetensors"),
    "both formats": both,
    "a trainer's": trainer,
    "a trainer's pickle": lambda folder: (
        trainer(folder), (folder / "model.safetensors").unlink(),
        torch.save(STATE, folder / "pytorch_model.bin")),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_loaded_where_it_is_unambiguous(name, tmp_path):
    saved(tmp_path)
    FOLDERS[name](tmp_path)
    assert_loaded(tmp_path, STATE)


def test_an_average_that_diffusers_saved_is_loaded(tmp_path):
    average = EMAModel(EMA.parameters(), model_cls=UNet2DModel, model_config=NET.config)
    average.save_pretrained(tmp_path)
    assert_loaded(tmp_path, AVERAGE)


BAD_FOLDERS = {
    "empty": (lambda f: (saved(f).unlink(), (f / "config.json").unlink()), "weights: it is empty"),
    "no weights": (lambda f: saved(f).unlink(), "without weights: it has config.json"),
    "flax": (lambda f: renamed(f, "diffusion_flax_model.msgpack"), "diffusion_flax_model.msgpack"),
    "two variants": (
        lambda f: (shutil.copy(saved(f), f / "diffusion_pytorch_model.ema.safetensors"),
                   renamed(f, "diffusion_pytorch_model.fp16.safetensors")),
        "several files of weights: diffusion_pytorch_model.ema.safetensors, "),
    "two files": (
        lambda f: (trainer(f), shutil.copy(f / "model.safetensors", f / "model_1.safetensors")),
        "several files of weights: model.safetensors, model_1.safetensors; name one"),
    "lost shard": (lambda f: (shards(f), next(f.glob("*-00002-*.safetensors")).unlink()),
                   "names .*00002-of-00002.safetensors, which is not in its folder"),
    "foreign shard": (
        lambda f: (f / "diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "../x.safetensors"}})) and saved(f).unlink(),
        "names ../x.safetensors, which is not in its folder"),
    "networks": (
        lambda f: (NET.save_pretrained(f / "unet"), EMA.save_pretrained(f / "unet_ema"),
                   (f / "config.json").unlink()),
        "it has the networks unet, unet_ema; name one of them"),
    "transformer": (
        lambda f: ((f / "config.json").unlink(), (f / "model_index.json").write_text("{}")),
        "a pipeline without a folder unet"),
    "config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "config of LFS": (
        lambda f: (f / "config.json").write_text("version https://git-lfs.github.com/spec/v1"),
        "config.json cannot be read: a Git LFS pointer"),
    "config list": (lambda f: (f / "config.json").write_text("[]"), "is not a JSON object"),
    "class": (lambda f: (f / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}'),
              "config.json is of a DiTTransformer2DModel, model=ddpm is a UNet2DModel"),
    "quantised": (lambda f: edit(f, quantization_config={}), "quantization_config=.* no field"),
}  # fmt: skip


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_folder_without_a_network_of_ours_is_refused_by_what_it_has(name, tmp_path):
    change, message = BAD_FOLDERS[name]
    saved(tmp_path)
    change(tmp_path)
    assert re.search(message, refusal(tmp_path))


# ---------------------------------------------------------------------------------------- configs

# A value of each field of UNet2DModel's config that is not that of MODEL.
OTHER_VALUES = {
    "center_input_sample": True, "time_embedding_type": "fourier", "time_embedding_dim": 64,
    "freq_shift": 1, "flip_sin_to_cos": False, "mid_block_type": None,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"], "block_out_channels": [8, 24],
    "layers_per_block": 2, "mid_block_scale_factor": 2, "downsample_padding": 0,
    "downsample_type": "resnet", "upsample_type": "resnet", "dropout": 0.1, "act_fn": "gelu",
    "attention_head_dim": None, "norm_num_groups": 4, "attn_norm_num_groups": 4, "norm_eps": 1e-6,
    "resnet_time_scale_shift": "scale_shift", "add_attention": True, "class_embed_type": "timestep",
    "num_class_embeds": 10,
}  # fmt: skip
NO_DIFFERENCE = {"sample_size": 64, "in_channels": 3, "out_channels": 3, "num_train_timesteps": 9}


def test_every_field_of_a_config_is_compared():
    fields = {name for name in NET.config if not name.startswith("_")}
    assert fields == OTHER_VALUES.keys() | NO_DIFFERENCE.keys()


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_a_config_that_differs_is_refused_with_both_values_and_the_setting(field, tmp_path):
    saved(tmp_path)
    edit(tmp_path, **{field: OTHER_VALUES[field]})
    message = refusal(tmp_path)
    assert f"differs from these settings: {field}=" in message
    assert ", not " in message
    settings = {f.name for f in dataclasses.fields(DDPM)}
    names = {
        "add_attention": "mid_block_attention",
        "down_block_types": "attention_blocks",
        "num_class_embeds": "num_classes",
    }
    if names.get(field, field) in settings:
        assert f"(add model.{names.get(field, field)}=" in message
    else:
        assert f"(no setting has {field}=" in message


def test_fields_that_change_nothing_are_not_compared(tmp_path):
    saved(tmp_path)
    edit(tmp_path, sample_size=64, num_train_timesteps=9)
    assert_loaded(tmp_path, STATE)


def test_a_pipeline_is_compared_with_its_scheduler(tmp_path):
    for scheduler, words in {
        DDPMScheduler(): "",
        DDPMScheduler(prediction_type="v_prediction"): "(add model.prediction=velocity)",
        DDIMScheduler(num_train_timesteps=4000): "(add model.num_timesteps=4000)",
        DDPMScheduler(beta_schedule="squaredcos_cap_v2"): (
            "(add model.noise_schedule.beta_schedule=squaredcos_cap_v2)"
        ),
        DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False): (
            "(add model.noise_schedule.beta_start=0.00085 model.noise_schedule.beta_end=0.012 "
            "model.noise_schedule.clip_sample=false)"
        ),
    }.items():
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        DDPMPipeline(NET, scheduler).save_pretrained(tmp_path / "p")
        unet = tmp_path / "p/unet"
        for path in (tmp_path / "p", unet, unet / "diffusion_pytorch_model.safetensors"):
            if words:
                assert refusal(path).endswith(words)
            else:
                assert_loaded(path, STATE)
                assert weights.unchecked(MODEL, path) == ""


def test_a_pipeline_of_early_diffusers_is_one_folder(tmp_path):
    """As google/ddpm-cifar10-32 was released: both configs beside a pickle with old names."""
    saved(tmp_path).unlink()
    torch.save(OLD, tmp_path / "diffusion_pytorch_model.bin")
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    scheduler = {
        "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02,
        "beta_schedule": "linear", "beta_start": 0.0001, "clip_sample": True,
        "num_train_timesteps": 1000, "tensor_format": "pt", "timestep_values": None,
        "trained_betas": None, "variance_type": "fixed_large", "predict_epsilon": True,
    }  # fmt: skip
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(scheduler))
    assert_loaded(tmp_path, STATE)
    path.write_text(json.dumps(scheduler | {"num_train_timesteps": 4000}))
    assert "num_train_timesteps=4000, not 1000" in refusal(tmp_path)


def test_what_cannot_be_compared_is_said(tmp_path):
    torch.save(lightning(prefixed("model.")), tmp_path / "w.ckpt")
    note = weights.unchecked(MODEL, tmp_path / "w.ckpt")
    assert "padding, activation, embedding of t" in note
    assert "noise schedule, prediction type and clipping: taken from model.*" in note
    assert "its hyper_parameters are not read" in note
    saved(tmp_path / "folder")
    note = weights.unchecked(MODEL, tmp_path / "folder")
    assert note.startswith("noise schedule, prediction type and clipping: taken from model.*")
    renamed(tmp_path / "folder", "diffusion_pytorch_model.fp16.safetensors")
    assert "variant fp16" in weights.unchecked(MODEL, tmp_path / "folder")


# ------------------------------------------------------------------------------ the paper's network

BLOCKS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
AUTHORS = {"attention_head_dim": None, **BLOCKS}
GOOGLE = {
    "act_fn": "silu", "attention_head_dim": None, "center_input_sample": False,
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "mid_block_scale_factor": 1,
    "norm_eps": 1e-06, "time_embedding_type": "positional", **BLOCKS,
}  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "config"), [("ddpm_cifar", AUTHORS), ("ddpm_google_cifar10", GOOGLE)]
)
def test_the_function_of_a_preset_is_that_of_the_network_it_is_named_after(
    choice, config, tmp_path
):
    """Narrower, with attention that is not uniform: its weights are scaled by 8."""
    settings = OmegaConf.to_container(OmegaConf.load(CONF / f"model/{choice}.yaml"))
    del settings["defaults"]
    assert settings["block_out_channels"] == [128, 256, 256, 256]
    assert settings.get("dropout", 0) == 0
    model = DDPM(**settings)
    with torch.device("meta"):
        full = UNet2DModel(block_out_channels=(128, 256, 256, 256), **config)
        networks = full, model.build((3, 32, 32))
    configs = []
    for network in networks:
        configs.append({})
        for key, value in network.config.items():
            if key[0] != "_" and key != "sample_size":
                configs[-1][key] = list(value) if isinstance(value, tuple) else value
    assert configs[0] == configs[1]
    narrow = dataclasses.replace(model, block_out_channels=[32, 64, 64, 64])
    torch.manual_seed(0)
    original = UNet2DModel(block_out_channels=(32, 64, 64, 64), sample_size=32, **config).eval()
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            parameter.mul_(8 if "to_q" in name or "to_k" in name else 1)
    original.save_pretrained(tmp_path)
    narrow = dataclasses.replace(narrow, checkpoints=[str(tmp_path)])
    narrow.ready()
    network = weights.load_weights(narrow, tmp_path, (3, 32, 32), CPU)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([10, 700])
    with torch.no_grad():
        expected = original(x, t).sample
        torch.testing.assert_close(network(x, t).sample, expected)
        eight = dataclasses.replace(narrow, attention_head_dim=8).build((3, 32, 32)).eval()
        eight.load_state_dict(original.state_dict())
        assert (eight(x, t).sample - expected).norm() > 0.05 * expected.norm()


# ------------------------------------------------------------------------- settings and cache keys


def test_new_settings_at_their_defaults_leave_cache_keys_as_they_were():
    pixels = describe(DDPM())
    assert pixels.keys() == {
        "name", "num_timesteps", "block_out_channels", "layers_per_block", "attention_blocks",
        "mid_block_attention", "norm_num_groups",
    }  # fmt: skip
    assert "noise_schedule" not in describe(LatentDiffusion())
    one_head = describe(DDPM(attention_head_dim=None))
    assert one_head == pixels | {"attention_head_dim": None}
    rescaled = NoiseSchedule(rescale_betas_zero_snr=True)
    noise = describe(DDPM(noise_schedule=rescaled))["noise_schedule"]
    assert noise["rescale_betas_zero_snr"] is True


def test_settings_of_a_network_are_written_on_the_command_line():
    register_schemas(COMPONENTS)
    words = ["model.attention_head_dim=null", "model.prediction=velocity", "model.freq_shift=1"]
    words += ["model.noise_schedule.beta_schedule=scaled_linear", "model.checkpoints=[]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        model = parse(compose("config", words)).model
        default = parse(compose("config")).model
        coco = parse(compose("config", ["experiment=coco"])).model
    assert (model.attention_head_dim, model.prediction) == (None, Prediction.velocity)
    assert model.noise_schedule.beta_schedule is BetaSchedule.scaled_linear
    assert (default.attention_head_dim, default.noise_schedule) == (8, NoiseSchedule())
    assert coco.noise_schedule == NoiseSchedule()  # the authors' `DDPMScheduler()`


WRONG = {
    "attention_head_dim": (17, "must be null, or in 1…16"),
    "downsample_padding": (2, "must be in 0…1"),
    "freq_shift": (2, "must be in 0…1"),
    "norm_eps": (0.0, "must be in 1e-12…1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_setting_of_the_network_out_of_range_is_refused(name):
    value, message = WRONG[name]
    with pytest.raises(ConfigError, match=rf"^model\.{name}={value}: {message}"):
        dataclasses.replace(MODEL, **{name: value}).check("model")


WRONG_NOISE = [
    ({"beta_start": 0.5, "beta_end": 0.1}, "beta_end=0.1: must be at least beta_start=0.5"),
    ({"beta_start": 0.0}, "beta_start=0.0: must be in"),
    ({"beta_end": float("nan")}, "beta_end=nan: must be in"),
    ({"beta_schedule": BetaSchedule.squaredcos_cap_v2, "beta_end": 0.1}, "beta_end=0.1: must be"),
    ({"clip_sample": False, "clip_sample_range": 2.0}, "clip_sample_range=2.0: must be left"),
    ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True: must be false with"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), WRONG_NOISE)
def test_a_noise_schedule_that_is_wrong_or_has_no_effect_is_refused(settings, message):
    model = dataclasses.replace(MODEL, noise_schedule=NoiseSchedule(**settings))
    with pytest.raises(ConfigError, match=f"^model.noise_schedule.{message}"):
        model.check("model")
