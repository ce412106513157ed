"""Methods against loops and closed forms; each of them through the real stages; snapshots against an undisturbed training."""

import numpy as np
import pytest
import torch
from conftest import journey, small_run
from sklearn.linear_model import Ridge

from journey import config, experiment, specs
from journey.attribution import encoders
from journey.attribution.gradients import Objective
from journey.attribution.methods import cosine, datamodel, gradient, nonparametric, unlearning
from journey.attribution.output import step_draws
from journey.config import At, Ensemble, Kernel, Output, Precision, Readout, Scale
from journey.diffusion import network, training
from journey.stages import get


@pytest.fixture
def random():
    return np.random.default_rng(0)


# --------------------------------------------------------------------------------------------- gradient methods


def test_the_score_of_a_trajectory_is_the_mean_of_its_steps(random):
    train, queries = random.standard_normal((2, 20, 50), np.float32), random.standard_normal((2, 3 * 4, 50), np.float32)
    by_step, whole = np.zeros((2, 3, 4, 20), np.float32), np.zeros((2, 1, 4, 20), np.float32)
    for out, at in ((by_step, At.step), (whole, At.trajectory)):
        gradient.score(out, journey(at=at), [[phi] for phi in train], list(queries), [0.5, 0.5])
    np.testing.assert_allclose(whole[:, 0], by_step.mean(1), atol=1e-5)


def test_features_of_windows_are_used_at_their_step(random):
    train, queries = random.standard_normal((3, 20, 50), np.float32), random.standard_normal((3, 4, 50), np.float32)
    out = np.zeros((2, 3, 4, 20), np.float32)
    gradient.score(out, journey(), [list(train)], [queries.reshape(12, 50)], [1.0])
    for step in range(3):
        alone = np.zeros((2, 1, 4, 20), np.float32)
        gradient.score(alone, journey(), [[train[step]]], [queries[step]], [1.0])
        np.testing.assert_allclose(out[:, step], alone[:, 0])


def test_checkpoints_are_weighed_and_scores_squared_after(random):
    train, queries = random.standard_normal((2, 20, 50), np.float32), random.standard_normal((2, 4, 50), np.float32)
    method = journey(kernel=Kernel.identity, readout=Readout.square)
    out = np.zeros((1, 1, 4, 20), np.float32)
    gradient.score(out, method, [[phi] for phi in train], list(queries), [0.1, 0.7])
    expected = (0.1 * queries[0] @ train[0].T + 0.7 * queries[1] @ train[1].T) ** 2
    np.testing.assert_allclose(out[0, 0], expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ other methods


def masks_and_outputs(random):
    return random.random((30, 12)) < 0.5, random.standard_normal((30, 2, 3))


def test_empirical_influence_is_a_difference_of_means(random):
    masks, outputs = masks_and_outputs(random)
    scores = datamodel.difference(masks, outputs)
    for i in range(12):
        expected = outputs[~masks[:, i]].mean(0) - outputs[masks[:, i]].mean(0)
        np.testing.assert_allclose(scores[0, :, :, i], expected, atol=1e-12)
    with pytest.raises(ValueError, match="in all or none of the 30 subsets"):
        datamodel.difference(np.ones((30, 12), bool), outputs)


def test_datamodels_are_ridge_regressions(random):
    masks, outputs = masks_and_outputs(random)
    x = masks - masks.mean(0)
    penalty = 0.3 * np.trace(x @ x.T) / 30
    expected = -Ridge(alpha=penalty).fit(masks, outputs.reshape(30, -1)).coef_
    scores = datamodel.ridge(masks, outputs, [0.3])
    np.testing.assert_allclose(scores[0].reshape(6, 12), expected, atol=1e-10)


def test_patch_weights_are_the_naive_softmax():
    torch.manual_seed(0)
    train, x_t = torch.randn(5, 2, 4, 4), torch.randn(1, 1, 2, 4, 4)
    scores = nonparametric.score(train, x_t, torch.tensor([0.4]), [3])[0, 0, 0]
    total = torch.zeros(5)
    for row in range(4):
        for column in range(4):
            window = (slice(None), slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2))
            distance = torch.stack([((x_t[0, 0] - 0.4**0.5 * x)[window] ** 2).sum() for x in train])
            total += (-distance / (2 * 0.6)).softmax(0) / 16
    np.testing.assert_allclose(scores, total.numpy(), rtol=1e-5)


def test_forgetting_raises_the_output_by_what_was_asked_and_the_losses_are_the_changed_networks(net, linear_schedule, clean):
    objective = Objective(net, linear_schedule, Precision.fp32)
    query, draws = clean[:1], step_draws(300, 8, (1, 8, 8), 0, "test", antithetic=False)
    before, g = unlearning.output_and_gradient(objective, query, draws)
    eta = unlearning.step_size(g, g, before, rise=0.001)
    after = unlearning.losses(objective, eta * g, query, draws, 1024)[0]
    assert (after - before) / before == pytest.approx(0.001, rel=0.1)

    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(net.parameters()) + eta * g, net.parameters())
    np.testing.assert_allclose(unlearning.losses(objective, None, query, draws, 3)[0], after, rtol=1e-5)
    with pytest.raises(FloatingPointError, match="slope 0"):
        unlearning.step_size(0 * g, g, before, 0.1)


def test_encoder_sees_what_is_alike(digits, clean):
    zeros, ones = (clean.x0[torch.from_numpy(digits.labels == label)][:6] for label in (0, 1))
    embedded = encoders.embed(torch.cat([zeros, ones]), config.Encoder())
    assert embedded.shape == (12, 1280)
    similar = cosine.score(embedded.numpy(), embedded.numpy()[None])[0, 0]
    np.testing.assert_allclose(similar.diagonal(), 1, rtol=1e-5)
    assert similar[:6, :6].mean() > similar[:6, 6:].mean()


def test_clip_is_loaded_from_a_directory(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    small = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, patch_size=56, projection_dim=4
    )
    CLIPVisionModelWithProjection(small).save_pretrained(tmp_path)
    method = config.Encoder(encoder=config.ImageEncoder.clip, path=str(tmp_path))
    assert encoders.embed(torch.zeros(2, 1, 8, 8), method).shape == (2, 4)


# --------------------------------------------------------------------------------------------- the whole road

METHODS = {
    "dtrak": journey(name="dtrak", output=Output.square),
    "das": journey(name="das", output=Output.mean, normalize=True, readout=Readout.square),
    "tracin": journey(name="tracin", kernel=Kernel.identity, ensemble=Ensemble.run, num_checkpoints=2),
    "relative": journey(name="relative", scale=Scale.influence),
    "window": journey(name="window", train_window=100),
    "retrac": journey(name="retrac", output=Output.absolute, normalize=True, kernel=Kernel.identity, at=At.trajectory),
    "ekfac": journey(name="ekfac", kernel=Kernel.ekfac, at=At.destination),
    "abu": config.Unlearning(num_draws=4, precision=Precision.fp32),
    "datamodel": config.Datamodel(num_subsets=6),
    "nda": config.NonparametricScore(),
    "encoder": config.Encoder(),
}


def test_every_kind_of_method_through_the_stages(workspace):
    run = small_run(method=METHODS, training=config.Training(num_steps=20, batch_size=16, warmup_steps=4))
    shapes = {}
    for name, method in run.judged.items():
        scores = get(experiment.score(run, method), workspace).array("scores.npy")
        assert scores.std() > 0, name
        shapes[name] = scores.shape
    whole = {"retrac": 1, "ekfac": 1}
    candidates = {"tracin": 1, "retrac": 1, "nda": 3, "encoder": 1, "datamodel": 3}
    assert shapes == {name: (candidates.get(name, 2), whole.get(name, 2), 3, 60) for name in METHODS}


def test_methods_share_features(workspace):
    """Kernel, scale, read-out and damping cost no gradients, and a trajectory is asked about by its steps."""
    changes = [{}, {"scale": Scale.cosine}, {"kernel": Kernel.identity}, {"readout": Readout.square}, {"damping": [3.0]}]
    run = small_run()
    scores = [experiment.score(run, journey(**change, at=at)) for change in changes for at in (At.step, At.trajectory)]
    assert len({specs.address(f) for score in scores for f in score.query_features}) == 1
    assert len({specs.address(f) for score in scores for (f,) in score.train_features}) == 1


def test_snapshots_are_the_training_itself(workspace):
    run = small_run(training=config.Training(num_steps=12, batch_size=16, warmup_steps=4))
    full = experiment.full_model(run, 0)
    first = specs.Snapshot(full, 5, None)
    last = specs.Snapshot(full, 12, first)
    ours, whole = (network.load(run.model, get(spec, workspace).path, torch.device("cpu")) for spec in (last, full))
    for a, b in zip(ours.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
    method = journey(ensemble=Ensemble.run, num_checkpoints=2)
    assert [steps[0].model.step for steps in experiment.score(run, method).train_features] == [4, 8]
    assert training.learning_rate(run.training, 4) > training.learning_rate(run.training, 8) > 0
