"""The benchmark that plans estimate by: what it measures, with encoders and without."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import miniatures
import pytest
from conftest import journey_trak, small_run

from journey.data.coco import COCO
from journey.diffusion.latent import LatentDiffusion
from journey.engine.costs import read_rates
from journey.pipeline.settings import Kernel, Sampler, Sampling, Training

SPEC = importlib.util.spec_from_file_location(
    "benchmark_rates", Path(__file__).parents[2] / "benchmarks/rates.py"
)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """One unit of each stage."""
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    monkeypatch.setattr(benchmark, "NUM_IMAGES", 16)


def test_every_stage_that_goes_at_a_rate_is_measured(tmp_path):
    methods = {
        name: journey_trak(**of)
        for name, of in {"a": {}, "b": {"normalize": True}, "c": {"kernel": Kernel.ekfac}}.items()
    }
    run = small_run(artifacts=str(tmp_path), method=methods)
    benchmark.measure_all(run)
    found = read_rates(tmp_path, run.model.label, run.compute)
    assert set(found.of) == {"train", "sample", "measure", "featurize", "featurize normalized"}
    assert found.how == "as benchmarks/rates.py measured on 1 thread of a CPU"
    assert all(rate.work > 0 and rate.seconds > 0 for rate in found.of.values())
    model = benchmark.setting(run.model, (1, 8, 8), run.compute).network()
    assert 4 * sum(p.numel() for p in model.parameters()) < found.of["train"].size < 300_000


@pytest.mark.parametrize("there", [True, False], ids=["with encoders", "without encoders"])
def test_a_network_between_encoders_is_measured_with_them_or_without(there, tmp_path, capsys):
    if there:
        miniatures.pipeline(tmp_path / "pipeline")
    run = small_run(
        artifacts=str(tmp_path),
        dataset=COCO(size=32),
        model=LatentDiffusion(
            pretrained=str(tmp_path / "pipeline"),
            context_width=1024,
            text_length=77,
            block_out_channels=[8, 16],
        ),
        training=Training(num_steps=3, batch_size=4, warmup_steps=1, caption_dropout=0.3),
        sampling=Sampling(Sampler.ddim, 10, num_queries=4, steps=[600, 300], guidance=2.0),
    )
    benchmark.measure_all(run)
    found = read_rates(tmp_path, run.model.label, run.compute)
    assert set(found.of) == {"train", "sample", "measure", "featurize"} | (
        {"encode"} if there else set()
    )
    assert found.how.endswith("of a CPU" if there else "of a CPU, without encoders")
    assert ("model.pretrained=" in capsys.readouterr().err) is not there


def test_the_stand_in_has_latents_of_the_same_shape_and_costs_as_much(tmp_path):
    miniatures.pipeline(tmp_path)
    real = LatentDiffusion(pretrained=str(tmp_path), context_width=1024, text_length=77)
    stand_in, _ = benchmark.at_hand(replace(real, pretrained="nowhere/nothing"), (3, 128, 128))
    assert stand_in.example_shape((3, 128, 128)) == real.example_shape((3, 128, 128)) == (4, 16, 16)
    assert stand_in.multiply_adds((3, 128, 128)) == real.multiply_adds((3, 128, 128))
