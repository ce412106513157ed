"""Composing, refusing, planning and finding everything cached take a second: none of them imports torch."""

import sys

import pytest
from conftest import TINY, command

HEAVY = ("torch", "diffusers", "transformers")
CODE = f"""
import sys
from journey.__main__ import main
try:
    main()
finally:
    print("LOADED", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


def loaded(directory, *words) -> tuple[list[str], str]:
    """What a command imported of what is heavy, and what it said."""
    done = command(directory, *words, of=("-c", CODE))
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("LOADED"))
    return line.split()[1:], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "Choices:"),
        (["experiment=smoke", "--cfg", "job"], "num_inference_steps: 50"),
        (["training.num_steps=0"], "error: training.num_steps=0: must be in"),
        (["method=[nothing]"], "error: method=nothing: no such option"),
        (["retraining.fraction=0.001"], "error: retraining.fraction=0.001: must be such that"),
        (["experiment=smoke", "task=plan"], "featurize"),
        (["experiment=smoke", "compute=slurm", "compute.device=cuda", "compute.gpus=1", "task=plan"], "GPU-hours"),
        (["experiment=smoke", "task=status"], "not begun"),
        (["experiment=methods", "task=plan"], "featurize"),
        (["experiment=twemoji", "task=plan"], "featurize"),
        (["experiment=emergence", "task=plan"], "continuations"),
        (["experiment=path", "task=plan"], "continuations"),
        (["experiment=localization", "task=plan"], "continuations"),
        (["experiment=planted", "task=plan"], "featurize"),
        (["task=verify"], "every payload is what its manifest says"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_needs_no_network_imports_none(tmp_path, words, said):
    heavy, printed = loaded(tmp_path, *words)
    assert said in printed
    assert heavy == []


def test_a_cached_report_imports_no_torch(tmp_path):
    first = command(tmp_path, *TINY)
    assert first.returncode == 0, first.stderr
    heavy, printed = loaded(tmp_path, *TINY)
    assert "smoke: LDS" in printed
    assert heavy == []


def test_this_test_can_fail(tmp_path):
    heavy = command(tmp_path, "training.num_steps=0", of=("-c", "import torch\n" + CODE)).stderr
    assert "LOADED torch" in heavy
    assert "torch" in sys.modules
