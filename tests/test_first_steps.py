"""The commands of docs/first-steps.md, in order, on miniatures: four networks of few steps."""

import json
import re
import shlex

import numpy as np
import pytest
import torch
from conftest import command, composed, refused, succeeds
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from PIL import Image

from journey.config.compose import CONF
from journey.engine.checks import ConfigError
from journey.pipeline.schedule import BetaSchedule
from journey.pipeline.settings import Prediction

GUIDE = (CONF.parent / "docs/first-steps.md").read_text()
COMMANDS = [
    shlex.split(line.replace("\\\n", ""), comments=True)
    for line in re.findall(r"^    journey ((?:.*\\\n)*.*)$", GUIDE, re.MULTILINE)
]
SMALL = (
    "model.block_out_channels=[8,16]",
    "model.mid_block_attention=false",
    "training={num_steps:4,batch_size:8,warmup_steps:1}",
    "retraining={num_subsets:8,num_samples:4}",
)
QUICK = (
    "dataset.size=8",
    "sampling.num_inference_steps=5",
    "sampling.steps=[600,200]",
    "attribution={num_samples:2,projection_dim:64}",
    "compute.workers=1",
)


def write_images(folder, count: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        pixels = random.integers(256, size=(12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with photos, queries and a checkpoint."""
    folder = tmp_path_factory.mktemp("mine")
    write_images(folder / "photos", 20)
    write_images(folder / "queries", 2)
    network = UNet2DModel(
        8, 3, 3, block_out_channels=(8, 24), layers_per_block=2, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), freq_shift=1, dropout=0.1,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    DDPMPipeline(network, scheduler).save_pretrained(folder / "my-ddpm")
    return folder


def run(place, words: list[str]) -> str:
    quick = [w for w in QUICK if not w.startswith("dataset.size") or "my_images" in words[0]]
    words = [w.replace("dataset.size=32", "dataset.size=8") for w in words]
    if "my_images" in words[0]:
        quick += SMALL
        if "evaluation=lds" in words:
            quick += ["evaluation.paired_steps=[600]", "evaluation.num_bootstrap=100"]
    if "sampling.start=images" not in words:
        quick.append("sampling.num_queries=4")
    return succeeds(command(place, *words, *quick))


def test_my_images_in_five_commands(place):
    plan, train, sample, report, evaluate = COMMANDS[:5]
    assert "18 images of 1 class" in run(place, plan)
    assert not (place / "artifacts").exists()
    output = run(place, train)
    (model,) = (place / "artifacts/models").iterdir()
    assert f"    artifacts/models/{model.name}\n" in output, "and no retrained model"
    assert "reports/my_images/samples.png" in run(place, sample)
    with Image.open(place / "reports/my_images/samples.png") as sheet:
        assert sheet.size == (3 * 66 + 2, 2 * 66 + 2), "four samples of 8×8, enlarged eight times"
    output = run(place, report)
    listed = "index.html, result.json, trajectories.png, samples.png, training_images.png\n"
    assert output.endswith(listed)
    assert [model] == list((place / "artifacts/models").iterdir()), "nothing is retrained"
    run(place, evaluate)
    assert len(list((place / "artifacts/models").iterdir())) == 9
    assert (place / "reports/evaluated/lds.md").exists()


def test_my_checkpoint_in_five_commands(place):
    plan, sample, report, methods, given = COMMANDS[5:]
    assert "18 images of 1 class" in run(place, plan)
    assert "reports/my_checkpoint/samples.png" in run(place, sample)
    run(place, report)
    run(place, methods)
    run(place, given)
    names = {path.name for path in (place / "reports").iterdir()}
    assert names >= {"my_checkpoint", "methods", "given"}
    result = json.loads((place / "reports/given/result.json").read_text())
    folder = place / "artifacts" / result["cache_keys"]["trajectories"]
    final, x_t = np.load(folder / "final.npy"), np.load(folder / "x_t.npy")
    for name, image in zip(("0.png", "1.png"), final, strict=True):
        with Image.open(place / "queries" / name) as photo:
            expected = np.asarray(photo.resize((8, 8), Image.Resampling.LANCZOS))
        assert np.abs(image.transpose(1, 2, 0) * 127.5 + 127.5 - expected).max() <= 1
    scheduler = DDIMScheduler.from_pretrained(place / "my-ddpm/scheduler")
    a = scheduler.alphas_cumprod[[600, 200]].numpy()[:, None, None, None, None]
    noise = (x_t - np.sqrt(a) * final) / np.sqrt(1 - a)
    assert noise[0] == pytest.approx(noise[1], abs=1e-3), "the same noise at every step"
    assert '"query 0: 0.png"' in (place / "reports/given/index.html").read_text()


def test_settings_are_those_of_the_checkpoint(place):
    words = ("model=from_checkpoint", f"model.checkpoints=[{place}/my-ddpm]")
    model = composed(*words).model
    assert (model.block_out_channels, model.attention_blocks) == ([8, 24], [1])
    assert (model.attention_head_dim, model.norm_num_groups, model.freq_shift) == (4, 4, 1)
    assert model.mid_block_attention
    assert model.prediction is Prediction.velocity
    assert model.noise_schedule.beta_schedule is BetaSchedule.squaredcos_cap_v2
    model.ready()
    theirs = UNet2DModel.from_pretrained(place / "my-ddpm/unet").eval()
    ours = model.load(place / "my-ddpm/unet", torch.device("cpu"))
    built = model.build((3, 8, 8)).eval()
    built.load_state_dict(theirs.state_dict())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([5, 600])
    with torch.no_grad():
        expected = theirs(x, t).sample
        assert torch.equal(built(x, t).sample, expected)
        assert torch.equal(ours(x, t).sample, expected)


def test_what_a_checkpoint_does_not_determine_is_refused(place, tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(
        (place / "my-ddpm/unet/diffusion_pytorch_model.safetensors").read_bytes()
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"_class_name": "Transformer2DModel"}')
    (tmp_path / "other/diffusion_pytorch_model.safetensors").write_bytes(b"")
    for words, message in {
        (): r"model\.checkpoints=\[\]: must be a list with a folder of diffusers",
        (f"model.checkpoints=[{tmp_path}/w.safetensors]",): r"has no config\.json to read",
        (f"model.checkpoints=[{tmp_path}/other]",): "is of Transformer2DModel, must be of UNet2D",
        (f"model.checkpoints=[{place}/my-ddpm]", "model.text_length=8"): "left out: UNet2DModel re",
    }.items():
        with pytest.raises(ConfigError, match=message):
            composed("model=from_checkpoint", *words)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for words, message in {
        ("sampling.start=images", "sampling.images=empty"): "must be a folder with images",
        ("sampling.images=empty",): "no effect unless start=images",
        ("sampling.start=images", f"sampling.images={place}/queries", "sampling.num_queries=2"):
            "no effect unless start=generated or injected",
        ("sampling.start=images", f"sampling.images={place}/queries", "evaluation=emergence"):
            "generated with evaluation=emergence",
    }.items():  # fmt: skip
        assert message in refused(monkeypatch, "evaluation=none", *words)
    assert not (tmp_path / "artifacts").exists()
