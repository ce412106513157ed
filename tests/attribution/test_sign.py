"""A positive score means that removing the example raises the query's loss: training shows it."""

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
    indices, count = torch.arange(len(examples)), len(examples)
    rest = (32, schedule.num_timesteps, 0, "sign")
    batches = training.Batches(Batching.independent, indices, count, *rest)
    inputs = training.TrainingInputs(examples, batches, settings, Precision.fp32, schedule)
    for _ in training.train(state, inputs, settings.num_steps):
        pass
    return state.network.eval()


def test_removing_proponents_raises_the_loss_at_the_step(model, clean, linear_schedule):
    noise = sample_noise_at(300, 32, (1, 8, 8), 0, "sign", antithetic=True)
    queries, examples = clean[:4], clean[4:]
    full = train(examples, model, linear_schedule)
    objective = Objective(full, linear_schedule, Precision.fp32)

    def features(some):
        return torch.cat(list(objective.gradients(some, noise, GradientPlan("vmap", 14, 32))))

    scores = np.zeros((1, len(queries), len(examples)), np.float32)
    kernel_scores(scores, features(examples).numpy(), features(queries).numpy(), [1.0])
    order = np.argsort(-scores[0].mean(0))  # by the scores of the queries' mean loss

    def loss_without(removed):
        rest = torch.from_numpy(np.setdiff1d(np.arange(len(examples)), removed))
        predict = bind(train(examples[rest], model, linear_schedule), Precision.fp32)
        with torch.no_grad():
            losses = [output(predict, linear_schedule, x0, noise) for x0 in queries]
        return torch.stack(losses).mean().item()

    assert loss_without(order[:60]) > loss_without(order[-60:])
