"""Text-to-image latent diffusion, against diffusers and transformers themselves."""

import dataclasses
import json
import re

import miniatures
import numpy as np
import pytest
import torch
from conftest import TINY, command, succeeds
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from transformers import AutoModel, AutoTokenizer

from journey.diffusion import autoencoder, network
from journey.diffusion.latent import LatentDiffusion
from journey.diffusion.pipeline import pipeline
from journey.diffusion.sampling import trajectory_noise
from journey.diffusion.schedule import ddim_step, scaled_linear_schedule
from journey.diffusion.text import LazyCaptions, TextEncoder
from journey.engine.checks import ConfigError
from journey.engine.workspace import get
from journey.evaluation.rows import method_names
from journey.pipeline.schedule import add_noise, estimate_x0, predicted_noise, regression_target
from journey.pipeline.settings import Autoencoding, Prediction

CPU = torch.device("cpu")
SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PREDICTIONS = {Prediction.noise: "epsilon", Prediction.velocity: "v_prediction"}


@pytest.fixture(scope="module")
def minilm():
    return TextEncoder.minilm(12)


def test_the_unet_of_the_paper_has_its_parameters():
    paper = LatentDiffusion(
        context_width=1024,
        block_out_channels=[128, 256, 256, 256],
        layers_per_block=2,
        attention_blocks=[0, 1, 2],
        norm_num_groups=32,
    )
    with torch.device("meta"):
        unet = paper.build((4, 16, 16))
    assert sum(p.numel() for p in unet.parameters()) == 57_373_316


@pytest.mark.parametrize("prediction", Prediction)
def test_the_schedule_is_that_of_diffusers(prediction):
    ours = scaled_linear_schedule(1000, prediction, CPU)
    theirs = DDIMScheduler(
        **SCALED_LINEAR, prediction_type=PREDICTIONS[prediction], clip_sample=False, steps_offset=0
    )
    theirs.set_timesteps(50)
    torch.testing.assert_close(ours.alpha_bar.float(), theirs.alphas_cumprod, rtol=1e-4, atol=0)
    x0, eps, predicted = torch.randn(3, 2, 4, 4, 4)
    t = torch.tensor([0, 980])
    x_t = add_noise(ours, x0, t, eps)
    torch.testing.assert_close(x_t, theirs.add_noise(x0, eps, t), rtol=1e-4, atol=1e-5)
    if prediction is Prediction.velocity:
        velocity = DDPMScheduler(**SCALED_LINEAR, prediction_type="v_prediction").get_velocity(
            x0, eps, t
        )
        torch.testing.assert_close(
            regression_target(ours, x0, t, eps), velocity, rtol=1e-4, atol=1e-5
        )
    of_step = predicted_noise(ours, x_t, t, predicted)
    x0_hat = estimate_x0(ours, x_t, t, of_step)
    for i, (at, after) in enumerate([(0, -1), (980, 960)]):
        expected = theirs.step(predicted[i], at, x_t[i])
        torch.testing.assert_close(x0_hat[i], expected.pred_original_sample, rtol=1e-3, atol=1e-4)
        stepped = ddim_step(ours, x0_hat[i], of_step[i], at, after)
        torch.testing.assert_close(stepped, expected.prev_sample, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", Prediction)
def test_what_is_learnt_gives_the_noise_back(prediction):
    schedule = scaled_linear_schedule(1000, prediction, CPU)
    x0, eps = torch.randn(2, 5, 4, 4, 4)
    t = torch.tensor([0, 10, 500, 900, 999])
    found = predicted_noise(
        schedule, add_noise(schedule, x0, t, eps), t, regression_target(schedule, x0, t, eps)
    )
    torch.testing.assert_close(found, eps, rtol=1e-4, atol=1e-4)


def test_guidance_goes_from_no_prompt_past_the_prompt():
    def predict(x_t, t, context):
        return x_t * t[:, None] + context.sum((1, 2))[:, None]

    x_t, t, context, nothing = (
        torch.randn(3, 2),
        torch.tensor([1, 2, 3]),
        torch.randn(3, 4, 5),
        torch.randn(4, 5),
    )
    without, with_prompt = predict(x_t, t, nothing.expand_as(context)), predict(x_t, t, context)
    torch.testing.assert_close(
        network.guided(predict, network.Guidance(3.0, nothing))(x_t, t, context),
        without + 3 * (with_prompt - without),
    )


def test_an_autoencoder_samples_and_scales_its_latents():
    torch.manual_seed(0)
    vae = autoencoder.build(Autoencoding(block_out_channels=[8, 8]), (3, 16, 16))
    vae.register_to_config(scaling_factor=0.5)
    x, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    theirs = vae.encode(x).latent_dist
    mean, deviation = autoencoder.encode(vae, x)
    torch.testing.assert_close(mean, theirs.mean * 0.5)
    torch.testing.assert_close(deviation, theirs.std * 0.5)
    decoded = vae.decode(theirs.mean + theirs.std * noise).sample
    torch.testing.assert_close(
        autoencoder.decode(vae, mean + deviation * noise), decoded.clamp(-1, 1)
    )
    expected = (
        (decoded - x).abs().mean()
        + (decoded - x).square().mean()
        + 0.25 * theirs.kl().sum() / mean.numel()
    )
    torch.testing.assert_close(autoencoder.loss(vae, x, noise, 0.25), expected)


def test_the_quality_of_a_reconstruction_is_in_decibels_of_its_range():
    assert autoencoder.psnr(2**2 / 100) == pytest.approx(20)


def test_texts_are_read_as_transformers_reads_them_whatever_stands_beside(minilm):
    texts = ["red apple", "", "a face with sunglasses"]
    states = minilm.states(texts, CPU)
    assert states.shape == (3, 12, 384)
    tokenizer, encoder = (
        AutoTokenizer.from_pretrained(minilm.path),
        AutoModel.from_pretrained(minilm.path).eval(),
    )
    for text, found in zip(texts, states, strict=True):
        tokens = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            expected = encoder(**tokens).last_hidden_state[0]
        torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-3, atol=1e-4)


def test_the_end_of_a_prompt_that_does_not_fit_is_named(minilm):
    assert minilm.cut("one two three four five six seven eight nine ten") == ""
    assert (
        minilm.cut("one two three four five six seven eight nine ten eleven twelve")
        == "eleven twelve"
    )


@pytest.mark.parametrize(
    "saved", [False, True], ids=["as Stable Diffusion was released", "as transformers saves it"]
)
def test_so_is_it_by_the_tokenizer_of_a_pipeline(saved, tmp_path):
    miniatures.pipeline(tmp_path)
    encoder = TextEncoder.of_pipeline(tmp_path, 8)
    if saved:
        AutoTokenizer.from_pretrained(encoder.tokenizer_path).save_pretrained(
            encoder.tokenizer_path
        )
    assert (encoder.tokenizer_path / "tokenizer.json").exists() == saved
    for text, cut in {
        "a b c d": "",
        "abcdef": "",
        "abc déf g": "f g",
        "a wide river": "iver",
    }.items():
        assert encoder.cut(text) == cut


def test_captions_that_are_not_kept_are_encoded_when_asked_for(minilm):
    texts = [["red apple", "fruit"], ["dog", "animal"], ["blue heart", "love"]]
    kept = torch.stack([minilm.states(of, CPU) for of in texts])  # [N, C, L, E]
    tokens = torch.stack([torch.stack(minilm.tokens(of)) for of in texts], 1)  # [2, N, C, L]
    lazy = LazyCaptions(tokens, minilm)
    assert (lazy.shape, len(lazy)) == (tuple(kept.shape), 3)
    rows, which = torch.tensor([2, 0]), torch.tensor([1, 0])
    for index in (1, slice(1, 3), rows, (rows, which)):
        torch.testing.assert_close(lazy[index], kept[index], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(lazy.to(CPU)[index], kept[index], rtol=1e-3, atol=1e-4)


def test_a_model_of_latents_says_what_images_fit():
    model = LatentDiffusion()
    model.check("model")
    model.fits((3, 32, 32))
    assert model.example_shape((3, 32, 32)) == (4, 8, 8)
    with pytest.raises(ConfigError, match="multiples of 4, not 30×30"):
        model.fits((3, 30, 30))
    with pytest.raises(ConfigError, match="latents of 3×3 can be halved 1 times"):
        model.fits((3, 12, 12))
    with pytest.raises(ConfigError, match=r"model\.context_width=300: must be 384"):
        dataclasses.replace(model, context_width=300).fits((3, 32, 32))


def test_an_autoencoder_is_loaded_as_it_was_saved(tmp_path):
    vae = autoencoder.build(Autoencoding(block_out_channels=[8, 8]), (1, 8, 8))
    vae.save_pretrained(tmp_path)
    assert isinstance(autoencoder.load(tmp_path, CPU), AutoencoderKL)
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(
        autoencoder.encode(autoencoder.load(tmp_path, CPU), x)[0],
        autoencoder.encode(vae.eval(), x)[0],
    )


PROMPTED_METHODS = [
    "journey", "trak", "ekfac", "das", "tracin", "unlearning", "datamodel", "magic", "traker", "pixel", "latent", "caption",
]  # fmt: skip
PROMPTED = (
    *TINY, "dataset=twemoji", "dataset.num_train=300", "model=ldm_tiny",
    "model.autoencoder={num_steps:3,warmup_steps:1,block_out_channels:[8,8]}",
    "training.caption_dropout=0.5", "sampling.guidance=2", "sampling.prompts=[red apple,dog face]",
    f"method=[{','.join(PROMPTED_METHODS)}]", "attribution={num_samples:2,projection_dim:101,num_checkpoints:2}",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prompted")
    succeeds(command(directory, *PROMPTED, "method.unlearning.num_samples=2"))
    return directory


def test_text_to_image_goes_the_whole_road(finished):
    result = json.loads((finished / "reports/smoke/result.json").read_text())
    assert method_names(result["rows"], "lds") == PROMPTED_METHODS
    assert (finished / "reports/smoke/trajectories.png").exists()
    (encoded,) = (finished / "artifacts/encoded").glob("*/mean.npy")
    assert np.load(encoded).shape == (300, 4, 16, 16)
    scores = np.load(next((finished / "artifacts/scores").glob("*caption*/scores.npy")))
    assert np.array_equal(scores[0, 0, 0], scores[0, 0, 2]), "queries take prompts in turn"
    assert not np.array_equal(scores[0, 0, 0], scores[0, 0, 1])


def test_a_trained_model_is_a_pipeline_of_diffusers_and_samples_as_ours(finished, tmp_path):
    (trajectories,) = (finished / "artifacts/journeys").glob("*/final.npy")
    (model,) = (finished / "artifacts/models").glob("*a1-s0-*")
    pipeline(model).save_pretrained(tmp_path / "pipeline")
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, steps_offset=0)
    theirs.set_progress_bar_config(disable=True)
    beginning = trajectory_noise([0, 1], (4, 16, 16), 0).draw()
    settings = {
        "latents": beginning,
        "num_inference_steps": 5,
        "guidance_scale": 2.0,
        "output_type": "latent",
    }
    found = theirs(["red apple", "dog face"], **settings).images
    torch.testing.assert_close(
        found, torch.from_numpy(np.load(trajectories)[:2]), rtol=1e-3, atol=1e-3
    )


def test_a_model_of_pixels_is_no_pipeline(workspace, small):
    with pytest.raises(ValueError, match="a model of pixels"):
        pipeline(get(small.checkpoint(0), workspace).path)


REFUSED = {
    "training.flip=true": r"training\.flip=True: must be left out with model=ldm",
    "attribution.flips=random": r"attribution\.flips=random: must be left out with model=ldm",
    "dataset=digits": r"dataset=digits300: must be one with captions",
    "model=ddpm_tiny": r"sampling\.prompts=\['red apple', 'dog face'\]: must be left as it is with model=ddpm",
    "method=[nda]": r"method\.nda=nda on ldm8-16a1: must be used with a model of pixels",
    "training.caption_dropout=0": r"sampling\.guidance=2\.0: must be 1 unless training\.caption_dropout is positive",
    "sampling.prompts=[a b c d e f g h i j k l]": r"must be at most model\.text_length=12 tokens long: 'k l' would be cut",
    "model.pretrained=nowhere/nothing": r"model\.pretrained=nowhere/nothing: must be a pipeline as diffusers saves it",
    "model.context_width=8": r"model\.context_width=8: must be 384",
    "model.autoencoder.block_out_channels=[8,8,8,8,8,8,8]": r"images whose sides are multiples of 64, not 32×32",
    "model.num_timesteps=300": r"sampling\.steps=\[600, 200\]: must be in \[0, 300\)",
}


@pytest.mark.parametrize(("word", "message"), REFUSED.items())
def test_what_does_not_fit_text_or_latents_is_refused_in_a_line(tmp_path, word, message):
    kept = [
        other
        for other in PROMPTED
        if not (word == "model=ddpm_tiny" and other.startswith(("model", "training.caption")))
    ]
    done = command(tmp_path, *kept, word, "task=plan")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr), done.stderr
