"""Settings of an accelerator: memory for gradients, precision, and plans on another machine."""

from dataclasses import replace

import miniatures
import pytest
import torch
from conftest import composed, refused

from journey.__main__ import dispatch
from journey.diffusion.network import gradient_memory, use_tf32
from journey.engine.checks import ConfigError
from journey.launch.local import Local

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("free_gib", "settings", "expected"),
    [
        (139.0, {}, 64.0),
        (131.0, {}, 64.0),  # the same batches, whatever little else is on the card
        (139.0, {"workers": 4}, 16.0),
        (7.5, {}, 4.0),
        (139.0, {"gradient_memory_gib": 3.0}, 3.0),
    ],
)
def test_the_memory_for_gradients_is_a_share_of_what_is_free(
    free_gib, settings, expected, monkeypatch
):
    cached = 2**30  # by PyTorch, for tensors to come
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_gib * 2**30 - cached, 2**40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * cached)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 * cached)
    assert gradient_memory(Local(device="cuda", **settings), CUDA) == expected
    assert gradient_memory(Local(), torch.device("cpu")) == 2.0


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> tuple[str, ...]:
    """Return the documented words of experiment=coco, on a miniature of its data."""
    directory = tmp_path_factory.mktemp("coco")
    miniatures.coco(
        directory / "coco", dict.fromkeys(range(130), ("RGB", (40, 24))), {0: ("L", (32, 32))}
    )
    miniatures.pipeline(directory / "pipeline")
    return (
        "experiment=coco",
        f"dataset.root={directory}/coco",
        f"model.pretrained={directory}/pipeline",
        "compute.device=cuda",
        "compute.precision=bf16",
        f"artifacts={directory}/artifacts",
    )


def test_a_machine_without_the_device_plans(coco, tmp_path, capsys, monkeypatch):
    dispatch(composed(*coco, "task=plan"), tmp_path / "reports", "")
    assert "GPU-hours" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(monkeypatch, *coco)
    assert message == "error: compute.device=cuda: not available on this machine; use cpu"


@pytest.mark.parametrize("task", ["plan", "report"])
def test_too_little_memory_is_refused_before_training(coco, task, tmp_path, monkeypatch):
    run = composed(*coco, "compute.gradient_memory_gib=1", f"task={task}")
    monkeypatch.setattr(Local, "ready", lambda self: None)
    message = r"^compute\.gradient_memory_gib=1\.0: must be at least [12]\.\d+ for this network"
    with pytest.raises(ConfigError, match=message):
        dispatch(run, tmp_path / "reports", "")
    dispatch(replace(run, task=run.task.plan, compute=Local()), tmp_path / "reports", "")


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_both_switches_of_tf32_are_set():
    """By default, PyTorch computes convolutions of float32 in TF32."""
    before = switches()
    for tf32 in (True, False):
        use_tf32(tf32)
        assert switches() == (tf32, tf32)
        name = "tf32" if tf32 else "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == name
        assert torch.backends.cudnn.conv.fp32_precision == name
    assert before[0] is False
