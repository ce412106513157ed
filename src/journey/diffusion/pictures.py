"""What the journeys look like."""

import numpy as np

from journey.artifacts.specs import Sample
from journey.artifacts.workspace import Workspace, get


def pictures(journeys: Sample, steps: tuple[int, ...], workspace: Workspace) -> np.ndarray:
    """x̂0_t of every query at some of the steps that are kept, as pixels in −1…1. [step, query, C, H, W]"""
    of = journeys.checkpoint
    kept = get(journeys, workspace).array("x0_hat.npy")
    encoded = None if of.encoded is None else get(of.encoded, workspace)
    return np.stack([of.model.decode(kept[journeys.steps.index(t)], encoded) for t in steps])
