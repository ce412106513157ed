"""Any command line is accepted, or refused in one line; and certainly wrong values are refused.

Most inputs change a copy of one composed configuration, as Hydra does: 6 ms instead of 200.
"""

import copy
import random
import sys
import time
from collections.abc import Iterator
from enum import Enum

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from journey import __main__ as entry
from journey.cli import _check_override, refuse_numbers_for_booleans
from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas

METHODS = "[journey,tracin,unlearning,datamodel,magic,nda,encoder,pixel,traker]"
BASE = ["experiment=smoke", f"method={METHODS}", "attribution.num_checkpoints=2", "tracking=wandb"]
REFUSED, ACCEPTED = "refused", "accepted"
SEEDS = ("seed", "dataset.seed")

words_of = str.split
NEVER = words_of("null {a:1} ??? ${nothing.there} ${oc.env:NOT_THERE} [null] [x] [[1]] [nan]")
NEVER.append("${training}")
WRONG = {  # values that no setting of such a type may have
    bool: [*NEVER, *words_of("2 -1 x nan '' 1.5")],
    int: [*NEVER, *words_of("-5 9223372036854775808 1.5 nan inf x true '' 1e3 [1]"), "'8 9'"],
    float: [*NEVER, *words_of("nan inf -inf -1 x true '' 1e400 [1]")],
    str: words_of("null {a:1} ??? ${nothing.there} [x] [1]"),
    Enum: [*NEVER, *words_of("x STEP Fp32 2 true '' nan [1]")],
    list: [*NEVER, *words_of("3 x true '' nan [1,1] [1.5,x] [-3] ${seed} [1e300] [{a:1}]")],
}
WRONG[list].append("${oc.env:HOME}")
ODD = words_of("0 -0.0 1 2 7 1e-300 1e300 10000000 1000000000 [] [1] [600,300] ß 08 off")
ODD.append("'a b'")


@pytest.fixture(scope="module")
def base() -> DictConfig:
    register_schemas(COMPONENTS)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", BASE)


def leaves(node: DictConfig, path: str = "") -> Iterator[tuple[str, type]]:
    """Yield the name and the type of every setting."""
    for key in node:
        value, name = node[key], f"{path}{key}"
        if isinstance(value, DictConfig):
            yield from leaves(value, f"{name}.")
        elif isinstance(value, ListConfig):
            yield name, list
        elif value is None:  # of all settings, a number that the machine decides by default
            yield name, float
        else:
            yield name, next(t for t in (bool, int, float, str, Enum) if isinstance(value, t))


def outcome(text: str, base: DictConfig) -> str:
    """Return whether one setting, beside those of the base, is accepted."""
    changed = copy.deepcopy(base)
    try:
        with entry.one_line_errors():
            (override,) = OverridesParser.create().parse_overrides([text])
            _check_override(override)
            OmegaConf.update(changed, override.key_or_group, override.value(), merge=True)
            parse(changed)
            refuse_numbers_for_booleans([text], changed)
    except SystemExit as stopped:
        message = str(stopped.code)
        assert message.startswith("error: "), message
        assert message.isprintable(), message
        assert len(message) < 1200
        return REFUSED
    return ACCEPTED


def test_the_base_is_accepted_setting_by_setting(base):
    for name, _ in leaves(base):
        value = OmegaConf.select(base, name)
        if isinstance(value, ListConfig):
            value = f"[{','.join(map(str, value))}]"
        value = value.name if isinstance(value, Enum) else value
        value = "null" if value is None else value
        assert outcome(f"{name}={value}", base) == ACCEPTED, name


def test_no_setting_accepts_a_wrong_value_for_its_type(base):
    sampler = random.Random(0)
    texts = []
    for name, kind in leaves(base):
        wrong = WRONG[kind]
        if name == "tracking.tags":  # any texts
            wrong = words_of("3 x true '' [1,1] [{a:1}]")
        if name == "compute.gradient_memory_gib":  # null: the machine decides
            wrong = [value for value in wrong if value != "null"]
        texts += [f"{name}={value}" for value in sampler.sample(wrong, 5)]
    assert len(texts) > 300
    assert [text for text in texts if outcome(text, base) == ACCEPTED] == []


def test_no_count_is_so_large_that_planning_it_hangs(base):
    others = (*SEEDS, "training.num_steps")
    counts = [name for name, kind in leaves(base) if kind is int and name not in others]
    assert len(counts) > 20
    for name in counts:
        assert {outcome(f"{name}={number}", base) for number in (10**7, 10**9)} == {REFUSED}, name
    assert outcome("training.num_steps=10000000000", base) == REFUSED


def test_odd_values_are_accepted_or_refused_in_one_line(base):
    names = [name for name, _ in leaves(base)]
    names += [name for name in base if isinstance(base[name], DictConfig)]
    names += ["method.journey", "nothing", "training.nothing"]
    texts = [f"{name}={value}" for name in names for value in ODD]
    outcomes = [outcome(text, base) for text in random.Random(0).sample(texts, 300)]
    assert 10 < outcomes.count(ACCEPTED) < 290  # both happen


ALSO_REFUSED = """
--frobnicate|--cfg|--cfg=x|--config-name=x|--config-dir=no-such-place|seed=1 -m seed=2|--mult|=3
seed|smoke|seed=1,2|hydra.mode=MULTIRUN|hydra.run.dir=x|hydra.sweeper.params={seed:1}|seed=${seed}
hydra.searchpath=[no-such-place]|hydra/launcher=null|sampling.steps.x=1|model@other=ddpm_small
method={a:b}|method=[pixel,pixel]|+method.x={}|+method.x={target:step}|+method.x=null|+x=1
attribution={antithetic:2}|dataset=cifar10|dataset.name=cifar10|tracking.name=wandb
training=${seed}|vary=${sampling}|compute.device=cuda:99999999999999999999|artifacts=~nobody-has-this-name/x
-m seed=range(5,1)|-m seed=range(1,2,0)|-m seed=shuffle(range(1000000000))|-m seed=interval(0,1)
-m experiment=glob(*)|-m experiment=smoke,null|-m training.learning_rate=range(0.1,1,1e-12)
"""
COMMANDS = [*ALSO_REFUSED.strip().replace("\n", "|").split("|"), "name=" + "a" * 101]
COMMANDS.append("name=" + "a" * 10000)


def message_of(monkeypatch, *words: str) -> str:
    """Return the message that a command stops with, or "" if it does not stop."""
    monkeypatch.setattr(sys, "argv", ["journey", *words])
    try:
        entry.main()
    except SystemExit as stopped:
        return str(stopped.code)
    return ""


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[:40])
def test_wrong_commands_are_refused_in_one_line(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    # Were it accepted, planning would at least train nothing.
    message = message_of(monkeypatch, *words.split(), "task=plan")
    assert message.startswith("error: ")
    assert message.isprintable()
    assert not list(tmp_path.iterdir()), "nothing is written"


BROKEN = {
    "unparsable": b"training: [1",
    "tab": b"training:\n\tnum_steps: 3",
    "binary": bytes(range(256)),
    "a number": b"3",
    "nothing": b"",
    "twice": b"name: a\nname: b",
    "a list for a map": b"training: [1, 2]",
    "a map for a list": b"sampling: {steps: {a: 1}}",
    "lists in a list": b"sampling: {steps: [[600]]}",
    "no defaults list": b"defaults: 3",
    "itself": b"defaults: [broken]",
    "a method without type": b"method: {new: {target: step}}",
    "a hidden sweep": b"hydra: {mode: MULTIRUN}",
    "code": b"seed: !!python/object/apply:os.getpid []",
    "a number too long": b"seed: " + b"9" * 5000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_users_broken_file_is_refused_in_one_line(content, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    head = b"# @package _global_\n" if content else b""
    (tmp_path / "mine" / "experiment" / "broken.yaml").write_bytes(head + content)
    message = message_of(monkeypatch, "--config-dir=mine", "experiment=broken", "task=plan")
    assert message.startswith("error: ")
    assert message.isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["config.yaml", "schema.yaml", "schema/method/pixel.yaml"])
def test_a_users_file_cannot_replace_a_file_of_journey(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    (tmp_path / "mine" / name).write_text("{}")
    message = message_of(monkeypatch, "--config-dir=mine", "experiment=smoke", "task=plan")
    assert "must be renamed: journey has" in message


@pytest.mark.parametrize(
    "words",
    ["retraining.num_subsets=10000", "method=[datamodel] method.datamodel.num_subsets=10000"],
)
def test_the_largest_accepted_run_is_planned_in_seconds(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    started = time.process_time()
    assert message_of(monkeypatch, "experiment=smoke", "task=plan", *words.split()) == ""
    assert time.process_time() - started < 10


@pytest.mark.parametrize("path", ["artifacts", "reports"])
def test_a_directory_that_is_a_file_is_refused(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    message = message_of(monkeypatch, f"{path}=file", "task=plan")
    assert f"error: {path}=file: must be a directory" in message
    assert (tmp_path / "file").read_text() == "mine"
