"""Words as people write them: odd texts and paths, `~`, documented commands, useless settings."""

import json
import re
import shlex
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from journey import __main__ as entry
from journey.attribution.baselines import Encoder, ImageEncoder
from journey.attribution.gradient import GradientMethod
from journey.cli import compose_config, refuse_without_effect
from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas
from journey.config.run import RunConfig
from journey.config.words import parse_words, quote_words, setting_types
from journey.diffusion.text import TextEncoder
from journey.engine.checks import ConfigError, expand_paths
from journey.pipeline.settings import Projection, Storage
from journey.tracking import Wandb, WandbMode

NAMES = """
epoch=3-step=100.pt|ü|(1)|photos (1)|#1|a#b|a b|~/x|~|$HOME|$x|a$|a,b|a, b|[a]b|a[b]|a[1|{a}b|a{b
it's|'tis|say "x"|"x|-x|--help|-|x/|/x//y/|%|100%|%j|100%done|a=b|=|==|a==b|=a|a:b|C:\\x|007|1e3
2024.10|0x1f|1_000|inf|nan|true|no|None|a;b|a&b|a&&b|<x>|a>b|!x|`x`|*|?|a*|^|a@b|@|+|+x|++x|a+b|,
,,|:|.|..|...|/|日本|😀|é|e\u0301|\\x|a\\b|a(b|a)b|)(|a(b)c(d)|f(1)|photos(1)|int|(|)|]x|}|~nobody
_|_a_b|a--b|'a'b|a'b'c|"a"b|a"|''b|checkpoint-3|v1.0.1|1.2.3|1,5|1;2|[x]/y|x/[y]|x/{y}|x/(y)|ß|ø
а|א|ا|a\u00a0b|λ=0.1|x^2|~x~
""".strip()  # without a bar, which separates them
NAMES = [name for line in NAMES.splitlines() for name in line.split("|")]
LONG = "a" * 200 + "=" + "b" * 3000


def read_back(key: str, text: str, sweep: bool = False) -> object:
    """Return the value that Hydra's grammar reads for a setting of this text."""
    (word,) = quote_words([f"{key}={text}"], COMPONENTS, sweep)
    (override,) = parse_words([word])
    return override.value()


def test_an_odd_name_is_read_as_its_characters():
    assert len(set(NAMES)) > 100
    for name in (*NAMES, LONG, " x", "x ", "a\tb"):
        assert str(read_back("dataset.root", name)) == name, name
        assert str(read_back("method.external.path", f"/data/{name}")) == f"/data/{name}", name


def test_an_odd_name_in_a_list_is_read_as_its_characters():
    for name in [name for name in NAMES if "," not in name]:
        path = f"/data/{name}"
        assert [str(v) for v in read_back("model.checkpoints", f"[{path}]")] == [path], name
        if name.count("(") == name.count(")"):
            value = read_back("model.checkpoints", f"[x.pt, {path} , 'y,z.pt']")
            assert list(map(str, value)) == ["x.pt", path, "y,z.pt"], name


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("dataset.root", "'a,b'", "a,b"),
        ("dataset.root", '"a b"', "a b"),
        ("dataset.root", r"a\,b", "a,b"),  # an escape of Hydra's
        ("dataset.root", "${seed}", "${seed}"),
        ("dataset.root", "null", None),
        ("name", "2024.10", "2024.10"),
        ("compute.sbatch.constraint", "a100&nvlink", "a100&nvlink"),
        ("compute.sbatch", "{constraint: a100}", {"constraint": "a100"}),
        (
            "compute.sbatch",
            "{gres: gpu:1, begin: 01:00:00, mem-bind: 007, x: a&b, exclusive: ''}",
            {"gres": "gpu:1", "begin": "01:00:00", "mem-bind": "007", "x": "a&b", "exclusive": ""},
        ),
        ("compute.setup", '["module load cuda"]', ["module load cuda"]),
        ("compute.setup", "[source ~/env.sh && x, y]", ["source ~/env.sh && x", "y"]),
        ("sampling.prompts", "[three o'clock, 'a, b']", ["three o'clock", "a, b"]),
        ("training.num_steps", "5", 5),
        ("sampling.steps", "[600,300]", [600, 300]),
    ],
)
def test_what_hydra_reads_stays_as_it_is(key, text, value):
    assert read_back(key, text) == value


def test_points_of_a_sweep_are_separated_by_commas():
    for key, text, values in [
        ("dataset.root", "a=1, b(2)", ["a=1", "b(2)"]),
        ("name", "01,2.10", ["01", "2.10"]),
        ("model.checkpoints", "[a=1],[b,c]", [["a=1"], ["b", "c"]]),
        ("dataset.root", "choice(a,b)", ["a", "b"]),
    ]:
        points = [getattr(value, "text", value) for value in read_back(key, text, True).list]
        assert [[str(getattr(v, "text", v)) for v in p] if isinstance(p, list) else str(p)
                for p in points] == values  # fmt: skip


def composed(*words: str) -> RunConfig:
    register_schemas(COMPONENTS)
    return parse(compose_config(quote_words(words, COMPONENTS)))


def refusal(monkeypatch, *words: str) -> str:
    """Return the line that a command is refused with, or "" if it is not."""
    monkeypatch.setattr(sys, "argv", ["journey", *words])
    try:
        entry.main()
    except SystemExit as stopped:
        text = str(stopped.code)
        assert text.startswith("error: ")
        assert text.isprintable()
        return text
    return ""


def test_a_folder_with_an_odd_name_is_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "phöne, it's (1) #2 λ=0.1 {a} 100%"
    root.mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(root / f"{i}.png")
    words = ["dataset=folder", f"dataset.root={root}", "dataset.size=8", "dataset.channels=1"]
    small = ["experiment=smoke", "dataset.num_train=16", "training.batch_size=4", "task=plan"]
    assert refusal(monkeypatch, *small, *words) == ""
    output = capsys.readouterr()
    assert "featurize" in output.out
    assert output.err.startswith("read as dataset.root='")


ODD_PATHS = {
    "dataset.root=": "a path of printable characters",
    "dataset.root=a\nb": "'a\\nb': must be a path of printable characters",
    "dataset.root=a\x1b[31mb": "a path of printable characters",
    "dataset.root=a\u202eb": "a path of printable characters",
    "dataset.root=a\udcffb": "a path of printable characters",
    "dataset.root=" + "a" * 300: "(File name too long)",
    "dataset.root=loop/x": "(Too many levels of symbolic links)",
    "dataset.root=~nobody-has-this-name/x": "no such user",
    "dataset.root=[x]": "put quotes around a text with brackets: 'dataset.root=\"[x]\"'",
    "dataset.root=null": "dataset.root",
    "artifacts=~nobody-has-this-name": "artifacts=~nobody-has-this-name: must be a path",
    "model.checkpoints=/x/epoch=3.pt": "must be a list: 'model.checkpoints=[/x/epoch=3.pt]'",
    "model.checkpoints=['']": "model.checkpoints='': must be a path",
    "training.num_steps=a=b": "'training.num_steps=\"a=b\"'",
    "dataset={root: a=b}": "dataset={root: a=b}: the value cannot be read",
    "--config-dir=": "--config-dir=: must be a directory",
    "experiment=../x": "experiment=../x: must be one of its choices",
    "tracking.mode=offline": "no such key with tracking=jsonl; allowed here: no settings",
    "training.typo=1": "training.typo=1: no such key; allowed here: num_steps, batch_size",
}


@pytest.mark.parametrize(("word", "message"), ODD_PATHS.items(), ids=[w[:30] for w in ODD_PATHS])
def test_what_no_path_can_be_is_refused_by_name(word, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    words = (word, "dataset=folder", "task=plan")
    assert message in refusal(monkeypatch, *words)


def text_settings(settings: type, prefix: str = "") -> dict[str, bool]:
    """Return the settings that are texts or lists of texts, and whether each is a path."""
    found = {}
    hints = get_type_hints(settings)
    for f in fields(settings):
        kind = hints[f.name]
        if is_dataclass(kind) and prefix != "":
            found |= text_settings(kind, f"{prefix}.{f.name}")
        elif kind is str or get_args(kind) == (str,):
            found[f"{prefix}.{f.name}"] = bool(f.metadata.get("path"))
    return found


def test_every_path_is_marked_as_one():
    found = text_settings(RunConfig, "")
    for component in COMPONENTS:
        found |= text_settings(component, component.name)
    paths = {name for name, is_path in found.items() if is_path}
    encoders = {
        f"{name}.encoder.path" for name in ("emergence", "path", "counterfactual", "image_lds")
    }
    assert paths == encoders | {
        ".artifacts", ".reports", "folder.root", "archive.root", "coco.root", "encoder.path",
        "ddpm.checkpoints", "dit.checkpoints", "ldm.checkpoints", "ldm.pretrained", "ldm.encoded",
        "external.path", "trak_store.path", "features.train", "features.queries",
        "from_checkpoint.checkpoints", "from_checkpoint.pretrained",
    }  # fmt: skip
    others = {name.rpartition(".")[2] for name in set(found) - paths}
    assert others == {
        "name", "device", "partition", "account", "qos", "setup", "project", "classes",
        "experiments", "caption_column", "label_column", "checkpoint_key", "head", "content",
        "entity", "tags", "notes",
    }  # fmt: skip


def test_a_tilde_is_the_home_directory_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "net.pt").write_text("")
    words = ("dataset=folder", "dataset.root=~/photos", "model.checkpoints=[~/net.pt]")
    run = composed(*words, "artifacts=~/store", "reports=~/out", "evaluation=emergence")
    paths = [run.dataset.root, *run.model.checkpoints, run.artifacts, run.reports]
    assert paths == [str(tmp_path / name) for name in ("photos", "net.pt", "store", "out")]
    encoder = Encoder(ImageEncoder.clip, "~/clip")
    expand_paths(encoder, "method.encoder.")
    assert encoder.path == str(tmp_path / "clip")
    words = quote_words(["--config-dir=~/mine", "hydra.searchpath=[~/mine]"], COMPONENTS)
    assert words == [f"--config-dir={tmp_path}/mine", f"hydra.searchpath=[{tmp_path}/mine]"]


NEEDS = {  # what a documented setting is used with
    "compute.": ["compute=slurm"],
    "compute.devices": ["compute.device=cuda"],
    "evaluation.candidates": ["evaluation=counterfactual", "method=[journey]"],
    "method.features": ["method=[features]"],
    "model.encoded": ["model=ldm_tiny"],
    "model.samples_latents": ["model=ldm_tiny"],
    "evaluation.features": ["evaluation=emergence"],
    "evaluation.regions": ["evaluation=localization"],
    "evaluation.windows": ["evaluation=image_lds"],
    "dataset.download": ["dataset=cifar10"],
    "dataset.size": ["dataset=mnist5k"],
    "dataset.root": ["dataset=folder"],
    "dataset.year": ["dataset=coco"],
    "dataset.held_out": ["dataset=folder"],
    "dataset.caption_column": ["dataset=folder"],
    "dataset.label_column": ["dataset=folder"],
    "tracking.mode": ["tracking=wandb"],
    "sampling.guided_outputs": ["model=ldm_tiny", "dataset=twemoji", "sampling.guidance=2",
                                "training.caption_dropout=0.1", "method=[journey]"],
}  # fmt: skip


def test_every_documented_setting_composes():
    """The code in backticks that sets something, without placeholders."""
    register_schemas(COMPONENTS)
    documented = set()
    for page in (CONF.parent / "docs").glob("*.md"):
        for code in re.findall(r"`([^`\n]+=[^`\n]+)`", page.read_text()):
            documented.add(code)
    checked = 0
    for code in sorted(documented):
        if "…" in code or "<" in code or not re.match(r"'?[a-z_]+(\.[a-z_]+)*=", code):
            continue
        words = shlex.split(code)
        keys = [word.partition("=")[0] for word in words]
        known = [setting_types(key, COMPONENTS) or (CONF / key).is_dir() for key in keys]
        if not all(known) or any(key in ("experiment", "target", "kernel") for key in keys):
            continue
        needed = [n for key, more in NEEDS.items() if code.strip("'").startswith(key) for n in more]
        if "compute.devices" in code:
            needed.remove("compute=slurm")
        compose_config(quote_words([*needed, *words], COMPONENTS))
        checked += 1
    assert checked > 15


def test_settings_by_name_take_new_names():
    run = composed("compute=slurm", "compute.sbatch={constraint: a100}", "compute.sbatch.gres=x:1")
    assert run.compute.sbatch == {"constraint": "a100", "gres": "x:1"}
    words = ("evaluation=localization", "evaluation.regions={left: [0,0,8,4], right: [0,4,8,8]}")
    run = composed(*words, "method=[journey,pixel]", "evaluation.candidates={journey: 10}")
    assert run.evaluation.regions == {"left": [0, 0, 8, 4], "right": [0, 4, 8, 8]}
    assert run.evaluation.candidates == {"journey": 10}


USELESS = {
    "attribution.projection=kronecker attribution.projection_dim=99": "unless projection=sparse, g",
    "attribution.projection=none attribution.projection_dim=99": "unless projection=sparse, gauss",
    "attribution.projection=none attribution.storage=int8": "must be fp32 with projection=none",
    "attribution.projection_rank=8": "no effect unless projection=kronecker",
    "attribution={projection_rank: 8}": "attribution.projection_rank={projection_rank: 8}: must be",
    "attribution.noise_per_checkpoint=true attribution.num_checkpoints=1": (
        "no effect unless num_checkpoints is at least 2"
    ),
    "attribution.share_noise=true method=[journey]": "no effect unless target=final_sample",
    "method.journey.share_noise=true": "no effect unless target=final_sample",
    "method.journey.num_continuations=8": "no effect unless query_example=mean",
    "method=[gradient_dot] attribution.damping=[1]": "no effect unless kernel=gram or ekfac",
    "method=[ekfac] attribution.damping_unit=diagonal": "no effect unless kernel=gram",
    "method=[datamodel] method.datamodel.estimator=difference method.datamodel.damping=[1]":
        "no effect unless estimator=ridge",
    "tracking=wandb tracking.mode=disabled tracking.project=x": "unless mode=offline or online",
    "sampling.guided_outputs=true": "must be false with sampling.guidance=1",
    "-m attribution.projection=kronecker,none attribution.projection_dim=98,99": "no effect unless",
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), USELESS.items())
def test_a_setting_without_effect_is_refused(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=smoke", "task=plan", *re.split(r" (?=\S+=)", words.removeprefix("-m "))]
    if "98" in words[-1] or "99" in words[-1]:  # a sweep, and a command
        text = refusal(monkeypatch, *["-m"] * ("98" in words[-1]), *words)
    else:
        with pytest.raises(ConfigError) as refused:
            refuse_without_effect(composed(*words).without_effect(), words)
        text = str(refused.value)
    assert message in text
    assert not (tmp_path / "artifacts").exists()


def test_a_setting_with_an_effect_on_one_method_or_point_is_accepted():
    for words in (
        ["attribution.damping=[1]", "method=[journey,gradient_dot]"],
        ["attribution.projection=kronecker"],  # experiment=smoke has a projection_dim
        ["attribution.share_noise=true", "method=[journey,trak]"],
    ):
        words = ["experiment=smoke", *words]
        refuse_without_effect(composed(*words).without_effect(), words)


def test_python_refuses_a_setting_without_effect():
    message = r"m\.projection_dim=99: must be left out unless projection=sparse, gaussian or rad"
    with pytest.raises(ConfigError, match=message):
        GradientMethod.from_values("m", {"projection": "kronecker", "projection_dim": 99})
    with pytest.raises(ConfigError, match=r"m\.storage=int8: must be fp32"):
        GradientMethod(projection=Projection.none, storage=Storage.int8).check("m")


def test_unlearning_is_quick_by_default_and_as_published_on_request():
    quick = composed("method=[unlearning]").method["unlearning"]
    published = composed("method=[published/unlearning]").method["unlearning"]
    assert (quick.num_samples, quick.rise) == (4, [0.1])
    assert (published.num_samples, published.rise) == (16, [0.1, 1.0])


CONFIGS = {"": "{}", "no JSON": "{", "a list": "[]", "a text": '{"hidden_size": "8"}', "zero":
           '{"hidden_size": 0}', "deep": "[" * 100_000, "T5": '{"d_model": 512}'}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_text_encoder_without_a_width_is_refused(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=r"config\.json.*hidden_size"):
        _ = TextEncoder(tmp_path, tmp_path, 8, masked=False).width


CLIP = {"config.json": json.dumps({"model_type": "clip"}), "model.safetensors": "x" * 2000}
NO_CLIP = {
    "nothing": {},
    "no weights": {"config.json": CLIP["config.json"]},
    "no configuration": {"model.safetensors": CLIP["model.safetensors"]},
    "another model": {**CLIP, "config.json": '{"model_type": "bert"}'},
    "a broken configuration": {**CLIP, "config.json": "{"},
    "Git LFS": {**CLIP, "model.safetensors": "version https://git-lfs.github.com/spec/v1\n"},
}


@pytest.mark.parametrize("files", NO_CLIP.values(), ids=NO_CLIP)
def test_a_directory_without_clip_is_refused_before_any_compute(files, tmp_path):
    encoder = Encoder(ImageEncoder.clip, str(tmp_path))
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=r"^method\.encoder\.path=.*: must be a directory with C"):
        encoder.weights("method.encoder")
    for name, content in CLIP.items():
        (tmp_path / name).write_text(content)
    assert encoder.weights("method.encoder") == Path(tmp_path)


@pytest.mark.parametrize(
    "variable", ["WANDB_BASE_URL=nonsense", "WANDB_MODE=x", "WANDB_RUN_ID=a/b"]
)
def test_what_wandb_refuses_is_said_before_any_compute(variable, monkeypatch):
    name, _, value = variable.partition("=")
    Wandb().ready()
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"^tracking=wandb: W&B refuses an environment variable"):
        Wandb().ready()
    Wandb(mode=WandbMode.disabled).ready()


@pytest.mark.filterwarnings("ignore")  # of what Optuna imports
@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////no/such/place.db"])
def test_what_optuna_refuses_is_said_with_its_settings(storage, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sweep = ["hydra/sweeper=optuna", "seed=0,1", "hydra.sweeper.n_trials=1"]
    message = refusal(monkeypatch, "-m", *sweep, f"hydra.sweeper.storage={storage}")
    assert message.startswith("error: hydra.sweeper.storage, study_name, sampler and n_trials: Opt")
    message = refusal(monkeypatch, "-m", *sweep[:2], "hydra.sweeper.n_trials=0")
    assert message == "error: hydra.sweeper.n_trials=0: must be in 1…10000"


def test_a_directory_of_choices_may_have_an_odd_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "it's (1), ü=#2" / "experiment"
    mine.mkdir(parents=True)
    (mine / "own.yaml").write_text("# @package _global_\nname: own\n")
    for words in ([f"--config-dir={mine.parent}"], ["--config-dir", str(mine.parent)]):
        assert refusal(monkeypatch, *words, "--cfg", "job", "experiment=own") == ""
        assert "name: own" in capsys.readouterr().out
