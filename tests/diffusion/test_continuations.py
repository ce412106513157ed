"""Trajectories that continue from a step under other models, against plain loops."""

import numpy as np
import pytest
import torch
from conftest import small_run

from journey.attribution.baselines import Embeddings, Encoder
from journey.diffusion.network import load_denoiser
from journey.diffusion.sampling import noise_generator_at
from journey.diffusion.schedule import ddim_step, ddpm_step
from journey.engine.seeding import generator
from journey.engine.workspace import get
from journey.experiment import load_experiment
from journey.pipeline.images import as_pixels, read_images
from journey.pipeline.interfaces import Continuations
from journey.pipeline.schedule import denoise
from journey.pipeline.settings import Sampler, Sampling, Training, visited_timesteps

ENCODER = Encoder(side=32)
QUERIES = (2, 0)


@pytest.fixture(params=Sampler)
def experiment(request, workspace):
    sampling = Sampling(request.param, 50, num_queries=4, steps=[600, 300])
    quick = Training(num_steps=20, batch_size=16, warmup_steps=4)
    return load_experiment(small_run(sampling=sampling, training=quick), workspace.store)


def continuations(experiment, checkpoint, windows):
    """Return three continuations of two queries from t = 300."""
    seed, trajectories = experiment.seed, experiment.trajectories
    return Continuations(checkpoint, trajectories, 300, windows, QUERIES, 3, ENCODER, seed)


def plain_loop(experiment, workspace, other, window, query, j):
    """Return the final sample of one continuation."""
    sampler, seed = experiment.sampling.sampler, experiment.seed
    denoisers = [load_denoiser(c, workspace) for c in (other, experiment.checkpoint(0))]
    timesteps = visited_timesteps(1000, 50)
    random = noise_generator_at(300, query, sampler, timesteps, (1, 8, 8), seed)
    if j > 0:
        random = generator(seed, "continuation", query, 300, j)
    stored = get(experiment.trajectories, workspace).array("x_t.npy")
    x = torch.from_numpy(stored[1, query].copy())[None]
    with torch.no_grad():
        for t in range(300, -1, -20):
            denoiser, t_batch = denoisers[0 if t > 300 - window else 1], torch.tensor([t])
            predicted = denoiser.predict(x, t_batch, None)
            x0_hat, eps = denoise(denoiser.schedule, x, t_batch, predicted)
            t_next = t - 20 if t else -1
            if sampler is Sampler.ddim:
                x = ddim_step(denoiser.schedule, x0_hat, eps, t_next)
            else:
                z = torch.randn(1, 8, 8, generator=random)[None]
                x = ddpm_step(denoiser.schedule, x, x0_hat, t, t_next, z)
    return x[0].numpy()


def test_under_its_own_model_a_trajectory_is_repeated(experiment, workspace):
    spec = continuations(experiment, experiment.checkpoint(0), (300, 20))
    samples = get(spec, workspace).array("final.npy")
    final = get(experiment.trajectories, workspace).array("final.npy")[list(QUERIES)]
    for window in samples:  # rounding depends on the batch size
        np.testing.assert_allclose(window[:, 0], final, atol=0.05)
    spread = np.abs(samples[:, :, 1:] - samples[:, :, :1]).max((2, 3, 4, 5))
    deterministic = experiment.sampling.sampler is Sampler.ddim
    assert (spread == 0).all() if deterministic else (spread > 0.01).all()


def test_another_model_is_used_in_the_window_and_the_own_one_after_it(experiment, workspace):
    other, windows = experiment.checkpoint(1), (300, 100, 20)
    samples = get(continuations(experiment, other, windows), workspace).array("final.npy")
    for w, window in enumerate(windows):
        for q, query in enumerate(QUERIES):
            for j in (0, 2):  # rounding depends on the batch size, and is amplified
                expected = plain_loop(experiment, workspace, other, window, query, j)
                np.testing.assert_allclose(samples[w, q, j], expected, atol=0.05)
    assert len({samples[w].tobytes() for w in range(3)}) == 3


def test_features_are_those_of_the_encoder(experiment, workspace):
    artifact = get(continuations(experiment, experiment.checkpoint(0), (300,)), workspace)
    encode = ENCODER.load()
    pixels = torch.from_numpy(artifact.array("final.npy").copy()).clamp(-1, 1).flatten(0, 2)
    features = artifact.array("features.npy").reshape(6, -1)
    np.testing.assert_allclose(features, encode(pixels), atol=1e-4)
    embeddings = get(Embeddings(experiment.images, ENCODER), workspace)
    held_out = read_images(get(experiment.images, workspace).path / "held_out").images[:5]
    expected = encode(as_pixels(held_out))
    np.testing.assert_allclose(embeddings.array("held_out.npy")[:5], expected, atol=1e-4)
    assert embeddings.array("train.npy").shape == (60, 1280)
