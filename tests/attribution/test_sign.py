"""A positive score must mean: leaving the example out raises the query's loss. Proven by training with and without."""

import numpy as np
import torch

from journey.attribution.gradients import GradientPlan, Objective
from journey.attribution.kernel import kernel_scores
from journey.attribution.outputs import output, sample_noise_at
from journey.diffusion import training
from journey.diffusion.network import bind
from journey.engine.workspace import Precision
from journey.pipeline.settings import Batching, Training


def train(examples, model, schedule):
    settings = Training(num_steps=250, batch_size=32, learning_rate=3e-3, warmup_steps=20)
    training.initialise(0, "sign")
    state = training.new_state(model.build((1, 8, 8)), settings)
    batches = training.Batches(
        Batching.independent,
        torch.arange(len(examples)),
        len(examples),
        32,
        schedule.num_timesteps,
        0,
        "sign",
    )
    course = training.TrainingInputs(examples, batches, settings, Precision.fp32, schedule)
    for _ in training.train(state, course, settings.num_steps):
        pass
    return state.network.eval()


def test_removing_proponents_raises_the_loss_at_the_step(model, clean, linear_schedule):
    t, num_queries = 300, 4
    draws = sample_noise_at(t, 32, (1, 8, 8), 0, "sign", antithetic=True)
    queries, examples = clean[:num_queries], clean[num_queries:]
    full = train(examples, model, linear_schedule)

    objective = Objective(full, linear_schedule, Precision.fp32)
    phi, phi_q = (
        torch.cat(list(objective.gradients(some, draws, GradientPlan("vmap", 14, 32)))).numpy()
        for some in (examples, queries)
    )
    scores = np.zeros((1, num_queries, len(examples)), np.float32)
    kernel_scores(scores, phi, phi_q, [1.0])
    tau = scores[0].mean(0)  # [N], of the queries' mean loss
    order = np.argsort(-tau)

    def loss_without(index):
        kept = np.setdiff1d(np.arange(len(examples)), index)
        predict = bind(
            train(examples[torch.from_numpy(kept)], model, linear_schedule), Precision.fp32
        )
        with torch.no_grad():
            return (
                torch.stack([output(predict, linear_schedule, x0, draws) for x0 in queries])
                .mean()
                .item()
            )

    assert loss_without(order[:60]) > loss_without(order[-60:])
