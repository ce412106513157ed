import ast
import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import small_run
from hydra import compose, initialize_config_dir

import journey
from journey import __main__ as entry
from journey.attribution.baselines import NonparametricScore
from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas
from journey.config.run import RunConfig, Vary
from journey.engine.checks import ConfigError
from journey.pipeline import settings as settings_module
from journey.pipeline.settings import Augmentation, GradientSettings, Target

PACKAGE = Path(journey.__path__[0])
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
OF_LATENTS = ("latent", "caption")  # methods
SAME_MODEL = "method=(?!external|trak_store|latent|caption)"
OPTIONS = sorted(
    f"{p.parent.name}={p.stem}"
    for p in CONF.glob("*/*.yaml")
    if p.parent.name not in ("experiment", "shared")
)


def composed(*overrides: str) -> RunConfig:
    register_schemas(COMPONENTS)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("config", list(overrides)))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_is_named_after_its_file(experiment):
    assert composed(f"experiment={experiment}").name == experiment


def scores_file(directory: Path) -> list[str]:
    """Of the smallest kind, and how to say where it is."""
    np.savez(directory / "mine.npz", scores=np.zeros((1, 1)), queries=["a"], train=["b"])
    return [f"method.external.path={directory / 'mine.npz'}"]


def trak_store(directory: Path) -> list[str]:
    """Of one model, image and target."""
    said = {
        "metadata": {"train set size": 1, "JL dimension": 2},
        "experiments": {"a": {"num_targets": 1}},
    }
    for name, content in {**said, "id_0": {"0": {"is_featurized": 1}}}.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    (directory / "0").mkdir()
    for name, shape in {"grads": (1, 2), "a_grads": (1, 2), "out_to_loss": (1, 1)}.items():
        np.lib.format.open_memmap(directory / f"0/{name}.mmap", "w+", np.float16, shape)[:] = 1
    return [f"method.trak_store.path={directory}", "method.trak_store.experiments=[a]"]


READS = {"external": scores_file, "trak_store": trak_store}
"""What a method is refused without"""


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_is_named_after_its_file(option, tmp_path):
    group, name = option.split("=")
    if group == "method":
        model = ["model=ldm_tiny"] if name in OF_LATENTS else []
        assert list(
            composed(f"method=[{name}]", *READS.get(name, lambda _: [])(tmp_path), *model).method
        ) == [name]
    else:
        kind = getattr(composed(option), group).name
        assert (
            name == kind or name.startswith(f"{kind}_") or kind == "archive"
        )  # which reads several


def test_the_options_of_a_group_differ():
    runs = {name: composed(f"model={name}").model for name in ("ddpm_tiny", "ddpm_small")}
    assert runs["ddpm_tiny"] != runs["ddpm_small"]
    methods = composed(
        f"method=[{','.join(o.split('=')[1] for o in OPTIONS if re.match(SAME_MODEL, o))}]"
    ).method
    assert all(a == b or methods[a] != methods[b] for a in methods for b in methods)


def test_every_kind_is_a_choice():
    used = {
        type(getattr(composed(option), group))
        for option in OPTIONS
        if (group := option.split("=")[0]) != "method"
    }
    text = "\n".join(path.read_text() for path in CONF.rglob("*.yaml"))
    for kind in COMPONENTS:
        assert kind in used or f"/schema/method/{kind.name}@" in text, kind


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("methods", ["[pixel]", "[journey]", "[trak,random]"])
def test_every_experiment_composes_with_any_methods(experiment, methods):
    free = [f"vary.{f.name}=[]" for f in fields(Vary)]  # what has no effect on a method is refused
    run = composed(f"experiment={experiment}", f"method={methods}", *free)
    assert list(run.method) == methods.strip("[]").split(",")


def test_attribution_sets_every_gradient_method_and_a_method_may_differ():
    run = composed("attribution.num_samples=8", "method.trak.num_samples=16")
    assert (run.method["journey"].num_samples, run.method["trak"].num_samples) == (8, 16)
    every = [
        o.split("=")[1] for o in OPTIONS if re.match("method=(?!external|trak|latent|caption)", o)
    ]
    for setting in fields(GradientSettings):
        value = {bool: True, int: 4}.get(type(setting.default))
        if value is not None:
            run = composed(
                f"method=[{','.join(every)}]",
                f"attribution.{setting.name}={value}",
                "attribution.num_samples=4",
            )
            of_gradients = [m for m in run.method.values() if isinstance(m, GradientSettings)]
            assert len(of_gradients) == 10
            assert {getattr(m, setting.name) for m in of_gradients} == {value}


def test_one_precision_for_all_unless_a_method_says_otherwise():
    run = composed(
        "compute.precision=bf16", "method=[journey,unlearning,trak]", "method.trak.precision=fp32"
    )
    assert {name: m.precision.value for name, m in run.method.items()} == {
        "journey": "bf16",
        "unlearning": "bf16",
        "trak": "fp32",
    }


def test_variants_differ_in_one_field_and_none_is_there_twice():
    run = composed(
        "method=[journey,trak,pixel]",
        "vary.target=[step,trajectory,destination]",
        "vary.num_samples=[8,32]",
    )
    expected = [
        "journey",
        "trak",
        "pixel",
        "journey-trajectory",
        "journey-num_samples-8",
        "trak-num_samples-8",
    ]
    assert list(run.all_methods) == expected
    assert run.all_methods["journey-num_samples-8"].num_samples == 8
    assert run.all_methods["journey-trajectory"].target is Target.trajectory


def test_a_field_without_effect_on_a_method_is_no_axis_of_it():
    run = composed(
        "method=[journey,gradient_dot]", "vary.damping=[1.0]", "vary.train_timesteps=[100]"
    )
    expected = [
        "journey",
        "gradient_dot",
        "journey-train_timesteps-100",
        "journey-damping-1.0",
        "gradient_dot-train_timesteps-100",
    ]
    assert sorted(run.all_methods) == sorted(expected)


@pytest.mark.parametrize(
    ("method", "model", "allowed"),
    [
        ("nda", "ldm_tiny", "a model of pixels, such as ddpm_tiny"),
        ("latent", "ddpm_tiny", "a model of latents, such as ldm_tiny"),
        ("caption", "ddpm_tiny", "a model that reads text, such as ldm_tiny"),
    ],
)
def test_a_method_is_refused_on_a_model_that_has_not_what_it_needs(method, model, allowed):
    with pytest.raises(
        ConfigError, match=rf"method\.{method}={method} on \w+[^:]*: must be used with {allowed}"
    ):
        composed(f"method=[{method}]", f"model={model}")


def test_a_run_in_plain_python_is_checked_too():
    with pytest.raises(ConfigError, match=r"dataset=\?\?\?: must be one of its choices"):
        RunConfig(method={"a": NonparametricScore()})
    with pytest.raises(ConfigError, match=r"method\.a="):
        small_run(method={"a": "pixel"})


def test_digits_is_what_was_asked_for():
    run = composed("experiment=digits")
    assert (run.dataset.num_train, run.retraining.num_subsets, run.retraining.num_seeds) == (
        1000,
        32,
        1,
    )
    assert (run.training.num_steps, run.training.batch_size, run.sampling.num_queries) == (
        600,
        64,
        24,
    )
    assert run.sampling.steps == [600, 500, 400, 300, 200, 100, 20]
    assert (run.method["journey"].num_samples, run.retraining.num_samples) == (64, 64)
    assert run.method["journey"].num_checkpoints == 3


@pytest.mark.parametrize(
    ("experiment", "num_images"),
    [("cifar10", 50_000), ("cifar2", 5_000), ("fashion_mnist", 5_000), ("coco", 118_287)],
)
def test_what_is_of_the_papers_size_is_trained_for_its_200_epochs_and_seen_as_in_training(
    experiment, num_images
):
    run = composed(f"experiment={experiment}")
    of = run.training
    assert (of.num_steps, of.batch_size, of.learning_rate, of.warmup_steps) == (
        200 * num_images // 128,
        128,
        1e-4,
        0,
    )
    mirrored, journey = experiment.startswith("cifar"), run.method["journey"]
    assert (of.flip, journey.flips) == (
        mirrored,
        Augmentation.random if mirrored else Augmentation.none,
    )
    assert (
        (journey.captions is Augmentation.random) == run.model.reads_text == (experiment == "coco")
    )


REFUSED = {
    "method.journey.typo=1": r"method\.journey\.typo",
    "+method.journey.typo=1": r"method\.journey\.typo=1: no such key; allowed here: at, num_checkpoints",
    "+training.typo=1": r"training\.typo=1: no such key",
    "+typo=1": r"typo=1: no such key",
    "+method.foo=1": r"method\.foo|foo",
    "training.num_steps=many": r"Value 'many' of type 'str' could not be converted to Integer; full_key: training\.num_steps",
    "training.num_steps=0": r"training\.num_steps=0: must be in 1…",
    "training.batch_size=0": r"training\.batch_size=0",
    "training.batch_size=1001": r"training\.batch_size=1001: must be in 1…1000",
    "training.learning_rate=nan": r"training\.learning_rate=nan: must be positive and finite",
    "training.learning_rate=inf": r"training\.learning_rate=inf: must be positive and finite",
    "training.warmup_steps=601": r"training\.warmup_steps=601: must be in 0…600",
    "training.weight_decay=inf": r"training\.weight_decay=inf",
    "training.clip_norm=0": r"training\.clip_norm=0\.0: must be positive and finite",
    "training.ema_decay=1": r"training\.ema_decay=1\.0: must be in \[0, 1\)",
    "model=ddpm_huge": r"model=ddpm_huge: no such option; available: ddpm_cifar, ddpm_small, ddpm_tiny",
    "model=null": r"model=",
    "dataset=5": r"dataset=5",
    "model.norm_num_groups=0": r"model\.norm_num_groups=0",
    "model.block_out_channels=[12]": r"model\.block_out_channels=\[12\]: must be multiples of norm_num_groups=8",
    "model.attention_blocks=[2]": r"model\.attention_blocks=\[2\]: must be distinct indices in 0…1",
    "model.kind=x": r"model\.kind|kind",
    "method=[nothing]": r"method=nothing: no such option; available: unlearning, caption, das, datamodel",
    "method=[journey,1]": r"method=",
    "method=journey,pixel": r"method=|journey,pixel",
    "method.journey.name=trak": r"name",
    "method.pixel.name=../x": r"name",
    "evaluation.name=../x": r"name",
    "dataset.name=../../x": r"name",
    "evaluation.paired_steps=[600,600]": r"evaluation\.paired_steps=\[600, 600\]: must be distinct",
    "evaluation.paired_steps=[]": r"evaluation\.paired_steps=\[\]: must be a non-empty list",
    "evaluation.paired_steps=[7]": r"evaluation\.paired_steps=\[7\]: must be among sampling\.steps",
    "evaluation.num_bootstrap=99": r"evaluation\.num_bootstrap=99: must be in 100…100000",
    "method=[]": r"method=\[\]: must be",
    "method.journey.target=somewhere": r"expected one of \[step, trajectory, destination\]",
    "method.pixel.target=step": r"method\.pixel\.at",
    "method.journey.damping=[]": r"damping=\[\]: must be a non-empty list",
    "method.journey.damping=[0]": r"method\.journey\.damping=0\.0: must be in 1e-12…1e\+12",
    "method.journey.damping=[1e300]": r"method\.journey\.damping=1e\+300: must be in 1e-12…1e\+12",
    "method.journey.damping=[1,1]": r"method\.journey\.damping=\[1\.0, 1\.0\]: must be distinct",
    "method.journey.num_checkpoints=0": r"num_checkpoints=0",
    "method.journey.num_samples=1001": r"method\.journey\.num_samples=1001: must be in 1…1000",
    "method.journey.antithetic=true method.journey.num_samples=7": r"num_samples=7: must be even when antithetic=true",
    "method.journey.antithetic=2": r"method\.journey\.antithetic=2: must be true or false",
    "attribution.antithetic=2": r"attribution\.antithetic=2: must be true or false",
    "retraining.antithetic=1": r"retraining\.antithetic=1: must be true or false",
    "vary.stratified=[0]": r"vary\.stratified=0: must be true or false",
    "retraining.num_samples=1002": r"retraining\.num_samples=1002: must be in 1…1000",
    "retraining.num_samples=7": r"retraining\.num_samples=7: must be a multiple of 2",
    "retraining.num_samples=6 retraining.antithetic=true": r"retraining\.num_samples=6: must be a multiple of 4",
    "retraining.num_subsets=0": r"retraining\.num_subsets=0: must be in 8…",
    "retraining.num_seeds=0": r"retraining\.num_seeds=0: must be in 1…",
    "retraining.num_subsets=100000 retraining.num_seeds=100000": r"retraining\.num_subsets × num_seeds=10000000000: must be in",
    "retraining.fraction=1.0": r"retraining\.fraction=1\.0: must be strictly between 0 and 1",
    "retraining.fraction=0": r"retraining\.fraction=0\.0",
    "retraining.fraction=0.001": r"retraining\.fraction=0\.001: must be such that some but not all of the \d+ images of class",
    "model.block_out_channels=[8,8,8,8,8]": r"model\.block_out_channels=.*images of 8×8 can be halved 4 times",
    "compute.device=cuda:7": r"compute\.device=cuda:7: not available on this machine",
    "compute.device=tpu": r"compute\.device=tpu: must be cpu, mps, cuda",
    "compute.gradient_memory_gib=0": r"compute\.gradient_memory_gib=0\.0",
    "compute.workers=100000": r"compute\.workers=100000: must be in 0…",
    "compute.workers=-1": r"compute\.workers=-1: must be in 0…",
    "compute.checkpoint_seconds=nan": r"compute\.checkpoint_seconds=nan",
    "attribution.projection_dim=0": r"attribution\.projection_dim=0",
    "sampling.num_queries=0": r"sampling\.num_queries=0",
    "sampling.steps=[1000]": r"sampling\.steps=\[1000\]: must be in \[0, 1000\)",
    "sampling.steps=[-1]": r"sampling\.steps=\[-1\]",
    "sampling.steps=[]": r"sampling\.steps=\[\]",
    "sampling.steps=[300,600]": r"sampling\.steps=\[300, 600\]: must be in falling order",
    "sampling.num_inference_steps=1001": r"num_inference_steps=1001: must be in 1…1000",
    "sampling.num_inference_steps=7": r"sampling\.steps=.*must be timesteps the sampler visits: multiples of 142 up to 852",
    "dataset.num_train=0": r"dataset\.num_train=0: must be in 1…1797",
    "tracking.mode=offline": r"tracking\.mode",
    "tracking=tensorboard": r"tracking=tensorboard: no such option; available: jsonl, wandb",
    "tracking=wandb tracking.project=a/b": r"tracking\.project=a/b",
    "experiment=nothing": r"experiment=nothing: no such option; available: ablations, cifar10, cifar2, ",
    "experiment=[smoke,digits]": r"experiment=\['smoke', 'digits'\]: must be one experiment",
    "task=guess": r"expected one of \[train, sample, attribute, evaluate, report, plan, status, verify, export\]",
    "name=../up": r"name=\.\./up",
    "seed=-1": r"seed=-1: must be in 0…",
    "artifacts=s3://x": r"artifacts=s3://x: must be a directory of this machine",
    "reports=gs://x/y": r"reports=gs://x/y: must be a directory of this machine",
    "~training": r"~training.*: must be left out: settings cannot be removed",
    "~method.journey": r"~method\.journey.*: must be left out: settings cannot be removed",
    "vary.num_samples=[0]": r"method\.journey-num_samples-0\.num_samples=0: must be in 1…",
    "vary.num_samples=[8,8]": r"vary\.num_samples=\[8, 8\]: must be distinct",
    "vary.colour=[1]": r"colour",
    "method=[pixel] vary.target=[step]": r"vary\.at=.*: must be empty: it has no effect on pixel",
    "method=[gradient_dot] vary.damping=[1.0]": r"vary\.damping=\[1\.0\]: must be empty: it has no effect on gradient_dot",
    "method=[trak] vary.train_timesteps=[100]": r"vary\.train_timesteps=\[100\]: must be empty",
    "attribution.projection=none vary.projection_dim=[64]": r"vary\.projection_dim=\[64\]: must be empty",
    "vary.projection_rank=[8]": r"vary\.projection_rank=\[8\]: must be empty: it has no effect on journey",
    "attribution.projection=kronecker vary.projection_dim=[64]": r"vary\.projection_dim=\[64\]: must be empty",
    "attribution.storage=int4": r"attribution\.storage.*expected one of \[fp32, fp16, int8\]",
    "attribution.projection_rank=1": r"attribution\.projection_rank=1: must be in 2…",
    "method=[das] attribution.projection=kronecker": r"method\.das\.normalize=true: must be false with projection=kronecker",
    "attribution.train_timesteps=16": r"attribution\.train_timesteps=16: must be 0 \(all\) or at least num_samples=32",
    "method.trak.train_timesteps=64": r"method\.trak\.train_timesteps=64: must be 0 \(all timesteps\) unless target=step",
    "method.journey.train_timesteps=1001": r"method\.journey\.train_timesteps=1001: must be in 0…1000",
    "method.journey.ensemble=run method.journey.num_checkpoints=1": r"num_checkpoints=1: must be in 2…",
    "method.journey.ensemble=run method.journey.kernel=ekfac": r"kernel=ekfac: must be gram or identity where ensemble=run",
    "method.journey.kernel=identity method.journey.scale=influence": r"kernel=identity: must be gram",
    "method=[tracin] attribution.num_checkpoints=1": r"method\.tracin\.num_checkpoints=1: must be in 2…",
    "method=[tracin] attribution.num_checkpoints=600": r"method\.tracin\.num_checkpoints=600: must be in 2…599",
    "method=[encoder] method.encoder.encoder=clip method.encoder.path=/nowhere": r"method\.encoder\.path=/nowhere: no weights",
    "method=[nda] method.nda.patch_size=[4]": r"method\.nda\.patch_size=\[4\]: must be odd sizes",
    "method=[unlearning] method.unlearning.rise=[]": r"method\.unlearning\.rise=\[\]: must be a non-empty list",
    "method=[unlearning] method.unlearning.damping=0": r"method\.unlearning\.damping=0\.0: must be in",
    "method=[datamodel] method.datamodel.num_subsets=1": r"method\.datamodel\.num_subsets=1: must be in 2…",
    "evaluation=emergence sampling.sampler=ddim": r"sampling\.sampler=ddim: must be ddpm: others go on from x_t in one way only",
    "evaluation=emergence sampling.steps=[600,300]": r"sampling\.steps=\[600, 300\]: must be at least 3 steps",
    "evaluation=emergence evaluation.top_k=1000": r"evaluation\.top_k=1000: must be less than the 1000 training images",
    "evaluation=emergence evaluation.encoder.side=8": r"evaluation\.encoder\.side=8: must be in 32…1024",
    "evaluation=path sampling.sampler=ddim": r"sampling\.sampler=ddim: must be ddpm: others go on from x_t in one way only",
    "evaluation=path evaluation.lds.paired_steps=[7]": r"evaluation\.lds\.paired_steps=\[7\]: must be among sampling\.steps",
    "method.journey.query_example=mean sampling.sampler=ddim": r"sampling\.sampler=ddim: must be ddpm where query_example=mean",
    "method.journey.num_continuations=0": r"method\.journey\.num_continuations=0: must be in 1…",
    "method.trak.query_example=noisy": r"method\.trak\.query_example=noisy: must be estimate unless target=step or trajectory",
    "method=[trak] vary.query_example=[mean]": r"vary\.query_example=.*: must be empty: it has no effect on trak",
    "method=[magic] method.magic.num_samples=0": r"method\.magic\.num_samples=0: must be in 1…1000",
    "method=[magic] training.ema_decay=0.9": r"training\.ema_decay=0\.9: must be 0 with method\.magic",
    "method=[magic] compute.precision=bf16": r"compute\.precision=bf16: must be fp32 with method\.magic",
    "method=[magic] training.num_steps=20000": r"magic=\de\+15 multiply-adds \(20,000 training steps and back for 168 outputs\)",
    "method=[external]": r"method\.external\.path=scores\.npz: must be a file",
    "method=[trak_store]": r"method\.trak_store\.path=trak_results: must be the save_dir of a trak\.TRAKer",
    "method=[traker] attribution.projection_dim=100": r"method\.traker\.projection_dim=100: must be in 101…",
    "method=[traker] vary.train_timesteps=[100]": r"vary\.train_timesteps=\[100\]: must be empty: it has no effect on traker",
    "-m training.num_steps=600,0": r"training\.num_steps=0: must be in 1…",
    "-m experiment=smoke,nothing": r"experiment=nothing: no such option",
    "-m attribution.antithetic=true,2": r"attribution\.antithetic=2: must be true or false",
    "-m seed=range(20000)": r"sweep=20000 points: must be at most 10000",
}


def refused(monkeypatch, *words: str) -> str:
    """The one line that a command is refused with."""
    monkeypatch.setattr("sys.argv", ["journey", *words])
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    text = str(stopped.value)
    assert text.startswith("error: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("override", "message"), REFUSED.items())
def test_bad_input_is_one_line_before_any_compute(override, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = refused(monkeypatch, *override.split())
    assert re.search(message, text), text
    assert not list(tmp_path.iterdir()), "nothing is written"


def own_directory(tmp_path, name: str, **changes: str) -> Path:
    """A user's directory with the smoke experiment under another name."""
    text = (CONF / "experiment" / "smoke.yaml").read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / f"{name}.yaml").write_text(text)
    return tmp_path / "mine"


def test_a_typo_in_an_experiment_file_is_refused(tmp_path):
    mine = own_directory(tmp_path, "typo", num_steps="num_stepz")
    with pytest.raises(Exception, match="num_stepz"):
        composed(f"hydra.searchpath=[file://{mine}]", "experiment=typo")


@pytest.mark.parametrize(
    "words", ["--config-dir={}", "--config-dir {}", "hydra.searchpath=[file://{}]"]
)
def test_a_users_file_that_would_silently_not_be_read_is_refused(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = own_directory(tmp_path, "smoke", num_steps="num_stepz")
    text = refused(monkeypatch, *words.format(mine).split(), "experiment=smoke", "task=plan")
    assert (
        "experiment/smoke.yaml=smoke: must be named otherwise: journey has experiment/smoke.yaml"
        in text
    )
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]], ids=["one", "sweep"])
def test_a_users_own_experiment_is_a_choice(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = own_directory(tmp_path, "mine")
    monkeypatch.setattr(
        "sys.argv",
        ["journey", *sweep[:1], f"--config-dir={mine}", "experiment=mine", "task=plan", *sweep[1:]],
    )
    entry.main()
    assert capsys.readouterr().out.count("featurize") == (2 if sweep else 1)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["mine.yaml"], (
        "planning writes nothing"
    )


def test_help_lists_every_choice(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["journey", "--help"])
    entry.main()
    said = capsys.readouterr().out
    assert said == (CONF.parent / "docs/help.txt").read_text(), "journey --help > docs/help.txt"
    said = re.sub(r"\n {16}", " ", said)  # long lists take several lines
    for option in (*OPTIONS, *(f"experiment={name}" for name in EXPERIMENTS)):
        group, name = option.split("=")
        line = next(line for line in said.splitlines() if line.startswith(f"    {group} "))
        assert name in re.split(r"[ ,]+", line)


def test_a_shell_is_told_what_could_come_next(monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", "journey experiment=sm")
    monkeypatch.setattr("sys.argv", ["journey", "-sc", "query=bash"])
    entry.main()
    assert capsys.readouterr().out.split() == ["experiment=smoke"]


def test_every_setting_is_read_by_code():
    """Beside the checks; or by another setting."""
    read = set(
        re.findall(r"\$\{(\w+)", "\n".join(path.read_text() for path in CONF.rglob("*.yaml")))
    )
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        checks = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.FunctionDef) and re.match("check|__post_init__", n.name)
        ]
        skipped = {id(inner) for check in checks for inner in ast.walk(check)}
        read |= {
            n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and id(n) not in skipped
        }
    settings = [
        c
        for c in vars(settings_module).values()
        if inspect.isclass(c) and hasattr(c, "__dataclass_fields__")
    ]
    unread = {
        f"{c.__name__}.{f.name}"
        for c in (*COMPONENTS, *settings, RunConfig, Vary)
        for f in fields(c)
        if f.name not in read
    }
    assert not unread
