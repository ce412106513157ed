"""Go back through the training of a model, from the output of every query. Payload: scores.npy, float32 [query, train]."""

import math
import time
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import Tensor, nn

from journey.artifacts import resume
from journey.artifacts.specs import Metagradient
from journey.artifacts.workspace import Workspace, get
from journey.attribution import metagradient
from journey.attribution.gradients import Objective, activation_bytes, loop_gradients
from journey.attribution.output import Draws, step_draws, window_draws
from journey.config.checks import require
from journey.diffusion import network
from journey.diffusion.examples import Examples
from journey.diffusion.journeys import destinations, estimates
from journey.diffusion.schedule import Schedule
from journey.diffusion.training import Course
from journey.stages.train import start
from journey.tracking import track

SAME = 1e-3  # of the norm of the weights: leaving one digit of a thousand out moves them by 8e-3, rounding by 1e-6
COPIES = 6  # of what a forward pass keeps, for second derivatives: 4.5 to 5.5 as measured on two U-Nets


def make(spec: Metagradient, partial: Path, workspace: Workspace) -> dict:
    """Raises: ConfigError if the memory does not suffice; ValueError if training anew ends in another model than the checkpoint;
    FloatingPointError as `go_back` does.
    """
    # Train anew, and keep some states.
    state, course = start(spec.checkpoint, workspace)
    device = course.examples.x0.device
    denoiser = spec.checkpoint.model.load(get(spec.checkpoint, workspace).path, device)
    _refuse_cramped(spec, denoiser, course, workspace.compute.gradient_memory_gib)
    kept = metagradient.milestones(course, state)
    _refuse_another(kept[-1].network, denoiser, spec)

    # Begin at the end, or continue where an interrupted run has come to.
    num_steps = spec.checkpoint.training.num_steps
    if (found := resume.resumed(partial)) is not None:
        tensors = safetensors.torch.load_file(partial / found["tensors"], device=str(device))
        way = metagradient.Way(found["left"], **tensors)
    else:
        gradients = _gradients(spec, denoiser, course.schedule, workspace)
        way = metagradient.new_way(gradients, num_steps, len(course.examples))

    # Go back.
    saved_at = time.monotonic()
    with track(spec, partial, workspace, resume_step=num_steps - way.left) as log:
        for adjoints in metagradient.go_back(way, course, kept):
            log(num_steps - way.left, norm=float(adjoints[:, 0].norm(dim=1).mean()))
            if resume.due(saved_at, workspace.compute.checkpoint_seconds):
                _keep(way, partial)
                saved_at = time.monotonic()
    np.save(partial / "scores.npy", -way.of_weights.cpu().numpy())
    return {"gradients": len(way.adjoints) * num_steps * spec.checkpoint.training.batch_size}


def _refuse_cramped(spec: Metagradient, denoiser: nn.Module, course: Course, memory_gib: float) -> None:
    """Raises: ConfigError if memory does not hold λ of all queries, the states that are kept, each of 12d bytes, and a step."""
    d, of = sum(p.numel() for p in denoiser.parameters()), course.training
    draws = step_draws(0, 2, course.examples.shape, spec.seed, "memory", antithetic=False).to(course.examples.x0.device)
    each = activation_bytes(Objective(denoiser, course.schedule, course.precision), course.examples, draws)
    kept = spec.journeys.num_queries + 2 * math.isqrt(of.num_steps) + 4
    needed = (12 * d * kept + COPIES * of.batch_size * each) / 2**30
    allowed = f"at least {needed:.2f} for this network, its training and {spec.journeys.num_queries} queries in magic"
    require(needed <= memory_gib, "compute.gradient_memory_gib", memory_gib, allowed)


def _refuse_another(trained: nn.Module, checkpoint: nn.Module, spec: Metagradient) -> None:
    """Raises: ValueError if weights differ by more than rounding."""
    found, wanted = (metagradient.vector(of.parameters()) for of in (trained, checkpoint))
    off = float((found - wanted).norm() / wanted.norm())
    if not off <= SAME:
        where = "trained anew, its weights are off by"
        raise ValueError(f"{spec.checkpoint.label}: {where} {off:.2g} of their norm; the device that trained it may do better")


def _gradients(spec: Metagradient, denoiser: nn.Module, schedule: Schedule, workspace: Workspace) -> Tensor:
    """∂f/∂θ of every query's output under the checkpoint. [Q, d]"""
    device = schedule.signal.device
    guidance = network.guidance_of(spec.checkpoint.model, spec.guidance, device)
    objective = Objective(denoiser, schedule, spec.checkpoint.precision, guidance=guidance)
    queries, draws = _asked(spec, schedule.num_timesteps, workspace)
    return loop_gradients(objective, queries.to(device), draws.to(device), len(draws))


def _asked(spec: Metagradient, num_timesteps: int, workspace: Workspace) -> tuple[Examples, Draws]:
    """Every x̂0_t with draws at its t, or every destination with draws over all t."""
    if spec.step is None:
        queries = destinations(spec.journeys, workspace)
        return queries, window_draws((0, num_timesteps), spec.num_draws, queries.shape, spec.seed, "attribute queries")
    (queries,) = estimates(spec.journeys, (spec.step,), workspace)
    return queries, step_draws(spec.step, spec.num_draws, queries.shape, spec.seed, "attribute queries", False)


def _keep(way: metagradient.Way, partial: Path) -> None:
    name = f"resume.{way.left}.safetensors"
    safetensors.torch.save_file({"adjoints": way.adjoints, "of_weights": way.of_weights}, partial / name)
    resume.keep(partial, {"left": way.left, "tensors": name}, [name])
