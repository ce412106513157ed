"""Training a denoiser: a loop that yields after each step, and a state that resumes bit for bit.

N     all training examples;  B  mini-batch;  rows  indices of examples among all N
x0    clean examples [B, …];  t  timesteps [B];  eps  noise ε [B, …]

The randomness of a step is a function of (seed, stream, step), where a stream is a name. Coupled
trainings with the same stream differ by their examples only.
"""

import copy
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from journey.diffusion.distributed import BatchShare, step_gradient
from journey.diffusion.network import Predict, bind, copies_ahead, trained_parameters
from journey.engine.seeding import entropy, generator
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples, Region, inside
from journey.pipeline.schedule import Schedule, add_noise, regression_target
from journey.pipeline.settings import Batching, Optimization, Training


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
    """The mini-batch of a step, or a part of it, with the random numbers of its examples."""

    size: int  # of the whole mini-batch
    rows: Tensor  # indices of the examples [B]
    t: Tensor  # [B]
    eps: Tensor  # [B, …]
    latent_noise: Tensor | None = None  # by which latents are sampled [B, …]; None: they are not
    # Numbers in [0, 1) that decide, if it is random, [B]:
    mirror: Tensor | None = None  # whether the example is flipped left to right
    caption: Tensor | None = None  # which of its captions is used
    caption_dropout: Tensor | None = None  # whether the caption is dropped

    def __getitem__(self, index: Tensor | slice) -> "Batch":
        return self._map(lambda tensor: tensor[index])

    def pin(self) -> "Batch":
        """Return the batch in pinned memory."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; the host does not wait for a copy of pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=copies_ahead(device)))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        optional = (self.latent_noise, self.mirror, self.caption, self.caption_dropout)
        mapped = (None if tensor is None else function(tensor) for tensor in optional)
        return Batch(self.size, function(self.rows), function(self.t), function(self.eps), *mapped)


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
        t = torch.randint(self.num_timesteps, (len(index),), generator=random)
        eps = torch.randn((len(index), *shape), generator=random)
        latent_noise = None
        if self.samples_latents:
            latent_random = generator(self.seed, "train latents", self.stream, step)
            latent_noise = torch.randn((len(index), *shape), generator=latent_random)
        if not coupled:
            return Batch(len(index), self.rows[index], t, eps, latent_noise)
        kept = self._in_subset[index]
        latent_noise = None if latent_noise is None else latent_noise[kept]
        return Batch(int(kept.sum()), index[kept], t[kept], eps[kept], latent_noise)


def batch_index(num_examples: int, batch_size: int, step: int, seed: int, stream: str) -> Tensor:
    """Return the indices of a mini-batch: a part of one permutation after another [B]."""
    first, end = step * batch_size, (step + 1) * batch_size
    epochs = range(first // num_examples, (end - 1) // num_examples + 1)
    orders = [_epoch_order(num_examples, seed, stream, epoch) for epoch in epochs]
    start = first - epochs[0] * num_examples
    return torch.cat(orders)[start : start + batch_size]


@functools.lru_cache(maxsize=2)  # a mini-batch is of one epoch or of two, if it is no larger
def _epoch_order(num_examples: int, seed: int, stream: str, epoch: int) -> Tensor:
    """Return the permutation of all examples that an epoch follows [N]."""
    return torch.randperm(num_examples, generator=generator(seed, "epoch", stream, epoch))


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


def new_optimizer(parameters: Iterable[Tensor], training: Optimization) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019); each step sets its learning rate."""
    return torch.optim.AdamW(
        parameters, weight_decay=training.weight_decay, eps=training.adam_epsilon, fused=True
    )


def new_state(network: nn.Module, training: Optimization) -> TrainingState:
    """Return the state before the first step."""
    optimizer = new_optimizer(trained_parameters(network).values(), training)
    ema = None
    if training.ema_decay > 0:
        ema = {name: p.detach().clone() for name, p in trained_parameters(network).items()}
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
    compile: bool = False  # whether torch compiles the network

    def batch(self, step: int) -> Batch:
        """Return this process's part of the mini-batch of a step, on the CPU."""
        batches = self.batches
        batch = batches.batch(step, self.examples.shape)[self.share.part]
        if self.training.flip:
            batch = replace(batch, mirror=batches.uniform("mirror", step, batch.rows))
        if self.examples.condition is not None:
            batch = replace(batch, caption=batches.uniform("caption", step, batch.rows))
            if self.training.caption_dropout:
                dropout = batches.uniform("caption dropout", step, batch.rows)
                batch = replace(batch, caption_dropout=dropout)
        return batch

    def batches_ahead(self, first: int, until: int) -> Iterator[Batch]:
        """Yield the mini-batches of steps, on the device.

        For an accelerator, a thread draws each of them a step ahead into pinned memory.
        """
        device = self.examples.x0.device
        if not copies_ahead(device):
            for step in range(first, until):
                yield self.batch(step).to(device)
            return

        def draw(step: int) -> Batch:
            return self.batch(step).pin()

        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(draw, first)
            for step in range(first + 1, until + 1):
                batch = ahead.result()
                if step < until:
                    ahead = thread.submit(draw, step)
                yield batch.to(device)


def train(
    state: TrainingState, inputs: TrainingInputs, until: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Minimise the denoising loss until a step. An empty mini-batch changes and yields nothing.

    Yields:
        Loss and gradient norm of each step, on the device and not synchronised. The loss is the
        mean over the mini-batch, including the examples of other processes.
    """
    network = None if inputs.compile else state.network
    parameters = list(trained_parameters(state.network).values())
    for batch in inputs.batches_ahead(state.step, until):
        if not batch.size:
            state.step += 1
            continue
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(inputs.training, state.step)
        if network is None:
            network = compiled(state, inputs, batch)
        losses = step_losses(bind(network, inputs.precision), inputs, batch, state.step)
        state.optimizer.zero_grad()
        loss = step_gradient(losses, batch.size, parameters, inputs.share)
        gradient_norm = nn.utils.clip_grad_norm_(parameters, max_norm=inputs.training.clip_norm)
        state.optimizer.step()
        update_average(state, inputs.training.ema_decay)
        state.step += 1
        yield loss, gradient_norm


def compiled(state: TrainingState, inputs: TrainingInputs, batch: Batch) -> nn.Module:
    """Return the network, compiled by torch, after a pass over a mini-batch.

    If torch cannot compile it, a printed line says so, and the network is returned as it is.

    Raises:
        OutOfMemoryError: The mini-batch does not fit into the device's memory.
    """
    # Dropout has the random numbers that it has without compilation.
    network = cast("nn.Module", torch.compile(state.network, options={"fallback_random": True}))
    try:
        step_losses(bind(network, inputs.precision), inputs, batch, state.step).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"compute.compile=true: training without compilation ({reason})", file=sys.stderr)
        network = state.network
    state.optimizer.zero_grad()
    return network


def step_losses(predict: Predict, inputs: TrainingInputs, batch: Batch, step: int) -> Tensor:
    """Return the loss of each example of a step's mini-batch, which is on the device [B]."""
    if not len(batch.rows):
        return batch.eps.new_empty(0)
    x0, condition = step_examples(inputs, batch)
    # Dropout of the network depends on the step alone, so that a resumed run repeats it.
    torch.manual_seed(entropy(inputs.batches.seed, "dropout", inputs.batches.stream, step))
    return denoising_loss(predict, inputs.schedule, x0, batch.t, batch.eps, condition)


def step_examples(inputs: TrainingInputs, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return the clean examples of a mini-batch [B, …], and their conditions, if any."""
    examples, training, condition = inputs.examples, inputs.training, None

    # Clean examples: a fresh sample of their latents, mirrored with probability 1/2.
    x0 = examples.x0[batch.rows]
    if batch.latent_noise is not None:
        assert examples.deviation is not None, "only latents have latent noise"
        x0 = x0 + examples.deviation[batch.rows] * batch.latent_noise
    if batch.mirror is not None:
        x0 = torch.where((batch.mirror < 0.5)[:, None, None, None], x0.flip(-1), x0)

    # Conditions: one of the captions of each example, or that of no caption.
    if examples.condition is not None:
        assert batch.caption is not None, "a mini-batch of examples with captions chooses some"
        caption = (batch.caption * examples.condition.shape[1]).long()
        half = inputs.precision is Precision.bf16 and copies_ahead(x0.device)
        with torch.autocast(x0.device.type, dtype=torch.bfloat16, enabled=half):
            condition = examples.condition[batch.rows, caption]  # may have to be encoded
        if batch.caption_dropout is not None:
            assert inputs.null_condition is not None, "caption dropout needs a null condition"
            dropped = batch.caption_dropout < training.caption_dropout
            dropped = dropped.view(-1, *[1] * (condition.ndim - 1))
            condition = torch.where(dropped, inputs.null_condition, condition)
    return x0, condition


def train_stacked(
    states: Sequence[TrainingState], inputs: Sequence[TrainingInputs], until: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Take the steps of `train` with M networks of one architecture at once.

    Their trained parameters and moments become views of stacked ones [M, …], so that the states are
    always up to date. All are at the same step, and no mini-batch is empty.

    Yields:
        Losses and gradient norms of each step [M].
    """
    # Stack parameters, moments and averages; the states keep views of them.
    training, schedule, network = inputs[0].training, inputs[0].schedule, states[0].network
    template = copy.deepcopy(network)
    modules = [trained_parameters(state.network) for state in states]
    stacked: dict[str, Tensor] = {}
    for name in modules[0]:
        stacked[name] = nn.Parameter(torch.stack([module[name].detach() for module in modules]))
    optimizer = new_optimizer(stacked.values(), training)
    averages = {}
    for name, parameters in stacked.items():
        own = [
            state.optimizer.state[module[name]]
            for state, module in zip(states, modules, strict=True)
        ]
        zero = torch.zeros_like(modules[0][name])
        moments = {"step": own[0].get("step", torch.zeros((), device=zero.device))}
        for moment in ("exp_avg", "exp_avg_sq"):
            moments[moment] = torch.stack([values.get(moment, zero) for values in own])
        optimizer.state[parameters] = moments
        if states[0].ema is not None:
            averages[name] = torch.stack([state.ema[name] for state in states if state.ema])
        for index, (state, module) in enumerate(zip(states, modules, strict=True)):
            module[name].data = parameters.data[index]
            views = {key: moments[key][index] for key in ("exp_avg", "exp_avg_sq")}
            state.optimizer.state[module[name]] = {"step": moments["step"], **views}
            if state.ema is not None:
                state.ema[name] = averages[name][index]

    def losses_of_one(
        parameters: dict[str, Tensor], x0: Tensor, t: Tensor, eps: Tensor, condition: Tensor | None
    ) -> Tensor:
        predict = bind(template, inputs[0].precision, parameters)
        return denoising_loss(predict, schedule, x0, t, eps, condition)

    ahead = [one.batches_ahead(states[0].step, until) for one in inputs]
    for batches in zip(*ahead, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, states[0].step)
        clean, given = zip(*map(step_examples, inputs, batches), strict=True)
        conditions = None if given[0] is None else torch.stack(given)
        axes = (0, 0, 0, 0, None if conditions is None else 0)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
            losses = torch.vmap(losses_of_one, in_dims=axes)(
                stacked,
                torch.stack(clean),
                torch.stack([batch.t for batch in batches]),
                torch.stack([batch.eps for batch in batches]),
                conditions,
            )  # [M, B]
        optimizer.zero_grad()
        losses.mean(1).sum().backward()

        # Clip the gradient of each network to the norm.
        gradients = [cast("Tensor", parameters.grad) for parameters in stacked.values()]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        factors = (training.clip_norm / (norms + 1e-6)).clamp(max=1)  # as clip_grad_norm_
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
        optimizer.step()
        if averages:
            values = [stacked[name].detach() for name in averages]
            torch._foreach_lerp_(list(averages.values()), values, 1 - training.ema_decay)
        for state in states:
            state.step += 1
        yield losses.detach().mean(1), norms


def learning_rate(training: Optimization, step: int) -> float:
    """Return the rate of a step: a linear warm-up to the peak, then half a cosine to zero."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.num_steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def update_average(state: TrainingState, decay: float) -> None:
    """Move the averaged weights, if there are any, towards those of the network."""
    if state.ema is not None:
        parameters = trained_parameters(state.network)
        averages = [state.ema[name] for name in parameters]
        torch._foreach_lerp_(averages, list(parameters.values()), 1 - decay)


def use_average(state: TrainingState) -> None:
    """Copy the averaged weights, if there are any, into the network."""
    if state.ema is not None:
        with torch.no_grad():
            for name, parameter in trained_parameters(state.network).items():
                parameter.copy_(state.ema[name])


def require_finite_weights(state: TrainingState) -> None:
    """Check the weights of the network.

    Raises:
        FloatingPointError: A weight is NaN or infinite.
    """
    _require_finite(trained_parameters(state.network).values(), state.step)


def _require_finite(weights: Iterable[Tensor], step: int) -> None:
    finite = torch.stack([weight.isfinite().all() for weight in weights])
    if not bool(finite.all()):  # a single wait for an accelerator
        raise FloatingPointError(f"training step {step}: a weight is not finite")


def save(state: TrainingState, path: Path) -> None:
    """Write the state as safetensors, atomically, unless a weight is not finite (an error)."""
    save_tensors(saved_tensors(state), state.step, path)


def saved_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Return the tensors that are saved of a state, by name; they change with the next step."""
    parameters = trained_parameters(state.network)
    tensors = {f"network.{name}": p.detach() for name, p in parameters.items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = value
    for name, value in (state.ema or {}).items():
        tensors[f"ema.{name}"] = value
    return tensors


def save_tensors(tensors: dict[str, Tensor], step: int, path: Path) -> None:
    """Write what `saved_tensors` returned after a step, as `save` does."""
    weights = [tensor for name, tensor in tensors.items() if name.startswith("network.")]
    _require_finite(weights, step)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    temporary = path.with_suffix(".tmp")
    safetensors.torch.save_file(contiguous, temporary, metadata={"step": str(step)})
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
        for name, parameter in trained_parameters(state.network).items():
            parameter.copy_(groups["network"][name])
        for name, average in (state.ema or {}).items():
            average.copy_(groups["ema"][name])
    parameters = list(trained_parameters(state.network).values())
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in groups["optimizer"].items():
        index, name = key.split(".")
        like = parameters[int(index)]
        if value.shape == like.shape:  # in its layout of memory, as AdamW's fused kernel needs it
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        moments.setdefault(int(index), {})[name] = value
    param_groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": param_groups})
