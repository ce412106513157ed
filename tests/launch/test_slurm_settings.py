"""Texts of Slurm's settings become options of the batch script, and nothing else."""

import pytest
from conftest import small_run
from submitit.slurm.slurm import _make_sbatch_string

from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Workspace
from journey.experiment import load_experiment
from journey.launch.slurm import Slurm

LINES = ["a\nrm -r x", "a\r\nx", "a\x0bx", "a\x85x", "a\u2028x", "a\x00b", "a\tb", "a\x1b[31m"]
REFUSED = [{name: text} for name in ("partition", "account", "qos") for text in (*LINES, "a b")]
REFUSED += [{"sbatch": {"constraint": text}} for text in LINES]
REFUSED += [{"sbatch": {name: "x"}} for name in (*LINES, "", "-a", "a b", "a=b", "--mem", "C")]
REFUSED += [{"setup": ["module load cuda", text]} for text in LINES]
REFUSED += [{"sbatch": {"exclusive": text}} for text in ("true", "True", "false")]
OURS = ("time", "mem", "array", "output", "job-name", "job_name", "nodes", "cpus_per_task", "wrap")


@pytest.mark.parametrize("settings", REFUSED, ids=repr)
def test_a_text_that_is_no_option_is_refused(settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=rf"^compute\.{name}") as error:
        Slurm(**settings).check("compute")
    assert str(error.value).isprintable() or name == "sbatch"


@pytest.mark.parametrize("option", OURS)
def test_an_option_that_journey_sets_is_refused(option):
    with pytest.raises(ConfigError, match=rf"compute\.sbatch\.{option}=1: must be left out; "):
        Slurm(sbatch={option: "1"}).check("compute")


def test_accepted_texts_are_one_line_of_the_script_each():
    values = {
        "constraint": "a100&nvlink",
        "comment": 'it\'s $(rm -r x); `y` "z" #',
        "exclusive": "",
    }
    values["mail_user"] = "me@example.org"
    slurm = Slurm(partition="gpu,cpu", account="a-b.c", qos="high", sbatch=values, setup=["echo 1"])
    slurm.check("compute")
    options = slurm._options()
    names = ("slurm_partition", "slurm_account", "slurm_qos", "slurm_setup")
    given = {name.removeprefix("slurm_"): options[name] for name in names}
    more = options["slurm_additional_parameters"]
    script = _make_sbatch_string("true", "logs", **given, additional_parameters=more)
    head, _, rest = script.partition("# setup\n")
    lines = head.splitlines()[3:-1]
    assert all(line.startswith("#SBATCH --") for line in lines if line)
    assert "#SBATCH --exclusive" in lines
    assert "#SBATCH --mail-user=me@example.org" in lines
    assert sum("rm -r x" in line for line in script.splitlines()) == 1
    assert rest.splitlines()[0] == "echo 1"


def test_a_store_whose_path_slurm_would_change_is_refused(tmp_path):
    run, slurm = small_run(), Slurm()
    workspace = Workspace(Store(tmp_path / "100%j"), slurm, run.tracking, "test")
    targets = [load_experiment(run, workspace.store).checkpoint(0)]
    with pytest.raises(ConfigError, match=r"^artifacts=.*: must be a path without %"):
        next(slurm.make(targets, workspace))
