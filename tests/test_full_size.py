"""Experiments of GPU size on very small datasets: all stages, their networks, a few steps."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import miniatures
import numpy as np
import pytest
import torch
from conftest import composed
from safetensors import safe_open

from journey.__main__ import dispatch
from journey.diffusion.pipeline import pipeline
from journey.engine.graph import missing
from journey.engine.spec import Spec
from journey.engine.workspace import Workspace, get
from journey.evaluation.rows import method_names
from journey.launch.local import Local
from journey.pipeline.interfaces import FullData, Measure

FEW = (
    "compute.precision=bf16",
    "training={num_steps:1,batch_size:1}",
    "sampling={num_inference_steps:2,num_queries:4,steps:[500]}",
    "attribution={num_checkpoints:1,num_samples:2,projection_dim:64}",
    "retraining={num_subsets:8,num_seeds:1,num_samples:2}",
    "evaluation={paired_steps:[500],num_bootstrap:100}",
)


@dataclass
class OneByOne(Local):
    """Computes in this process, which knows the checksums; deletes models once measured."""

    def make(self, targets: list[Spec], workspace: Workspace) -> Iterator[Spec]:
        for spec in missing(targets, lambda spec: workspace.store.find(spec) is not None).values():
            get(spec, workspace)
            if isinstance(spec, Measure) and spec.checkpoint.subset != FullData():
                shutil.rmtree(get(spec.checkpoint, workspace).directory)
            yield spec


def run_experiment(name: str, directory: Path, *words: str) -> dict:
    """Run an experiment with little of everything, and return its result."""
    run = composed(f"experiment={name}", *FEW, f"artifacts={directory}/artifacts", *words)
    run = replace(run, compute=OneByOne(**vars(run.compute)))
    return dispatch(run, directory / "reports", "")


@pytest.fixture
def directory(tmp_path):
    """A directory that is deleted afterwards: pytest would keep some hundred MB for days."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def num_parameters(model: Path) -> int:
    """Return the number of parameters of a stored network."""
    with safe_open(model / "diffusion_pytorch_model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - the file is no dict


QUARTER = "model.block_out_channels=[32,64,64,64]"  # of the channels, in the same architecture


@pytest.mark.parametrize(
    ("experiment", "num_train", "width", "expected"),
    [
        ("cifar10", 20, (), 35_746_307),
        ("cifar2", 10, (QUARTER,), 2_245_763),
        ("fashion_mnist", 20, (QUARTER,), 2_244_609),
    ],
)
def test_the_unet_of_the_paper_runs_through_every_stage(
    experiment, num_train, width, expected, directory, monkeypatch
):
    random = np.random.default_rng(0)
    miniatures.cifar10(directory, random, monkeypatch)
    miniatures.idx(directory / "FashionMNIST/raw", random)
    words = (f"dataset.root={directory}", f"dataset.num_train={num_train}", *width)
    result = run_experiment(experiment, directory, *words, "method=[journey,pixel]")
    assert method_names(result["rows"], "lds") == ["journey", "pixel"]
    assert (result["num_train"], result["num_subsets"]) == (num_train, 8)
    (model,) = (directory / "artifacts/models").iterdir()
    assert num_parameters(model) == expected
    assert (directory / "reports/trajectories.png").exists()


def test_the_text_to_image_model_of_the_paper_runs_with_the_encoders_of_a_pipeline(directory):
    train = dict.fromkeys(range(12), ("RGB", (40, 24)))
    miniatures.coco(directory / "coco", train, {0: ("L", (32, 32))})
    miniatures.pipeline(directory / "pipeline")
    words = (
        f"dataset.root={directory}/coco",
        f"model.pretrained={directory}/pipeline",
        "sampling.prompts=[A dog.,A cat.]",
        "method=[journey,pixel,latent,caption]",
    )
    result = run_experiment("coco", directory, *words)
    assert method_names(result["rows"], "lds") == ["journey", "pixel", "latent", "caption"]
    (model,) = (directory / "artifacts/models").iterdir()
    assert num_parameters(model) == 57_373_316
    (latents,) = (directory / "artifacts/latents").iterdir()
    assert np.load(latents / "mean.npy").shape == (12, 4, 16, 16)
    assert np.load(latents / "condition.npy").shape == (12, 5, 77, 1024)

    conditions = np.load(next((directory / "artifacts/trajectories").glob("*/condition.npy")))
    expected, _ = pipeline(model).encode_prompt(["A dog.", "A cat."], "cpu", 1, False)
    states = torch.from_numpy(conditions[:2, 0])
    torch.testing.assert_close(states, expected, rtol=1e-3, atol=1e-4)
