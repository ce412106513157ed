import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import journey
from journey import __main__ as entry
from journey import config

PACKAGE = Path(journey.__path__[0])
CONF = PACKAGE / "conf"
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
OPTIONS = sorted(f"{p.parent.name}={p.stem}" for p in CONF.glob("*/*.yaml") if p.parent.name != "experiment")


def composed(*overrides: str) -> config.Config:
    config.register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return config.parse(compose("config", list(overrides)))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_is_named_after_its_file(experiment):
    assert composed(f"experiment={experiment}").name == experiment


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_is_named_after_its_file(option):
    group, name = option.split("=")
    if group == "method":
        assert composed(f"method=[{name}]").method[name].name == name
    else:
        assert getattr(composed(option), group).name == name


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("methods", ["[pixel]", "[journey]", "[trak,random]"])
def test_every_experiment_composes_with_any_methods(experiment, methods):
    run = composed(f"experiment={experiment}", f"method={methods}")
    assert list(run.method) == methods.strip("[]").split(",")


def test_attribution_sets_every_gradient_method_and_a_method_may_differ():
    run = composed("attribution.num_draws=8", "method.trak.num_draws=16")
    assert (run.method["journey"].num_draws, run.method["trak"].num_draws) == (8, 16)


def test_variants_differ_in_one_field_and_none_is_there_twice():
    run = composed("method=[journey,trak,pixel]", "vary.at=[step,trajectory,destination]", "vary.num_draws=[8,32]")
    expected = ["journey", "trak", "pixel", "journey-trajectory", "journey-num_draws-8", "trak-num_draws-8"]
    assert list(run.judged) == expected
    assert run.judged["journey-num_draws-8"].num_draws == 8
    assert run.judged["journey-trajectory"].at is config.At.trajectory


def test_a_method_of_pixels_is_refused_on_another_model():
    class Latent(config.Model):
        pass

    for method in (config.NonparametricScore(), config.Encoder()):
        with pytest.raises(config.ConfigError, match=rf"method\.{method.name}={method.name} on model=ldm: must be used with"):
            config.Config(model=Latent("ldm"), method={method.name: method}, evaluation=config.LDS())


def test_digits_is_what_was_asked_for():
    run = composed("experiment=digits")
    assert (run.dataset.num_train, run.evaluation.num_subsets, run.evaluation.num_seeds) == (1000, 32, 1)
    assert (run.training.num_steps, run.training.batch_size, run.sampling.num_queries) == (1200, 64, 24)
    assert run.sampling.steps == [900, 700, 600, 500, 400, 300, 200, 100, 20]
    assert (run.method["journey"].num_draws, run.evaluation.num_draws) == (128, 64)
    assert run.method["journey"].num_checkpoints == 3


REFUSED = {
    "method.journey.typo=1": r"method\.journey\.typo",
    "+method.journey.typo=1": r"method\.journey\.typo=1: no such key; allowed here: name, at",
    "+training.typo=1": r"training\.typo=1: no such key",
    "+typo=1": r"typo=1: no such key",
    "+method.foo=1": r"method\.foo|foo",
    "training.num_steps=many": r"Value 'many' of type 'str' could not be converted to Integer; full_key: training\.num_steps",
    "training.num_steps=0": r"training\.num_steps=0: must be at least 1",
    "training.batch_size=0": r"training\.batch_size=0",
    "training.learning_rate=nan": r"training\.learning_rate=nan: must be positive and finite",
    "model=ddpm_huge": r"model=ddpm_huge: no such option; available: ddpm_small, ddpm_tiny",
    "method=[nothing]": r"method=nothing: no such option; available: abu, das, datamodel",
    "method.journey.name=trak": r"method\.journey\.name=trak: must be journey",
    "method.pixel.name=../x": r"method\.pixel\.name=\.\./x: must be pixel",
    "evaluation.name=../x": r"evaluation\.name=\.\./x",
    "evaluation.paired_steps=[600,600]": r"evaluation\.paired_steps=\[600, 600\]: must be distinct",
    "method=[]": r"method=\[\]: must be a non-empty list",
    "method.journey.at=somewhere": r"expected one of \[step, trajectory, destination\]",
    "method.pixel.at=step": r"method\.pixel\.at",
    "method.journey.damping=[]": r"damping=\[\]: must be a non-empty list",
    "method.journey.damping=[0]": r"method\.journey\.damping=0\.0: must be positive and finite",
    "method.journey.num_checkpoints=0": r"num_checkpoints=0",
    "method.journey.num_draws=1001": r"method\.journey\.num_draws=1001: must be at most the 1000 timesteps there are",
    "evaluation.num_draws=1002": r"evaluation\.num_draws=1002",
    "evaluation.num_draws=7": r"evaluation\.num_draws=7: must be a multiple of 2",
    "evaluation.num_subsets=0": r"evaluation\.num_subsets=0: must be at least 6",
    "evaluation.fraction=1.0": r"evaluation\.fraction=1\.0: must be strictly between 0 and 1",
    "evaluation.fraction=0": r"evaluation\.fraction=0\.0",
    "evaluation.paired_steps=[]": r"evaluation\.paired_steps=\[\]: must be a non-empty list",
    "evaluation.fraction=0.001": r"evaluation\.fraction=0\.001: must be such that some but not all of the \d+ images of class",
    "training.learning_rate=inf": r"training\.learning_rate=inf: must be positive and finite",
    "dataset.name=../../x": r"dataset\.name=\.\./\.\./x",
    "model.block_out_channels=[8,8,8,8,8]": r"model\.block_out_channels=.*images of 8×8 can be halved 4 times",
    "compute.device=cuda:7": r"compute\.device=cuda:7: not available on this machine",
    "attribution.projection_dim=0": r"attribution\.projection_dim=0",
    "evaluation.paired_steps=[7]": r"evaluation\.paired_steps=\[7\]: must be among sampling\.steps",
    "sampling.num_queries=0": r"sampling\.num_queries=0",
    "sampling.steps=[1000]": r"sampling\.steps=\[1000\]: must be in \[0, 1000\)",
    "sampling.steps=[-1]": r"sampling\.steps=\[-1\]",
    "sampling.steps=[]": r"sampling\.steps=\[\]",
    "sampling.num_inference_steps=1001": r"num_inference_steps=1001: must be in 1…1000",
    "sampling.num_inference_steps=7": r"sampling\.steps=.*must be timesteps the sampler visits: multiples of 142 up to 852",
    "dataset.num_train=0": r"dataset\.num_train=0: must be in 1…1797",
    "compute.device=tpu": r"compute\.device=tpu: must be cpu, cuda",
    "compute.gradient_memory_gib=0": r"compute\.gradient_memory_gib=0\.0",
    "tracking.mode=offline": r"tracking\.mode",
    "tracking=tensorboard": r"tracking=tensorboard: no such option; available: jsonl, wandb",
    "experiment=nothing": r"experiment=nothing: no such option; available: ablations, digits, methods, smoke",
    "task=guess": r"expected one of \[train, sample, attribute, evaluate, report, plan\]",
    "name=../up": r"name=\.\./up",
    "vary.num_draws=[0]": r"method\.journey-num_draws-0\.num_draws=0: must be at least 1",
    "vary.colour=[1]": r"colour",
    "attribution.train_window=16": r"attribution\.train_window=16: must be 0 \(all\) or at least num_draws=32",
    "method.trak.train_window=64": r"method\.trak\.train_window=64: must be 0 \(all timesteps\) unless at=step",
    "method.journey.train_window=1001": r"method\.journey\.train_window=1001: must be at most 1000",
    "method.journey.ensemble=run method.journey.num_checkpoints=1": r"num_checkpoints=1: must be at least 2",
    "method.journey.ensemble=run method.journey.kernel=ekfac": r"kernel=ekfac: must be gram or identity where ensemble=run",
    "method.journey.kernel=identity method.journey.scale=influence": r"kernel=identity: must be gram",
    "method=[tracin] attribution.num_checkpoints=1": r"method\.tracin\.num_checkpoints=1: must be at least 2",
    "method=[encoder] method.encoder.encoder=clip method.encoder.path=/nowhere": r"method\.encoder\.path=/nowhere: no weights",
    "method=[nda] method.nda.patch_size=[4]": r"method\.nda\.patch_size=\[4\]: must be odd sizes",
    "method=[abu] method.abu.rise=[]": r"method\.abu\.rise=\[\]: must be a non-empty list",
    "method=[datamodel] method.datamodel.num_subsets=1": r"method\.datamodel\.num_subsets=1: must be at least 2",
}


@pytest.mark.parametrize(("override", "message"), REFUSED.items())
def test_bad_input_is_one_line_before_any_compute(override, message, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["journey", *override.split(), f"artifacts={tmp_path / 'store'}"])
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    text = str(stopped.value)
    assert text.startswith("error: ")
    assert "\n" not in text
    assert re.search(message, text), text
    assert not (tmp_path / "store").exists()


def test_a_typo_in_an_experiment_file_is_refused(tmp_path):
    experiment = CONF / "experiment" / "smoke.yaml"
    lines = experiment.read_text().replace("num_steps:", "num_stepz:")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text(lines)
    with pytest.raises(Exception, match="num_stepz"):
        composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=typo")


def test_every_setting_is_read_by_code():
    source = "\n".join(p.read_text() for p in PACKAGE.rglob("*.py"))
    classes = [c for c in vars(config).values() if isinstance(c, type) and is_dataclass(c)]
    unread = {f"{c.__name__}.{f.name}" for c in classes for f in fields(c) if not re.search(rf"(?<!self)\.{f.name}\b", source)}
    assert not unread
