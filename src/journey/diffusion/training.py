"""Training a denoiser: a loop that yields after each step, and a state that resumes bit for bit.

N     all training examples;  B  mini-batch;  rows  indices of examples among all N
x0    clean examples [B, …];  t  timesteps [B];  eps  noise ε [B, …]

The randomness of a step is a function of (seed, stream, step), where a stream is a name. Coupled
trainings with the same stream differ by their examples only.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from journey.diffusion.distributed import BatchShare, step_gradient
from journey.diffusion.network import Predict, bind
from journey.engine.seeding import entropy, generator
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples, Region, inside
from journey.pipeline.schedule import Schedule, add_noise, regression_target
from journey.pipeline.settings import Batching, Training


def denoising_loss(
    predict: Predict,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    condition: Tensor | None = None,
    region: Region = (),
) -> Tensor:
    """Return the mean squared error of the prediction at x_t [B] (DDPM, Equation 14).

    The condition of each example is [B, L, E] or [B]. The mean is over a region, if
    one is given.
    """
    predicted = predict(add_noise(schedule, x0, t, eps), t, condition)
    error = inside(regression_target(schedule, x0, t, eps) - predicted, region)
    return error.square().flatten(1).mean(1)


@dataclass(frozen=True)
class Batch:
    """The mini-batch of a step."""

    rows: Tensor  # indices of the examples [B]
    t: Tensor  # [B]
    eps: Tensor  # [B, …]
    latent_noise: Tensor  # by which latents are sampled [B, …]; [B, 0] if they are not

    def __getitem__(self, index: Tensor | slice) -> "Batch":
        return Batch(self.rows[index], self.t[index], self.eps[index], self.latent_noise[index])


@dataclass(frozen=True)
class Batches:
    """The mini-batches of a training.

    Independent ones are full batches of the training subset: removing an example changes all of
    them. Coupled ones are those of all N examples without the removed ones; they may be empty.
    """

    batching: Batching
    rows: Tensor  # the training subset, int64 [n]
    num_examples: int  # N
    size: int  # of a full mini-batch
    num_timesteps: int
    seed: int
    stream: str
    samples_latents: bool = False

    @functools.cached_property
    def _in_subset(self) -> Tensor:
        """Return whether each example is in the training subset, bool [N]."""
        return torch.bincount(self.rows, minlength=self.num_examples) > 0

    def uniform(self, purpose: str, step: int, rows: Tensor) -> Tensor:
        """Return a number in [0, 1) for each row, whatever the training subset [B]."""
        random = generator(self.seed, purpose, self.stream, step)
        return torch.rand(self.num_examples, generator=random)[rows]

    def batch(self, step: int, shape: tuple[int, ...]) -> Batch:
        """Return the mini-batch of a step, for examples of a shape."""
        coupled = self.batching is Batching.coupled
        count = self.num_examples if coupled else len(self.rows)
        index = batch_index(count, self.size, step, self.seed, self.stream)
        random = generator(self.seed, "train", self.stream, step)
        latent_random = generator(self.seed, "train latents", self.stream, step)
        latent_shape = shape if self.samples_latents else (0,)
        batch = Batch(
            rows=index if coupled else self.rows[index],
            t=torch.randint(self.num_timesteps, (len(index),), generator=random),
            eps=torch.randn((len(index), *shape), generator=random),
            latent_noise=torch.randn((len(index), *latent_shape), generator=latent_random),
        )
        return batch[self._in_subset[batch.rows]] if coupled else batch


def batch_index(num_examples: int, batch_size: int, step: int, seed: int, stream: str) -> Tensor:
    """Return the indices of a mini-batch: a part of one permutation after another [B]."""
    first, end = step * batch_size, (step + 1) * batch_size
    epochs = range(first // num_examples, (end - 1) // num_examples + 1)
    orders = []
    for epoch in epochs:
        random = generator(seed, "epoch", stream, epoch)
        orders.append(torch.randperm(num_examples, generator=random))
    start = first - epochs[0] * num_examples
    return torch.cat(orders)[start : start + batch_size]


@dataclass
class TrainingState:
    """Everything that changes during training."""

    network: nn.Module
    optimizer: torch.optim.AdamW
    ema: dict[str, Tensor] | None  # averaged parameters by name
    step: int = 0  # steps that were taken


def initialise(seed: int, stream: str) -> None:
    """Seed torch's global generator, from which layers draw their initial weights."""
    torch.manual_seed(entropy(seed, "initialisation", stream))


def new_state(network: nn.Module, training: Training) -> TrainingState:
    """Return the state before the first step of AdamW (Loshchilov and Hutter 2019)."""
    optimizer = torch.optim.AdamW(
        network.parameters(), weight_decay=training.weight_decay, fused=True
    )
    ema = None
    if training.ema_decay > 0:
        ema = {name: p.detach().clone() for name, p in network.named_parameters()}
    return TrainingState(network, optimizer, ema)


@dataclass(frozen=True)
class TrainingInputs:
    """What a training is given, beside its initial state."""

    examples: Examples  # all N, on the device
    batches: Batches
    training: Training
    precision: Precision
    schedule: Schedule
    null_condition: Tensor | None = None  # of an example whose caption is dropped [L, E]
    share: BatchShare = BatchShare()


def train(
    state: TrainingState, inputs: TrainingInputs, until: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Minimise the denoising loss until a step. An empty mini-batch changes and yields nothing.

    Yields:
        Loss and gradient norm of each step, on the device and not synchronised. The loss is the
        mean over the mini-batch, including the examples of other processes.
    """
    predict = bind(state.network, inputs.precision)
    parameters = list(state.network.parameters())
    while state.step < until:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(inputs.training, state.step)
        _, losses = step_losses(predict, inputs, state.step)
        state.optimizer.zero_grad()
        loss = step_gradient(losses, parameters, inputs.share)
        if loss is None:
            state.step += 1
            continue
        gradient_norm = nn.utils.clip_grad_norm_(parameters, max_norm=inputs.training.clip_norm)
        state.optimizer.step()
        update_average(state, inputs.training.ema_decay)
        state.step += 1
        yield loss, gradient_norm


def step_losses(predict: Predict, inputs: TrainingInputs, step: int) -> tuple[Tensor, Tensor]:
    """Return the rows of this process's part of a mini-batch [B], and the loss of each [B]."""
    examples, batches, training = inputs.examples, inputs.batches, inputs.training
    device = examples.x0.device
    batch = batches.batch(step, examples.shape)[inputs.share.part]
    rows, index = batch.rows, batch.rows.to(device)
    if not len(rows):
        return rows, torch.empty(0, device=device)

    # Clean examples: a fresh sample of their latents, mirrored with probability 1/2.
    x0 = examples.x0[index]
    if examples.deviation is not None:
        x0 = x0 + examples.deviation[index] * batch.latent_noise.to(device)
    if training.flip:
        mirrored = (batches.uniform("mirror", step, rows) < 0.5).to(device)
        x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)

    # Conditions: one of the captions of each example, or that of no caption.
    condition = None
    if examples.condition is not None:
        num_captions = examples.condition.shape[1]
        caption = (batches.uniform("caption", step, rows) * num_captions).long()
        condition = examples.condition[index, caption.to(device)]
        if training.caption_dropout:
            assert inputs.null_condition is not None, "caption dropout needs a null condition"
            uniform = batches.uniform("caption dropout", step, rows)
            dropped = (uniform < training.caption_dropout).to(device)
            dropped = dropped.view(-1, *[1] * (condition.ndim - 1))
            condition = torch.where(dropped, inputs.null_condition, condition)

    # Dropout of the network depends on the step alone, so that a resumed run repeats it.
    torch.manual_seed(entropy(batches.seed, "dropout", batches.stream, step))
    t, eps = batch.t.to(device), batch.eps.to(device)
    return rows, denoising_loss(predict, inputs.schedule, x0, t, eps, condition)


def learning_rate(training: Training, step: int) -> float:
    """Return the rate of a step: a linear warm-up to the peak, then half a cosine to zero."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.num_steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def update_average(state: TrainingState, decay: float) -> None:
    """Move the averaged weights, if there are any, towards those of the network."""
    if state.ema is not None:
        names, parameters = zip(*state.network.named_parameters(), strict=True)
        torch._foreach_lerp_([state.ema[name] for name in names], list(parameters), 1 - decay)


def use_average(state: TrainingState) -> None:
    """Copy the averaged weights, if there are any, into the network."""
    if state.ema is not None:
        with torch.no_grad():
            for name, parameter in state.network.named_parameters():
                parameter.copy_(state.ema[name])


def require_finite_weights(state: TrainingState) -> None:
    """Check the weights of the network.

    Raises:
        FloatingPointError: A weight is NaN or infinite.
    """
    if not all(bool(p.isfinite().all()) for p in state.network.parameters()):
        raise FloatingPointError(f"training step {state.step}: a weight is not finite")


def save(state: TrainingState, path: Path) -> None:
    """Write the state as safetensors, atomically, unless a weight is not finite (an error)."""
    require_finite_weights(state)
    tensors = {f"network.{name}": p.detach() for name, p in state.network.named_parameters()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = value
    for name, value in (state.ema or {}).items():
        tensors[f"ema.{name}"] = value
    temporary = path.with_suffix(".tmp")
    safetensors.torch.save_file(tensors, temporary, metadata={"step": str(state.step)})
    temporary.replace(path)


def restore(state: TrainingState, path: Path) -> None:
    """Load a state that `save` wrote, in place."""
    groups: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}, "ema": {}}
    with safetensors.safe_open(path, "pt") as file:
        state.step = int(file.metadata()["step"])
        for key in file.keys():  # noqa: SIM118 - the file is no dict
            group, name = key.split(".", 1)
            groups[group][name] = file.get_tensor(key)
    with torch.no_grad():
        for name, parameter in state.network.named_parameters():
            parameter.copy_(groups["network"][name])
        for name, average in (state.ema or {}).items():
            average.copy_(groups["ema"][name])
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in groups["optimizer"].items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = value
    param_groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": param_groups})
