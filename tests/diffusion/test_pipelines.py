"""Text-to-image pipelines: their files, configs and encoders are checked before any compute."""

import json
import re
import shutil
from dataclasses import replace

import miniatures
import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, PNDMScheduler, UNet2DConditionModel

from journey.diffusion import weights
from journey.diffusion.ddpm import DDPM
from journey.diffusion.latent import LatentDiffusion
from journey.diffusion.released import compare_network, constructor_defaults
from journey.diffusion.text import TextEncoder
from journey.engine.checks import ConfigError

CPU = torch.device("cpu")
SHAPE = (4, 4, 4)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": [None, None],
}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A pipeline as Stable Diffusion is released, with few and random weights."""
    root = tmp_path_factory.mktemp("released") / "pipeline"
    root.mkdir()
    miniatures.pipeline(root)
    (root / "model_index.json").write_text(json.dumps(INDEX))
    torch.manual_seed(0)
    model().build(SHAPE).save_pretrained(root / "unet")
    PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(root / "scheduler")  # fmt: skip
    return root


@pytest.fixture
def pipeline(released, tmp_path):
    return shutil.copytree(released, tmp_path / "pipeline")


def model(**settings) -> LatentDiffusion:
    return LatentDiffusion(
        context_width=1024, text_length=77, block_out_channels=[8, 16], **settings
    )


def refusal(**settings) -> str:
    with pytest.raises(ConfigError) as error:
        model(**settings).ready()
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (config | changes).items() if v != "removed"}))


def variant(folder, stem):
    (folder / f"{stem}.safetensors").rename(folder / f"{stem}.fp16.safetensors")


def pickles(folder, stem, name):
    state = safetensors.torch.load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    torch.save(state, folder / name)


VAE, TEXT = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
DAMAGED = {
    **{f"no {part}": (lambda p, part=part: shutil.rmtree(p / part), f"; {part} missing")
       for part in ("vae", "text_encoder", "tokenizer")},
    "fp16 vae": (lambda p: variant(p / "vae", "diffusion_pytorch_model"),
                 f"{VAE} is missing; it has diffusion_pytorch_model.fp16.safetensors"),
    "fp16 text": (lambda p: variant(p / "text_encoder", "model"),
                  f"{TEXT} is missing; it has model.fp16.safetensors"),
    "pickled vae": (
        lambda p: pickles(p / "vae", "diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
        f"{VAE} is missing; it has diffusion_pytorch_model.bin"),
    "pickled text": (lambda p: pickles(p / "text_encoder", "model", "pytorch_model.bin"),
                     f"{TEXT} is missing; it has pytorch_model.bin"),
    "vae without weights": (lambda p: (p / VAE).unlink(), f"{VAE} is missing; it has no weights"),
    "text without weights": (lambda p: (p / TEXT).unlink(), f"{TEXT} is missing; it has"),
    "LFS vae": (lambda p: (p / VAE).write_bytes(LFS), f"{VAE}: it is a Git LFS pointer"),
    "LFS text": (lambda p: (p / TEXT).write_bytes(LFS), f"{TEXT}: it is a Git LFS pointer"),
    "LFS config": (lambda p: (p / "vae/config.json").write_bytes(LFS),
                   "vae/config.json cannot be read: a Git LFS pointer"),
    "LFS tokenizer": (lambda p: (p / "tokenizer/vocab.json").write_bytes(LFS),
                      "vocab.json cannot be read: a Git LFS pointer"),
    "no vocabulary": (lambda p: (p / "tokenizer/vocab.json").unlink(), "tokenizer has none of"),
    "truncated vae": (lambda p: (p / VAE).write_bytes((p / VAE).read_bytes()[:-9]), "truncated"),
    "no vae config": (lambda p: (p / "vae/config.json").unlink(), "vae/config.json is missing"),
    "no hidden size": (lambda p: edit(p / "text_encoder/config.json", hidden_size="removed"),
                       "text_encoder/config.json has no hidden_size"),
    "another text encoder": (
        lambda p: edit(p / "text_encoder/config.json", architectures=["T5EncoderModel"]),
        "text_encoder/config.json is of T5EncoderModel, must be CLIPTextModel or BertModel"),
    "another autoencoder": (lambda p: edit(p / "vae/config.json", _class_name="AutoencoderTiny"),
                            "vae/config.json is of AutoencoderTiny, must be AutoencoderKL"),
    "shifted latents": (lambda p: edit(p / "vae/config.json", shift_factor=0.1),
                        "vae/config.json: shift_factor=0.1 must be null"),
    "channels of latents": (lambda p: edit(p / "vae/config.json", latent_channels="4"),
                            "vae/config.json: latent_channels=4 has a wrong type"),
    "index of another vae": (lambda p: edit(p / "model_index.json", vae=["diffusers", "VQModel"]),
                             "model_index.json: vae is VQModel, must be AutoencoderKL"),
    "index of SDXL": (
        lambda p: edit(p / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]),
        "model_index.json: it has a text_encoder_2, which is not supported"),
    "index": (lambda p: (p / "model_index.json").write_text("{"), "model_index.json cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_pipeline_whose_encoders_cannot_be_loaded_is_refused_by_its_files(name, pipeline):
    damage, message = DAMAGED[name]
    damage(pipeline)
    refused = refusal(pretrained=str(pipeline))
    assert refused.startswith(f"model.pretrained={pipeline}: ")
    assert message in refused


def test_a_pipeline_is_accepted_as_released_and_in_shards(pipeline):
    model(pretrained=str(pipeline)).ready()
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (pipeline / "text_encoder/model.safetensors.index.json").write_text(json.dumps(index))
    (pipeline / TEXT).rename(pipeline / "text_encoder/model-00001-of-00001.safetensors")
    model(pretrained=str(pipeline)).ready()


def test_images_have_the_channels_of_the_autoencoder(pipeline):
    model(pretrained=str(pipeline)).fits((3, 32, 32))
    with pytest.raises(ConfigError, match="used with images of 3 channels, not 1"):
        model(pretrained=str(pipeline)).fits((1, 32, 32))


def test_the_text_encoder_is_masked_if_its_config_says_so(pipeline):
    assert not TextEncoder.from_pipeline(pipeline, 77).masked
    edit(pipeline / "text_encoder/config.json", use_attention_mask=True)
    assert TextEncoder.from_pipeline(pipeline, 77).masked


# ------------------------------------------------------------------------------ its own U-Net


@pytest.mark.parametrize("part", ["", "unet", "unet/diffusion_pytorch_model.safetensors"])
def test_a_fine_tuned_pipeline_is_a_checkpoint_with_its_own_encoders(part, pipeline):
    path = pipeline / part
    settings = model(pretrained=str(pipeline), checkpoints=[str(path)])
    settings.ready()
    assert weights.unchecked(settings, path) == ""
    original = UNet2DConditionModel.from_pretrained(pipeline / "unet").eval()
    network = weights.load_weights(settings, path, SHAPE, CPU)
    x, t, condition = torch.randn(2, *SHAPE), torch.tensor([3, 700]), torch.randn(2, 77, 1024)
    expected = original(x, t, condition).sample
    torch.testing.assert_close(network(x, t, condition).sample, expected)


def test_a_fine_tuned_network_is_not_used_between_other_encoders(pipeline, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pipeline, other)
    state = safetensors.torch.load_file(other / VAE)
    safetensors.torch.save_file({k: v + 1 for k, v in state.items()}, other / VAE)
    message = f"its vae is not that of model.pretrained={other}; add model.pretrained={pipeline}"
    assert message in refusal(pretrained=str(other), checkpoints=[str(pipeline)])
    message = f"it works with its own vae; add model.pretrained={pipeline}"
    assert message in refusal(checkpoints=[str(pipeline)])
    shutil.copytree(pipeline / "unet", tmp_path / "alone")
    settings = model(checkpoints=[str(tmp_path / "alone")])
    settings.ready()
    assert "autoencoder and text encoder" in weights.unchecked(settings, tmp_path / "alone")


def test_a_pipeline_is_refused_if_its_scheduler_differs(pipeline):
    DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True,
    ).save_pretrained(pipeline / "scheduler")  # fmt: skip
    words = "(add model.noise_schedule.rescale_betas_zero_snr=true model.prediction=velocity)"
    assert refusal(pretrained=str(pipeline), checkpoints=[str(pipeline)]).endswith(words)
    model(pretrained=str(pipeline)).ready()  # our own network has our own schedule


@pytest.mark.parametrize(
    "field",
    sorted(
        constructor_defaults("UNet2DConditionModel").keys()
        - {"sample_size", "in_channels", "out_channels"}
    ),
)
def test_every_field_of_the_config_of_a_text_to_image_network_is_compared(field, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dict(constructor_defaults("UNet2DConditionModel"))))
    ours = model(layers_per_block=2, norm_num_groups=32, attention_blocks=[0, 1, 2])
    ours = replace(ours, block_out_channels=[320, 640, 1280, 1280], context_width=1280)
    assert compare_network(ours, path) == []
    edit(path, **{field: "another value"})
    ((difference, _),) = compare_network(ours, path)
    assert re.match(rf"{field}=another value, not ", difference)


def test_a_value_for_each_level_is_the_value_of_all(tmp_path):
    path = tmp_path / "config.json"
    config = {"layers_per_block": [1, 1], "attention_head_dim": [8, 8], "norm_num_groups": 8}
    blocks = {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    }
    sizes = {"block_out_channels": [8, 16], "cross_attention_dim": 1024}
    path.write_text(json.dumps(config | blocks | sizes))
    assert compare_network(model(), path) == []
    edit(path, attention_head_dim=[5, 10])
    assert compare_network(model(), path) == [("attention_head_dim=[5,10], not 8", "")]


def test_a_model_that_was_trained_here_says_its_noise_in_its_manifest(tmp_path):
    DDPM(block_out_channels=[8, 16]).build((1, 8, 8)).save_pretrained(tmp_path)
    recorded = {"name": "ddpm", "num_timesteps": 1000, "prediction": "velocity"}
    (tmp_path / "manifest.json").write_text(json.dumps({"key_fields": {"model": recorded}}))
    ours = DDPM(block_out_channels=[8, 16], checkpoints=[str(tmp_path)])
    with pytest.raises(
        ConfigError, match=r"prediction=velocity, not its default \(add model.predi"
    ):
        ours.ready()
    recorded.pop("prediction")
    (tmp_path / "manifest.json").write_text(json.dumps({"key_fields": {"model": recorded}}))
    ours.ready()
    assert weights.unchecked(ours, tmp_path) == ""
