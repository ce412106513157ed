"""Every stage and every method on an accelerator has the numbers of the CPU, up to rounding.

By default the accelerator is a pretended one, which needs a C++ compiler; `pytest --device cuda`
takes a real one.
"""

import shutil
from pathlib import Path

import miniatures
import numpy as np
import pretended
import pytest
import safetensors.numpy
import torch
from conftest import TINY, composed

from journey.engine.graph import missing
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.launch.local import Local

TOLERANCE = {pretended.NAME: 1e-4, "cuda": 5e-2, "mps": 5e-2}  # of an array's largest value
# Adam divides gradients by their size, the rounding of a gradient near zero included.
AMPLIFIED = {"autoencode": 100, "train": 100, "intermediate": 100, "magic": 100}
METHODS = (  # but those of linear algebra alone
    "journey,trak,ekfac,dtrak,das,retrac,tracin,unlearning,magic,nda,pixel,encoder,random"
)
TEXT = "dataset.size=32 model=ldm_smoke training.caption_dropout=0.5"
RUNS = {
    "pixels": (
        *TINY,
        "dataset.num_train=20",
        f"method=[{METHODS}]",
        "method.tracin.num_checkpoints=2",
        "method.encoder.side=32",
    ),
    "logra": (
        *TINY,
        "dataset.num_train=20",
        "method=[journey,ekfac]",
        "attribution={projection:kronecker,projection_rank:4}",
    ),
    "text": (
        "experiment=coco",
        *TINY[2:],
        "attribution.num_checkpoints=1",
        *TEXT.split(),
        "sampling.guidance=2",
        "sampling.prompts=[red apple,dog face]",
        "method=[journey,ekfac,latent,caption]",
    ),
}
# Those that are compared in each run, at least.
STAGES = {
    "pixels": {"featurize", "ekfac", "score", "measure", "unlearning", "magic", "intermediate"},
    "logra": {"train", "sample", "featurize", "ekfac"},
    "text": {"autoencode", "encode", "train", "sample", "featurize", "measure"},
}


@pytest.fixture(scope="module")
def device(request) -> str:
    name = request.config.getoption("--device")
    if name != "cpu":
        return name
    if reason := pretended.reason_unavailable():
        pytest.skip(reason)
    pretended.register()
    return pretended.NAME


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return all arrays and weights of an artifact by name."""
    values = {path.name: np.load(path) for path in folder.glob("*.npy")}
    for path in folder.rglob("*.safetensors"):
        values |= safetensors.numpy.load_file(path)
    return values


@pytest.mark.parametrize("name", RUNS)
def test_every_stage_has_the_values_of_the_cpu(device, name, tmp_path):
    """Each artifact is computed on the device from artifacts of the CPU."""
    root = (f"dataset.root={tmp_path}/coco",) if name == "text" else ()
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
        again = get(spec, on_device).path
        actual = arrays(again)
        shutil.rmtree(again)
        (tmp_path / "kept").rename(path)
        assert actual.keys() == expected.keys()
        largest: dict[str, float] = {}  # of all arrays of a kind: some gradients are only rounding
        for key, value in expected.items():
            kind = key.rsplit(".", 1)[-1]
            size = np.abs(value[np.isfinite(value)]).max(initial=1e-12)
            largest[kind] = max(size, largest.get(kind, 0))
        limit = TOLERANCE[torch.device(device).type] * AMPLIFIED.get(spec.stage, 1)
        for key, value in expected.items():
            if spec.stage == "ekfac" and key != "eigenvalues":
                continue  # eigenvectors of equal eigenvalues are arbitrary
            finite = np.isfinite(value)
            np.testing.assert_array_equal(np.isfinite(actual[key]), finite, err_msg=key)
            ours, theirs = actual[key][finite].astype(float), value[finite].astype(float)
            error = np.abs(ours - theirs).max(initial=0) / largest[key.rsplit(".", 1)[-1]]
            if error > limit:
                wrong.append(f"{spec.stage} {spec.label} {key}: {error:.1g}")
        compared.add(spec.stage)
    assert not wrong
    assert compared >= STAGES[name]
