"""What the journeys look like."""

import numpy as np

from journey.artifacts.specs import Sample
from journey.artifacts.workspace import Workspace, get


def pictures(journeys: Sample, steps: tuple[int, ...], workspace: Workspace) -> np.ndarray:
    """x̂0_t of every query at some of the steps that are kept, as pixels in −1…1. [step, query, C, H, W]"""
    return _at_steps("x0_hat.npy", journeys, steps, workspace)


def noisy(journeys: Sample, steps: tuple[int, ...], workspace: Workspace) -> np.ndarray:
    """x_t likewise; of latents, what their decoder makes of noise."""
    return _at_steps("x_t.npy", journeys, steps, workspace)


def _at_steps(name: str, journeys: Sample, steps: tuple[int, ...], workspace: Workspace) -> np.ndarray:
    kept = get(journeys, workspace).array(name)
    return np.stack([decoded(kept[journeys.steps.index(t)], journeys, workspace) for t in steps])


def decoded(x0: np.ndarray, journeys: Sample, workspace: Workspace) -> np.ndarray:
    """Examples of the model of some journeys [B, …], as pixels in −1…1. [B, C, H, W]"""
    of = journeys.checkpoint
    encoded = None if of.encoded is None else get(of.encoded, workspace)
    return of.model.decode(x0, encoded)
