"""Networks of classes, flows and transformers: from training to scores, and what is refused."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, composed, journey_trak, refused, small_run
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from PIL import Image

from journey.diffusion import weights
from journey.diffusion.ddpm import DDPM
from journey.diffusion.dit import DiT
from journey.diffusion.sampling import trajectory_noise
from journey.diffusion.schedule import ddim_step
from journey.diffusion.train import start
from journey.diffusion.training import step_losses, train, train_stacked
from journey.engine.checks import ConfigError
from journey.engine.workspace import get
from journey.evaluation.lds import LDS
from journey.experiment import check_data, load_experiment, look_up_images
from journey.pipeline.interfaces import Continuations
from journey.pipeline.schedule import denoise
from journey.pipeline.settings import Kernel, Prediction, Projection, Sampler, Sampling, Training

CPU = torch.device("cpu")
SMALL = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4}
MODELS = {
    "U-Net of classes": DDPM(block_out_channels=[8, 16], num_classes=10),
    "transformer of classes": DiT(**SMALL, num_classes=10, prediction=Prediction.flow),
    "transformer": DiT(**SMALL),
    "flow": DDPM(block_out_channels=[8, 16], prediction=Prediction.flow),
}


def run_of(model, **sampling):
    classes = model.num_classes > 0
    steps = [599, 199] if model.is_flow else [600, 200]
    settings = {"sampler": Sampler.ddim, "guidance": 2.0 if classes else 1.0, **sampling}
    return small_run(
        model=model,
        training=Training(4, 16, warmup_steps=1, caption_dropout=0.5 if classes else 0.0),
        sampling=Sampling(num_inference_steps=5, num_queries=12, steps=steps, **settings),
        evaluation=LDS(num_bootstrap=100, paired_steps=steps[:1]),
        method={
            "journey": journey_trak(num_samples=2),
            "logra": journey_trak(num_samples=2, projection=Projection.kronecker),
            "ekfac": journey_trak(num_samples=2, kernel=Kernel.ekfac),
        },
    )


@pytest.mark.parametrize("name", MODELS)
def test_from_training_to_outputs_and_scores(workspace, name):
    model = MODELS[name]
    run = run_of(model)
    experiment = load_experiment(run, workspace.store)
    check_data(run, experiment, look_up_images(run.dataset, workspace.store)[1], workspace.store)
    spec = experiment.trajectories
    stored = get(spec, workspace)
    assert spec.size == sum(stored.array(f"{n}.npy").nbytes for n in ("x_t", "x0_hat", "final")) + (
        stored.array("condition.npy").nbytes if model.num_classes else 0
    )

    # A plain loop of the folder that diffusers loads; queries take the classes in turn.
    kind = UNet2DModel if isinstance(model, DDPM) else DiTTransformer2DModel
    net = kind.from_pretrained(get(spec.checkpoint, workspace).path, low_cpu_mem_usage=False).eval()
    labels = torch.arange(12) % 10
    if model.num_classes:
        assert stored.array("condition.npy")[:, 0].tolist() == labels.tolist()
    schedule = model.schedule(CPU)
    x = trajectory_noise(range(12), (1, 8, 8), 0).draw()
    timesteps = [999, 799, 599, 399, 199] if model.is_flow else [800, 600, 400, 200, 0]
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        t_batch = torch.full((12,), t)
        with torch.no_grad():
            if model.num_classes:
                without, of_class = (
                    net(x, t_batch, c).sample for c in (torch.full((12,), 10), labels)
                )
                predicted = without + 2 * (of_class - without)
            elif isinstance(model, DiT):
                predicted = net(x, t_batch, torch.zeros(12, dtype=torch.int64)).sample
            else:
                predicted = net(x, t_batch).sample
        x0_hat, eps = denoise(schedule, x, t_batch, predicted)
        x = ddim_step(schedule, x0_hat, eps, t_next)
    np.testing.assert_allclose(stored.array("final.npy"), x.numpy(), atol=1e-3)

    # Continuations under the own model repeat the trajectories.
    last = spec.steps[-1]
    more = Continuations(spec.checkpoint, spec, last, (last,), (3, 1), 2, None, 0)
    final = get(more, workspace).array("final.npy")[0, :, 0]
    np.testing.assert_allclose(final, stored.array("final.npy")[[3, 1]], atol=1e-5)

    # Every kind of gradient, and outputs of a model of a subset.
    for method in run.method.values():
        scores = get(experiment.scores(method), workspace).array("scores.npy")
        assert scores.shape == (2, 2, 12, 60)
        assert (np.abs(scores).max((2, 3)) > 0).all()
    measured = get(experiment.subset_outputs()[0][0], workspace).array("outputs.npy")
    assert measured.shape == (2, 3, 12)


def test_prompts_are_names_of_classes(workspace):
    run = run_of(MODELS["U-Net of classes"], prompts=["7", "0"])
    stored = get(load_experiment(run, workspace.store).trajectories, workspace)
    assert stored.array("condition.npy")[:, 0].tolist() == [7, 0] * 6


@pytest.mark.parametrize("name", ["U-Net of classes", "transformer of classes"])
def test_training_leaves_out_classes_at_the_rate_that_is_set(workspace, monkeypatch, name):
    """The transformer of diffusers leaves out some by itself, in each layer others."""
    run = run_of(MODELS[name])
    run.training.batch_size = 60
    experiment = load_experiment(run, workspace.store)
    state, inputs = start(experiment.checkpoint(0), workspace)
    given, left_out = [], 0

    def predict(x_t, t, condition):
        given.append(condition)
        return x_t

    for step in range(20):
        batch = inputs.batch(step)
        step_losses(predict, inputs, batch, step)
        labels = inputs.examples.condition[batch.rows, 0]
        dropped = given[-1] == 10
        assert torch.equal(given[-1][~dropped], labels[~dropped])
        left_out += int(dropped.sum())
    assert left_out / 1200 == pytest.approx(0.5, abs=0.05)
    assert state.network.training
    x, t, labels = torch.randn(60, 1, 8, 8), torch.full((60,), 500), torch.arange(60) % 10
    for p in state.network.parameters():
        p.data.add_(torch.randn(p.shape), alpha=0.1)
    passes = [state.network(x, t, labels).sample for _ in range(2)]
    assert torch.equal(*passes), "the network itself is deterministic"


def test_a_new_transformer_predicts_zero_and_has_one_table_of_classes_in_a_layer():
    torch.manual_seed(0)
    net = MODELS["transformer of classes"].build((1, 8, 8))
    assert not net(
        torch.randn(2, 1, 8, 8), torch.tensor([1, 9]), torch.tensor([3, 10])
    ).sample.any()
    tables = [m.num_embeddings for m in net.modules() if isinstance(m, torch.nn.Embedding)]
    assert tables == [11]


def saved(directory, net):
    net.save_pretrained(directory)
    return directory


def refusal(model, path):
    """Return the message that a checkpoint is refused with, for images of 8×8."""
    with pytest.raises(ConfigError) as refused:
        check(dataclasses.replace(model, checkpoints=[str(path)]))
    return str(refused.value)


def check(model):
    model.check("model")
    model.ready()
    model.fits((1, 8, 8))
    path = Path(model.checkpoints[0])
    weights.check_weights("model.checkpoints", model, path, (1, 8, 8))


def test_released_networks_of_classes_are_loaded_where_they_fit(tmp_path):
    with_null = MODELS["U-Net of classes"]
    without = dataclasses.replace(with_null, null_class=False)
    plain = dataclasses.replace(with_null, num_classes=0)
    for model, other, advice in (
        (with_null, without, "(add model.null_class=false)"),
        (without, with_null, "(add model.num_classes=11 model.null_class=false)"),
        (plain, without, "(add model.num_classes=10 model.null_class=false)"),
    ):
        net = other.build((1, 8, 8))
        path = saved(tmp_path / other.label / str(other.null_class), net)
        other.ready()
        loaded = weights.load_weights(other, path, (1, 8, 8), CPU).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in net.state_dict().items())
        assert refusal(model, path).endswith(advice)


def test_released_transformers_are_loaded_where_they_fit(tmp_path):
    model = MODELS["transformer"]
    net = model.build((1, 8, 8))
    for p in net.parameters():
        p.data.add_(torch.randn(p.shape), alpha=0.1)
    pipeline = tmp_path / "pipeline"
    saved(pipeline / "transformer", net)
    DDPMScheduler().save_pretrained(pipeline / "scheduler")
    (pipeline / "model_index.json").write_text("{}")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    expected = net.eval()(x, t, torch.zeros(2, dtype=torch.int64)).sample
    for path in (pipeline, pipeline / "transformer/diffusion_pytorch_model.safetensors"):
        found = dataclasses.replace(model, checkpoints=[str(path)])
        check(found)
        loaded = weights.load_weights(found, path, (1, 8, 8), CPU)
        torch.testing.assert_close(loaded(x, t).sample, expected)
    assert weights.unchecked(model, pipeline) == ""
    deeper = dataclasses.replace(model, num_layers=2)
    assert refusal(deeper, pipeline).endswith("(add model.num_layers=1)")
    larger = saved(tmp_path / "larger", model.build((1, 16, 16)))
    assert "of images of 8 pixels a side: its config has sample_size=16" in refusal(model, larger)
    unet = saved(tmp_path / "unet", MODELS["U-Net of classes"].build((1, 8, 8)))
    assert "it has no parameter pos_embed.proj.weight" in refusal(model, unet)


LEFT = "must be left as it is with model=ddpm8-16, which has no text or class as condition"
REFUSED = {
    "model.num_classes=10 sampling.guidance=2": (
        "sampling.guidance=2.0: must be 1 unless training.caption_dropout is positive"
    ),
    "model.num_classes=10 model.null_class=false training.caption_dropout=0.1": (
        "training.caption_dropout=0.1: must be 0 with model.null_class=false"
    ),
    "model.null_class=false": "model.null_class=false: must be true with num_classes=0",
    "model.num_classes=10 attribution.captions=random": "=ddpm, which reads no text",
    "sampling.guidance=2": f"sampling.guidance=2.0: {LEFT}",
    "sampling.prompts=[7]": f"sampling.prompts=['7']: {LEFT}",
    "training.caption_dropout=0.1": f"training.caption_dropout=0.1: {LEFT}",
    "model.num_classes=10 dataset.num_injected=4 sampling.start=injected": (
        "generated with model=ddpm8-16c10: injected images have no condition"
    ),
    "model.prediction=flow": (
        "sampling.steps=[600, 200]: must be timesteps the sampler visits: 199 plus multiples of 200"
    ),
    "model.prediction=flow model.noise_schedule.rescale_betas_zero_snr=true": (
        "rescale_betas_zero_snr=True: must be left as it is with model.prediction=flow"
    ),
    "model.prediction=flow model.noise_schedule.beta_schedule=sigmoid": (
        "beta_schedule=sigmoid: must be left as it is with model.prediction=flow"
    ),
    "model=dit_smoke model.attention_head_dim=3": "attention_head_dim=3: must be such that num_at",
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED.items())
def test_settings_that_do_not_fit_each_other_are_refused(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        composed(*TINY, *words.split())


FOLDER = "dataset=folder dataset.root=flat dataset.num_train=16 model.num_classes=10"
REFUSED_WITH_DATA = {
    "model.num_classes=9": "model.num_classes=9: must be 0, or 10, the classes of dataset=digits60",
    FOLDER: "model.num_classes=10: must be 0: dataset=folder32px has no classes",
    "model.num_classes=10 sampling.prompts=[7,cat]": (
        "sampling.prompts=cat: must be among 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    ),
    "model=dit_smoke model.patch_size=3": "model.patch_size=3: must be a divisor of 8",
}


@pytest.mark.parametrize(("words", "message"), REFUSED_WITH_DATA.items())
def test_settings_that_do_not_fit_the_data_are_refused(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat").mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(tmp_path / f"flat/{i}.png")
    assert message in refused(monkeypatch, *TINY, *words.split(), "task=plan")
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("name", ["U-Net of classes", "transformer of classes", "transformer"])
def test_stacked_trainings_are_single_ones(workspace, name):
    experiment = load_experiment(run_of(MODELS[name]), workspace.store)
    single, stacked = (
        [start(experiment.checkpoint(index), workspace) for index in (0, 1)] for _ in range(2)
    )
    expected = [[loss for loss, _ in train(state, inputs, 4)] for state, inputs in single]
    losses = [loss for loss, _ in train_stacked(*zip(*stacked, strict=True), 4)]
    torch.testing.assert_close(torch.stack(losses).T, torch.tensor(expected))
