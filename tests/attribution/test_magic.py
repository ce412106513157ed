"""Metagradients against training itself: its steps, its finite differences, its models without an image."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import small_run

from journey.attribution.magic import Magic
from journey.attribution.magic import stage as magic_stage
from journey.attribution.magic.stage import (
    backward_through_training,
    flatten,
    flatten_state,
    milestones,
    start_backward,
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
    flip=True,
)
DRAWS = sample_noise_at(300, 4, (1, 8, 8), 0, "test", antithetic=False)
N = 20  # of which a batch may hold one twice


@pytest.fixture
def attending() -> DDPM:
    return DDPM(block_out_channels=[8, 8], mid_block_attention=True, dropout=0.1)


def begin(model, examples, schedule, settings=SETTINGS, rows=None):
    """A model before its first step, and its training, in the precision of the examples."""
    rows = torch.arange(len(examples)) if rows is None else rows
    training.initialise(0, "test")
    network = model.build((1, 8, 8))
    for parameter in network.parameters():
        parameter.data = parameter.data.to(examples.x0.dtype)
    of = training.Batches(
        Batching.coupled,
        rows,
        len(examples),
        settings.batch_size,
        schedule.num_timesteps,
        0,
        "test",
    )
    return training.new_state(network, settings), training.TrainingInputs(
        examples, of, settings, Precision.fp32, schedule
    )


def f(network, schedule, query) -> torch.Tensor:
    return output(bind(network.eval(), Precision.fp32), schedule, query, DRAWS)


def of_weights(state, course, query) -> np.ndarray:
    """∂f/∂w after the whole training. [N]"""
    kept = milestones(course, state)
    network = copy.deepcopy(state.network)
    gradient = flatten(
        torch.autograd.grad(f(network, course.schedule, query), list(network.parameters()))
    )
    way = start_backward(gradient[None], state.step, len(course.examples))
    for _ in backward_through_training(way, course, kept):
        pass
    return way.of_weights[0].numpy()


def weighted(state, course, weights, query) -> float:
    """f after training by hand, in which images weigh differently."""
    for step in range(course.training.num_steps):
        rows, losses = training.step_losses(bind(state.network, Precision.fp32), course, step)
        state.optimizer.zero_grad()
        ((weights[rows] * losses).sum() / weights[rows].sum()).backward()
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), course.training.clip_norm)
        state.optimizer.param_groups[0]["lr"] = training.learning_rate(course.training, step)
        state.optimizer.step()
    return f(state.network, course.schedule, query).item()


def test_a_step_as_a_function_is_that_of_training(attending, clean, linear_schedule):
    state, course = begin(attending, clean[:N].to(torch.float64), linear_schedule)
    clipped = []
    for step in range(SETTINGS.num_steps):
        before = flatten_state(state).requires_grad_()
        ((_, norm),) = training.train(state, course, step + 1)
        found = weighted_step(course, state.network, before, torch.ones(N), step)
        torch.testing.assert_close(found, flatten_state(state), rtol=1e-6, atol=1e-9)
        clipped.append(bool(norm > SETTINGS.clip_norm))
    assert set(clipped) == {False, True}


def test_it_is_what_finite_differences_of_training_give(attending, clean, linear_schedule):
    examples, query, h = clean[:N].to(torch.float64), clean[N].to(torch.float64), 1e-6
    found = of_weights(*begin(attending, examples, linear_schedule), query)
    for i in range(4):
        change = h * torch.eye(N, dtype=torch.float64)[i]
        above, below = (
            weighted(*begin(attending, examples, linear_schedule), 1 + sign * change, query)
            for sign in (1, -1)
        )
        np.testing.assert_allclose(found[i], (above - below) / (2 * h), rtol=1e-5)
    assert abs(found.sum()) < 1e-12, (
        "a training in which all images weigh twice as much is the same"
    )


def test_it_foresees_training_without_an_image(model, clean, linear_schedule):
    """And its sign: where a proponent is left out, the output rises."""
    settings = Training(num_steps=40, batch_size=16, warmup_steps=10)
    examples, query = clean[:100], clean[100]
    foreseen = -of_weights(*begin(model, examples, linear_schedule, settings), query)
    chosen = np.argsort(foreseen)[[0, 1, 50, -2, -1]]

    def trained(rows):
        state, course = begin(model, examples, linear_schedule, settings, torch.from_numpy(rows))
        list(training.train(state, course, settings.num_steps))
        return f(state.network, linear_schedule, query).item()

    everything = np.arange(100)
    rises = [trained(np.delete(everything, i)) - trained(everything) for i in chosen]
    assert np.corrcoef(foreseen[chosen], rises)[0, 1] > 0.98
    assert rises[0] < 0 < rises[-1]


# ---------------------------------------------------------------------------------------------------- the stage

RUN = small_run(training=Training(num_steps=6, batch_size=16, warmup_steps=2))


@pytest.fixture
def of(workspace):
    return load_experiment(RUN, workspace.store)


def test_the_score_of_a_trajectory_is_the_weighted_mean_of_its_steps_over_checkpoints(
    of, workspace
):
    spec = of.scores(
        Magic(target=Target.trajectory, num_checkpoints=2, first_checkpoint=1, num_samples=4)
    )
    assert [of_checkpoint[0].checkpoint.training_seed for of_checkpoint in spec.inputs.scores] == [
        1,
        2,
    ]
    of_model = [
        np.stack([get(step, workspace).array("scores.npy") for step in steps])
        for steps in spec.inputs.scores
    ]
    weights = 1 / get(of.reference_outputs, workspace).array("outputs.npy").mean(0)[:-1]  # [S, Q]
    expected = (np.mean(of_model, 0) * weights[..., None]).mean(0)
    np.testing.assert_allclose(
        get(spec, workspace).array("scores.npy")[0, 0],
        expected,
        rtol=1e-4,
        atol=1e-6 * expected.std(),
    )


def test_too_little_memory_is_refused(of, workspace):
    cramped = dataclasses.replace(workspace.compute, gradient_memory_gib=0.01)
    with pytest.raises(
        ConfigError,
        match=r"compute\.gradient_memory_gib=0\.01: must be at least 0\.\d+ for this network",
    ):
        get(
            of.scores(Magic(num_samples=4)).inputs.scores[0][0],
            dataclasses.replace(workspace, compute=cramped),
        )


def test_another_model_than_the_checkpoint_is_refused(of, workspace, monkeypatch):
    spec = of.scores(Magic(num_samples=4)).inputs.scores[0][0]
    get(spec.checkpoint, workspace)
    monkeypatch.setattr(training, "learning_rate", lambda settings, step: 1e-3)
    with pytest.raises(
        ValueError, match=r"ddpm8-16-s0: trained anew, its weights are off by 0\.\d+ of their norm"
    ):
        get(spec, workspace)


def test_a_gradient_that_is_not_finite_stops_with_the_name_of_the_step(
    model, clean, linear_schedule, monkeypatch
):
    state, course = begin(model, clean, linear_schedule, dataclasses.replace(SETTINGS, num_steps=6))
    kept = milestones(course, state)
    way = start_backward(torch.ones(2, len(flatten_state(state)[0])), 6, len(clean))
    stepped = weighted_step
    poison = {4: torch.nan}
    monkeypatch.setattr(
        magic_stage, "weighted_step", lambda *of: stepped(*of) * poison.get(of[-1], 1)
    )
    with pytest.raises(
        FloatingPointError, match="back through training step 5, a gradient is not finite"
    ):
        list(backward_through_training(way, course, kept))
    assert way.left == 5
