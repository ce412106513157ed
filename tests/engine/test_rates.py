"""benchmarks/rates.py measures every rate that plans use, with encoders and without."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import miniatures
import pytest
from conftest import journey_trak, small_run

from journey.data.coco import COCO
from journey.diffusion.latent import LatentDiffusion
from journey.engine.costs import read_rates
from journey.pipeline.settings import Kernel, Projection, Sampler, Sampling, Training

PATH = Path(__file__).parents[2] / "benchmarks/rates.py"
SPEC = importlib.util.spec_from_file_location("benchmark_rates", PATH)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


@pytest.fixture(autouse=True)
def one_unit_per_stage(monkeypatch):
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    monkeypatch.setattr(benchmark, "NUM_IMAGES", 16)


def test_every_rate_of_an_experiment_is_measured(tmp_path):
    kronecker = {"projection": Projection.kronecker, "projection_rank": 4}
    methods = {
        "a": journey_trak(),
        "b": journey_trak(normalize=True),
        "c": journey_trak(kernel=Kernel.ekfac),
        "d": journey_trak(**kronecker),
        "e": journey_trak(kernel=Kernel.ekfac, **kronecker),
    }
    run = small_run(artifacts=str(tmp_path), method=methods)
    benchmark.measure_all(run)
    rates = read_rates(tmp_path, run.model.label, run.compute)
    names = {"train", "sample", "measure", "ekfac"}
    kinds = ("", " normalized", " preconditioned", " kronecker", " kronecker preconditioned")
    assert rates.by_name.keys() == names | {f"featurize{kind}" for kind in kinds}
    assert rates.by_name["ekfac"].fixed_seconds > 0
    assert rates.source == "as benchmarks/rates.py measured on 1 thread of a CPU"
    assert all(rate.work > 0 and rate.seconds > 0 for rate in rates.by_name.values())
    model = benchmark.setting(run.model, (1, 8, 8), run.compute).network()
    num_bytes = 4 * sum(p.numel() for p in model.parameters())
    assert num_bytes < rates.by_name["train"].size < 300_000


@pytest.mark.parametrize("encoders", [True, False], ids=["with encoders", "without encoders"])
def test_a_latent_model_is_measured_with_its_encoders_or_without(encoders, tmp_path, capsys):
    pretrained = str(tmp_path / "pipeline")
    if encoders:
        miniatures.pipeline(tmp_path / "pipeline")
    model = LatentDiffusion(
        pretrained=pretrained, context_width=1024, text_length=77, block_out_channels=[8, 16]
    )
    run = small_run(
        artifacts=str(tmp_path),
        dataset=COCO(size=32),
        model=model,
        training=Training(num_steps=3, batch_size=4, warmup_steps=1, caption_dropout=0.3),
        sampling=Sampling(Sampler.ddim, 10, num_queries=4, steps=[600, 300], guidance=2.0),
    )
    benchmark.measure_all(run)
    rates = read_rates(tmp_path, run.model.label, run.compute)
    names = {"train", "sample", "measure", "featurize"}
    assert rates.by_name.keys() == (names | {"encode"} if encoders else names)
    assert rates.source.endswith("of a CPU" if encoders else "of a CPU, without encoders")
    assert ("model.pretrained=" in capsys.readouterr().err) is not encoders


def test_a_model_without_encoders_has_latents_of_the_same_shape_and_cost(tmp_path):
    miniatures.pipeline(tmp_path)
    model = LatentDiffusion(pretrained=str(tmp_path), context_width=1024, text_length=77)
    stand_in, _ = benchmark.at_hand(replace(model, pretrained="nowhere/nothing"), (3, 128, 128))
    assert (
        stand_in.example_shape((3, 128, 128)) == model.example_shape((3, 128, 128)) == (4, 16, 16)
    )
    assert stand_in.multiply_adds((3, 128, 128)) == model.multiply_adds((3, 128, 128))
