"""Enter journeys at a step and go on under a model. Payload, of every window, query and continuation: final.npy, float32
[W, Q, n, …], the examples they end in; with an encoder, features.npy, float32 [W, Q, n, E], what it sees in their pictures.
"""

from pathlib import Path

import torch
from torch import Tensor

from journey.artifacts.files import new_array
from journey.artifacts.specs import Continuations, Train
from journey.artifacts.workspace import Workspace, get
from journey.config.groups import visited_timesteps
from journey.diffusion import network, sampling
from journey.diffusion.journeys import at_steps, conditions
from journey.diffusion.network import Predict
from journey.diffusion.pictures import decoded
from journey.diffusion.schedule import Schedule
from journey.seeding import generator
from journey.tracking import track

TOGETHER = 256  # continuations that are made side by side


def make(spec: Continuations, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if a continuation is not finite."""
    # Load.
    device = network.device_of(workspace.compute)
    journeys = spec.journeys
    noise_schedule = journeys.checkpoint.model.schedule(device)
    timesteps = visited_timesteps(noise_schedule.num_timesteps, journeys.num_inference_steps)
    inside, outside = (_predict(checkpoint, spec, workspace) for checkpoint in (spec.checkpoint, journeys.checkpoint))
    entered = at_steps("x_t", journeys, (spec.step,), workspace)[0].to(device)  # [query, …]
    context = conditions(journeys, workspace)
    encode = None if spec.encoder is None else spec.encoder.load()

    # Go on, some continuations at a time.
    shape = (len(spec.windows), len(spec.queries), spec.count)
    pairs = [(query, j) for query in spec.queries for j in range(spec.count)]
    made = {"final": [], "features": []}
    with track(spec, partial, workspace) as log:
        for place, window in enumerate(spec.windows):
            for first in range(0, len(pairs), TOGETHER):
                some = pairs[first : first + TOGETHER]
                rows = torch.tensor([query for query, _ in some])
                noise = _noise(spec, some, timesteps, tuple(entered.shape[1:]))
                prompted = None if context is None else context[rows, 0].to(device)
                x = _driven(inside, outside, noise_schedule, spec, window, timesteps, entered[rows], noise, prompted)
                if not bool(x.isfinite().all()):
                    raise FloatingPointError(f"continuations of {spec.label} are not finite")
                made["final"].append(x.cpu())
                if encode is not None:
                    made["features"].append(encode(torch.from_numpy(decoded(x.cpu().numpy(), journeys, workspace))))
            log(place, window=window)

    # Save.
    for name, parts in made.items():
        if parts:
            together = torch.cat(parts)
            new_array(partial / f"{name}.npy", (*shape, *together.shape[1:]))[:] = together.unflatten(0, shape).numpy()


def _predict(checkpoint: Train, spec: Continuations, workspace: Workspace) -> Predict:
    device = network.device_of(workspace.compute)
    guidance = network.guidance_of(checkpoint.model, spec.journeys.guidance, device)
    denoiser = checkpoint.model.load(get(checkpoint, workspace).path, device)
    return network.bind(denoiser, checkpoint.precision, guidance=guidance)


def _noise(spec: Continuations, pairs: list[tuple[int, int]], timesteps: list[int], shape: tuple[int, ...]) -> sampling.Noise:
    """Of some (query, continuation): what its journey went on with, or noise of its own, the same under every model."""
    of = spec.journeys

    def each(query: int, j: int) -> torch.Generator:
        if j == 0:
            return sampling.noise_from(spec.step, query, of.sampler, timesteps, shape, of.seed)
        return generator(spec.seed, "continuation", query, spec.step, j)

    return sampling.Noise([each(query, j) for query, j in pairs], shape)


def _driven(
    inside: Predict,
    outside: Predict,
    noise_schedule: Schedule,
    spec: Continuations,
    window: int,
    timesteps: list[int],
    x: Tensor,
    noise: sampling.Noise,
    context: Tensor | None,
) -> Tensor:
    """Where continuations end: one model drives for a window, another from there."""
    left = [*timesteps[timesteps.index(spec.step) :], sampling.IMAGE]
    handed_over = left.index(spec.step - window) if window < spec.step else len(left) - 1
    for predict, visited in ((inside, left[: handed_over + 1]), (outside, left[handed_over:])):
        for step in sampling.walk(predict, noise_schedule, spec.journeys.sampler, visited, x, noise, x.device, context):
            x = step.x_next
    return x
