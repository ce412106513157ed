"""One model over several processes: the numbers of one process, but for rounding, whoever goes on with it."""

import json

import pytest
from conftest import small_run

from journey.diffusion import train, training
from journey.diffusion.ddpm import DDPM
from journey.diffusion.distributed import BatchShare, refuse_dropout
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.launch.local import Local
from journey.pipeline.settings import Training

SETTINGS = Training(
    num_steps=24, batch_size=5, warmup_steps=4
)  # three examples for one process, two for the other


@pytest.fixture
def took(monkeypatch) -> list[tuple[int, int]]:
    """Of every step that is taken here: how many processes took it, and how many examples were this one's."""
    taken, step_gradient = [], training.step_gradient

    def told(losses, parameters, share):
        taken.append((share.processes, len(losses)))
        return step_gradient(losses, parameters, share)

    monkeypatch.setattr(training, "step_gradient", told)
    return taken


def losses(root, processes: int) -> list[float]:
    """The loss curve of a training by so many processes."""
    run = small_run(training=SETTINGS, compute=Local(checkpoint_seconds=0, processes=processes))
    workspace = Workspace(Store(root), run.compute, run.tracking, "test")
    spec = load_experiment(run, workspace.store).checkpoint(0)
    lines = (get(spec, workspace).path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def interrupted(root, processes: int, at: int, patched) -> None:
    """A training that ends once it has kept the state of a step."""
    keep = train._keep

    def kept(state, partial) -> None:
        keep(state, partial)
        if state.step == at:
            raise KeyboardInterrupt

    patched.setattr(train, "_keep", kept)
    with pytest.raises(KeyboardInterrupt):
        losses(root, processes)
    patched.undo()


def test_any_number_of_processes_has_the_loss_curve_of_one(tmp_path, monkeypatch, took):
    """Two begin, one goes on, and two end it."""
    monkeypatch.setattr(train, "WINDOW", 4)
    one = losses(tmp_path / "one", 1)
    assert len(one) == 6
    assert took == [(1, 5)] * 24
    took.clear()
    with pytest.MonkeyPatch.context() as patched:
        interrupted(tmp_path / "two", 2, 8, patched)
        interrupted(tmp_path / "two", 1, 16, patched)
    two = losses(tmp_path / "two", 2)
    assert took == [(2, 3)] * 8 + [(1, 5)] * 8 + [(2, 3)] * 8
    assert two == pytest.approx(one, rel=0, abs=1e-6)
    assert len(set(one)) == 6, "a curve"


def test_dropout_is_refused():
    network = DDPM(block_out_channels=[8, 16], dropout=0.1).build((1, 8, 8))
    refuse_dropout(network, BatchShare())
    with pytest.raises(
        ConfigError, match=r"compute\.processes=2: must be 1 with a network that has dropout"
    ):
        refuse_dropout(network, BatchShare(0, 2))
