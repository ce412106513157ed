"""Training a denoiser: a loop that yields, and a state that can be saved at any yield and continued bit for bit."""

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
    context: Tensor | None = None,
    region: Region = (),
) -> Tensor:
    """‖ε − ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, t)‖², averaged over the elements of an example (DDPM, Equation 14) or over those in a
    region; or the same of velocities. [B]
    """
    predicted = predict(add_noise(schedule, x0, t, eps), t, context)
    return (
        inside(regression_target(schedule, x0, t, eps) - predicted, region)
        .square()
        .flatten(1)
        .mean(1)
    )


@dataclass
class TrainingState:
    """Everything that changes during training. ema: averaged parameters by name, or None."""

    network: nn.Module
    optimizer: torch.optim.AdamW
    ema: dict[str, Tensor] | None
    step: int = 0


def new_state(network: nn.Module, training: Training) -> TrainingState:
    """AdamW (Loshchilov & Hutter 2019) from step 0."""
    optimizer = torch.optim.AdamW(
        network.parameters(), weight_decay=training.weight_decay, fused=True
    )
    ema = (
        {k: p.detach().clone() for k, p in network.named_parameters()}
        if training.ema_decay > 0
        else None
    )
    return TrainingState(network, optimizer, ema)


@dataclass(frozen=True)
class Batches:
    """What a training sees at each step: a function of (seed, stream, step), so a continued run sees the same.

    shared  Batches, timesteps and noise of every step are those of a training on all examples: what is left out is skipped.
            Trainings that share a stream differ by their examples only.
    own     Batches of the examples that are kept, full ones: what is left out changes all of them.
    """

    batching: Batching
    rows: Tensor  # of the examples that are kept, int64 [n]
    num_examples: int  # all, N
    size: int
    num_timesteps: int
    seed: int
    stream: str
    samples_latents: bool = False  # else the noise of latents is empty

    def uniform(self, purpose: str, step: int, rows: Tensor) -> Tensor:
        """A number in [0, 1) for each example of a step, the same one whatever else is kept. [B]"""
        return torch.rand(
            self.num_examples, generator=generator(self.seed, purpose, self.stream, step)
        )[rows]

    def at(self, step: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows [B], timesteps [B], noise and noise of latents [B, …] of a step; shape: of an example. Shared batches may be
        empty.
        """
        random = generator(self.seed, "train", self.stream, step)
        of_latents = generator(self.seed, "train latents", self.stream, step)
        if self.batching is Batching.independent:
            rows = self.rows[self._index(len(self.rows), step)]
            return rows, *self._draws(len(rows), shape, random, of_latents)
        rows = self._index(self.num_examples, step)
        kept = self._kept[rows]
        return rows[kept], *(
            some[kept] for some in self._draws(len(rows), shape, random, of_latents)
        )

    @functools.cached_property
    def _kept(self) -> Tensor:
        """Whether each example is. bool [N]"""
        return torch.bincount(self.rows, minlength=self.num_examples) > 0

    def _index(self, num_examples: int, step: int) -> Tensor:
        return batch_index(num_examples, self.size, step, self.seed, self.stream)

    def _draws(
        self,
        count: int,
        shape: tuple[int, ...],
        random: torch.Generator,
        of_latents: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        t = torch.randint(self.num_timesteps, (count,), generator=random)
        eps = torch.randn((count, *shape), generator=random)
        return (
            t,
            eps,
            torch.randn((count, *(shape if self.samples_latents else (0,))), generator=of_latents),
        )


@dataclass(frozen=True)
class TrainingInputs:
    """What a training is given, beside the state it begins in.

    nothing: the context of no caption, [L, E]; share: the part of every batch that is this process's own.
    """

    examples: Examples
    batches: Batches
    training: Training
    precision: Precision
    schedule: Schedule
    nothing: Tensor | None = None
    share: BatchShare = BatchShare()


def train(
    state: TrainingState, course: TrainingInputs, until: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Minimise the denoising loss until a step; yields (loss, gradient norm) after each one, on the device, unsynchronised.

    The loss is a mean over the examples of a batch, also of those that other processes take. A batch of which nothing is kept
    changes nothing, and yields nothing.
    """
    predict = bind(state.network, course.precision)
    parameters = list(state.network.parameters())
    while state.step < until:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(course.training, state.step)
        _, losses = step_losses(predict, course, state.step)
        state.optimizer.zero_grad()
        loss = step_gradient(losses, parameters, course.share)
        if loss is None:
            state.step += 1
            continue
        gradient_norm = nn.utils.clip_grad_norm_(parameters, max_norm=course.training.clip_norm)
        state.optimizer.step()
        update_average(state, course.training.ema_decay)
        state.step += 1
        yield loss, gradient_norm


def step_losses(predict: Predict, course: TrainingInputs, step: int) -> tuple[Tensor, Tensor]:
    """The rows of a step's examples, and the loss of each; none where nothing of its batch is kept. [B] and [B]"""
    batches, device = course.batches, course.examples.x0.device
    rows, t, eps, of_latents = (
        some[course.share.part] for some in batches.at(step, course.examples.shape)
    )
    if not len(rows):
        return rows, torch.empty(0, device=device)
    x0 = _seen(course, rows, of_latents, step)
    context = _conditions(course, rows, step)
    torch.manual_seed(
        entropy(batches.seed, "dropout", batches.stream, step)
    )  # so that a continued run drops the same
    return rows, denoising_loss(predict, course.schedule, x0, t.to(device), eps.to(device), context)


def _seen(course: TrainingInputs, rows: Tensor, of_latents: Tensor, step: int) -> Tensor:
    """Clean examples of a step: another sample of their latents, mirrored half of the time. [B, …]"""
    examples, device = course.examples, course.examples.x0.device
    index = rows.to(device)
    x0 = examples.x0[index]
    if examples.deviation is not None:
        x0 = x0 + examples.deviation[index] * of_latents.to(device)
    if course.training.flip:
        mirrored = (course.batches.uniform("mirror", step, rows) < 0.5).to(device)
        x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
    return x0


def _conditions(course: TrainingInputs, rows: Tensor, step: int) -> Tensor | None:
    """One of the captions of each example of a step, or the context of none. [B, L, E]"""
    of_captions, batches, dropout = (
        course.examples.context,
        course.batches,
        course.training.caption_dropout,
    )
    if of_captions is None:
        return None
    device = course.examples.x0.device
    which = (batches.uniform("caption", step, rows) * of_captions.shape[1]).long()
    context = of_captions[rows.to(device), which.to(device)]
    if dropout:
        dropped = (batches.uniform("caption dropout", step, rows) < dropout).to(device)
        context = torch.where(dropped[:, None, None], course.nothing, context)
    return context


def learning_rate(training: Training, step: int) -> float:
    """Linear warm-up to the peak, then half a cosine to zero."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.num_steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def batch_index(num_examples: int, batch_size: int, step: int, seed: int, stream: str) -> Tensor:
    """Indices of the batch of a step: consecutive parts of one new permutation of the examples after another. [B]"""
    first, end = step * batch_size, (step + 1) * batch_size
    epochs = range(first // num_examples, (end - 1) // num_examples + 1)
    order = [
        torch.randperm(num_examples, generator=generator(seed, "epoch", stream, epoch))
        for epoch in epochs
    ]
    start = first - epochs[0] * num_examples
    return torch.cat(order)[start : start + batch_size]


def initialise(seed: int, stream: str) -> None:
    """Seed torch's global generator, from which layers draw their initial weights."""
    torch.manual_seed(entropy(seed, "initialisation", stream))


def save(state: TrainingState, path: Path) -> None:
    """Write the whole state, atomically, as safetensors.

    Raises: FloatingPointError if a weight is not finite; the checkpoint before stays.
    """
    tensors = {f"network.{name}": p.detach() for name, p in state.network.named_parameters()}
    moments = state.optimizer.state_dict()["state"]
    tensors |= {
        f"optimizer.{i}.{key}": value
        for i, entry in moments.items()
        for key, value in entry.items()
    }
    tensors |= {f"ema.{name}": value for name, value in (state.ema or {}).items()}
    refuse_non_finite(state)
    temporary = path.with_suffix(".tmp")
    safetensors.torch.save_file(tensors, temporary, metadata={"step": str(state.step)})
    temporary.replace(path)


def refuse_non_finite(state: TrainingState) -> None:
    """Raises: FloatingPointError if a weight is NaN or infinite."""
    if not all(bool(p.isfinite().all()) for p in state.network.parameters()):
        raise FloatingPointError(f"training step {state.step}: a weight is not finite")


def restore(state: TrainingState, path: Path) -> None:
    """Continue from a checkpoint written by `save`."""
    with safetensors.safe_open(path, "pt") as file:
        state.step = int(file.metadata()["step"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
    by_group = {group: {} for group in ("network", "optimizer", "ema")}
    for name, value in tensors.items():
        group, rest = name.split(".", 1)
        by_group[group][rest] = value
    with torch.no_grad():
        for name, parameter in state.network.named_parameters():
            parameter.copy_(by_group["network"][name])
        for name, average in (state.ema or {}).items():
            average.copy_(by_group["ema"][name])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in by_group["optimizer"].items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def update_average(state: TrainingState, decay: float) -> None:
    """Move the averaged weights, if there are any, towards those of the network."""
    if state.ema is not None:
        names, parameters = zip(*state.network.named_parameters(), strict=True)
        torch._foreach_lerp_([state.ema[name] for name in names], list(parameters), 1 - decay)


def use_average(state: TrainingState) -> None:
    """Put the averaged weights, if there are any, into the network."""
    if state.ema is not None:
        with torch.no_grad():
            for name, parameter in state.network.named_parameters():
                parameter.copy_(state.ema[name])
