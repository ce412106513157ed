"""Train one diffusion model. Payload: the network as diffusers saves it, metrics.jsonl."""

import math
import time
from pathlib import Path
from statistics import fmean

import torch

from journey import data
from journey.diffusion import examples, network, schedule, training
from journey.evaluation import subsets
from journey.specs import Snapshot, Train
from journey.stages import Workspace
from journey.tracking import track

WINDOW = 50  # steps between looks at the loss: an accelerator waits only then
CHECKPOINT = "resume.safetensors"


def run(spec: Train, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError naming the step if the loss or the gradient stops being finite."""
    state = fit(spec, spec, spec.training.num_steps, partial, workspace, begin=None)
    training.use_average(state)
    training.refuse_non_finite(state)
    state.network.save_pretrained(partial)


def fit(
    model: Train, making: Train | Snapshot, until: int, partial: Path, workspace: Workspace, begin: Path | None
) -> training.State:
    """Train a model up to a step: from the start, from the state `begin`, or from where an interrupted run stopped."""
    # Load: the images of the subset as one tensor on the device.
    device = network.device_of(workspace.compute)
    images, _ = data.load(model.dataset)
    clean = examples.encode(images, model.model)
    if model.subset is not None:
        clean = clean[torch.from_numpy(subsets.mask(images.labels, model.subset))]
    clean = clean.to(device)

    # A new model, or the one that an earlier run left.
    # Initial weights and noise depend on the repeat alone, as is usual in the field: models that share one differ by their
    # images only, and a subset model is what checkpoint `repeat` would have been without the images left out.
    name = f"repeat {model.repeat}"
    training.initialise(model.seed, name)
    state = training.new_state(network.build(model.model, clean.shape).to(device), model.training)
    checkpoint = partial / CHECKPOINT
    if checkpoint.exists() or begin is not None:
        training.restore(state, checkpoint if checkpoint.exists() else begin)

    # Train.
    noise_schedule = schedule.schedule_of(model.model, device)
    steps = training.train(state, clean, model.training, until, model.precision, noise_schedule, model.seed, name)
    saved_at, window = time.monotonic(), []
    with track(making, partial, workspace, resume_step=state.step) as log:
        for loss, gradient_norm in steps:
            window.append(torch.stack([loss, gradient_norm]))
            if state.step % WINDOW and state.step < until:
                continue
            losses, norms = torch.stack(window).T.tolist()
            first = state.step - len(window) + 1
            _refuse_nan(losses, norms, first)
            log(state.step, loss=fmean(losses), gradient_norm=fmean(norms))
            window.clear()
            if time.monotonic() - saved_at >= workspace.compute.checkpoint_seconds:
                training.save(state, checkpoint)
                saved_at = time.monotonic()
    return state


def _refuse_nan(losses: list[float], norms: list[float], first_step: int) -> None:
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first_step):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            advice = "a smaller training.learning_rate or compute.precision=fp32 may help"
            raise FloatingPointError(f"training step {step}: loss {loss}, gradient norm {norm}; {advice}")
