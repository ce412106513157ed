"""Weights that were trained elsewhere, in files that the libraries themselves write."""

import hashlib
import shutil
from dataclasses import replace

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
OTHER = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1}
WORDS = [f"model.{name}={str(value).lower()}" for name, value in OTHER.items()]


@pytest.fixture
def foreign() -> UNet2DModel:
    """Return a network with the parameters of ours, whose configuration makes other outputs."""
    torch.manual_seed(0)
    config = dict(MODEL.build(SHAPE).config)
    return UNet2DModel(**{k: v for k, v in config.items() if k[0] != "_"} | OTHER).eval()


def folder(network, path):
    network.save_pretrained(path)


def folder_of_pickles(network, path):
    network.save_pretrained(path, safe_serialization=False)


def whole_pipeline(network, path):
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(path)


@pytest.mark.parametrize("save", [folder, folder_of_pickles, whole_pipeline])
def test_a_folder_of_diffusers_is_loaded_with_the_settings_of_its_config(save, foreign, tmp_path):
    path = tmp_path / "folder"
    save(foreign, path)
    message = r"freq_shift=1, not 0; flip_sin_to_cos=false, not true; downsample_padding=0, not 1"
    with pytest.raises(ConfigError, match=message):
        replace(MODEL, checkpoints=[str(path)]).ready()
    model = replace(MODEL, checkpoints=[str(path)], **OTHER)
    model.ready()
    weights.check_weights("model.checkpoints", model, path, SHAPE)
    network = weights.load_weights(model, path, SHAPE, CPU)
    x, t = torch.randn(2, *SHAPE), torch.tensor([1, 500])
    torch.testing.assert_close(network(x, t).sample, foreign(x, t).sample)
    assert not torch.allclose(network(x, t).sample, MODEL.build(SHAPE).eval()(x, t).sample)


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
def test_another_architecture_is_refused_with_its_first_parameter(model, shape, message, tmp_path):
    torch.save(MODEL.build(SHAPE).state_dict(), tmp_path / "weights")
    with pytest.raises(ConfigError, match=message):
        weights.check_weights("model.checkpoints", model, tmp_path / "weights", shape)


def test_cache_keys_contain_the_bytes_and_not_the_path(foreign, tmp_path, workspace):
    def experiment(*names, key=""):
        paths = [str(tmp_path / name) for name in names]
        model = replace(MODEL, checkpoints=paths, checkpoint_key=key, **OTHER)
        return load_experiment(small_run(model=model), workspace.store)

    folder(foreign, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    folder(MODEL.build(SHAPE), tmp_path / "other")
    one, copy, other, trained = (
        cache_key(experiment(*names).checkpoint(0)) for names in (["one"], ["copy"], ["other"], [])
    )
    assert one == copy
    assert len({one, other, trained}) == 3
    assert cache_key(experiment("one", key="ema").checkpoint(0)) != one
    spec = experiment("one").checkpoint(0)
    assert spec.released == files_hash(tmp_path / "one") != files_hash(tmp_path / "other")
    assert spec.released in (get(spec, workspace).path / "manifest.json").read_text()
    with pytest.raises(ConfigError, match=r"model\.checkpoints=\['.*one'\]: must be at least 2"):
        experiment("one").checkpoint(1)


def test_released_checkpoints_go_through_the_pipeline(tmp_path, foreign):
    words = (*TINY, "method=[journey,ekfac,pixel]", "model.checkpoints=[released]", *WORDS)
    missing = command(tmp_path, *words)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: model.checkpoints=released: must be a network or a")
    folder(foreign, tmp_path / "released")
    done = command(tmp_path, *words)
    succeeds(done)
    unchecked = "noise schedule, prediction type and clipping: taken from model.*, and cannot be"
    assert f"note: model.checkpoints=released: {unchecked} checked\n" in done.stderr
    (manifest,) = (tmp_path / "artifacts/models").glob("*8-16-s0-*/manifest.json")
    assert files_hash(tmp_path / "released") in manifest.read_text()
    assert unchecked in manifest.read_text()
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
