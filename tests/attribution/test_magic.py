"""Metagradients against training itself: its steps, finite differences, and removed images."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import small_run

from journey.attribution.magic import Magic
from journey.attribution.magic import stage as magic_stage
from journey.attribution.magic.stage import (
    backward_through_training,
    flatten_state,
    start_backward,
    training_states,
    weighted_step,
)
from journey.attribution.outputs import output, sample_noise_at
from journey.diffusion import training
from journey.diffusion.ddpm import DDPM
from journey.diffusion.network import bind
from journey.engine.checks import ConfigError
from journey.engine.workspace import Precision, get
from journey.experiment import load_experiment
from journey.pipeline.settings import Batching, Target, Training

SETTINGS = Training(
    num_steps=12,
    batch_size=8,
    warmup_steps=3,
    learning_rate=3e-3,
    clip_norm=2.0,
    weight_decay=0.1,
    adam_epsilon=1e-3,
    flip=True,
)
NOISE = sample_noise_at(300, 4, (1, 8, 8), 0, "test", antithetic=False)
N = 20  # few enough that a batch has an image twice


@pytest.fixture
def attention_model() -> DDPM:
    return DDPM(block_out_channels=[8, 8], mid_block_attention=True, dropout=0.1)


def begin(model, examples, schedule, settings=SETTINGS, rows=None):
    """Return a model before its first step, in the dtype of the examples, and its inputs."""
    rows = torch.arange(len(examples)) if rows is None else rows
    training.initialise(0, "test")
    network = model.build((1, 8, 8)).to(examples.x0.dtype)
    sizes = (len(examples), settings.batch_size, schedule.num_timesteps)
    batches = training.Batches(Batching.coupled, rows, *sizes, 0, "test")
    inputs = training.TrainingInputs(examples, batches, settings, Precision.fp32, schedule)
    return training.new_state(network, settings), inputs


def f(network, schedule, query) -> torch.Tensor:
    return output(bind(network.eval(), Precision.fp32), schedule, query, NOISE)


def metagradient(state, inputs, query) -> np.ndarray:
    """Return ∂f/∂w after the whole training [N]."""
    states = training_states(inputs, state)
    network = states[-1].network
    value = f(network, inputs.schedule, query)
    gradients = torch.autograd.grad(value, list(network.parameters()))
    gradient = torch.cat([g.flatten() for g in gradients])
    backward = start_backward(gradient[None], inputs.training.num_steps, len(inputs.examples))
    for _ in backward_through_training(backward, inputs, states):
        pass
    return backward.weight_gradients[0].numpy()


def weighted_output(state, inputs, weights, query) -> float:
    """Return f after a training, written out, in which images have weights."""
    for step in range(inputs.training.num_steps):
        batch = inputs.batch(step)
        rows = batch.rows
        losses = training.step_losses(bind(state.network, Precision.fp32), inputs, batch, step)
        state.optimizer.zero_grad()
        ((weights[rows] * losses).sum() / weights[rows].sum()).backward()
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), inputs.training.clip_norm)
        state.optimizer.param_groups[0]["lr"] = training.learning_rate(inputs.training, step)
        state.optimizer.step()
    return f(state.network, inputs.schedule, query).item()


def test_a_weighted_step_is_a_step_of_training(attention_model, clean, linear_schedule):
    state, inputs = begin(attention_model, clean[:N].to(torch.float64), linear_schedule)
    clipped = set()
    for step in range(SETTINGS.num_steps):
        before = flatten_state(state).requires_grad_()
        ((_, norm),) = training.train(state, inputs, step + 1)
        after = weighted_step(inputs, state.network, before, torch.ones(N), step)
        torch.testing.assert_close(after, flatten_state(state), rtol=1e-6, atol=1e-9)
        clipped.add(bool(norm > SETTINGS.clip_norm))
    assert clipped == {False, True}


def test_the_metagradient_is_that_of_finite_differences(attention_model, clean, linear_schedule):
    examples, query, h = clean[:N].to(torch.float64), clean[N].to(torch.float64), 1e-6
    gradient = metagradient(*begin(attention_model, examples, linear_schedule), query)
    for i in range(4):
        change = h * torch.eye(N, dtype=torch.float64)[i]
        above, below = (
            weighted_output(*begin(attention_model, examples, linear_schedule), weights, query)
            for weights in (1 + change, 1 - change)
        )
        np.testing.assert_allclose(gradient[i], (above - below) / (2 * h), rtol=1e-5)
    assert abs(gradient.sum()) < 1e-12, "twice the weight of all images is the same training"


def test_scores_predict_the_output_without_an_image_and_its_sign(model, clean, linear_schedule):
    settings = Training(num_steps=40, batch_size=16, warmup_steps=10)
    examples, query = clean[:100], clean[100]
    scores = -metagradient(*begin(model, examples, linear_schedule, settings), query)
    chosen = np.argsort(scores)[[0, 1, 50, -2, -1]]

    def retrained_output(rows):
        state, inputs = begin(model, examples, linear_schedule, settings, torch.from_numpy(rows))
        list(training.train(state, inputs, settings.num_steps))
        return f(state.network, linear_schedule, query).item()

    full = np.arange(100)
    before = retrained_output(full)
    increases = [retrained_output(np.delete(full, i)) - before for i in chosen]
    assert np.corrcoef(scores[chosen], increases)[0, 1] > 0.98
    assert increases[0] < 0 < increases[-1]


@pytest.fixture
def experiment(workspace):
    run = small_run(training=Training(num_steps=6, batch_size=16, warmup_steps=2))
    return load_experiment(run, workspace.store)


def test_the_score_of_a_trajectory_is_the_weighted_mean_of_its_steps_over_checkpoints(
    experiment, workspace
):
    spec = experiment.scores(
        Magic(target=Target.trajectory, num_checkpoints=2, first_checkpoint=1, num_samples=4)
    )
    scores, seeds = [], []
    for by_step in spec.inputs.scores:
        seeds.append(by_step[0].checkpoint.training_seed)
        scores.append([get(step, workspace).array("scores.npy") for step in by_step])
    assert seeds == [1, 2]
    reference = get(experiment.reference_outputs, workspace).array("outputs.npy")
    weights = 1 / reference.mean(0)[:-1]  # [S, Q]
    expected = (np.mean(scores, 0) * weights[..., None]).mean(0)
    actual = get(spec, workspace).array("scores.npy")[0, 0]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6 * expected.std())


def test_too_little_memory_is_refused(experiment, workspace):
    compute = dataclasses.replace(workspace.compute, gradient_memory_gib=0.01)
    message = r"compute\.gradient_memory_gib=0\.01: must be at least 0\.\d+ for this network"
    with pytest.raises(ConfigError, match=message):
        get(
            experiment.scores(Magic(num_samples=4)).inputs.scores[0][0],
            dataclasses.replace(workspace, compute=compute),
        )


def test_a_training_that_cannot_be_repeated_is_refused(experiment, workspace, monkeypatch):
    spec = experiment.scores(Magic(num_samples=4)).inputs.scores[0][0]
    get(spec.checkpoint, workspace)
    monkeypatch.setattr(training, "learning_rate", lambda settings, step: 1e-3)
    message = r"ddpm8-16-s0: the repeated training ends 0\.\d+ away"
    with pytest.raises(ValueError, match=message):
        get(spec, workspace)


def test_a_gradient_that_is_not_finite_stops_with_the_name_of_the_step(
    model, clean, linear_schedule, monkeypatch
):
    settings = dataclasses.replace(SETTINGS, num_steps=6)
    state, inputs = begin(model, clean, linear_schedule, settings)
    states = training_states(inputs, state)
    backward = start_backward(torch.ones(2, len(flatten_state(state)[0])), 6, len(clean))

    def broken_step(*arguments):
        return weighted_step(*arguments) * (torch.nan if arguments[-1] == 4 else 1)

    monkeypatch.setattr(magic_stage, "weighted_step", broken_step)
    message = "back through training step 5, a gradient is not finite"
    with pytest.raises(FloatingPointError, match=message):
        list(backward_through_training(backward, inputs, states))
    assert backward.num_steps == 5
