"""Text-to-image latent diffusion, compared with diffusers and transformers."""

import dataclasses
import json

import miniatures
import numpy as np
import pytest
import torch
from conftest import TINY, command, composed, journey_trak, refused, small_run, succeeds
from diffusers import AutoencoderKL, DDIMPipeline, DDIMScheduler, StableDiffusionPipeline
from transformers import AutoModel, AutoTokenizer

from journey.attribution.baselines import Caption
from journey.data.coco import COCO
from journey.diffusion import autoencoder, network
from journey.diffusion.latent import LatentDiffusion
from journey.diffusion.pipeline import pipeline
from journey.diffusion.sampling import trajectory_noise
from journey.diffusion.text import LazyCaptions, TextEncoder
from journey.engine.checks import ConfigError
from journey.engine.store import MANIFEST, Store
from journey.engine.workspace import get
from journey.evaluation.rows import method_names
from journey.experiment import load_experiment
from journey.pipeline import settings
from journey.pipeline.examples import Examples
from journey.pipeline.settings import Autoencoding

CPU = torch.device("cpu")
SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def assert_near(actual, expected, atol=1e-4):
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=atol)


def test_the_unet_of_the_paper_has_its_number_of_parameters():
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


def test_the_unet_of_stable_diffusion_1_has_its_number_of_parameters():
    with torch.device("meta"):
        unet = composed("model=ldm_sd1", "dataset=parts", "model.pretrained=x").model.build(
            (4, 64, 64)
        )
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964


def test_guidance_extrapolates_from_no_prompt_to_the_prompt():
    def predict(x_t, t, condition):
        return x_t * t[:, None] + condition.sum((1, 2))[:, None]

    x_t, t = torch.randn(3, 2), torch.tensor([1, 2, 3])
    condition, null = torch.randn(3, 4, 5), torch.randn(4, 5)
    without, with_prompt = predict(x_t, t, null.expand_as(condition)), predict(x_t, t, condition)
    guided = network.guided(predict, network.Guidance(3.0, null))
    expected = without + 3 * (with_prompt - without)
    torch.testing.assert_close(guided(x_t, t, condition), expected)


def test_a_latent_model_tells_which_images_fit():
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
    actual = autoencoder.decode(vae, mean + deviation * noise)
    torch.testing.assert_close(actual, decoded.clamp(-1, 1))
    error, divergence = decoded - x, theirs.kl().sum() / mean.numel()
    expected = error.abs().mean() + error.square().mean() + 0.25 * divergence
    torch.testing.assert_close(autoencoder.reconstruction_loss(vae, x, noise, 0.25), expected)


def test_the_peak_of_psnr_is_the_range_of_pixels():
    assert autoencoder.psnr(2**2 / 100) == pytest.approx(20)


def test_an_autoencoder_is_loaded_as_it_was_saved(tmp_path):
    vae = autoencoder.build(Autoencoding(block_out_channels=[8, 8]), (1, 8, 8)).eval()
    vae.save_pretrained(tmp_path)
    loaded = autoencoder.load(tmp_path, CPU)
    assert isinstance(loaded, AutoencoderKL)
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(autoencoder.encode(loaded, x), autoencoder.encode(vae, x))


@pytest.fixture(scope="module")
def minilm():
    return TextEncoder.minilm(12)


def test_states_are_those_of_transformers_whatever_the_batch(minilm):
    texts = ["red apple", "", "a face with sunglasses"]
    states = minilm.states(texts, CPU)
    assert states.shape == (3, 12, 384)
    tokenizer = AutoTokenizer.from_pretrained(minilm.path)
    encoder = AutoModel.from_pretrained(minilm.path).eval()
    for text, state in zip(texts, states, strict=True):
        with torch.no_grad():
            expected = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert_near(state[: len(expected)], expected)


@pytest.mark.parametrize("source", ["minilm", "Stable Diffusion as released", "as saved"])
def test_the_end_of_a_prompt_that_does_not_fit_is_named(source, minilm, tmp_path):
    if source == "minilm":
        encoder, number = minilm, "one two three four five six seven eight nine ten"
        ends = {number: "", f"{number} eleven twelve": "eleven twelve"}
    else:
        miniatures.pipeline(tmp_path)
        encoder = TextEncoder.from_pipeline(tmp_path, 8)
        ends = {"a b c d": "", "abcdef": "", "abc déf g": "f g", "a wide river": "iver"}
        path = encoder.tokenizer_path
        if source == "as saved":
            AutoTokenizer.from_pretrained(path).save_pretrained(path)
        assert (path / "tokenizer.json").exists() == (source == "as saved")
    for text, end in ends.items():
        assert encoder.cut(text) == end


def test_lazy_captions_are_indexed_as_stored_states_are(minilm):
    texts = [["red apple", "fruit"], ["dog", "animal"], ["blue heart", "love"]]
    states = torch.stack(
        [minilm.states(captions, CPU) for captions in texts]
    )  # [N, captions, L, E]
    tokens = [torch.stack(minilm.tokens(captions)) for captions in texts]
    lazy = LazyCaptions(torch.stack(tokens, 1), minilm)
    assert (lazy.shape, len(lazy)) == (tuple(states.shape), 3)
    rows, captions = torch.tensor([2, 0]), torch.tensor([1, 0])
    for index in (1, slice(1, 3), rows):  # still lazy, until an index selects among captions
        assert_near(lazy[index].to(CPU)[(slice(None),) * (states[index].dim() - 2)], states[index])
    for index in ((rows, captions), (slice(None), 0), (1, slice(1))):
        assert_near(lazy.to(CPU)[index], states[index])


def test_captions_are_encoded_only_where_an_index_selects_among_them(minilm, monkeypatch):
    encoded, encode = [], TextEncoder.encode

    def counting(self, network, ids, mask):
        encoded.append(len(ids))
        return encode(self, network, ids, mask)

    monkeypatch.setattr(TextEncoder, "encode", counting)
    tokens = torch.stack(minilm.tokens(["a", "b", "c", "d", "e", "f"])).unflatten(1, (3, 2))
    examples = Examples(torch.zeros(3, 1), condition=LazyCaptions(tokens, minilm))
    examples = examples[1:].to(CPU)[torch.tensor([1, 0])]
    assert not encoded
    assert examples.condition.shape == (2, 2, minilm.length, minilm.width)
    first, one = examples.condition[:, 0], examples[0].condition[:1]
    assert encoded == [2, 1]
    assert_near(first, minilm.states(["e", "c"], CPU))
    assert_near(one, minilm.states(["e"], CPU))


def test_storing_tokens_instead_of_states_does_not_change_scores(workspace, tmp_path, monkeypatch):
    miniatures.coco(tmp_path / "coco")
    few = {"batch_size": 4, "warmup_steps": 1}
    autoencoding = Autoencoding(num_steps=2, block_out_channels=[8, 8], **few)
    steps = {"num_inference_steps": 10, "num_queries": 4, "steps": [600, 300]}
    prompts = {"prompts": ["a caption", "another"], "guidance": 2.0}
    run = small_run(
        dataset=COCO(root=str(tmp_path / "coco"), size=16),
        model=LatentDiffusion(autoencoder=autoencoding, block_out_channels=[8, 16]),
        training=settings.Training(num_steps=3, caption_dropout=0.3, **few),
        sampling=settings.Sampling(settings.Sampler.ddim, **steps, **prompts),
        method={
            "journey": journey_trak(captions=settings.Augmentation.random, damping=[1.0]),
            "ekfac": journey_trak(kernel=settings.Kernel.ekfac, damping=[1.0]),
            "caption": Caption(),
        },
    )
    scores = {}
    for name, max_bytes in (("condition", autoencoder.MAX_CONDITION_BYTES), ("tokens", 0)):
        monkeypatch.setattr(autoencoder, "MAX_CONDITION_BYTES", max_bytes)
        other = dataclasses.replace(workspace, store=Store(tmp_path / name))
        experiment = load_experiment(run, other.store)
        files = {path.stem for path in get(experiment.latents, other).path.iterdir()}
        assert {"condition", "tokens"} & files == {name}
        for method in run.method:
            spec = experiment.scores(run.method[method])
            scores[name, method] = get(spec, other).array("scores.npy")
    for method in run.method:
        stored, lazy = scores["condition", method], scores["tokens", method]
        atol = 1e-3 * np.abs(stored).max()
        np.testing.assert_allclose(lazy, stored, rtol=1e-2, atol=atol, err_msg=method)


METHODS = [
    "journey", "trak", "ekfac", "das", "tracin", "unlearning",
    "datamodel", "magic", "traker", "pixel", "latent", "caption",
]  # fmt: skip
PROMPTED = (
    "experiment=coco", *TINY[2:], "dataset.size=32", "model=ldm_smoke", "retraining.num_subsets=8",
    "training={batch_size:8,caption_dropout:0.5}",
    "sampling={sampler:ddim,guidance:2,prompts:[red apple,dog face]}",
    f"method=[{','.join(METHODS)}]",
    "attribution={num_samples:2,projection_dim:101,num_checkpoints:2}",
)  # fmt: skip
FEW = (
    "attribution.num_checkpoints=1", "method.tracin.num_checkpoints=2",
    "method.unlearning.num_samples=2", "method.datamodel.num_subsets=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """Return a directory with a dataset that has captions."""
    directory = tmp_path_factory.mktemp("prompted")
    miniatures.coco(directory / "coco")
    return directory


@pytest.fixture(scope="module")
def finished(prompted):
    succeeds(command(prompted, *PROMPTED, *FEW))
    return prompted


def test_every_method_scores_a_text_to_image_model(finished):
    result = json.loads((finished / "reports/coco/result.json").read_text())
    assert method_names(result["rows"], "lds") == METHODS
    assert (finished / "reports/coco/trajectories.png").exists()
    (mean,) = (finished / "artifacts/latents").glob("*/mean.npy")
    assert np.load(mean).shape == (12, 4, 16, 16)
    scores = np.load(next((finished / "artifacts/scores").glob("*caption*/scores.npy")))
    assert np.array_equal(scores[0, 0, 0], scores[0, 0, 2]), "queries take prompts in turn"
    assert not np.array_equal(scores[0, 0, 0], scores[0, 0, 1])


def test_a_trained_model_is_a_pipeline_of_diffusers_and_samples_alike(finished, tmp_path):
    (trajectories,) = (finished / "artifacts/trajectories").glob("*/final.npy")
    (model,) = (finished / "artifacts/models").glob("*a1-s0-*")
    pipeline(model).save_pretrained(tmp_path / "pipeline")
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, steps_offset=0)
    theirs.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "latent"}
    noise = trajectory_noise([0, 1], (4, 16, 16), 0).draw()
    samples = theirs(["red apple", "dog face"], latents=noise, **arguments).images
    assert_near(samples, torch.from_numpy(np.load(trajectories)[:2]), atol=1e-3)


def test_a_model_of_pixels_is_a_pipeline_of_diffusers_and_samples_alike(
    trained, workspace, tmp_path
):
    final = np.array(get(trained.trajectories, workspace).array("final.npy"))
    model = get(trained.checkpoint(0), workspace).path
    pipeline(model).save_pretrained(tmp_path / "pipeline")
    theirs = DDIMPipeline.from_pretrained(tmp_path / "pipeline")
    x = trajectory_noise(list(range(len(final))), final.shape[1:], 0).draw()
    theirs.scheduler.set_timesteps(50)
    for t in theirs.scheduler.timesteps:
        with torch.no_grad():
            x = theirs.scheduler.step(theirs.unet(x, t).sample, t, x).prev_sample
    assert_near(x, torch.from_numpy(final), atol=1e-3)
    theirs.set_progress_bar_config(disable=True)
    pictures = theirs(batch_size=3, num_inference_steps=5, output_type="np").images
    assert pictures.shape == (3, 8, 8, 1)


@pytest.mark.parametrize("changes", [{"num_classes": 10}, {"name": "dit"}, {"prediction": "flow"}])
def test_a_model_that_no_pipeline_samples_is_refused(changes, trained, workspace, tmp_path):
    manifest = json.loads((get(trained.checkpoint(0), workspace).path / MANIFEST).read_text())
    manifest["key_fields"]["model"] |= changes
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"without a pipeline|a flow"):
        pipeline(tmp_path)


LEVELS = "model.autoencoder.block_out_channels=[8,8,8,8,8,8,8]"
PROMPTS = "sampling.prompts=['red apple', 'dog face']"
REFUSED = {
    "training.flip=true": "training.flip=True: must be left out with model=ldm",
    "attribution.flips=random": "attribution.flips=random: must be left out with model=ldm",
    "dataset=digits": "dataset=digits1000: must be one with captions",
    "model=ddpm_tiny": "attribution.captions=random: must be left as it is with model=ddpm",
    "method=[nda]": "method.nda=nda on ldm8-16a1: must be used with a model of pixels",
    "training.caption_dropout=0": "must be 1 unless training.caption_dropout is positive",
    "sampling.prompts=[a b c d e f g h i j k l]": "text_length=12 tokens long: 'k l' would be cut",
    "model.pretrained=no/where": "=no/where: must be a pipeline as diffusers saves it",
    "model.context_width=8": "model.context_width=8: must be 384",
    LEVELS: "images whose sides are multiples of 64, not 32×32",
    "model.num_timesteps=300": "sampling.steps=[600, 200]: must be in [0, 300)",
}


@pytest.mark.parametrize(("word", "message"), REFUSED.items())
def test_settings_that_do_not_fit_text_or_latents_are_refused_in_one_line(
    prompted, monkeypatch, word, message
):
    monkeypatch.chdir(prompted)
    words = PROMPTED
    if word == "model=ddpm_tiny":  # which has no settings of text
        words = [w for w in words if not w.startswith(("model", "training={batch"))]
    if word == "dataset=digits":  # which has other settings
        words = [w for w in words if not w.startswith("dataset")]
    assert message in refused(monkeypatch, *words, word, "task=plan")
