"""A configuration from somebody else runs no code, whatever it sets: a pickle would tell."""

import os
import pickle
import sys
from pathlib import Path

import pytest

from journey import __main__ as entry
from journey.config.compose import CONF

SMOKE = (CONF / "experiment" / "smoke.yaml").read_text()
SLURM = SMOKE.replace("defaults:\n", "defaults:\n  - override /compute: slurm\n")


class Touch:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Return a function that writes a foreign file, and one that runs a command with the files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    pickled = f"_target_: pandas.read_pickle, filepath_or_buffer: {tmp_path / 'evil.pkl'}"

    def write(name: str, text: str) -> None:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("PICKLED", pickled).replace("HERE", str(tmp_path)))

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["journey", "--config-dir=mine", *words])
        message = ""
        try:
            entry.main()
        except SystemExit as stopped:
            message = str(stopped.code)
        assert not (tmp_path / "ran").exists(), "the pickle was loaded"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pkl", "mine"]
        return message

    return write, run


def test_the_pickle_would_run(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    pickle.loads((tmp_path / "evil.pkl").read_bytes())
    assert (tmp_path / "ran").exists()


ONLY_WORDS = "must be left out of configuration files: only the command line may set it"
LOGGER = "{handlers: {x: {(): pandas.read_pickle, filepath_or_buffer: HERE/evil.pkl}}}"
EXPERIMENTS = {
    "callback": (f"{SMOKE}hydra: {{callbacks: {{x: {{PICKLED}}}}}}", "hydra.callbacks"),
    "package": ("# @package hydra.callbacks\n{x: {PICKLED}}", "hydra.callbacks"),
    "default": (SMOKE.replace("defaults:", "defaults:\n  - /other@hydra.callbacks: evil"), "hydra"),
    "launcher": (f"{SMOKE}hydra: {{launcher: {{PICKLED}}}}", "hydra.launcher"),
    "sweeper": (f"{SMOKE}hydra: {{sweeper: {{_target_: os.getcwd}}}}", "hydra.sweeper._target_"),
    "sweep": (f"{SMOKE}hydra: {{mode: MULTIRUN, sweeper: {{params: {{seed: '1,2'}}}}}}", "hydra."),
    "job logging": (f"{SMOKE}hydra: {{job_logging: {LOGGER}}}", "hydra.job_logging.handlers.x"),
    "logging": (f"{SMOKE}hydra: {{hydra_logging: {LOGGER}}}", "hydra.hydra_logging.handlers.x"),
    "directory": (f"{SMOKE}hydra: {{run: {{dir: HERE/ran}}}}", "hydra.run.dir=HERE/ran"),
    "sweep directory": (f"{SMOKE}hydra: {{sweep: {{dir: HERE/ran}}}}", "hydra.sweep.dir"),
    "records": (f"{SMOKE}hydra: {{output_subdir: ran}}", "hydra.output_subdir=ran"),
    "environment": (f"{SMOKE}hydra: {{job: {{env_set: {{A: b}}}}}}", "hydra.job.env_set.A=b"),
    "working directory": (f"{SMOKE}hydra: {{job: {{chdir: true}}}}", "hydra.job.chdir=True"),
    "secret": (SMOKE.replace("name: smoke", "name: '${oc.env:HOME}'"), "name=${oc.env:HOME}"),
    "nested secret": (
        SMOKE.replace("name: smoke", "name: '${oc.${tracking}:HOME}'"), "name=${oc.${tracking}"),
    "nested function": (
        SMOKE.replace("name: smoke", "name: '${${name}.env: HOME}'"), "name=${${name}.env"),
    "hidden secret": (f"{SMOKE}dataset: {{seed: '${{oc.decode:1}}'}}".replace(
        "dataset: {num_train: 200}\n", ""), "dataset.seed=${oc.decode:1}"),
    "shell": (f"{SLURM}compute: {{setup: [touch HERE/ran]}}", "compute.setup=['touch HERE/ran']"),
    "sbatch": (f"{SLURM}compute: {{sbatch: {{prolog: x}}}}", "compute.sbatch={'prolog': 'x'}"),
    "shell of a choice": (
        SMOKE.replace("defaults:", "defaults:\n  - override /compute: cluster"), "compute.setup"),
    "component": (f"{SMOKE}model: {{PICKLED}}", "model._target_"),
    "search path": (f"{SMOKE}hydra: {{searchpath: [file://HERE]}}", "hydra.searchpath"),
    "tag": (f"{SMOKE}seed: !!python/object/apply:os.mkdir [HERE/ran]", "experiment=x"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "setting"), EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_an_experiment_runs_no_code(text, setting, foreign, tmp_path):
    write, run = foreign
    write("experiment/x.yaml", text)
    write("other/evil.yaml", "{x: {PICKLED}}")
    write("compute/cluster.yaml", "defaults: [/schema/compute/slurm@_here_]\nsetup: [echo]")
    message = run("experiment=x", "task=plan")
    assert message.startswith("error: ")
    assert message.isprintable()
    assert setting.replace("HERE", str(tmp_path)) in message
    known = ("_target_", "Key 'filepath", "search", "experiment=x")
    assert ONLY_WORDS in message or any(word in message for word in known)


WORDS = {
    "a point of a sweep": ("-m", "experiment=fine,evil"),
    "a point among others": ("-m", "experiment=evil", "seed=0,1"),
    "a choice": ("experiment=fine", "compute=evil"),
    "a group": ("experiment=fine", "+other@hydra.callbacks=evil"),
    "a printed configuration": ("experiment=evil", "--cfg", "job"),
    "a help": ("experiment=evil", "--hydra-help"),
    "a completion among words": ("experiment=evil", "--hydra-help", "-sc"),
    "no choice of ours": ("experiment=fine", "hydra/launcher=evil"),
    "a target": ("experiment=fine", "hydra.launcher._target_=os.getcwd"),
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_no_command_runs_code_of_files(words, foreign):
    write, run = foreign
    write("experiment/fine.yaml", SMOKE)
    write("experiment/evil.yaml", EXPERIMENTS["callback"][0])
    head = "# @package _global_\ndefaults: [/schema/compute/local@compute]\n"
    write("compute/evil.yaml", head + "hydra: {callbacks: {x: {PICKLED}}}")
    write("other/evil.yaml", "{x: {PICKLED}}")
    assert run(*words, *[] if words[-1] == "-sc" else ["task=plan"]).startswith("error: ")


@pytest.mark.parametrize("name", ["hydra/launcher/evil.yaml", "hydra.yaml"])
def test_files_for_hydra_are_refused(name, foreign):
    write, run = foreign
    write(name, "{PICKLED}")
    write("experiment/fine.yaml", SMOKE)
    assert "must be left out: only the command line may set Hydra's" in run("experiment=fine")


def test_what_the_command_line_chooses_is_accepted(foreign, capsys):
    write, run = foreign
    write("experiment/fine.yaml", SLURM)
    write("compute/cluster.yaml", "defaults: [/schema/compute/slurm@_here_]\nsetup: [echo]")
    for words in (
        ["compute=cluster"],
        ["compute.setup=[echo]"],
        ["compute.sbatch={constraint: a100}"],
        ["name='${oc.env:USER,me}'"],
        ["hydra.verbose=false"],
    ):
        assert run("--cfg", "job", "experiment=fine", *words) == ""
        assert "num_inference_steps: 50" in capsys.readouterr().out
