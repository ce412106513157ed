"""Train one diffusion model. Payload: the network as diffusers saves it, metrics.jsonl.

A model along its training. Payload: the network as diffusers saves it; state.safetensors, which the next continues."""

import math
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from journey.data.images import train_images
from journey.diffusion import network, training, weights
from journey.diffusion.distributed import BatchShare, lead_processes, refuse_dropout
from journey.diffusion.trajectories import train_examples
from journey.engine import resume
from journey.engine.metrics import track
from journey.engine.workspace import Workspace, get
from journey.pipeline import subsets
from journey.pipeline.interfaces import IntermediateCheckpoint, Train
from journey.pipeline.pretrained import locate_checkpoint

WINDOW = 50  # steps between looks at the loss: an accelerator waits only then, and only then is a state kept


def make_model(spec: Train, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError naming the step if the loss or the gradient stops being finite."""
    if spec.released:
        shape = spec.model.example_shape(spec.images.shape)
        found = weights.load_weights(
            spec.model, locate_checkpoint(spec.source), shape, torch.device("cpu")
        )
        found.register_to_config(_name_or_path="")  # where it was is no part of the artifact
        found.save_pretrained(partial)
        return
    state = fit(spec, spec, spec.training.num_steps, partial, workspace, begin=None)
    training.use_average(state)
    training.refuse_non_finite(state)
    state.network.save_pretrained(partial)


def fit(
    of: Train,
    making: Train | IntermediateCheckpoint,
    until: int,
    partial: Path,
    workspace: Workspace,
    begin: Path | None,
) -> training.TrainingState:
    """Train a model up to a step, in `compute.processes` processes: from the start, from the state `begin`, or from where an
    interrupted run stopped.
    """
    compute = workspace.compute
    if (kept := resume.load_state(partial)) is not None:
        begin = partial / kept["checkpoint"]
    with lead_processes(
        compute.processes, compute.device, _follow, of, until, workspace, begin
    ) as share:
        return _fit(of, making, until, partial, workspace, begin, share)


def _fit(
    of: Train,
    making: Train | IntermediateCheckpoint,
    until: int,
    partial: Path,
    workspace: Workspace,
    begin: Path | None,
    share: BatchShare,
) -> training.TrainingState:
    """The part of the process that looks at the loss and keeps the state."""
    # A new model, or the one that an earlier run left.
    state, course = start(of, workspace, share)
    if begin is not None:
        training.restore(state, begin)

    # Train.
    steps = training.train(state, course, until)
    saved_at, window = time.monotonic(), []
    with track(making, partial, workspace, resume_step=state.step) as log:
        for loss, gradient_norm in steps:
            window.append(torch.stack([loss, gradient_norm]))
            if len(window) < WINDOW and state.step < until:
                continue
            losses, norms = torch.stack(window).T.tolist()
            first = state.step - len(window) + 1
            _refuse_nan(losses, norms, first)
            log(state.step, loss=fmean(losses), gradient_norm=fmean(norms))
            window.clear()
            if resume.is_due(saved_at, workspace.compute.checkpoint_seconds):
                _keep(state, partial)
                saved_at = time.monotonic()
    return state


def _follow(
    share: BatchShare, device: str, of: Train, until: int, workspace: Workspace, begin: Path | None
) -> None:
    """The part of every other process: the same steps."""
    state, course = start(
        of, replace(workspace, compute=replace(workspace.compute, device=device)), share
    )
    if begin is not None:
        training.restore(state, begin)
    for _ in training.train(state, course, until):
        pass


def start(
    of: Train, workspace: Workspace, share: BatchShare = BatchShare()
) -> tuple[training.TrainingState, training.TrainingInputs]:  # noqa: B008 - a constant
    """A model before its first step, and what its training is given: the images it sees as one tensor on the device."""
    device = network.get_device(workspace.compute)
    images = train_images(of.images, workspace)
    rows = subsets.subset_rows(
        of.subset, images, lambda score: get(score, workspace).array("scores.npy")
    )
    clean = train_examples(of, workspace).to(device)
    # Initial weights and noise depend on the repeat alone, as is usual in the field; so do shared batches.
    stream = f"repeat {of.training_seed}"
    training.initialise(of.seed, stream)
    state = training.new_state(of.model.build(clean.shape).to(device), of.training)
    refuse_dropout(state.network, share)
    noise_schedule = of.model.schedule(device)
    batches = training.Batches(
        batching=of.batches,
        rows=torch.from_numpy(rows),
        num_examples=len(clean),
        size=of.training.batch_size,
        num_timesteps=noise_schedule.num_timesteps,
        seed=of.seed,
        stream=stream,
        samples_latents=clean.deviation is not None,
    )
    nothing = of.model.read([""])[0].to(device) if of.training.caption_dropout else None
    return state, training.TrainingInputs(
        clean, batches, of.training, of.precision, noise_schedule, nothing, share
    )


def _keep(state: training.TrainingState, partial: Path) -> None:
    name = f"resume.{state.step}.safetensors"
    training.save(state, partial / name)
    resume.save_state(partial, {"checkpoint": name}, [name])


def _refuse_nan(losses: list[float], norms: list[float], first_step: int) -> None:
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first_step):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            advice = "a smaller training.learning_rate or compute.precision=fp32 may help"
            raise FloatingPointError(
                f"training step {step}: loss {loss}, gradient norm {norm}; {advice}"
            )


STATE = "state.safetensors"


def make_intermediate_checkpoint(spec: IntermediateCheckpoint, partial: Path, workspace: Workspace) -> None:
    """The same steps as the whole training takes, up to this one."""
    begin = None if spec.previous is None else get(spec.previous, workspace).path / STATE
    state = fit(spec.training_run, spec, spec.step, partial, workspace, begin)
    training.save(state, partial / STATE)
    training.use_average(state)
    state.network.save_pretrained(partial)
