"""Composing, refusing, planning and finding everything cached take a second: none of them imports torch."""

import pytest
from conftest import TINY, command, python, succeeds

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
"""  # each command in a process of its own, forked before anything was imported for it


def said(directory, *commands, first="") -> dict[str, tuple[str, list[str]]]:
    """Of each command: what it said, and what it imported of what is heavy."""
    parts = python(directory, "-c", first + CODE, *commands).stdout.split("COMMAND ")[1:]
    return {
        part.splitlines()[0]: (part, part[part.index("LOADED") :].splitlines()[0].split()[1:])
        for part in parts
    }


EXPECTED = {
    "--help": "Choices:",
    "experiment=smoke --cfg job": "num_inference_steps: 50",
    "training.num_steps=0": "error: training.num_steps=0: must be in",
    "method=[nothing]": "error: method=nothing: no such option",
    "retraining.fraction=0.001": "error: retraining.fraction=0.001: must be such that",
    "experiment=smoke task=plan": "featurize",
    "experiment=smoke compute=slurm compute.device=cuda compute.gpus=1 task=plan": "GPU-hours",
    "experiment=smoke task=status": "not begun",
    "experiment=methods task=plan": "featurize",
    "experiment=twemoji task=plan": "featurize",
    "experiment=emergence task=plan": "continuations",
    "experiment=path task=plan": "continuations",
    "experiment=localization task=plan": "continuations",
    "experiment=planted task=plan": "featurize",
    "task=verify": "every payload is what its manifest says",
}


@pytest.fixture(scope="module")
def all_said(tmp_path_factory):
    return said(tmp_path_factory.mktemp("nothing"), *EXPECTED)


@pytest.mark.parametrize("words", EXPECTED)
def test_what_needs_no_network_imports_none(all_said, words):
    printed, heavy = all_said[words]
    assert EXPECTED[words] in printed
    assert heavy == []


def test_a_cached_report_imports_no_torch(tmp_path):
    words = " ".join(TINY)
    succeeds(command(tmp_path, *TINY))
    printed, heavy = said(tmp_path, words)[words]
    assert "smoke: LDS" in printed
    assert heavy == []


def test_this_test_can_fail(tmp_path):
    ((_, heavy),) = said(tmp_path, "training.num_steps=0", first="import torch\n").values()
    assert heavy == ["torch"]
