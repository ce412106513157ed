"""Networks that others trained, as files made by the libraries themselves."""

import hashlib
import json
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
from journey.pipeline.pretrained import files_hash, locate

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
MODEL = DDPM(block_out_channels=[8, 16])


@pytest.fixture
def theirs() -> UNet2DModel:
    """A network of the same parameters that computes otherwise, as its configuration says."""
    torch.manual_seed(0)
    ours = MODEL.build(SHAPE)
    config = dict(ours.config) | {
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    }
    return UNet2DModel(
        **{name: value for name, value in config.items() if not name.startswith("_")}
    ).eval()


def folder(network, path):
    network.save_pretrained(path)


def folder_of_pickles(network, path):
    network.save_pretrained(path, safe_serialization=False)


def whole_pipeline(network, path):
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(path)


@pytest.mark.parametrize("save", [folder, folder_of_pickles, whole_pipeline])
def test_a_folder_of_diffusers_is_the_network_it_says(save, theirs, tmp_path):
    save(theirs, tmp_path / "there")
    weights.check_weights("model.checkpoints", MODEL, tmp_path / "there", SHAPE)
    found = weights.load_weights(MODEL, tmp_path / "there", SHAPE, CPU)
    x, t = torch.randn(2, *SHAPE), torch.tensor([1, 500])
    torch.testing.assert_close(found(x, t).sample, theirs(x, t).sample)
    assert not torch.allclose(found(x, t).sample, MODEL.build(SHAPE).eval()(x, t).sample)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin"])
def test_a_state_dict_is_put_into_the_network_of_the_settings(name, tmp_path):
    network, path = MODEL.build(SHAPE), tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    weights.check_weights("model.checkpoints", MODEL, path, SHAPE)
    found = weights.load_weights(MODEL, path, SHAPE, CPU).state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


def test_another_architecture_is_refused_by_its_first_parameter_that_differs(tmp_path):
    path, network = tmp_path / "w.safetensors", MODEL.build(SHAPE)
    safetensors.torch.save_file(network.state_dict(), path)
    with pytest.raises(
        ConfigError, match=r"conv_in\.weight: shape \(8, 1, 3, 3\), not shape \(16, 1, 3, 3\)"
    ):
        weights.check_weights("model.checkpoints", DDPM(block_out_channels=[16, 32]), path, SHAPE)
    with pytest.raises(
        ConfigError, match=r"conv_in\.weight: shape \(8, 1, 3, 3\), not shape \(8, 3, 3, 3\)"
    ):
        weights.check_weights("model.checkpoints", MODEL, path, (3, 8, 8))
    with pytest.raises(
        ConfigError,
        match=r"of another architecture than model=ddpm8-16m: \S+: no such parameter, not shape",
    ):
        weights.check_weights(
            "model.checkpoints",
            DDPM(block_out_channels=[8, 16], mid_block_attention=True),
            path,
            SHAPE,
        )
    network.save_pretrained(tmp_path / "folder")
    with pytest.raises(ConfigError, match=r"conv_in\.weight: shape"):
        weights.check_weights(
            "model.checkpoints", DDPM(block_out_channels=[16, 32]), tmp_path / "folder", SHAPE
        )


class Anything:
    """What unpickling could run."""


@pytest.mark.parametrize("held", [Anything(), {"a": 1}, [torch.zeros(1)]])
def test_a_file_that_holds_anything_else_is_refused_in_a_line(held, tmp_path):
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(
        ConfigError,
        match=rf"^model\.checkpoints={re.escape(str(tmp_path))}/w\.pt: no state dict \(.*\)$",
    ):
        weights.check_weights("model.checkpoints", MODEL, tmp_path / "w.pt", SHAPE)


@pytest.mark.parametrize(
    "config", [None, "{", '{"_class_name": "UNet2DModel", "block_out_channels": "x"}']
)
def test_a_folder_that_is_no_network_is_refused_in_a_line(config, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        ConfigError,
        match=rf"^model\.checkpoints={re.escape(str(tmp_path))}: no network as diffusers saves it \(.*\)$",
    ):
        weights.check_weights("model.checkpoints", MODEL, tmp_path, SHAPE)


def test_bytes_and_not_the_place_are_part_of_every_address(theirs, tmp_path, workspace):
    def trained(*names):
        run = small_run(
            model=DDPM(
                block_out_channels=[8, 16], checkpoints=[str(tmp_path / name) for name in names]
            )
        )
        return load_experiment(run, workspace.store).checkpoint(0)

    folder(theirs, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    folder(MODEL.build(SHAPE), tmp_path / "other")
    assert cache_key(trained("one")) == cache_key(trained("copy"))
    assert len({cache_key(trained(*names)) for names in (["one"], ["other"], [])}) == 3
    assert files_hash(tmp_path / "one") != files_hash(tmp_path / "other")
    assert get(trained("one"), workspace).manifest["contents"]["released"] == files_hash(
        locate("", str(tmp_path / "one"), "")
    )
    with pytest.raises(
        ConfigError,
        match=r"model\.checkpoints=\['.*one'\]: must be at least 2: so many are asked for",
    ):
        load_experiment(
            small_run(model=DDPM(checkpoints=[str(tmp_path / "one")])), workspace.store
        ).checkpoint(1)


def test_released_checkpoints_go_the_whole_road(tmp_path, theirs):
    words = (*TINY, "method=[journey,ekfac,pixel]", "model.checkpoints=[theirs]")
    done = command(tmp_path, *words)
    assert done.returncode == 1
    assert done.stderr == (
        "error: model.checkpoints=theirs: must be a network or a state dict, on this machine or in the hub's cache\n"
    )
    folder(theirs, tmp_path / "theirs")
    succeeds(command(tmp_path, *words))
    (kept,) = (tmp_path / "artifacts/models").glob("*8-16-s0-*/manifest.json")
    settings = json.loads(kept.read_text())["contents"]
    assert settings["released"]
    kept_weights = safetensors.torch.load_file(kept.parent / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(kept_weights[key], value) for key, value in theirs.state_dict().items())
    tracin = command(tmp_path, *words, "method=[tracin]", "attribution.num_checkpoints=2")
    assert tracin.returncode == 1
    assert tracin.stderr.count("\n") == 1
    assert "method.tracin.ensemble=run" in tracin.stderr


def test_a_file_of_the_hubs_cache_is_known_by_its_name(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/w.safetensors").write_bytes(b"weights")
    blob = tmp_path / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.write_bytes(b"not read")
    (tmp_path / "snapshot/w.safetensors").symlink_to(blob)
    assert files_hash(tmp_path / "snapshot") == files_hash(tmp_path / "plain")
