"""Every stage and every method on an accelerator has the numbers of the CPU, up to rounding.

By default the accelerator is a pretended one, which needs a C++ compiler; `pytest --device cuda`
takes a real one.
"""

import shutil
import time
from pathlib import Path

import miniatures
import numpy as np
import pretended
import pytest
import safetensors.numpy
import torch
from conftest import TINY, composed

from journey.diffusion.network import bind, get_device, use_tf32
from journey.engine import provenance
from journey.engine.graph import missing
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.experiment import load_experiment
from journey.launch.local import Local

TOLERANCE = {pretended.NAME: 1e-4, "cuda": 5e-2, "mps": 5e-2}  # of an array's largest value
# Of the root mean square error: the lists of autocast differ, and unlearning subtracts losses.
BF16_TOLERANCE, BF16_DIFFERENCE = 0.05, 0.2
# Adam divides gradients by their size, the rounding of a gradient near zero included.
AMPLIFIED = {"autoencode": 100, "train": 100, "intermediate": 100, "magic": 100}
METHODS = (  # but those of linear algebra alone
    "journey,trak,ekfac,dtrak,das,retrac,tracin,unlearning,magic,nda,pixel,encoder,random"
)
IN_BF16 = "journey,trak,ekfac,dtrak,das,retrac,tracin,unlearning"
PIXELS = (*TINY, "dataset.num_train=20", "method.tracin.num_checkpoints=2")
TEXT = (
    "experiment=coco",
    *TINY[2:],
    "attribution.num_checkpoints=1",
    *["dataset.size=32", "model=ldm_smoke", "training.caption_dropout=0.5"],
    "sampling.guidance=2",
    "sampling.prompts=[red apple,dog face]",
)
LOGRA = "attribution={projection:kronecker,projection_rank:4}"
BF16 = "compute.precision=bf16"
RUNS = {
    "pixels": (*PIXELS, f"method=[{METHODS}]", "method.encoder.side=32"),
    "logra": (*TINY, "dataset.num_train=20", LOGRA, "method=[journey,ekfac]"),
    "text": (*TEXT, "method=[journey,ekfac,latent,caption]"),
    "pixels in bf16": (*PIXELS, BF16, f"method=[{IN_BF16}]"),
    "text, logra in bf16": (*TEXT, BF16, LOGRA, "method=[journey,ekfac]"),
}
# Those that are compared in each run, at least.
STAGES = {
    "pixels": {"featurize", "ekfac", "score", "measure", "unlearning", "magic", "intermediate"},
    "logra": {"train", "sample", "featurize", "ekfac"},
    "text": {"autoencode", "encode", "train", "sample", "featurize", "measure"},
    "pixels in bf16": {"train", "sample", "featurize", "ekfac", "measure", "unlearning"},
    "text, logra in bf16": {"train", "sample", "featurize", "ekfac"},
}


@pytest.fixture(scope="module")
def device(request) -> str:
    return pretended.accelerator(request.config.getoption("--device"))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return all arrays and weights of an artifact by name."""
    values = {path.name: np.load(path) for path in folder.glob("*.npy")}
    for path in folder.rglob("*.safetensors"):
        values |= safetensors.numpy.load_file(path)
    return values


@pytest.mark.parametrize("name", RUNS)
def test_every_stage_has_the_values_of_the_cpu(device, name, tmp_path):
    """Each artifact is computed on the device from artifacts of the CPU."""
    root = (f"dataset.root={tmp_path}/coco",) if name.startswith("text") else ()
    miniatures.coco(tmp_path / "coco")
    run, store = composed(*RUNS[name], *root), Store(tmp_path / "store")
    experiment = load_experiment(run, store)
    targets = [experiment.scores(method) for method in run.all_methods.values()]
    targets.append(experiment.outputs(experiment.checkpoint(0)))
    on_cpu = Workspace(store, Local(), run.tracking, "test")
    specs = list(missing(targets, lambda spec: store.find(spec) is not None).values())
    for spec in specs:
        get(spec, on_cpu)

    compared, wrong = set(), []
    for spec in specs:
        path = store.find(spec).path
        expected = arrays(path)
        path.rename(tmp_path / "kept")
        on_device = Workspace(Store(store.root), Local(device=device), run.tracking, "test")
        artifact = get(spec, on_device)
        again, record = artifact.path, artifact.manifest["device"]
        assert record["device"] == device
        if spec.stage in STAGES[name]:
            assert not (record["tf32_matmul"])
            assert not (record["tf32_convolution"])
        actual = arrays(again)
        shutil.rmtree(again)
        (tmp_path / "kept").rename(path)
        assert actual.keys() == expected.keys()
        largest: dict[str, float] = {}  # of all arrays of a kind: some gradients are only rounding
        for key, value in expected.items():
            kind = key.rsplit(".", 1)[-1]
            size = np.abs(value[np.isfinite(value)]).max(initial=1e-12)
            largest[kind] = max(size, largest.get(kind, 0))
        in_bf16 = run.compute.precision is Precision.bf16
        limit = TOLERANCE[torch.device(device).type] * AMPLIFIED.get(spec.stage, 1)
        if in_bf16:
            limit = BF16_DIFFERENCE if spec.stage == "unlearning" else BF16_TOLERANCE
        for key, value in expected.items():
            if spec.stage == "ekfac" and key != "eigenvalues":
                continue  # eigenvectors of equal eigenvalues are arbitrary
            finite = np.isfinite(value)
            np.testing.assert_array_equal(np.isfinite(actual[key]), finite, err_msg=key)
            ours, theirs = actual[key][finite].astype(float), value[finite].astype(float)
            error = np.abs(ours - theirs)
            error = np.sqrt(np.mean(error**2)) if in_bf16 else error.max(initial=0)
            error /= largest[key.rsplit(".", 1)[-1]]
            if error > limit:
                wrong.append(f"{spec.stage} {spec.label} {key}: {error:.1g}")
        compared.add(spec.stage)
    assert not wrong
    assert compared >= STAGES[name]


@pytest.mark.parametrize("precision", Precision)
def test_the_precision_sets_both_switches_of_tf32(device, model, net, precision):
    """Until the next forward pass, so that they hold for the backward pass."""
    use_tf32(precision is not Precision.tf32)
    x_t, t = torch.randn(2, 1, 8, 8, device=device), torch.tensor([3, 5], device=device)
    bind(net.to(device), precision)(x_t, t).sum().backward()
    switches = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    assert switches == (precision is Precision.tf32,) * 2
    get_device(Local(device=device))
    assert not torch.backends.cudnn.allow_tf32, "other networks are computed in float32"


def test_the_use_of_the_device_is_recorded(device, monkeypatch):
    monkeypatch.setattr(provenance, "SAMPLE_SECONDS", 0.1)
    use_tf32(False)
    with provenance.watch_device(device) as use:
        torch.ones(2**18, device=device).sum().item()
        time.sleep(1)
    expected = {"device": device, "tf32_matmul": False, "tf32_convolution": False}
    assert expected.items() <= use.items()
    assert use["name"] == torch.get_device_module(device).get_device_name(0)
    assert use["peak_bytes"] >= 2**20
    if device == pretended.NAME:  # where it is half busy
        assert 0.1 < use["busy_seconds"] < 0.6
