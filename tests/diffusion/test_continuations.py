"""Journeys that are entered at a step and go on under other models, beside loops."""

import numpy as np
import pytest
import torch
from conftest import small_run

from journey.attribution.baselines import Embeddings, Encoder
from journey.diffusion.network import bind
from journey.diffusion.sampling import noise_generator_at
from journey.diffusion.schedule import ddim_step, ddpm_step
from journey.engine.seeding import generator
from journey.engine.workspace import Precision, get
from journey.experiment import load_experiment
from journey.pipeline.images import as_pixels, read_images
from journey.pipeline.interfaces import Continuations
from journey.pipeline.schedule import estimate_x0
from journey.pipeline.settings import Sampler, Sampling, Training, visited_timesteps

SIDE = Encoder(side=32)


@pytest.fixture(params=Sampler)
def of(request, workspace):
    sampling = Sampling(request.param, 50, num_queries=4, steps=[600, 300])
    return load_experiment(
        small_run(
            sampling=sampling, training=Training(num_steps=20, batch_size=16, warmup_steps=4)
        ),
        workspace.store,
    )


def continuations_of(of, checkpoint, windows, queries=(2, 0), count=3, step=300):
    return Continuations(checkpoint, of.trajectories, step, windows, queries, count, SIDE, of.seed)


def by_hand(of, workspace, other, window, query, j):
    """One continuation, a step at a time."""
    schedule = of.model.schedule(torch.device("cpu"))
    predicts = [
        bind(of.model.load(get(c, workspace).path, torch.device("cpu")), Precision.fp32)
        for c in (other, of.checkpoint(0))
    ]
    timesteps = visited_timesteps(1000, 50)
    own = noise_generator_at(300, query, of.sampling.sampler, timesteps, (1, 8, 8), of.seed)
    random = own if j == 0 else generator(of.seed, "continuation", query, 300, j)
    x = torch.from_numpy(get(of.trajectories, workspace).array("x_t.npy")[1, query].copy())[None]
    with torch.no_grad():
        for t in (t for t in timesteps if t <= 300):
            eps = predicts[0 if t > 300 - window else 1](x, torch.tensor([t]), None)
            x0 = estimate_x0(schedule, x, torch.tensor([t]), eps)
            following = t - 20 if t else -1
            if of.sampling.sampler is Sampler.ddim:
                x = ddim_step(schedule, x0, eps, t, following)
            else:
                x = ddpm_step(
                    schedule, x, x0, t, following, torch.randn(1, 8, 8, generator=random)[None]
                )
    return x[0].numpy()


def test_the_models_own_journey_goes_on_as_it_did(of, workspace):
    made = get(continuations_of(of, of.checkpoint(0), (300, 20)), workspace)
    final = get(of.trajectories, workspace).array("final.npy")
    for window in made.array("final.npy"):
        np.testing.assert_allclose(
            window[:, 0], final[[2, 0]], atol=0.05
        )  # rounding differs with the batch size
    spread = np.abs(made.array("final.npy")[:, :, 1:] - made.array("final.npy")[:, :, :1]).max(
        (2, 3, 4, 5)
    )
    assert (spread == 0).all() if of.sampling.sampler is Sampler.ddim else (spread > 0.01).all()


def test_a_window_is_driven_by_the_other_model_and_the_rest_by_the_journeys_own(of, workspace):
    other, windows = of.checkpoint(1), (300, 100, 20)
    made = get(continuations_of(of, other, windows), workspace).array("final.npy")
    for w, window in enumerate(windows):
        for q, query in enumerate((2, 0)):
            for j in (0, 2):
                expected = by_hand(of, workspace, other, window, query, j)
                np.testing.assert_allclose(
                    made[w, q, j], expected, atol=0.05
                )  # rounding differs, and is amplified
    assert len({made[w].tobytes() for w in range(3)}) == 3


def test_what_an_encoder_sees(of, workspace):
    made = get(continuations_of(of, of.checkpoint(0), (300,)), workspace)
    pictures = torch.from_numpy(made.array("final.npy").copy()).clamp(-1, 1).flatten(0, 2)
    np.testing.assert_allclose(
        made.array("features.npy").reshape(6, -1), SIDE.load()(pictures), atol=1e-4
    )
    embedded = get(Embeddings(of.images, SIDE), workspace)
    held_out = read_images(get(of.images, workspace).path / "held_out").images
    np.testing.assert_allclose(
        embedded.array("held_out.npy")[:5], SIDE.load()(as_pixels(held_out[:5])), atol=1e-4
    )
    assert embedded.array("train.npy").shape == (60, 1280)
