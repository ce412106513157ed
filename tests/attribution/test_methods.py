"""Methods against loops and closed forms, and every method through the real stages."""

import numpy as np
import pytest
import torch
from conftest import journey_trak, small_run
from sklearn.linear_model import Ridge

from journey.attribution.baselines import (
    Encoder,
    ImageEncoder,
    NonparametricScore,
    cosine_scores,
    patch_scores,
)
from journey.attribution.gradient import IntermediateCheckpoint
from journey.attribution.gradients import Objective, loop_gradients
from journey.attribution.kernel import add_ensemble_scores
from journey.attribution.magic import Magic
from journey.attribution.outputs import sample_noise_at
from journey.attribution.retrained import Datamodel, difference_of_means, ridge_regression
from journey.attribution.unlearning import Unlearning
from journey.attribution.unlearning.stage import mean_losses, step_size
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


@pytest.fixture
def random():
    return np.random.default_rng(0)


def features(random, *shape):
    return random.standard_normal((*shape, 50), np.float32)


def ensemble_scores(train, queries, num_steps, weights, damping, step_weights=None):
    """Scores of 4 queries and 20 training images; without damping, inner products."""
    kernel = Kernel.gram if damping else Kernel.identity
    settings = (kernel, damping, DampingUnit.eigenvalue, Scale.none)
    out = np.zeros((max(1, len(damping)), num_steps, 4, 20), np.float32)
    add_ensemble_scores(out, train, queries, weights, *settings, step_weights)
    return out


def test_the_score_of_a_trajectory_is_the_mean_of_its_steps(random):
    train, queries = features(random, 2, 20), features(random, 2, 3 * 4)
    by_step, trajectory = (
        ensemble_scores([[phi] for phi in train], list(queries), n, [0.5, 0.5], [0.1, 1.0])
        for n in (3, 1)
    )
    np.testing.assert_allclose(trajectory[:, 0], by_step.mean(1), atol=1e-5)
    assert [journey_trak(target=target).num_scores(3) for target in Target] == [3, 1, 1]


def test_a_relative_trajectory_weights_the_scores_of_its_steps(random):
    train, queries = features(random, 1, 20), features(random, 1, 3 * 4)
    weights = 1 / random.random((3, 4))
    by_step, trajectory = (
        ensemble_scores([[train[0]]], list(queries), n, [1.0], [0.1], weights) for n in (3, 1)
    )
    expected = (by_step * weights[..., None]).mean(1)
    np.testing.assert_allclose(trajectory[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_training_features_of_a_step_are_used_at_that_step(random):
    train, queries = features(random, 3, 20), features(random, 3, 4)
    scores = ensemble_scores([list(train)], [queries.reshape(12, 50)], 3, [1.0], [0.1, 1.0])
    for step in range(3):
        alone = ensemble_scores([[train[step]]], [queries[step]], 1, [1.0], [0.1, 1.0])
        np.testing.assert_allclose(scores[:, step], alone[:, 0])


def test_scores_of_checkpoints_are_weighted(random):
    train, queries = features(random, 2, 20), features(random, 2, 4)
    scores = ensemble_scores([[phi] for phi in train], list(queries), 1, [0.1, 0.7], [])
    expected = 0.1 * queries[0] @ train[0].T + 0.7 * queries[1] @ train[1].T
    np.testing.assert_allclose(scores[0, 0], expected, rtol=1e-4, atol=1e-5)


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


def test_patch_scores_are_the_naive_softmax():
    torch.manual_seed(0)
    train, x_t = torch.randn(5, 2, 4, 4), torch.randn(1, 1, 2, 4, 4)
    scores = patch_scores(train, x_t, torch.tensor([0.4]), torch.tensor([0.6]), [3])[0, 0, 0]
    total = torch.zeros(5)
    for row in range(4):
        for column in range(4):
            rows, columns = slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)
            difference = (x_t[0, 0] - 0.4**0.5 * train)[:, :, rows, columns]
            distance = (difference**2).sum((1, 2, 3))
            total += (-distance / (2 * 0.6)).softmax(0) / 16
    np.testing.assert_allclose(scores, total.numpy(), rtol=1e-5)


def test_unlearning_raises_the_output_by_the_rise_and_measures_the_changed_network(
    net, linear_schedule, clean
):
    objective = Objective(net, linear_schedule, Precision.fp32)
    query, noise = clean[:1], sample_noise_at(300, 8, (1, 8, 8), 0, "test", antithetic=False)
    before = float(mean_losses(objective, None, query, noise, 8)[0])
    g = loop_gradients(objective, query, noise, 8)[0]
    eta = step_size(g, g, before, rise=0.001)
    after = mean_losses(objective, eta * g, query, noise, 1024)[0]
    assert (after - before) / before == pytest.approx(0.001, rel=0.1)

    parameters = torch.nn.utils.parameters_to_vector(net.parameters())
    torch.nn.utils.vector_to_parameters(parameters + eta * g, net.parameters())
    np.testing.assert_allclose(mean_losses(objective, None, query, noise, 3)[0], after, rtol=1e-5)
    with pytest.raises(FloatingPointError, match="slope 0"):
        step_size(0 * g, g, before, 0.1)


def test_images_of_one_class_are_similar_in_the_space_of_the_encoder(digits, clean):
    zeros, ones = (clean.x0[torch.from_numpy(digits.labels == label)][:6] for label in (0, 1))
    embeddings = Encoder().load()(torch.cat([zeros, ones]))
    assert embeddings.shape == (12, 1280)
    similarity = cosine_scores(embeddings.numpy(), embeddings.numpy()[None])[0, 0]
    np.testing.assert_allclose(similarity.diagonal(), 1, rtol=1e-5)
    assert similarity[:6, :6].mean() > similarity[:6, 6:].mean()


def test_clip_is_loaded_from_a_directory(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 8, "intermediate_size": 8, "patch_size": 56, "projection_dim": 4}
    config = CLIPVisionConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    method = Encoder(encoder=ImageEncoder.clip, path=str(tmp_path))
    assert method.load()(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


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


def test_every_method_runs_through_the_stages(workspace):
    run = small_run(method=METHODS, training=Training(num_steps=20, batch_size=16, warmup_steps=4))
    experiment = load_experiment(run, workspace.store)
    shapes = {}
    for name, method in run.all_methods.items():
        scores = get(experiment.scores(method), workspace).array("scores.npy")
        assert scores.std() > 0, name
        shapes[name] = scores.shape
    num_steps = {"retrac": 1, "ekfac": 1, "magic": 1}
    candidates = {"tracin": 1, "retrac": 1, "nda": 3, "encoder": 1, "datamodel": 3, "magic": 1}
    candidates["unlearning"] = 1
    for name in METHODS:
        assert shapes[name] == (candidates.get(name, 2), num_steps.get(name, 2), 4, 60), name


def test_settings_of_the_kernel_reuse_features(small):
    """Kernel, scale, transform and λ need no new gradients; a trajectory has those of its steps."""
    changes = [
        {},
        {"scale": Scale.cosine},
        {"kernel": Kernel.identity},
        {"score_transform": ScoreTransform.square},
        {"damping": [3.0]},
    ]
    scores = []
    for change in changes:
        for target in (Target.step, Target.trajectory):
            scores.append(small.scores(journey_trak(**change, target=target)))
    assert len({cache_key(f) for score in scores for f in score.inputs.queries}) == 1
    assert len({cache_key(f) for score in scores for (f,) in score.inputs.train}) == 1
    assert len({cache_key(score) for score in scores}) == len(scores)


def test_the_score_transform_comes_last(trained, workspace):
    linear, squared = (
        get(trained.scores(journey_trak(score_transform=transform)), workspace).array("scores.npy")
        for transform in ScoreTransform
    )
    np.testing.assert_array_equal(squared, np.square(linear))


def test_intermediate_checkpoints_are_those_of_an_undisturbed_training(workspace):
    run = small_run(training=Training(num_steps=12, batch_size=16, warmup_steps=4))
    experiment = load_experiment(run, workspace.store)
    full = experiment.checkpoint(0)
    last = IntermediateCheckpoint(full, 12, IntermediateCheckpoint(full, 5, None))
    networks = [
        run.model.load(get(spec, workspace).path, torch.device("cpu")) for spec in (last, full)
    ]
    for ours, expected in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(ours, expected)
    method = journey_trak(ensemble=Ensemble.run, num_checkpoints=2)
    assert [steps[0].checkpoint.step for steps in experiment.scores(method).inputs.train] == [4, 8]
    assert training.learning_rate(run.training, 4) > training.learning_rate(run.training, 8) > 0
