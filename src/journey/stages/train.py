"""Train one diffusion model. Payload: the network as diffusers saves it, metrics.jsonl."""

import math
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from journey.artifacts import released, resume
from journey.artifacts.specs import Snapshot, Train
from journey.artifacts.workspace import Workspace, get
from journey.data import subsets, train_images
from journey.diffusion import network, training, weights
from journey.diffusion.journeys import train_examples
from journey.diffusion.together import Share, led, refuse_dropout
from journey.tracking import track

WINDOW = 50  # steps between looks at the loss: an accelerator waits only then, and only then is a state kept


def make(spec: Train, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError naming the step if the loss or the gradient stops being finite."""
    if spec.released:
        shape = spec.model.example_shape(spec.images.shape)
        found = weights.load(spec.model, released.network(spec.source), shape, torch.device("cpu"))
        found.register_to_config(_name_or_path="")  # where it was is no part of the artifact
        found.save_pretrained(partial)
        return
    state = fit(spec, spec, spec.training.num_steps, partial, workspace, begin=None)
    training.use_average(state)
    training.refuse_non_finite(state)
    state.network.save_pretrained(partial)


def fit(
    of: Train, making: Train | Snapshot, until: int, partial: Path, workspace: Workspace, begin: Path | None
) -> training.State:
    """Train a model up to a step, in `compute.processes` processes: from the start, from the state `begin`, or from where an
    interrupted run stopped.
    """
    compute = workspace.compute
    if (kept := resume.resumed(partial)) is not None:
        begin = partial / kept["checkpoint"]
    with led(compute.processes, compute.device, _follow, of, until, workspace, begin) as share:
        return _fit(of, making, until, partial, workspace, begin, share)


def _fit(
    of: Train, making: Train | Snapshot, until: int, partial: Path, workspace: Workspace, begin: Path | None, share: Share
) -> training.State:
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
            if resume.due(saved_at, workspace.compute.checkpoint_seconds):
                _keep(state, partial)
                saved_at = time.monotonic()
    return state


def _follow(share: Share, device: str, of: Train, until: int, workspace: Workspace, begin: Path | None) -> None:
    """The part of every other process: the same steps."""
    state, course = start(of, replace(workspace, compute=replace(workspace.compute, device=device)), share)
    if begin is not None:
        training.restore(state, begin)
    for _ in training.train(state, course, until):
        pass


def start(of: Train, workspace: Workspace, share: Share = Share()) -> tuple[training.State, training.Course]:  # noqa: B008 - a constant
    """A model before its first step, and what its training is given: the images it sees as one tensor on the device."""
    device = network.device_of(workspace.compute)
    images = train_images(of.images, workspace)
    rows = subsets.rows(of.keep, images, lambda score: get(score, workspace).array("scores.npy"))
    clean = train_examples(of, workspace).to(device)
    # Initial weights and noise depend on the repeat alone, as is usual in the field; so do shared batches.
    stream = f"repeat {of.repeat}"
    training.initialise(of.seed, stream)
    state = training.new_state(of.model.build(clean.shape).to(device), of.training)
    refuse_dropout(state.network, share)
    noise_schedule = of.model.schedule(device)
    batches = training.Batches(
        kind=of.batches,
        rows=torch.from_numpy(rows),
        num_examples=len(clean),
        size=of.training.batch_size,
        num_timesteps=noise_schedule.num_timesteps,
        seed=of.seed,
        stream=stream,
        samples_latents=clean.deviation is not None,
    )
    nothing = of.model.read([""])[0].to(device) if of.training.caption_dropout else None
    return state, training.Course(clean, batches, of.training, of.precision, noise_schedule, nothing, share)


def _keep(state: training.State, partial: Path) -> None:
    name = f"resume.{state.step}.safetensors"
    training.save(state, partial / name)
    resume.keep(partial, {"checkpoint": name}, [name])


def _refuse_nan(losses: list[float], norms: list[float], first_step: int) -> None:
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first_step):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            advice = "a smaller training.learning_rate or compute.precision=fp32 may help"
            raise FloatingPointError(f"training step {step}: loss {loss}, gradient norm {norm}; {advice}")
