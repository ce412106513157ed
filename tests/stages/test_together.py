"""One model over several processes: the numbers of one process, but for rounding, whoever goes on with it."""

import json

import pytest
from conftest import small_run

from journey.artifacts.store import Store
from journey.artifacts.workspace import Workspace, get
from journey.config.checks import ConfigError
from journey.config.groups import Training
from journey.diffusion.ddpm import DDPM
from journey.diffusion.together import Share, refuse_dropout
from journey.experiment import recipes
from journey.launch.local import Local
from journey.stages import train

SETTINGS = Training(num_steps=24, batch_size=5, warmup_steps=4)  # three examples for one process, two for the other


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(train, "WINDOW", 4)


def losses(root, processes: int) -> list[float]:
    """The loss curve of a training by so many processes."""
    run = small_run(training=SETTINGS, compute=Local(checkpoint_seconds=0, processes=processes))
    workspace = Workspace(Store(root), run.compute, run.tracking, "test")
    spec = recipes(run, workspace.store).trained(0)
    lines = (get(spec, workspace).path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    one, two = losses(tmp_path / "one", 1), losses(tmp_path / "two", 2)
    assert len(one) == 6
    assert two == pytest.approx(one, rel=0, abs=1e-6)


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on(tmp_path, monkeypatch, first, then):
    one = losses(tmp_path / "one", 1)
    keep = train._keep

    def interrupted(*arguments) -> None:
        keep(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "_keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            losses(tmp_path / "two", first)
    assert len(list((tmp_path / "two").glob("models/*.partial/resume.4.safetensors"))) == 1
    assert losses(tmp_path / "two", then) == pytest.approx(one, rel=0, abs=1e-6)


def test_dropout_is_refused():
    network = DDPM(block_out_channels=[8, 16], dropout=0.1).build((1, 8, 8))
    refuse_dropout(network, Share())
    with pytest.raises(ConfigError, match=r"compute\.processes=2: must be 1 with a network that has dropout"):
        refuse_dropout(network, Share(0, 2))
