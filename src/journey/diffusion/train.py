"""The stages that train a diffusion model.

`make_model` writes the network as diffusers saves it, and metrics.jsonl.
`make_intermediate_checkpoint` writes these of an unfinished training, and state.safetensors, from
which the next intermediate checkpoint continues.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from journey.data.images import train_images
from journey.diffusion import training, weights
from journey.diffusion.distributed import BatchShare, lead_processes, require_no_dropout
from journey.diffusion.lora import adapter_parameters, add_adapters, save_adapters
from journey.diffusion.network import copies_ahead, get_device, load_network
from journey.diffusion.trajectories import train_examples
from journey.engine import resume
from journey.engine.metrics import track
from journey.engine.workspace import Workspace, get
from journey.pipeline import subsets
from journey.pipeline.examples import Examples
from journey.pipeline.interfaces import IntermediateCheckpoint, Train
from journey.pipeline.pretrained import locate_checkpoint

if TYPE_CHECKING:
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.models.modeling_utils import ModelMixin

LOG_INTERVAL = 50  # steps between reads of the loss, for which an accelerator must wait
STATE = "state.safetensors"


def make_model(spec: Train, partial: Path, workspace: Workspace) -> dict | None:
    """Train a model, from its start if it has one, or copy the weights of one trained elsewhere.

    Returns:
        What could not be checked of released weights.
    """
    if spec.released:
        shape, settings = spec.model.example_shape(spec.images.shape), spec.training.lora
        path = locate_checkpoint(spec.source)
        unchecked = weights.unchecked(spec.model, path)
        network = weights.load_weights(spec.model, path, shape, torch.device("cpu"), settings)
        _save_network(network, spec, partial)
        return {"unchecked": unchecked}
    state = fit(spec, spec, spec.training.num_steps, partial, workspace, begin=None)
    _save_trained(state, spec, partial)
    return None


def make_models(jobs: Sequence[tuple[Train, Path]], workspace: Workspace) -> None:
    """Train models of one `group` together, as stacked weights.

    Those that were interrupted continue with the others that had taken as many steps.
    """
    examples = train_examples(jobs[0][0], workspace).to(get_device(workspace.compute))
    by_step = defaultdict(list)
    for spec, partial in jobs:
        saved = resume.load_state(partial)
        begin = None if saved is None else partial / saved["checkpoint"]
        state, inputs = start(spec, workspace, begin=begin, examples=examples)
        by_step[state.step].append((spec, partial, state, inputs))
    for together in by_step.values():
        _fit_together(together, workspace)


def _fit_together(
    jobs: Sequence[tuple[Train, Path, training.TrainingState, training.TrainingInputs]],
    workspace: Workspace,
) -> None:
    """Train models that are at the same step to their end."""
    _, _, states, inputs = zip(*jobs, strict=True)
    until = inputs[0].training.num_steps
    with contextlib.ExitStack() as stack:
        logs, clocks, numbers = [], [], []
        for spec, partial, _, _ in jobs:
            logs.append(stack.enter_context(track(spec, partial, workspace)))
            clocks.append(resume.Clock(partial, workspace.compute.checkpoint_seconds))
        for losses, norms in training.train_stacked(states, inputs, until):
            numbers.append(torch.stack([losses, norms]))
            if len(numbers) < LOG_INTERVAL and states[0].step < until:
                continue
            by_model = torch.stack(numbers).permute(2, 1, 0).tolist()
            numbers.clear()
            for log, (own_losses, own_norms) in zip(logs, by_model, strict=True):
                _log(log, states[0].step, own_losses, own_norms)
            if clocks[0].due():
                stopped = None
                for clock, (_, partial, state, _) in zip(clocks, jobs, strict=True):
                    try:
                        _save(clock, training.saved_tensors(state), state.step, partial)
                    except resume.StoppedError as error:  # raised once all states are saved
                        stopped = error
                if stopped is not None:
                    raise stopped
    for spec, partial, state, _ in jobs:
        _save_trained(state, spec, partial)


def make_intermediate_checkpoint(
    spec: IntermediateCheckpoint, partial: Path, workspace: Workspace
) -> None:
    """Train up to this checkpoint, from the previous one if there is one."""
    begin = None if spec.previous is None else get(spec.previous, workspace).path / STATE
    state = fit(spec.training_run, spec, spec.step, partial, workspace, begin)
    training.save(state, partial / STATE)
    training.use_average(state)
    _save_network(state.network, spec.training_run, partial)


def _save_trained(state: training.TrainingState, spec: Train, partial: Path) -> None:
    training.use_average(state)
    training.require_finite_weights(state)
    _save_network(state.network, spec, partial)


def _save_network(network: nn.Module, training_run: Train, partial: Path) -> None:
    """Write a network as diffusers saves it; of one with LoRA, only the adapters."""
    if (settings := training_run.training.lora).rank:
        save_adapters(adapter_parameters(network), settings, partial)
        return
    if training_run.released or training_run.start is not None:  # it may have been loaded
        cast("ConfigMixin", network).register_to_config(_name_or_path="")  # its path is no content
    cast("ModelMixin", network).save_pretrained(partial)


def fit(
    training_run: Train,
    artifact: Train | IntermediateCheckpoint,
    until: int,
    partial: Path,
    workspace: Workspace,
    begin: Path | None,
) -> training.TrainingState:
    """Return the state of a training after `until` steps, taken in `compute.processes` processes.

    It begins with an untrained model or at the state `begin`, or resumes what was interrupted in
    `partial`. Metrics are those of `artifact`.

    Raises:
        FloatingPointError: The loss or the gradient is not finite. The message names the step.
    """
    compute = workspace.compute
    if (resumed := resume.load_state(partial)) is not None:
        begin = partial / resumed["checkpoint"]
    with lead_processes(
        compute.processes, compute.device, _follow, training_run, until, workspace, begin
    ) as share:
        state, inputs = start(training_run, workspace, share, begin)
        clock, numbers = resume.Clock(partial, compute.checkpoint_seconds), []
        saving: Future[None] | None = None
        # A thread writes copies of the state, beside the next steps.
        with track(artifact, partial, workspace) as log, ThreadPoolExecutor(1) as thread:
            for loss, gradient_norm in training.train(state, inputs, until):
                numbers.append(torch.stack([loss, gradient_norm]))
                if len(numbers) < LOG_INTERVAL and state.step < until:
                    continue

                # Read the losses, and save the state if it is time.
                losses, norms = torch.stack(numbers).T.tolist()
                _log(log, state.step, losses, norms)
                numbers.clear()
                if saving is not None and clock.due():
                    saving.result()  # which restarts the clock
                if clock.due():
                    tensors = training.saved_tensors(state)
                    copied = {name: tensor.clone() for name, tensor in tensors.items()}
                    length = (partial / resume.METRICS).stat().st_size
                    saving = thread.submit(_save, clock, copied, state.step, partial, length)
                    if resume.stop_requested():
                        saving.result()
            if saving is not None:
                saving.result()
    return state


def _log(log: Callable[..., None], last: int, losses: list[float], norms: list[float]) -> None:
    """Log the means of the steps that end with the last one.

    Raises:
        FloatingPointError: A loss or a gradient is not finite. The message names the step.
    """
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), last - len(losses) + 1):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"training step {step}: loss {loss}, gradient norm {norm}; "
                "a smaller training.learning_rate or compute.precision=fp32 may help"
            )
    log(last, loss=fmean(losses), gradient_norm=fmean(norms))


def _save(
    clock: resume.Clock,
    tensors: dict[str, torch.Tensor],
    step: int,
    partial: Path,
    metrics_bytes: int | None = None,
) -> None:
    """Save the tensors of a training's state, and how long the metrics were at its step."""
    name = f"resume.{step}.safetensors"
    training.save_tensors(tensors, step, partial / name)
    clock.save({"checkpoint": name}, [name], metrics_bytes=metrics_bytes)


def _follow(
    share: BatchShare,
    device: str,
    training_run: Train,
    until: int,
    workspace: Workspace,
    begin: Path | None,
) -> None:
    """Take the same steps in a process that neither reads the loss nor saves the state."""
    compute = replace(workspace.compute, device=device)
    state, inputs = start(training_run, replace(workspace, compute=compute), share, begin)
    for _ in training.train(state, inputs, until):
        pass


def start(
    training_run: Train,
    workspace: Workspace,
    share: BatchShare = BatchShare(),  # noqa: B008 - a constant
    begin: Path | None = None,
    examples: Examples | None = None,
) -> tuple[training.TrainingState, training.TrainingInputs]:
    """Return a training's state before its first step, or a saved one, and its inputs.

    All examples, on the device, are loaded if they are not given.
    """
    device = get_device(workspace.compute)
    images = train_images(training_run.images, workspace)
    rows = subsets.subset_rows(
        training_run.subset, images, lambda score: get(score, workspace).array("scores.npy")
    )
    if examples is None:
        examples = train_examples(training_run, workspace).to(device)

    # Initial weights, and coupled mini-batches, depend on the training seed and not on the subset.
    model, settings = training_run.model, training_run.training
    stream = f"repeat {training_run.training_seed}"
    if training_run.start is None:
        training.initialise(training_run.seed, stream)
        network = model.build(examples.shape).to(device)
    else:
        network = load_network(training_run.start, workspace, device).train()
        if settings.lora.rank:
            training.initialise(training_run.seed, stream)
            add_adapters(network, settings.lora)
    if copies_ahead(device):
        network.to(memory_format=torch.channels_last)  # in which tensor cores convolve
    state = training.new_state(network, settings)
    require_no_dropout(state.network, share)
    if begin is not None:
        training.restore(state, begin)

    schedule = model.schedule(device)
    batches = training.Batches(
        batching=training_run.batches,
        rows=torch.from_numpy(rows),
        num_examples=len(examples),
        size=settings.batch_size,
        num_timesteps=schedule.num_timesteps,
        seed=training_run.seed,
        stream=stream,
        samples_latents=examples.deviation is not None,
    )
    null_condition = model.null_condition().to(device) if settings.caption_dropout else None
    return state, training.TrainingInputs(
        examples,
        batches,
        settings,
        training_run.precision,
        schedule,
        null_condition,
        share,
        workspace.compute.compile,
    )
