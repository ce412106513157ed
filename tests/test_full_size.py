"""Experiments that need a GPU, on miniatures of their datasets: every stage with the networks they name, for a few steps."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import miniatures
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors import safe_open

from journey.__main__ import dispatch
from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas
from journey.config.run import RunConfig
from journey.diffusion.pipeline import pipeline
from journey.engine.graph import missing
from journey.engine.spec import Spec
from journey.engine.workspace import Workspace, get
from journey.evaluation.rows import method_names
from journey.launch.local import Local
from journey.pipeline.interfaces import FullData, Measure

FEW = (
    "training={num_steps:2,batch_size:1}", "sampling={num_inference_steps:2,num_queries:4,steps:[500]}",
    "attribution={num_checkpoints:1,num_samples:2,projection_dim:64}", "retraining={num_subsets:8,num_seeds:1,num_samples:2}",
    "evaluation={paired_steps:[500],num_bootstrap:100}", "compute.precision=bf16",
)  # fmt: skip


@dataclass
class OneByOne(Local):
    """In this process, which alone knows the miniatures' checksums; a retrained model goes once it is measured."""

    def make(self, targets: list[Spec], workspace: Workspace) -> Iterator[Spec]:
        for spec in missing(targets, lambda spec: workspace.store.find(spec) is not None).values():
            get(spec, workspace)
            if isinstance(spec, Measure) and spec.checkpoint.subset != FullData():
                shutil.rmtree(get(spec.checkpoint, workspace).directory)
            yield spec


def small(experiment: str, directory: Path, *words: str) -> RunConfig:
    """An experiment with little of everything."""
    register_schemas(COMPONENTS)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = parse(
            compose(
                "config",
                [f"experiment={experiment}", *FEW, f"artifacts={directory}/artifacts", *words],
            )
        )
    return replace(run, compute=OneByOne(**vars(run.compute)))


@pytest.fixture
def directory(tmp_path):
    """Where pytest would keep some hundred MB for days."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def parameters(model: Path) -> int:
    """Of a network as it is kept."""
    with safe_open(model / "diffusion_pytorch_model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - the file is no dict


@pytest.mark.parametrize(
    ("experiment", "num_train", "num_parameters"),
    [("cifar10", 20, 35_746_307), ("cifar2", 10, 35_746_307), ("fashion_mnist", 20, 35_741_697)],
)
def test_the_unet_of_the_paper_goes_the_whole_road(
    experiment, num_train, num_parameters, directory, monkeypatch
):
    random = np.random.default_rng(0)
    miniatures.cifar10(directory, random, monkeypatch)
    miniatures.idx(directory / "FashionMNIST/raw", random)
    words = (
        f"dataset.root={directory}",
        f"dataset.num_train={num_train}",
        "method=[journey,pixel]",
    )
    result = dispatch(small(experiment, directory, *words), directory / "reports" / experiment, "")
    assert method_names(result["rows"], "lds") == ["journey", "pixel"]
    assert (result["num_train"], result["num_subsets"]) == (num_train, 8)
    (model,) = (directory / "artifacts/models").iterdir()
    assert parameters(model) == num_parameters
    assert (directory / "reports" / experiment / "trajectories.png").exists()


def test_the_text_to_image_model_of_the_paper_goes_the_whole_road_between_encoders_of_a_pipeline(
    directory,
):
    miniatures.coco(
        directory / "coco", dict.fromkeys(range(12), ("RGB", (40, 24))), {0: ("L", (32, 32))}
    )
    miniatures.pipeline(directory / "pipeline")
    words = (
        f"dataset.root={directory}/coco", f"model.pretrained={directory}/pipeline", "sampling.prompts=[A dog.,A cat.]",
        "method=[journey,pixel,latent,caption]",
    )  # fmt: skip
    result = dispatch(small("coco", directory, *words), directory / "reports/coco", "")
    assert method_names(result["rows"], "lds") == ["journey", "pixel", "latent", "caption"]
    (model,) = (directory / "artifacts/models").iterdir()
    assert parameters(model) == 57_373_316
    (encoded,) = (directory / "artifacts/encoded").iterdir()
    assert [np.load(encoded / f"{name}.npy").shape for name in ("mean", "context")] == [
        (12, 4, 16, 16),
        (12, 5, 77, 1024),
    ]

    prompts = np.load(next((directory / "artifacts/journeys").glob("*/context.npy")))
    theirs, _ = pipeline(model).encode_prompt(["A dog.", "A cat."], "cpu", 1, False)
    torch.testing.assert_close(torch.from_numpy(prompts[:2, 0]), theirs, rtol=1e-3, atol=1e-4)
