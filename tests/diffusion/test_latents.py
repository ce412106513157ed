"""Encoding: what is kept of captions changes nothing that is made from them."""

import dataclasses

import miniatures
import numpy as np
import pytest
from conftest import journey_trak, small_run

from journey.attribution.baselines import Caption
from journey.data.coco import COCO
from journey.diffusion import autoencoder
from journey.diffusion.autoencoder import MOST_STATES
from journey.diffusion.latent import LatentDiffusion
from journey.engine.store import Store
from journey.engine.workspace import get
from journey.experiment import load_experiment
from journey.pipeline.settings import (
    Augmentation,
    Autoencoding,
    Kernel,
    Sampler,
    Sampling,
    Training,
)

PHOTOGRAPHS = dict.fromkeys(range(12), ("RGB", (32, 32)))


@pytest.fixture
def run(tmp_path):
    """Latent diffusion on photographs with five captions each, for a few steps."""
    miniatures.coco(tmp_path / "coco", PHOTOGRAPHS, {0: ("RGB", (32, 32))})
    own = Autoencoding(num_steps=2, batch_size=4, warmup_steps=1, block_out_channels=[8, 8])
    return small_run(
        dataset=COCO(root=str(tmp_path / "coco"), size=16),
        model=LatentDiffusion(autoencoder=own, block_out_channels=[8, 16]),
        training=Training(num_steps=3, batch_size=4, warmup_steps=1, caption_dropout=0.3),
        sampling=Sampling(
            Sampler.ddim,
            10,
            num_queries=4,
            steps=[600, 300],
            prompts=["a caption", "another"],
            guidance=2.0,
        ),
        method={
            "journey": journey_trak(captions=Augmentation.random, damping=[1.0]),
            "ekfac": journey_trak(kernel=Kernel.ekfac, damping=[1.0]),
            "caption": Caption(),
        },
    )


def test_captions_that_are_read_as_they_are_asked_for_change_nothing(
    run, workspace, tmp_path, monkeypatch
):
    scores = {}
    for name, most in (("kept", MOST_STATES), ("read", 0)):
        monkeypatch.setattr(autoencoder, "MOST_STATES", most)
        there = dataclasses.replace(workspace, store=Store(tmp_path / name))
        experiment = load_experiment(run, there.store)
        files = {path.name for path in get(experiment.latents, there).path.iterdir()}
        assert {"context.npy", "tokens.npy"} & files == {
            "context.npy" if name == "kept" else "tokens.npy"
        }
        scores[name] = {
            of: get(experiment.scores(method), there).array("scores.npy")
            for of, method in run.method.items()
        }
    for of, kept in scores["kept"].items():
        np.testing.assert_allclose(
            scores["read"][of], kept, rtol=1e-2, atol=1e-3 * np.abs(kept).max(), err_msg=of
        )
