"""Methods against loops and closed forms; each of them through the real stages; snapshots against an undisturbed training."""

import numpy as np
import pytest
import torch
from conftest import journey_trak, small_run
from sklearn.linear_model import Ridge

from journey.attribution.baselines import Encoder, ImageEncoder, NonparametricScore
from journey.attribution.gradient import IntermediateCheckpoint
from journey.attribution.gradients import Objective
from journey.attribution.kernel import add_ensemble_scores
from journey.attribution.magic import Magic
from journey.attribution.outputs import sample_noise_at
from journey.attribution.retrained import Datamodel, difference_of_means, ridge_regression
from journey.attribution.similarity import (
    clip,
    cosine_scores,
    efficientnet_lite0,
    embed_images,
    patch_scores,
)
from journey.attribution.unlearning import Unlearning
from journey.attribution.unlearning.stage import mean_losses, output_and_gradient, step_size
from journey.diffusion import training
from journey.engine.spec import cache_key
from journey.engine.workspace import Precision, get
from journey.experiment import load_experiment
from journey.pipeline.settings import (
    DampingUnit,
    Ensemble,
    Kernel,
    Output,
    Scale,
    ScoreTransform,
    Target,
    Training,
)

UNIT = DampingUnit.eigenvalue


@pytest.fixture
def random():
    return np.random.default_rng(0)


# --------------------------------------------------------------------------------------------- gradient methods


def test_the_score_of_a_trajectory_is_the_mean_of_its_steps(random):
    train, queries = (
        random.standard_normal((2, 20, 50), np.float32),
        random.standard_normal((2, 3 * 4, 50), np.float32),
    )
    by_step, whole = np.zeros((2, 3, 4, 20), np.float32), np.zeros((2, 1, 4, 20), np.float32)
    for out, at in ((by_step, Target.step), (whole, Target.trajectory)):
        assert journey_trak(target=at).num_scores(3) == out.shape[1]
        add_ensemble_scores(
            out,
            [[phi] for phi in train],
            list(queries),
            [0.5, 0.5],
            Kernel.gram,
            [0.1, 1.0],
            UNIT,
            Scale.none,
        )
    np.testing.assert_allclose(whole[:, 0], by_step.mean(1), atol=1e-5)


def test_a_relative_trajectory_weighs_the_scores_of_its_steps(random):
    train, queries = (
        random.standard_normal((1, 20, 50), np.float32),
        random.standard_normal((1, 3 * 4, 50), np.float32),
    )
    by_step, whole = np.zeros((1, 3, 4, 20), np.float32), np.zeros((1, 1, 4, 20), np.float32)
    weights = 1 / random.random((3, 4))
    for out in (by_step, whole):
        add_ensemble_scores(
            out,
            [[phi] for phi in train],
            list(queries),
            [1.0],
            Kernel.gram,
            [0.1],
            UNIT,
            Scale.none,
            weights,
        )
    np.testing.assert_allclose(
        whole[:, 0], (by_step * weights[..., None]).mean(1), rtol=1e-4, atol=1e-4
    )


def test_features_of_windows_are_used_at_their_step(random):
    train, queries = (
        random.standard_normal((3, 20, 50), np.float32),
        random.standard_normal((3, 4, 50), np.float32),
    )
    out = np.zeros((2, 3, 4, 20), np.float32)
    rest = ([1.0], Kernel.gram, [0.1, 1.0], UNIT, Scale.none)
    add_ensemble_scores(out, [list(train)], [queries.reshape(12, 50)], *rest)
    for step in range(3):
        alone = np.zeros((2, 1, 4, 20), np.float32)
        add_ensemble_scores(alone, [[train[step]]], [queries[step]], *rest)
        np.testing.assert_allclose(out[:, step], alone[:, 0])


def test_checkpoints_are_weighed(random):
    train, queries = (
        random.standard_normal((2, 20, 50), np.float32),
        random.standard_normal((2, 4, 50), np.float32),
    )
    out = np.zeros((1, 1, 4, 20), np.float32)
    add_ensemble_scores(
        out,
        [[phi] for phi in train],
        list(queries),
        [0.1, 0.7],
        Kernel.identity,
        [],
        UNIT,
        Scale.none,
    )
    expected = 0.1 * queries[0] @ train[0].T + 0.7 * queries[1] @ train[1].T
    np.testing.assert_allclose(out[0, 0], expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ other methods


def masks_and_outputs(random):
    return random.random((30, 12)) < 0.5, random.standard_normal((30, 2, 3))


def test_empirical_influence_is_a_difference_of_means(random):
    masks, outputs = masks_and_outputs(random)
    scores = difference_of_means(masks, outputs)
    for i in range(12):
        expected = outputs[~masks[:, i]].mean(0) - outputs[masks[:, i]].mean(0)
        np.testing.assert_allclose(scores[0, :, :, i], expected, atol=1e-12)
    with pytest.raises(ValueError, match="in all or none of the 30 subsets"):
        difference_of_means(np.ones((30, 12), bool), outputs)


def test_datamodels_are_ridge_regressions(random):
    masks, outputs = masks_and_outputs(random)
    x = masks - masks.mean(0)
    penalty = 0.3 * np.trace(x @ x.T) / 30
    expected = -Ridge(alpha=penalty).fit(masks, outputs.reshape(30, -1)).coef_
    scores = ridge_regression(masks, outputs, [0.3])
    np.testing.assert_allclose(scores[0].reshape(6, 12), expected, atol=1e-10)


def test_patch_weights_are_the_naive_softmax():
    torch.manual_seed(0)
    train, x_t = torch.randn(5, 2, 4, 4), torch.randn(1, 1, 2, 4, 4)
    scores = patch_scores(train, x_t, torch.tensor([0.4]), [3])[0, 0, 0]
    total = torch.zeros(5)
    for row in range(4):
        for column in range(4):
            window = (
                slice(None),
                slice(max(0, row - 1), row + 2),
                slice(max(0, column - 1), column + 2),
            )
            distance = torch.stack([((x_t[0, 0] - 0.4**0.5 * x)[window] ** 2).sum() for x in train])
            total += (-distance / (2 * 0.6)).softmax(0) / 16
    np.testing.assert_allclose(scores, total.numpy(), rtol=1e-5)


def test_forgetting_raises_the_output_by_what_was_asked_and_the_losses_are_the_changed_networks(
    net, linear_schedule, clean
):
    objective = Objective(net, linear_schedule, Precision.fp32)
    query, draws = clean[:1], sample_noise_at(300, 8, (1, 8, 8), 0, "test", antithetic=False)
    before, g = output_and_gradient(objective, query, draws)
    eta = step_size(g, g, before, rise=0.001)
    after = mean_losses(objective, eta * g, query, draws, 1024)[0]
    assert (after - before) / before == pytest.approx(0.001, rel=0.1)

    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(net.parameters()) + eta * g, net.parameters()
    )
    np.testing.assert_allclose(mean_losses(objective, None, query, draws, 3)[0], after, rtol=1e-5)
    with pytest.raises(FloatingPointError, match="slope 0"):
        step_size(0 * g, g, before, 0.1)


def test_encoder_sees_what_is_alike(digits, clean):
    zeros, ones = (clean.x0[torch.from_numpy(digits.labels == label)][:6] for label in (0, 1))
    embedded = embed_images(
        efficientnet_lite0(Encoder().weights("method.encoder")), torch.cat([zeros, ones]), 224
    )
    assert embedded.shape == (12, 1280)
    similar = cosine_scores(embedded.numpy(), embedded.numpy()[None])[0, 0]
    np.testing.assert_allclose(similar.diagonal(), 1, rtol=1e-5)
    assert similar[:6, :6].mean() > similar[:6, 6:].mean()


def test_clip_is_loaded_from_a_directory(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    small = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=56,
        projection_dim=4,
    )
    CLIPVisionModelWithProjection(small).save_pretrained(tmp_path)
    method = Encoder(encoder=ImageEncoder.clip, path=str(tmp_path))
    assert embed_images(
        clip(method.weights("method.encoder")), torch.zeros(2, 1, 8, 8), 224
    ).shape == (2, 4)


# --------------------------------------------------------------------------------------------- the whole road

METHODS = {
    "dtrak": journey_trak(output=Output.square),
    "das": journey_trak(output=Output.mean, normalize=True, score_transform=ScoreTransform.square),
    "tracin": journey_trak(kernel=Kernel.identity, ensemble=Ensemble.run, num_checkpoints=2),
    "relative": journey_trak(scale=Scale.influence),
    "window": journey_trak(train_timesteps=100),
    "retrac": journey_trak(
        output=Output.absolute, normalize=True, kernel=Kernel.identity, target=Target.trajectory
    ),
    "ekfac": journey_trak(kernel=Kernel.ekfac, target=Target.final_sample),
    "unlearning": Unlearning(num_samples=4),
    "datamodel": Datamodel(num_subsets=6),
    "magic": Magic(num_samples=4, target=Target.final_sample),
    "nda": NonparametricScore(),
    "encoder": Encoder(),
}


def test_every_kind_of_method_through_the_stages(workspace):
    run = small_run(method=METHODS, training=Training(num_steps=20, batch_size=16, warmup_steps=4))
    experiment = load_experiment(run, workspace.store)
    shapes = {}
    for name, method in run.all_methods.items():
        scores = get(experiment.scores(method), workspace).array("scores.npy")
        assert scores.std() > 0, name
        shapes[name] = scores.shape
    whole = {"retrac": 1, "ekfac": 1, "magic": 1}
    candidates = {"tracin": 1, "retrac": 1, "nda": 3, "encoder": 1, "datamodel": 3, "magic": 1}
    assert shapes == {
        name: (candidates.get(name, 2), whole.get(name, 2), 4, 60) for name in METHODS
    }


def test_methods_share_features(small):
    """Kernel, scale, read-out and damping cost no gradients, and a trajectory is asked about by its steps."""
    changes = [
        {},
        {"scale": Scale.cosine},
        {"kernel": Kernel.identity},
        {"readout": ScoreTransform.square},
        {"damping": [3.0]},
    ]
    scores = [
        small.scores(journey_trak(**change, target=at))
        for change in changes
        for at in (Target.step, Target.trajectory)
    ]
    assert len({cache_key(f) for score in scores for f in score.inputs.queries}) == 1
    assert len({cache_key(f) for score in scores for (f,) in score.inputs.train}) == 1
    assert len({cache_key(score) for score in scores}) == len(scores)


def test_scores_are_squared_after_everything_else(small, workspace):
    plain, squared = (
        get(small.scores(journey_trak(score_transform=score_transform)), workspace).array(
            "scores.npy"
        )
        for score_transform in ScoreTransform
    )
    np.testing.assert_array_equal(squared, np.square(plain))


def test_snapshots_are_the_training_itself(workspace):
    run = small_run(training=Training(num_steps=12, batch_size=16, warmup_steps=4))
    experiment = load_experiment(run, workspace.store)
    full = experiment.checkpoint(0)
    first = IntermediateCheckpoint(full, 5, None)
    last = IntermediateCheckpoint(full, 12, first)
    ours, whole = (
        run.model.load(get(spec, workspace).path, torch.device("cpu")) for spec in (last, full)
    )
    for a, b in zip(ours.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
    method = journey_trak(ensemble=Ensemble.run, num_checkpoints=2)
    assert [steps[0].checkpoint.step for steps in experiment.scores(method).inputs.train] == [4, 8]
    assert training.learning_rate(run.training, 4) > training.learning_rate(run.training, 8) > 0
