"""Train one diffusion model. Payload: the network as diffusers saves it, metrics.jsonl."""

import math
import time
from pathlib import Path
from statistics import fmean

import torch

from journey import data
from journey.diffusion import examples, network, schedule, training
from journey.evaluation import subsets
from journey.specs import Train
from journey.stages import Workspace
from journey.tracking import track

WINDOW = 50  # steps between looks at the loss: an accelerator waits only then
CHECKPOINT = "resume.safetensors"


def run(spec: Train, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError naming the step if the loss or the gradient stops being finite."""
    # Load: the images of the subset as one tensor on the device.
    device = network.device_of(workspace.compute)
    images, _ = data.load(spec.dataset)
    clean = examples.encode(images, spec.model)
    if spec.subset is not None:
        clean = clean[torch.from_numpy(subsets.mask(images.labels, spec.subset))]
    clean = clean.to(device)

    # A new model, or the one an interrupted run left.
    # Initial weights and noise depend on the repeat alone, as is usual in the field: models that share one differ by their
    # images only, and a subset model is what checkpoint `repeat` would have been without the images left out.
    name = f"repeat {spec.repeat}"
    training.initialise(spec.seed, name)
    state = training.new_state(network.build(spec.model, clean.shape).to(device), spec.training)
    checkpoint = partial / CHECKPOINT
    if checkpoint.exists():
        training.restore(state, checkpoint)

    # Train.
    steps = training.train(state, clean, spec.training, spec.precision, schedule.schedule_of(spec.model, device), spec.seed, name)
    saved_at, window = time.monotonic(), []
    with track(spec, partial, workspace, resume_step=state.step) as log:
        for loss, gradient_norm in steps:
            window.append(torch.stack([loss, gradient_norm]))
            if state.step % WINDOW and state.step < spec.training.num_steps:
                continue
            losses, norms = torch.stack(window).T.tolist()
            first = state.step - len(window) + 1
            _refuse_nan(losses, norms, first)
            log(state.step, loss=fmean(losses), gradient_norm=fmean(norms))
            window.clear()
            if time.monotonic() - saved_at >= workspace.compute.checkpoint_seconds:
                training.save(state, checkpoint)
                saved_at = time.monotonic()

    # Save.
    training.use_average(state)
    training.refuse_non_finite(state)
    state.network.save_pretrained(partial)


def _refuse_nan(losses: list[float], norms: list[float], first_step: int) -> None:
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first_step):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            advice = "a smaller training.learning_rate or compute.precision=fp32 may help"
            raise FloatingPointError(f"training step {step}: loss {loss}, gradient norm {norm}; {advice}")
