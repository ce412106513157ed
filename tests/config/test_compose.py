"""Every choice composes; wrong input is refused in one line; every setting is read."""

import ast
import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import composed, refused, small_run

import journey
from journey import __main__ as entry
from journey.attribution.baselines import NonparametricScore
from journey.components import COMPONENTS
from journey.config.compose import CONF
from journey.config.reference import reference, undocumented
from journey.config.run import RunConfig, Vary
from journey.engine.checks import ConfigError
from journey.pipeline import settings as settings_module
from journey.pipeline.settings import Augmentation, GradientSettings, Target

PACKAGE = Path(journey.__path__[0])
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
CHOICES = sorted(
    f"{p.parent.name}={p.stem}" for p in CONF.glob("*/*.yaml") if p.parent.name != "experiment"
)
METHODS = [choice.split("=")[1] for choice in CHOICES if choice.startswith("method=")]
LATENT_METHODS = ("latent", "caption")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_is_named_after_its_file(experiment, tmp_path):
    files = INPUT_FILES[experiment](tmp_path) if experiment in INPUT_FILES else []
    assert composed(f"experiment={experiment}", *files).name == experiment


def checkpoint(directory: Path) -> list[str]:
    """Write what is read of a checkpoint when a run is composed, and return its setting."""
    (directory / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (directory / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    return [f"model.checkpoints=[{directory}]", "model=from_checkpoint"]


def scores_file(directory: Path) -> list[str]:
    """Write the smallest file of scores, and return the settings that name it."""
    np.savez(directory / "mine.npz", scores=np.zeros((1, 1)), queries=["a"], train=["b"])
    return [f"method.external.path={directory / 'mine.npz'}"]


def trak_store(directory: Path) -> list[str]:
    """Write a TRAKer's store of one image, and return the settings that name it."""
    content = {
        "metadata": {"train set size": 1, "JL dimension": 2},
        "experiments": {"a": {"num_targets": 1}},
        "id_0": {"0": {"is_featurized": 1}},
    }
    for name, value in content.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    (directory / "0").mkdir()
    for name, shape in {"grads": (1, 2), "a_grads": (1, 2), "out_to_loss": (1, 1)}.items():
        np.lib.format.open_memmap(directory / f"0/{name}.mmap", "w+", np.float16, shape)[:] = 1
    return [f"method.trak_store.path={directory}", "method.trak_store.experiments=[a]"]


def features_files(directory: Path) -> list[str]:
    """Write the smallest files of features, and return the settings that name them."""
    words = []
    for part in ("train", "queries"):
        np.save(directory / f"{part}.npy", np.ones((1, 1)))
        words.append(f"method.features.{part}={directory / part}.npy")
    return words


INPUT_FILES = {
    "external": scores_file,
    "trak_store": trak_store,
    "features": features_files,
    "from_checkpoint": checkpoint,
    "my_checkpoint": checkpoint,
}


NEEDED = {"evaluation=lds_noisy": ["sampling.steps=[900,800,700,600]"]}  # what a choice needs


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_is_named_after_its_file(choice, tmp_path):
    group, name = choice.split("=")
    if group == "method":
        model = ["model=ldm_tiny"] if name in LATENT_METHODS else []
        files = INPUT_FILES[name](tmp_path) if name in INPUT_FILES else []
        assert list(composed(f"method=[{name}]", *files, *model).method) == [name]
    elif name == "from_checkpoint":  # it becomes the model that the files describe
        assert composed(*checkpoint(tmp_path)).model.name == "ddpm"
    else:
        component = getattr(composed(choice, *NEEDED.get(choice, [])), group).name
        # `archive` reads several datasets
        assert name == component or name.startswith(f"{component}_") or component == "archive"


def test_the_choices_of_a_group_differ():
    assert composed("model=ddpm_tiny").model != composed("model=ddpm_small").model
    of_pixels = [m for m in METHODS if m not in (*INPUT_FILES, *LATENT_METHODS)]
    methods = composed(f"method=[{','.join(of_pixels)}]").method
    assert all(a == b or methods[a] != methods[b] for a in methods for b in methods)


def test_every_component_is_a_choice():
    used = set()
    for choice in CHOICES:
        group = choice.split("=")[0]
        if group != "method" and choice != "model=from_checkpoint":
            used.add(type(getattr(composed(choice, *NEEDED.get(choice, [])), group)))
    text = "\n".join(path.read_text() for path in CONF.rglob("*.yaml"))
    for component in COMPONENTS:
        assert component in used or f"/{component.name}@" in text, component


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("methods", ["[pixel]", "[journey]", "[trak,random]"])
def test_every_experiment_composes_with_any_methods(experiment, methods, tmp_path):
    files = INPUT_FILES[experiment](tmp_path) if experiment in INPUT_FILES else []
    free = [f"vary.{f.name}=[]" for f in fields(Vary)]  # axes without effect are refused
    run = composed(f"experiment={experiment}", f"method={methods}", *free, *files)
    assert list(run.method) == methods.strip("[]").split(",")


def test_attribution_sets_every_gradient_method_and_a_method_may_differ():
    run = composed("attribution.num_samples=8", "method.trak.num_samples=16")
    assert (run.method["journey"].num_samples, run.method["trak"].num_samples) == (8, 16)
    names = [m for m in METHODS if not re.match("external|features|trak|latent|caption", m)]
    for f in fields(GradientSettings):
        value = {bool: True, int: 4}.get(type(f.default))
        if value is not None:
            overrides = (f"attribution.{f.name}={value}", "attribution.num_samples=4")
            chosen = names
            if f.name == "train_timesteps":  # which adjoint refuses: its windows add up
                chosen = [name for name in names if not name.startswith("adjoint")]
            run = composed(f"method=[{','.join(chosen)}]", *overrides)
            methods = [m for m in run.method.values() if isinstance(m, GradientSettings)]
            assert len(methods) == 12 - len(names) + len(chosen)
            assert {getattr(method, f.name) for method in methods} == {value}


def test_a_method_shares_a_setting_unless_it_has_another_default():
    words = ("attribution.num_checkpoints=2", "attribution.num_samples=8", "compute.precision=bf16")
    run = composed("method=[journey,unlearning,magic,trak]", *words, "method.trak.precision=fp32")
    precision = {
        name: run.method[name].precision.value for name in ("journey", "unlearning", "trak")
    }
    assert precision == {"journey": "bf16", "unlearning": "bf16", "trak": "fp32"}
    samples = {name: method.num_samples for name, method in run.method.items()}
    assert samples == {"journey": 8, "unlearning": 4, "magic": 8, "trak": 8}
    checkpoints = {name: method.num_checkpoints for name, method in run.method.items()}
    assert checkpoints == {"journey": 2, "unlearning": 1, "magic": 1, "trak": 2}


def test_every_gradient_setting_is_documented():
    for f in fields(GradientSettings):
        assert re.fullmatch(r"[A-Z].*\.", f.metadata["help"]), f.name


def test_variants_differ_in_one_field_and_no_variant_occurs_twice():
    axes = ("vary.target=[step,trajectory,final_sample]", "vary.num_samples=[8,32]")
    run = composed("method=[journey,trak,pixel]", *axes)
    variants = ["journey-trajectory", "journey-num_samples-8", "trak-num_samples-8"]
    assert list(run.all_methods) == ["journey", "trak", "pixel", *variants]
    assert run.all_methods["journey-num_samples-8"].num_samples == 8
    assert run.all_methods["journey-trajectory"].target is Target.trajectory


def test_a_field_without_effect_on_a_method_is_no_axis_of_it():
    axes = ("vary.damping=[1.0]", "vary.train_timesteps=[100]")
    run = composed("method=[journey,gradient_dot]", *axes)
    variants = {"journey-damping-1.0"}
    variants |= {"journey-train_timesteps-100", "gradient_dot-train_timesteps-100"}
    assert set(run.all_methods) == {"journey", "gradient_dot", *variants}


@pytest.mark.parametrize(
    ("method", "model", "allowed"),
    [
        ("nda", "ldm_tiny", "a model of pixels, such as ddpm_tiny"),
        ("latent", "ddpm_tiny", "a model of latents, such as ldm_tiny"),
        ("caption", "ddpm_tiny", "a model that reads text, such as ldm_tiny"),
    ],
)
def test_a_method_is_refused_with_a_model_it_does_not_support(method, model, allowed):
    message = rf"method\.{method}={method} on \w+[^:]*: must be used with {allowed}"
    with pytest.raises(ConfigError, match=message):
        composed(f"method=[{method}]", f"model={model}")


def test_a_run_in_plain_python_is_checked_too():
    with pytest.raises(ConfigError, match=r"dataset=\?\?\?: must be one of its choices"):
        RunConfig(method={"a": NonparametricScore()})
    with pytest.raises(ConfigError, match=r"method\.a="):
        small_run(method={"a": "pixel"})


def test_the_settings_of_digits():
    run = composed("experiment=digits")
    retraining, training, method = run.retraining, run.training, run.method["journey"]
    assert (run.dataset.num_train, retraining.num_subsets, retraining.num_seeds) == (1000, 32, 1)
    assert (training.num_steps, training.batch_size, run.sampling.num_queries) == (600, 64, 96)
    assert run.sampling.steps == [600, 500, 400, 300, 200, 100, 20]
    assert (method.num_samples, retraining.num_samples, method.num_checkpoints) == (64, 64, 3)


@pytest.mark.parametrize(
    ("experiment", "num_images"),
    [("cifar10", 50_000), ("cifar2", 5_000), ("fashion_mnist", 5_000), ("coco", 118_287)],
)
def test_full_size_experiments_train_for_200_epochs_with_the_augmentations_of_attribution(
    experiment, num_images
):
    run = composed(f"experiment={experiment}")
    training, method = run.training, run.method["journey"]
    plan = (training.num_steps, training.batch_size, training.learning_rate, training.warmup_steps)
    assert plan == (200 * num_images // 128, 128, 1e-4, 0)
    mirrored = experiment.startswith("cifar")
    flips = Augmentation.random if mirrored else Augmentation.none
    assert (training.flip, method.flips) == (mirrored, flips)
    captions = method.captions is Augmentation.random
    assert captions == run.model.reads_text == (experiment == "coco")


NOT_VARIED = "must be empty: it has no effect on"
REFUSED = {
    "+method.journey.typo=1": r"method\.journey\.typo=1: no such key; allowed here: num_samples, ",
    "+training.typo=1": r"training\.typo=1: no such key",
    "+typo=1": r"typo=1: no such key",
    "+method.foo=1": r"method\.foo|foo",
    "training.num_steps=many": r"'many' of type 'str' .* Integer; full_key: training\.num_steps",
    "training.num_steps=0": r"training\.num_steps=0: must be in 1…",
    "training.batch_size=1001": r"training\.batch_size=1001: must be in 1…1000",
    "training.learning_rate=nan": r"training\.learning_rate=nan: must be in 1e-12…10",
    "training.warmup_steps=601": r"training\.warmup_steps=601: must be in 0…600",
    "training.clip_norm=0": r"training\.clip_norm=0\.0: must be in 1e-12…1e\+12",
    "training.ema_decay=1": r"training\.ema_decay=1\.0: must be in \[0, 1\)",
    "training.ema_decay=nan": r"training\.ema_decay=nan: must be in \[0, 1\)",
    "model=ddpm_huge": r"model=ddpm_huge: no such option; available: ddpm_cifar, ddpm_clas",
    "model=null": r"model=",
    "dataset=5": r"dataset=5",
    "model.norm_num_groups=0": r"model\.norm_num_groups=0",
    "model.block_out_channels=[12]": r"=\[12\]: must be multiples of norm_num_groups=8",
    "model.attention_blocks=[2]": r"attention_blocks=\[2\]: must be distinct indices in 0…1",
    "model.name=x": r"model\.name|name",
    "method=[nothing]": r"method=nothing: no such option; available: adjoint, adjoint_ekfac",
    "method=[journey,1]": r"method=",
    "method=journey,pixel": r"method=|journey,pixel",
    "method.journey.name=trak": r"name",
    "method.pixel.name=../x": r"name",
    "evaluation.paired_steps=[600,600]": r"paired_steps=\[600, 600\]: must be distinct",
    "evaluation.paired_steps=[]": r"evaluation\.paired_steps=\[\]: must be a non-empty list",
    "evaluation.paired_steps=[7]": r"paired_steps=\[7\]: must be among sampling\.steps",
    "evaluation.num_bootstrap=99": r"evaluation\.num_bootstrap=99: must be in 100…100000",
    "method=[]": r"method=\[\]: must be",
    "method.journey.target=somewhere": r"expected one of \[step, trajectory, final_sample\]",
    "method.pixel.target=step": r"method\.pixel\.target",
    "method.journey.damping=[]": r"damping=\[\]: must be a non-empty list",
    "method.journey.damping=[0]": r"method\.journey\.damping=0\.0: must be in 1e-12…1e\+12",
    "method.journey.damping=[1,1]": r"method\.journey\.damping=\[1\.0, 1\.0\]: must be distinct",
    "method.journey.num_samples=1001": r"journey\.num_samples=1001: must be in 1…1000",
    "attribution.antithetic=true attribution.num_samples=7": r"=7: must be even when antithetic=tr",
    "method.journey.antithetic=2": r"method\.journey\.antithetic=2: must be true or false",
    "attribution.antithetic=2": r"attribution\.antithetic=2: must be true or false",
    "vary.stratified=[0]": r"vary\.stratified=0: must be true or false",
    "retraining.num_samples=7": r"retraining\.num_samples=7: must be a multiple of 2",
    "retraining.num_samples=6 retraining.antithetic=true": r"=6: must be a multiple of 4",
    "retraining.num_subsets=100000 retraining.num_seeds=1000": r"num_seeds=100000000: must be in",
    "retraining.fraction=1.0": r"retraining\.fraction=1\.0: must be in \(0, 1\)",
    "retraining.fraction=0": r"retraining\.fraction=0\.0: must be in \(0, 1\)",
    "retraining.fraction=0.001": r"fraction=0\.001: must be such that some but not all of the \d+",
    "model.block_out_channels=[8,8,8,8,8]": r"=.*images of 8×8 can be halved 4 times",
    "compute.device=cuda:7": r"compute\.device=cuda:7: not available on this machine",
    "compute.device=tpu": r"compute\.device=tpu: must be cpu, mps, cuda",
    "compute.gradient_memory_gib=0": r"compute\.gradient_memory_gib=0\.0",
    "model.dropout=0.1 compute.processes=2": r"compute\.processes=2: must be 1 with a network that",
    "compute.workers=100000": r"compute\.workers=100000: must be in 0…",
    "compute.checkpoint_seconds=nan": r"compute\.checkpoint_seconds=nan",
    "sampling.steps=[1000]": r"sampling\.steps=\[1000\]: must be in \[0, 1000\)",
    "sampling.steps=[-1]": r"sampling\.steps=-1: must be in 0…",
    "sampling.steps=[]": r"sampling\.steps=\[\]: must be a non-empty list",
    "sampling.steps=[300,600]": r"sampling\.steps=\[300, 600\]: must be in falling order",
    "sampling.num_inference_steps=1001": r"num_inference_steps=1001: must be in 1…1000",
    "sampling.num_inference_steps=7": r"steps=.*must be timesteps .*: multiples of 142 up to 852",
    "dataset.num_train=0": r"dataset\.num_train=0: must be in 1…1797",
    "tracking.mode=offline": r"tracking\.mode",
    "tracking=tensorboard": r"tracking=tensorboard: no such option; available: jsonl, wandb",
    "tracking=wandb tracking.project=a/b": r"tracking\.project=a/b",
    "experiment=nothing": r"experiment=nothing: no such option; available: ablations, adjoint",
    "experiment=[smoke,digits]": r"experiment=\['smoke', 'digits'\]: must be one experiment",
    "task=guess": r"expected one of \[train, sample, attribute, evaluate, report, plan, status, ve",
    "name=../up": r"name=\.\./up",
    "seed=-1": r"seed=-1: must be in 0…",
    "artifacts=s3://x": r"artifacts=s3://x: must be a directory of this machine",
    "~training": r"~training.*settings cannot be removed",
    "~method.journey": r"~method\.journey.*settings cannot be removed",
    "vary.num_samples=[0]": r"method\.journey-num_samples-0\.num_samples=0: must be in 1…",
    "vary.num_samples=[8,8]": r"vary\.num_samples=\[8, 8\]: must be distinct",
    "vary.colour=[1]": r"colour",
    "method=[pixel] vary.target=[step]": rf"vary\.target=\['step'\]: {NOT_VARIED} pixel",
    "method=[gradient_dot] vary.damping=[1.0]": rf"damping=\[1\.0\]: {NOT_VARIED} gradient_dot",
    "method=[trak] vary.train_timesteps=[100]": rf"vary\.train_timesteps=\[100\]: {NOT_VARIED}",
    "attribution.projection=none vary.projection_dim=[64]": rf"_dim=\[64\]: {NOT_VARIED}",
    "vary.projection_rank=[8]": rf"vary\.projection_rank=\[8\]: {NOT_VARIED} journey",
    "attribution.projection=kronecker vary.projection_dim=[64]": rf"_dim=\[64\]: {NOT_VARIED}",
    "attribution.storage=int4": r"attribution\.storage.*expected one of \[fp32, fp16, int8\]",
    "method=[das] attribution.projection=kronecker": r"normalize=true: must be false with projecti",
    "attribution.train_timesteps=16": r"=16: must be 0 \(all\) or at least num_samples=32",
    "method.trak.train_timesteps=64": r"=64: must be 0 \(all timesteps\) unless target=step",
    "method.journey.train_timesteps=1001": r"train_timesteps=1001: must be in 0…1000",
    "method=[tracin] attribution.num_checkpoints=1": r"tracin\.num_checkpoints=1: must be in 2…",
    "method=[tracin] attribution.num_checkpoints=600": r"num_checkpoints=600: must be in 2…100",
    "method=[tracin] method.tracin.kernel=ekfac": r"kernel=ekfac: must be gram or identity where",
    "method.journey.kernel=identity method.journey.scale=influence": r"identity: must be gram",
    "method=[encoder] method.encoder.encoder=clip method.encoder.path=/nowhere": r"=/nowhere: no",
    "method=[nda] method.nda.patch_size=[4]": r"method\.nda\.patch_size=\[4\]: must be odd sizes",
    "method=[unlearning] method.unlearning.rise=[]": r"rise=\[\]: must be a non-empty list",
    "method=[unlearning] method.unlearning.damping=0": r"unlearning\.damping=0\.0: must be in",
    "method=[datamodel] method.datamodel.num_subsets=1": r"num_subsets=1: must be in 2…",
    "evaluation=emergence sampling.sampler=ddim": r"sampling\.sampler=ddim: must be ddpm: ",
    "evaluation=emergence sampling.steps=[600,300]": r"=\[600, 300\]: must be at least 3 steps",
    "evaluation=emergence evaluation.top_k=1000": r"top_k=1000: must be less than the 1000 traini",
    "evaluation=emergence evaluation.encoder.side=8": r"encoder\.side=8: must be in 32…1024",
    "evaluation=path evaluation.lds.paired_steps=[7]": r"=\[7\]: must be among sampling\.steps",
    "method.journey.query_example=mean sampling.sampler=ddim": r"=ddim: must be ddpm where",
    "method.journey.num_continuations=0": r"method\.journey\.num_continuations=0: must be in 1…",
    "method.trak.query_example=noisy": r"=noisy: must be estimate unless target=step or trajectory",
    "method=[trak] vary.query_example=[mean]": rf"query_example=\['mean'\]: {NOT_VARIED} trak",
    "method=[magic] method.magic.num_samples=0": r"method\.magic\.num_samples=0: must be in 1…1000",
    "method=[magic] training.ema_decay=0.9": r"ema_decay=0\.9: must be 0 with method\.magic",
    "method=[magic] compute.precision=bf16": r"precision=bf16: must be fp32 with method\.magic",
    "method=[magic] training.num_steps=20000": r"magic=\de\+15 multiply-adds \(20,000 training st",
    "method=[external]": r"method\.external\.path=scores\.npz: must be a file",
    "method=[trak_store]": r"path=trak_results: must be the save_dir of a trak\.TRAKer",
    "method=[traker] attribution.projection_dim=100": r"projection_dim=100: must be in 101…",
    "-m training.num_steps=600,0": r"training\.num_steps=0: must be in 1…",
    "-m experiment=smoke,nothing": r"experiment=nothing: no such option",
    "-m attribution.antithetic=true,2": r"attribution\.antithetic=2: must be true or false",
    "-m seed=range(20000)": r"sweep=20000 points: must be at most 10000",
}


@pytest.mark.parametrize(("override", "message"), REFUSED.items())
def test_bad_input_is_refused_in_one_line_before_any_compute(
    override, message, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    text = refused(monkeypatch, *override.split())
    assert re.search(message, text), text
    assert not list(tmp_path.iterdir()), "nothing is written"


def user_directory(tmp_path, name: str, **changes: str) -> Path:
    """Write a user's directory with the smoke experiment under another name, and return it."""
    text = (CONF / "experiment" / "smoke.yaml").read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / f"{name}.yaml").write_text(text)
    return tmp_path / "mine"


def test_a_typo_in_an_experiment_file_is_refused(tmp_path):
    directory = user_directory(tmp_path, "typo", num_steps="num_stepz")
    with pytest.raises(Exception, match="num_stepz"):
        composed(f"hydra.searchpath=[file://{directory}]", "experiment=typo")


@pytest.mark.parametrize(
    "words", ["--config-dir={}", "--config-dir {}", "hydra.searchpath=[file://{}]"]
)
def test_a_users_file_that_would_not_be_read_is_refused(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = user_directory(tmp_path, "smoke", num_steps="num_stepz")
    words = (*words.format(directory).split(), "experiment=smoke", "task=plan")
    expected = "experiment/smoke.yaml=smoke: must be renamed: journey has its own experiment/smoke"
    assert expected in refused(monkeypatch, *words)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]], ids=["one", "sweep"])
def test_a_users_own_experiment_is_a_choice(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"--config-dir={user_directory(tmp_path, 'mine')}", "experiment=mine", "task=plan"]
    monkeypatch.setattr("sys.argv", ["journey", *sweep[:1], *words, *sweep[1:]])
    entry.main()
    assert capsys.readouterr().out.count("featurize") == (2 if sweep else 1)
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["mine.yaml"], "planning writes nothing"


def test_help_lists_every_choice(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["journey", "--help"])
    entry.main()
    text = capsys.readouterr().out
    assert text == (CONF.parent / "docs/help.txt").read_text(), "journey --help > docs/help.txt"
    text = re.sub(r"\n {16}", " ", text)  # long lists take several lines
    for choice in (*CHOICES, *(f"experiment={name}" for name in EXPERIMENTS)):
        group, name = choice.split("=")
        line = next(line for line in text.splitlines() if line.startswith(f"    {group} "))
        assert name in re.split(r"[ ,]+", line)


def test_the_reference_of_settings_is_that_of_the_code():
    text = (CONF.parent / "docs/settings.md").read_text()
    assert text == reference(), "python -m journey.config.reference > docs/settings.md"
    assert undocumented() == []


def test_without_words_and_with_version_nothing_starts(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words, expected in (([], "experiment=digits"), (["--version"], journey.__version__)):
        monkeypatch.setattr("sys.argv", ["journey", *words])
        entry.main()
        assert expected in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


MEANT = {
    "experiment=digit": "experiment=digits",
    "digits": "experiment=digits",
    "datset=digits": "dataset",
    "num_steps=3": "training.num_steps",
    "trainng.num_steps=3": "training.num_steps",
    "training.num_stesp=3": "training.num_steps",
    "method.journey.num_sample=3": "method.journey.num_samples",
    "task=reprot": "report",
    "model=ddpm_tin": "ddpm_tiny",
}


@pytest.mark.parametrize("word", MEANT)
def test_what_was_meant_is_suggested(word, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (meant,) = re.findall(r"did you mean ([\w.=]+)\?", refused(monkeypatch, word))
    assert meant == MEANT[word] or f"{word.partition('=')[0]}={meant}" == MEANT[word]


def test_a_shell_completes_words(monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", "journey experiment=sm")
    monkeypatch.setattr("sys.argv", ["journey", "-sc", "query=bash"])
    entry.main()
    assert capsys.readouterr().out.split() == ["experiment=smoke"]


def test_every_setting_is_read_by_code_beside_the_checks():
    """Interpolations in YAML read settings, too."""
    text = "\n".join(path.read_text() for path in CONF.rglob("*.yaml"))
    read = set(re.findall(r"\$\{(\w+)", text))
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        skipped = set()
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and re.match("check(_|$)|__post_init", node.name):
                skipped |= {id(inner) for inner in ast.walk(node)}
        read |= {n.attr for n in nodes if isinstance(n, ast.Attribute) and id(n) not in skipped}
    classes = [c for c in vars(settings_module).values() if inspect.isclass(c)]
    settings = [c for c in classes if hasattr(c, "__dataclass_fields__")]
    for component in (*COMPONENTS, *settings, RunConfig, Vary):
        assert {f.name for f in fields(component)} <= read, component.__name__
