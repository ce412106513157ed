"""Experiments of GPU size on very small datasets: all stages, and networks of full size."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import miniatures
import numpy as np
import pytest
import torch
from conftest import InThisProcess, composed
from safetensors import safe_open

from journey.__main__ import dispatch
from journey.diffusion.pipeline import pipeline
from journey.evaluation.rows import method_names

FEW = (
    "compute.precision=bf16",
    "training={num_steps:1,batch_size:1}",
    "sampling={num_inference_steps:2,num_queries:4,steps:[500]}",
    "attribution={num_checkpoints:1,num_samples:2,projection_dim:64}",
    "retraining={num_subsets:8,num_seeds:1,num_samples:2}",
    "evaluation={paired_steps:[500],num_bootstrap:100}",
)
SMALL = "model={block_out_channels:[32,32],layers_per_block:1,attention_blocks:[1]}"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Small datasets and a pipeline; deleted afterwards: pytest would keep them for days."""
    random = np.random.default_rng(0)
    miniatures.cifar10(tmp_path, random, monkeypatch)
    miniatures.idx(tmp_path / "FashionMNIST/raw", random)
    train = dict.fromkeys(range(6), ("RGB", (40, 24)))
    miniatures.coco(tmp_path / "coco", train, {0: ("L", (32, 32))})
    miniatures.pipeline(tmp_path / "pipeline")
    yield tmp_path
    shutil.rmtree(tmp_path)


def run_experiment(name: str, directory: Path, *words: str) -> dict | None:
    """Run an experiment with little of everything, and return its result."""
    root = f"dataset.root={directory}{'/coco' if name == 'coco' else ''}"
    artifacts = f"artifacts={directory}/artifacts"
    run = composed(f"experiment={name}", *FEW, root, artifacts, *words)
    run = replace(run, compute=InThisProcess(**vars(run.compute)))
    return dispatch(run, directory / "reports", "")


@pytest.mark.parametrize("experiment", ["cifar10", "fashion_mnist"])
def test_an_experiment_of_the_paper_runs_through_every_stage(experiment, directory):
    words = ("dataset.num_train=20", SMALL, "method=[journey,pixel]")
    result = run_experiment(experiment, directory, *words)
    assert method_names(result["rows"], "lds") == ["journey", "pixel"]
    assert (result["num_train"], result["num_subsets"]) == (20, 8)
    assert (directory / "reports/trajectories.png").exists()


def test_the_text_to_image_experiment_runs_with_the_encoders_of_a_pipeline(directory):
    words = (
        f"model.pretrained={directory}/pipeline",
        SMALL,
        "sampling.prompts=[A dog.,A cat.]",
        "method=[journey,pixel,latent,caption]",
    )
    result = run_experiment("coco", directory, *words)
    assert method_names(result["rows"], "lds") == ["journey", "pixel", "latent", "caption"]
    (latents,) = (directory / "artifacts/latents").iterdir()
    assert np.load(latents / "mean.npy").shape == (6, 4, 16, 16)
    assert np.load(latents / "condition.npy").shape == (6, 5, 77, 1024)

    conditions = np.load(next((directory / "artifacts/trajectories").glob("*/condition.npy")))
    exported = pipeline(next((directory / "artifacts/models").glob("*-s0-*")))
    assert exported.scheduler.config.clip_sample, "as in the authors' code"
    expected, _ = exported.encode_prompt(["A dog.", "A cat."], "cpu", 1, False)
    states = torch.from_numpy(conditions[:2, 0])
    torch.testing.assert_close(states, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("experiment", "words", "expected"),
    [
        ("cifar2", ("dataset.num_train=4",), 35_746_307),
        ("coco", ("model.pretrained={}/pipeline", "sampling.prompts=[A dog.]"), 57_373_316),
    ],
)
def test_a_network_of_the_paper_is_attributed_at_full_size(experiment, words, expected, directory):
    words = [word.format(directory) for word in words]
    run_experiment(experiment, directory, *words, "method=[journey]", "task=attribute")
    (model,) = (directory / "artifacts/models").iterdir()
    with safe_open(model / "diffusion_pytorch_model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no dict
    assert sum(map(math.prod, shapes)) == expected
    (scores,) = (directory / "artifacts/scores").glob("*/scores.npy")
    assert np.load(scores).std() > 0
