"""Training by several processes gives the numbers of one process, but for rounding."""

import json
import multiprocessing

import pytest
from commands import CHILDREN
from conftest import small_run

from journey.diffusion import train, training
from journey.diffusion.ddpm import DDPM
from journey.diffusion.distributed import BatchShare, require_no_dropout
from journey.engine import resume
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.launch.local import Local
from journey.pipeline.settings import Training

# Of five examples, one process has three and the other two.
SETTINGS = Training(num_steps=24, batch_size=5, warmup_steps=4)


def losses(root, processes: int) -> list[float]:
    """Return the loss curve of a training by several processes."""
    run = small_run(training=SETTINGS, compute=Local(checkpoint_seconds=0, processes=processes))
    workspace = Workspace(Store(root), run.compute, run.tracking, "test")
    spec = load_experiment(run, workspace.store).checkpoint(0)
    lines = (get(spec, workspace).path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def interrupted(root, processes: int, step: int) -> None:
    """Train until the state of a step is saved."""
    save = resume.Clock.save

    def save_then_stop(self, state, files=(), **rest) -> None:
        save(self, state, files, **rest)
        if state["checkpoint"] == f"resume.{step}.safetensors":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(resume.Clock, "save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            losses(root, processes)


def test_any_number_of_processes_has_the_loss_curve_of_one(tmp_path, monkeypatch):
    shares, step_gradient = [], training.step_gradient

    def recorded(losses, size, parameters, share):
        shares.append((share.processes, len(losses)))
        return step_gradient(losses, size, parameters, share)

    monkeypatch.setattr(training, "step_gradient", recorded)
    monkeypatch.setattr(train, "LOG_INTERVAL", 4)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: CHILDREN)
    one = losses(tmp_path / "one", 1)
    assert len(set(one)) == 6
    assert shares == [(1, 5)] * 24
    shares.clear()
    interrupted(tmp_path / "two", 2, 8)
    interrupted(tmp_path / "two", 1, 16)
    two = losses(tmp_path / "two", 2)
    # 4 steps are taken while the state is saved, and are taken again.
    assert shares == [(2, 3)] * 12 + [(1, 5)] * 12 + [(2, 3)] * 8
    assert two == pytest.approx(one, rel=0, abs=1e-6)


def test_dropout_is_refused_with_several_processes():
    network = DDPM(block_out_channels=[8, 16], dropout=0.1).build((1, 8, 8))
    require_no_dropout(network, BatchShare())
    allowed = r"compute\.processes=2: must be 1 with a network that has dropout"
    with pytest.raises(ConfigError, match=allowed):
        require_no_dropout(network, BatchShare(0, 2))
