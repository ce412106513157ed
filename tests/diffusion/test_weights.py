"""Weights that were trained elsewhere, in files that the libraries themselves write."""

import hashlib
import re
import shutil

import pytest
import safetensors.torch
import torch
from conftest import TINY, command, small_run, succeeds
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from journey.diffusion import weights
from journey.diffusion.ddpm import DDPM
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.engine.workspace import get
from journey.experiment import load_experiment
from journey.pipeline.pretrained import files_hash

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
MODEL = DDPM(block_out_channels=[8, 16])


@pytest.fixture
def foreign() -> UNet2DModel:
    """Return a network with the parameters of ours, whose configuration makes other outputs."""
    torch.manual_seed(0)
    config = dict(MODEL.build(SHAPE).config)
    config |= {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1}
    return UNet2DModel(**{k: v for k, v in config.items() if not k.startswith("_")}).eval()


def folder(network, path):
    network.save_pretrained(path)


def folder_of_pickles(network, path):
    network.save_pretrained(path, safe_serialization=False)


def whole_pipeline(network, path):
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(path)


@pytest.mark.parametrize("save", [folder, folder_of_pickles, whole_pipeline])
def test_a_folder_of_diffusers_is_loaded_with_its_own_configuration(save, foreign, tmp_path):
    save(foreign, tmp_path / "folder")
    weights.check_weights("model.checkpoints", MODEL, tmp_path / "folder", SHAPE)
    network = weights.load_weights(MODEL, tmp_path / "folder", SHAPE, CPU)
    x, t = torch.randn(2, *SHAPE), torch.tensor([1, 500])
    torch.testing.assert_close(network(x, t).sample, foreign(x, t).sample)
    assert not torch.allclose(network(x, t).sample, MODEL.build(SHAPE).eval()(x, t).sample)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin"])
def test_a_state_dict_is_loaded_into_the_network_of_the_settings(name, tmp_path):
    state_dict, path = MODEL.build(SHAPE).state_dict(), tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state_dict, path)
    else:
        torch.save(state_dict, path)
    weights.check_weights("model.checkpoints", MODEL, path, SHAPE)
    loaded = weights.load_weights(MODEL, path, SHAPE, CPU).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state_dict.items())


WIDER = DDPM(block_out_channels=[16, 32])
ATTENDING = DDPM(block_out_channels=[8, 16], mid_block_attention=True)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (WIDER, SHAPE, r"conv_in\.weight has shape \(8, 1, 3, 3\), expected \(16, 1, 3, 3\)"),
        (MODEL, (3, 8, 8), r"conv_in\.weight has shape \(8, 1, 3, 3\), expected \(8, 3, 3, 3\)"),
        (ATTENDING, SHAPE, r"architecture of model=ddpm8-16m: \S+ has shape None, expected \(16"),
    ],
)
@pytest.mark.parametrize("save", [folder, lambda net, path: torch.save(net.state_dict(), path)])
def test_another_architecture_is_refused_with_its_first_parameter(
    save, model, shape, message, tmp_path
):
    save(MODEL.build(SHAPE), tmp_path / "weights")
    with pytest.raises(ConfigError, match=message):
        weights.check_weights("model.checkpoints", model, tmp_path / "weights", shape)


class Anything:
    """What unpickling could run."""


@pytest.mark.parametrize("content", [Anything(), {"a": 1}, [torch.zeros(1)]])
def test_a_file_without_a_state_dict_is_refused_in_a_line(content, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(content, path)
    message = rf"^model\.checkpoints={re.escape(str(path))}: must be a state dict \(.*\)$"
    with pytest.raises(ConfigError, match=message):
        weights.check_weights("model.checkpoints", MODEL, path, SHAPE)


@pytest.mark.parametrize(
    "config", [None, "{", '{"_class_name": "UNet2DModel", "block_out_channels": "x"}']
)
def test_a_folder_without_a_network_is_refused_in_a_line(config, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    place = re.escape(str(tmp_path))
    message = rf"^model\.checkpoints={place}: must be a network as diffusers saves it \(.*\)$"
    with pytest.raises(ConfigError, match=message):
        weights.check_weights("model.checkpoints", MODEL, tmp_path, SHAPE)


def test_cache_keys_contain_the_bytes_and_not_the_path(foreign, tmp_path, workspace):
    def experiment(*names):
        model = DDPM(block_out_channels=[8, 16], checkpoints=[str(tmp_path / n) for n in names])
        return load_experiment(small_run(model=model), workspace.store)

    folder(foreign, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    folder(MODEL.build(SHAPE), tmp_path / "other")
    one, copy, other, trained = (
        cache_key(experiment(*names).checkpoint(0)) for names in (["one"], ["copy"], ["other"], [])
    )
    assert one == copy
    assert len({one, other, trained}) == 3
    spec = experiment("one").checkpoint(0)
    assert spec.released == files_hash(tmp_path / "one") != files_hash(tmp_path / "other")
    assert spec.released in (get(spec, workspace).path / "manifest.json").read_text()
    with pytest.raises(ConfigError, match=r"model\.checkpoints=\['.*one'\]: must be at least 2"):
        experiment("one").checkpoint(1)


def test_released_checkpoints_go_through_the_pipeline(tmp_path, foreign):
    words = (*TINY, "method=[journey,ekfac,pixel]", "model.checkpoints=[released]")
    missing = command(tmp_path, *words)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: model.checkpoints=released: must be a network or a")
    folder(foreign, tmp_path / "released")
    succeeds(command(tmp_path, *words))
    (manifest,) = (tmp_path / "artifacts/models").glob("*8-16-s0-*/manifest.json")
    assert files_hash(tmp_path / "released") in manifest.read_text()
    file = manifest.parent / "diffusion_pytorch_model.safetensors"
    stored = safetensors.torch.load_file(file)
    assert all(torch.equal(stored[key], value) for key, value in foreign.state_dict().items())
    tracin = command(tmp_path, *words, "method=[tracin]", "attribution.num_checkpoints=2")
    assert tracin.returncode == 1
    assert tracin.stderr.count("\n") == 1
    assert "method.tracin.ensemble=run" in tracin.stderr


def test_a_file_in_the_hubs_cache_is_hashed_by_its_name(tmp_path):
    for name in ("blobs", "snapshot", "plain"):
        (tmp_path / name).mkdir()
    (tmp_path / "plain/w.safetensors").write_bytes(b"weights")
    blob = tmp_path / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.write_bytes(b"not read")
    (tmp_path / "snapshot/w.safetensors").symlink_to(blob)
    assert files_hash(tmp_path / "snapshot") == files_hash(tmp_path / "plain")
