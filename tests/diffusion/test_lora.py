"""Training that starts at given weights, all of them or LoRA, against peft and autograd."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import journey_trak, small_run
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import nn

from journey.api import _prepared
from journey.attribution.ekfac import ekfac_batches, estimate_ekfac
from journey.attribution.gradients import GradientPlan, Objective
from journey.attribution.kronecker import kronecker_features
from journey.attribution.logra import feature_dimension, project_layers, projected_layers
from journey.config.run import RunConfig
from journey.data.parts import Parts
from journey.diffusion import lora, train, weights
from journey.diffusion.checkpoint_files import UnreadableError
from journey.diffusion.ddpm import DDPM
from journey.diffusion.latent import LatentDiffusion
from journey.diffusion.network import load_network, trained_parameters
from journey.diffusion.pipeline import pipeline
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key, describe
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.evaluation.lds import LDSInputs
from journey.evaluation.rows import select
from journey.experiment import check_data, load_experiment, prepare_experiment
from journey.pipeline.interfaces import IntermediateCheckpoint, RandomSubset
from journey.pipeline.settings import (
    Autoencoding,
    Kernel,
    LoRA,
    Prediction,
    Projection,
    Sampler,
    Sampling,
    Training,
)
from journey.run import MissingResultError, Run

CPU, SHAPE = torch.device("cpu"), (1, 8, 8)
MODEL = DDPM(block_out_channels=[8, 16], mid_block_attention=True)
CONVOLUTIONS = LoRA(2, 4.0, ["to_q", "to_out.0", "conv1"])
SCHEDULES = {"all": LoRA(), "attention": LoRA(2), "convolutions": CONVOLUTIONS}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A network as diffusers saves it, with random weights."""
    folder = tmp_path_factory.mktemp("base") / "network"
    torch.manual_seed(0)
    MODEL.build(SHAPE).save_pretrained(folder)
    return folder


def finetuning(base, settings=LoRA(), **changes):  # noqa: B008 - a constant
    training = Training(
        num_steps=4, batch_size=16, warmup_steps=1, learning_rate=0.01, start=str(base),
        lora=settings,
    )  # fmt: skip
    return small_run(**{"model": MODEL, "training": training, **changes})


def in_store(run, tmp_path):
    workspace = Workspace(Store(tmp_path / "store"), run.compute, run.tracking, "test")
    return load_experiment(run, workspace.store), workspace


def adapted(settings, seed=1) -> nn.Module:
    """Return a network whose adapters all have an effect."""
    torch.manual_seed(seed)
    network = MODEL.build(SHAPE).eval()
    lora.add_adapters(network, settings)
    with torch.no_grad():
        for parameter in trained_parameters(network).values():
            parameter.normal_(std=0.3)
    return network


def predicted(network) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = torch.randn(2, *SHAPE, generator=random)
        return network(x, torch.tensor([10, 700]), return_dict=False)[0]


@pytest.mark.parametrize("settings", SCHEDULES.values(), ids=SCHEDULES)
def test_training_of_no_steps_is_its_start_and_of_some_is_not(base, tmp_path, settings):
    experiment, workspace = in_store(finetuning(base, settings), tmp_path)
    start = MODEL.load(base, CPU)
    model = experiment.retrained(RandomSubset(0, 0.5, 0))
    assert model.start is experiment.start
    (tmp_path / "none").mkdir()
    state = train.fit(model, model, 0, tmp_path / "none", workspace, None)
    torch.testing.assert_close(predicted(state.network.eval()), predicted(start), rtol=0, atol=0)
    trained = load_network(model, workspace, CPU)
    assert not torch.allclose(predicted(trained), predicted(start))
    frozen = dict(trained.named_parameters()).keys() - trained_parameters(trained).keys()
    named = {name.replace(".base_layer.", "."): name for name in frozen}
    assert bool(frozen) == (settings.rank > 0)
    for name, parameter in start.named_parameters():
        if name in named:
            assert torch.equal(trained.get_parameter(named[name]), parameter)


def test_stacked_trainings_of_lora_end_where_single_ones_do(base, tmp_path):
    experiment, workspace = in_store(finetuning(base, CONVOLUTIONS), tmp_path)
    specs = [experiment.retrained(RandomSubset(i, 0.5, 0)) for i in range(2)]
    assert len({spec.group for spec in specs}) == 1
    folders = [tmp_path / str(i) for i in range(2)]
    for folder in folders:
        folder.mkdir()
    train.make_models(list(zip(specs, folders, strict=True)), workspace)
    for spec, folder in zip(specs, folders, strict=True):
        stacked = safetensors.torch.load_file(folder / lora.ADAPTER_FILE)
        alone = safetensors.torch.load_file(get(spec, workspace).path / lora.ADAPTER_FILE)
        torch.testing.assert_close(stacked, alone, rtol=1e-3, atol=1e-4)


def test_intermediate_checkpoints_continue_to_the_end_of_the_training(base, tmp_path):
    experiment, workspace = in_store(finetuning(base, LoRA(2)), tmp_path)
    run = experiment.checkpoint(0)
    last = IntermediateCheckpoint(run, 4, IntermediateCheckpoint(run, 2, None))
    ends = (predicted(load_network(spec, workspace, CPU)) for spec in (run, last))
    torch.testing.assert_close(*ends)


def test_stored_adapters_are_small_and_peft_merges_them_to_the_same_network(base, tmp_path):
    experiment, workspace = in_store(finetuning(base, CONVOLUTIONS), tmp_path)
    artifact = get(experiment.checkpoint(0), workspace)
    stored = safetensors.torch.load_file(artifact.path / lora.ADAPTER_FILE)
    assert not list(artifact.path.glob("diffusion_pytorch_model*"))
    network = load_network(experiment.checkpoint(0), workspace, CPU)
    assert sum(map(torch.numel, stored.values())) == sum(
        p.numel() for p in trained_parameters(network).values()
    )
    # W + (alpha / rank) B A, by hand
    merged, scale = MODEL.load(base, CPU), CONVOLUTIONS.alpha / CONVOLUTIONS.rank
    for name in {key.removeprefix("unet.").rpartition(".lora_")[0] for key in stored}:
        weight = merged.get_parameter(f"{name}.weight")
        a, b = (stored[f"unet.{name}.lora_{side}.weight"].flatten(1) for side in "AB")
        weight.data += scale * (b @ a).view_as(weight)
    torch.testing.assert_close(predicted(merged), predicted(network))


PLANS = [GradientPlan("loop", 1, 6), GradientPlan("vmap", 2, 6), GradientPlan("layers", 2, 3)]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_gradients_are_those_of_autograd_of_the_trained_parameters(
    linear_schedule, clean, draws, plan
):
    network, examples = adapted(CONVOLUTIONS), clean[:3]
    parameters = list(trained_parameters(network).values())
    expected = []
    for x0 in examples.x0:
        alpha_bar = linear_schedule.signal_squared[draws.t].float().view(-1, 1, 1, 1)
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * draws.eps
        error = draws.eps - network(x_t, draws.t).sample
        gradient = torch.autograd.grad(error.square().mean(), parameters)
        expected.append(torch.cat([g.flatten() for g in gradient]))
    objective = Objective(network, linear_schedule, Precision.fp32)
    ours = torch.cat(list(objective.gradients(examples, draws, plan)))
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-3, atol=1e-6)


def test_a_network_of_the_python_interface_keeps_its_frozen_parameters(clean):
    network = adapted(LoRA(2))
    names = trained_parameters(network).keys()
    assert trained_parameters(_prepared(network, clean[:1])).keys() == names
    frozen = network.requires_grad_(False)
    assert len(trained_parameters(_prepared(frozen, clean[:1]))) == len(list(network.parameters()))


def test_logra_projects_the_gradients_of_adapters_and_of_nothing_else(
    linear_schedule, clean, draws
):
    network = adapted(CONVOLUTIONS)
    projected = project_layers(network, 2, 0, "checkpoint 0")
    names = list(trained_parameters(network))
    assert [f"{name}.weight" for name in projected_layers(projected)] == names
    objective = Objective(network, linear_schedule, Precision.fp32)
    (gradients,) = objective.gradients(clean[:3], draws, GradientPlan("loop", 3, 6))
    sizes = [p.numel() for p in trained_parameters(network).values()]
    blocks = []
    for layer, part in zip(
        projected_layers(projected).values(), gradients.split(sizes, 1), strict=True
    ):
        inner = layer.inner
        matrix = inner.filters if inner.mix is None else inner.filters * inner.mix[..., None, None]
        blocks.append(part @ torch.kron(layer.outer, matrix.flatten(1)).T)
    objective = replace(objective, network=projected)
    plan = GradientPlan("kronecker", 2, 6)
    ours = torch.cat(list(kronecker_features(objective, clean[:3], draws, plan)))
    assert ours.shape == (3, feature_dimension(projected))
    torch.testing.assert_close(ours, torch.cat(blocks, 1), rtol=1e-3, atol=1e-5)


def test_ekfac_of_adapters_is_that_of_the_same_layers_in_a_plain_network(linear_schedule, clean):
    """There, A and B are layers of their own, and all that is trained."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64, bias=False), nn.Unflatten(1, SHAPE))
    lora.add_adapters(network, LoRA(3, 6.0, ["1"]))
    a, b = trained_parameters(network).values()
    b.data.normal_()

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 3, bias=False), nn.Linear(3, 64, bias=False)
            self.a.weight.data, self.b.weight.data = a.data.clone(), b.data.clone()

        def forward(self, x):
            flat = x.flatten(1)
            y = flat @ network[1].base_layer.weight.T + 2 * self.b(self.a(flat))
            return y.unflatten(1, SHAPE)

    eigenvalues = []
    for module in (network, Plain()):
        ekfac = estimate_ekfac(
            module,
            lambda x, t, condition=None, module=module: module(x),
            linear_schedule,
            lambda: ekfac_batches(clean, 1000, 0, 16),
        )
        eigenvalues.append(ekfac.eigenvalues)
    assert eigenvalues[0].shape == (3 * 64 * 2,)
    torch.testing.assert_close(*eigenvalues, rtol=1e-3, atol=1e-6)


def test_the_base_is_a_control_of_the_evaluation(base, tmp_path):
    run = finetuning(base, LoRA(2))
    experiment, workspace = in_store(run, tmp_path)
    target = experiment.evaluation(run.evaluation, run.all_methods)
    result = json.loads((get(target, workspace).path / "result.json").read_text())
    rows = select(result["rows"], quantity="base_difference", method="base")
    measures = experiment.outputs(experiment.start), experiment.outputs(experiment.checkpoint(0))
    start, full = (get(measure, workspace).array("outputs.npy").mean(0) for measure in measures)
    expected = [np.mean((a - b) / b) for a, b in zip(start, full, strict=True)]
    assert [row["value"] for row in rows] == pytest.approx(expected)
    assert [row.get("step", row["target"]) for row in rows] == [600, 300, "final_sample"]
    assert expected[0] != 0
    assert "base" not in describe(LDSInputs((), None)), "keys of other experiments are as before"


def test_the_key_has_the_content_of_the_start_and_not_its_path(base, tmp_path):
    run = finetuning(base, LoRA(2))
    store = Store(tmp_path / "store")
    keys = {}
    shutil.copytree(base, tmp_path / "moved")
    shutil.copytree(base, tmp_path / "changed")
    path = tmp_path / "changed/diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: tensor + 1 for name, tensor in state.items()}, path)
    for name in ("moved", "changed", "base"):
        folder = base if name == "base" else tmp_path / name
        training = replace(run.training, start=str(folder))
        keys[name] = cache_key(
            load_experiment(replace(run, training=training), store).checkpoint(0)
        )
    assert keys["base"] == keys["moved"] != keys["changed"]
    assert str(base) not in json.dumps(describe(load_experiment(run, store).checkpoint(0)))
    assert {"start", "lora"} & dict(describe(Training())).keys() == set()


def saved(folder, settings, **changes):
    """Write an adapter of the model as a user of peft has it, and return the folder."""
    network = MODEL.build(SHAPE)
    alpha = settings.alpha or settings.rank
    config = LoraConfig(
        r=settings.rank, lora_alpha=alpha, target_modules=settings.targets, **changes
    )
    inject_adapter_in_model(config, network)
    state = get_peft_model_state_dict(network)
    folder.mkdir()
    named = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    safetensors.torch.save_file(named, folder / "adapter_model.safetensors")
    config.save_pretrained(folder)
    return folder


def test_a_folder_of_peft_is_scored_as_ours_is(base, tmp_path):
    settings = LoRA(2, 5.0, ["to_q", "conv2"])
    run = finetuning(base, settings)
    folder = saved(tmp_path / "adapter", settings)
    model = replace(MODEL, checkpoints=[str(folder)])
    run = replace(run, model=model, compute=run.compute)
    run.model.ready(run.training)
    experiment, workspace = in_store(run, tmp_path)
    check_data(run, *prepare_experiment(run, workspace.store), workspace.store)
    theirs = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    ours = safetensors.torch.load_file(
        get(experiment.checkpoint(0), workspace).path / lora.ADAPTER_FILE
    )
    for name, tensor in theirs.items():
        assert torch.equal(ours[f"unet.{name.removeprefix('base_model.model.')}"], tensor)
    scores = get(experiment.scores(run.method["journey"]), workspace).array("scores.npy")
    assert scores.shape == (2, 2, 4, 60)
    assert scores.std() > 0


LORA = LoRA(2, 0.0, ["to_q", "to_v"])


def wrong(folder, name="adapter_config.json", **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder, old, new):
    path = folder / "adapter_model.safetensors"
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file({k.replace(old, new): v for k, v in state.items()}, path)


UNREADABLE = {
    "another rank": (lambda f: wrong(f, r=4), "r=4, but its layers have the rank 2"),
    "DoRA": (lambda f: wrong(f, use_dora=True), "use_dora=True is not supported, only False"),
    "ranks": (lambda f: wrong(f, rank_pattern={"to_q": 8}), "rank_pattern={'to_q': 8} is not"),
    "IA3": (lambda f: wrong(f, peft_type="IA3"), "peft_type=IA3 is not supported, only LORA"),
    "text": (
        lambda f: rename(f, "base_model.model.", "text_encoder."), "it adapts the text encoder"
    ),
    "kohya": (
        lambda f: rename(f, ".lora_A.weight", ".lora_down.weight"), "is no parameter of a LoRA by"
    ),
    "no file": (
        lambda f: (f / "adapter_model.safetensors").unlink(), "it has none of pytorch_lora_weights"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_adapters_that_are_not_supported_are_refused_by_name(tmp_path, damage, message):
    folder = saved(tmp_path / "adapter", LORA)
    damage(folder)
    with pytest.raises(UnreadableError) as error:
        lora.read_adapter(folder)
    assert message in str(error.value)


SETTINGS = {
    "rank": (LoRA(4, 0.0, ["to_q", "to_v"]), "rank=2, not 4; alpha=2, not 4 (add "
             "training.lora.rank=2 training.lora.alpha=2)"),
    "none": (LoRA(), "rank=2, not 0; targets=[to_q,to_v], not [to_q,to_k,to_v,to_out.0] (add "
             "training.lora.rank=2 'training.lora.targets=[to_q,to_v]')"),
    "targets": (LoRA(2, 0.0, ["to_q"]), "targets=[to_q,to_v], not [to_q]"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings_other_than_those_of_an_adapter_are_refused(base, tmp_path, settings, message):
    folder = saved(tmp_path / "adapter", LORA)
    model = replace(MODEL, checkpoints=[str(folder)])
    with pytest.raises(ConfigError) as error:
        model.ready(finetuning(base, settings).training)
    assert message in str(error.value)


def test_an_adapter_for_other_layers_or_of_another_width_is_refused(base, tmp_path):
    narrow = DDPM(block_out_channels=[8, 8], mid_block_attention=True)
    folder = saved(tmp_path / "adapter", LORA)
    with pytest.raises(
        ConfigError, match=r"to_q\.lora_A\.weight has shape \(2, 16\), expected \(2, 8"
    ):
        weights.check_weights("model.checkpoints", narrow, folder, SHAPE, LORA)
    more = DDPM(block_out_channels=[8, 16], mid_block_attention=True, attention_blocks=[1])
    with pytest.raises(ConfigError, match="has shape None, expected"):
        weights.check_weights("model.checkpoints", more, folder, SHAPE, LORA)
    with pytest.raises(ConfigError, match=r"training\.lora\.targets=\[to_x\]: Target modules"):
        weights.check_targets(MODEL, SHAPE, LoRA(2, 0.0, ["to_x"]))


def test_a_network_is_no_adapter_and_an_adapter_is_no_start(base, tmp_path):
    folder = saved(tmp_path / "adapter", LORA)
    model = replace(MODEL, checkpoints=[str(base)])
    with pytest.raises(
        ConfigError, match=r"it is a network, not a LoRA; set training[.]lora[.]rank=0"
    ):
        model.ready(finetuning(base, LORA).training)
    with pytest.raises(
        ConfigError, match=r"training[.]start=.*it is a LoRA adapter, not a network"
    ):
        MODEL.ready(finetuning(folder).training)
    with pytest.raises(ConfigError, match=r"training[.]start=.*layers_per_block=1, not 2"):
        replace(MODEL, layers_per_block=2).ready(finetuning(base).training)
    with pytest.raises(ConfigError, match=r"training[.]start=no/where: must be a network"):
        MODEL.ready(finetuning("no/where").training)


CHECKS = {
    "rank without a start": (Training(lora=LoRA(2)), r"lora\.rank=2: must be 0 without"),
    "targets without a rank": (Training(lora=LoRA(targets=["to_q"])), r"lora\.targets=\['to_q'\]"),
    "alpha without a rank": (Training(lora=LoRA(alpha=1.0)), r"lora\.alpha=1\.0: must be left"),
    "no targets": (Training(start="x", lora=LoRA(2, targets=[])), "distinct ends of names"),
    "negative": (Training(start="x", lora=LoRA(-1)), r"lora\.rank=-1: must be in 0…"),
}


@pytest.mark.parametrize(("training", "message"), CHECKS.values(), ids=CHECKS)
def test_settings_are_checked(training, message):
    with pytest.raises(ConfigError, match=message):
        training.check("training")


LATENT = LatentDiffusion(
    text_length=28,
    prediction=Prediction.velocity,
    block_out_channels=[8, 16],
    autoencoder=Autoencoding(num_steps=3, warmup_steps=1, block_out_channels=[8, 8]),
)
TEXTS = ["a cat in a plain red shirt", ""]


def portraits(model, **changes):
    """Return a run of a text-to-image model on a few portraits."""
    settings = {
        "dataset": Parts(num_train=16, size=16, head="octopus"),
        "model": model,
        "training": Training(num_steps=2, batch_size=8, warmup_steps=1),
        "sampling": Sampling(Sampler.ddim, 10, num_queries=4, steps=[600, 300], prompts=TEXTS[:1]),
    }
    return small_run(**{**settings, **changes})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A workspace with a trained text-to-image model, and its folder as a pipeline of diffusers."""
    directory = tmp_path_factory.mktemp("drawn")
    run = portraits(LATENT)
    experiment, workspace = in_store(run, directory)
    opened = Run(run, experiment, workspace.store, "dataset=parts")
    with pytest.raises(
        MissingResultError, match="compute it by: journey dataset=parts task=sample"
    ):
        opened.pipeline()
    get(experiment.checkpoint(0), workspace)
    opened.pipeline().save_pretrained(directory / "base")
    return directory / "base", experiment, workspace


def finetuned(folder, settings, **model) -> RunConfig:
    run = portraits(replace(LATENT, pretrained=str(folder), **model))
    training = replace(run.training, start=str(folder), lora=settings, learning_rate=0.01)
    return replace(run, training=training)


def latents_of(network):
    random = torch.Generator().manual_seed(0)
    x, states = (torch.randn(2, *shape, generator=random) for shape in ((4, 8, 8), (28, 384)))
    with torch.no_grad():
        return network(x, torch.tensor([10, 700]), states, return_dict=False)[0]


def test_a_pipeline_that_was_saved_is_read_back_as_the_model_that_it_is(drawn):
    folder, trained, workspace = drawn
    run = finetuned(folder, LoRA())
    run.model.ready(run.training)
    experiment, images = prepare_experiment(run, workspace.store)
    check_data(run, experiment, images, workspace.store)
    ours = load_network(trained.checkpoint(0), workspace, CPU)
    start = load_network(experiment.start, workspace, CPU)
    torch.testing.assert_close(latents_of(start), latents_of(ours), rtol=0, atol=0)
    encoded = [get(e.latents, workspace) for e in (experiment, trained)]
    for name in ("mean", "deviation", "condition"):  # padding is masked, latents have their scale
        theirs, own = (artifact.array(f"{name}.npy") for artifact in encoded)
        np.testing.assert_allclose(theirs, own, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run.model.read(TEXTS, ()), LATENT.read(TEXTS, ()))


def test_a_start_in_other_latents_or_of_another_prediction_is_refused(drawn, tmp_path):
    folder, *_ = drawn
    run = finetuned(folder, LoRA())
    for model, message in (
        (replace(run.model, pretrained=""), "model.pretrained='': must be the pipeline with"),
        (replace(run.model, prediction=Prediction.noise), "add model.prediction=velocity"),
        (replace(run.model, pretrained=str(tmp_path / "other")), "its vae is not that of model"),
    ):
        if model.pretrained.endswith("other"):
            shutil.copytree(folder, tmp_path / "other")
            path = tmp_path / "other/vae/diffusion_pytorch_model.safetensors"
            state = safetensors.torch.load_file(path)
            safetensors.torch.save_file({k: v + 1 for k, v in state.items()}, path)
        with pytest.raises(ConfigError) as error:
            model.ready(run.training)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("metadata", [True, False])
def test_a_lora_that_diffusers_trained_and_saved_is_scored(drawn, tmp_path, metadata):
    folder, _, workspace = drawn
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=5 if metadata else 2, target_modules=["to_k", "to_v"])
    theirs.unet.requires_grad_(False)
    theirs.unet.add_adapter(config)
    layers = [p for p in theirs.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(layers, lr=0.05)
    for _ in range(3):
        x, target = torch.randn(2, 4, 4, 8, 8)
        states = theirs.text_encoder(torch.randint(1000, (4, 12))).last_hidden_state
        predicted = theirs.unet(x, torch.randint(1000, (4,)), states).sample
        (predicted - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "lora",
        unet_lora_layers=get_peft_model_state_dict(theirs.unet),
        unet_lora_adapter_metadata=config.to_dict() if metadata else None,
    )

    settings = LoRA(2, config.lora_alpha, ["to_k", "to_v"])
    run = finetuned(folder, settings, checkpoints=[str(tmp_path / "lora")])
    run.model.ready(run.training)
    experiment, images = prepare_experiment(run, workspace.store)
    check_data(run, experiment, images, workspace.store)
    assert bool(weights.unchecked(run.model, tmp_path / "lora")) != metadata
    fused = StableDiffusionPipeline.from_pretrained(folder)
    fused.load_lora_weights(tmp_path / "lora")
    fused.fuse_lora()
    ours = load_network(experiment.checkpoint(0), workspace, CPU)
    torch.testing.assert_close(latents_of(ours), latents_of(fused.unet), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        latents_of(ours), latents_of(load_network(experiment.start, workspace, CPU))
    )
    for method in (
        journey_trak(),
        journey_trak(projection=Projection.kronecker, kernel=Kernel.ekfac),
    ):
        scores = get(experiment.scores(method), workspace).array("scores.npy")
        assert scores.shape == (2, 2, 4, 16)
        assert scores.std() > 0


def test_our_lora_is_loaded_by_diffusers(drawn):
    folder, _, workspace = drawn
    run = finetuned(folder, LoRA(2, 6.0))
    experiment = load_experiment(run, workspace.store)
    artifact = get(experiment.checkpoint(0), workspace)
    ours = latents_of(load_network(experiment.checkpoint(0), workspace, CPU))
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    theirs.load_lora_weights(artifact.path)
    for pipe in (theirs, pipeline(artifact.path)):
        torch.testing.assert_close(latents_of(pipe.unet), ours, rtol=1e-4, atol=1e-5)
