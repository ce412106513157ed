"""What a change of the training images did to some queries."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from journey.artifacts.specs import Continuations, Measure
from journey.artifacts.workspace import Workspace, get
from journey.diffusion.pictures import decoded
from journey.evaluation.classifiers import Classifiers
from journey.evaluation.counterfactual import distances

Effects = dict[str, np.ndarray]
"""By quantity. Of continuations, [window, query]; rises, [query]."""


@dataclass(frozen=True)
class Ended:
    """Where continuations of some queries end: pictures [W, Q, n, C, H, W'] and their features [W, Q, n, E]."""

    pictures: np.ndarray
    features: np.ndarray


def ended(of: tuple[Continuations, ...], workspace: Workspace) -> Ended:
    """The pictures, and what an encoder sees; windows one after the other."""
    each = [_ended(made, workspace) for made in of]
    return Ended(np.concatenate([some.pictures for some in each]), np.concatenate([some.features for some in each]))


def _ended(made: Continuations, workspace: Workspace) -> Ended:
    final = get(made, workspace).array("final.npy")
    shape, examples = final.shape[:3], np.array(final).reshape(-1, *final.shape[3:])
    pictures = decoded(examples, made.journeys, workspace)
    return Ended(pictures.reshape(*shape, *pictures.shape[1:]), np.array(get(made, workspace).array("features.npy")))


def same_noise(before: Ended, after: Ended) -> Effects:
    """Distances of the images that one noise led to, before and after.

    before: one window, the whole rest of the journey; after: of each window is compared with it.
    """
    found: Effects = {}
    each: dict[str, tuple[str, Callable]] = {
        "l2": ("pictures", distances.l2),
        "ssim": ("pictures", distances.ssim),
        "cosine": ("features", distances.cosine),
    }
    for name, (of, distance) in each.items():
        old, new = (getattr(some, of)[:, :, 0] for some in (before, after))
        found[name] = np.stack([distance(old[0], window) for window in new])
    return found


def distributions(before: Ended, after: Ended, axes: tuple[np.ndarray, np.ndarray], classifiers: Classifiers | None) -> Effects:
    """Distances of the samples of continuations, before and after; as in `same_noise`.

    frechet   in the space of the features' principal axes: their mean [E] and the axes [E, d]
    class     the share of continuations that show the class which most of them showed before, less what it was
    """
    mean, basis = axes
    old, new = ((some.features - mean) @ basis for some in (before, after))
    found = {"frechet": np.array([[distances.frechet(a, b) for a, b in zip(old[0], of, strict=True)] for of in new])}
    if classifiers is not None:
        said = [classifiers.labels(some.pictures, some.features)["pixels"] for some in (before, after)]  # [W, Q, n]
        most = np.array([np.bincount(labels).argmax() for labels in said[0][0]])
        share = [(labels == most[:, None]).mean(2) for labels in said]
        found["class"] = share[1] - share[0]
    return found


def rises(full: Measure, made: Measure, workspace: Workspace) -> np.ndarray:
    """How much the output at each step, and of the destination, rises, as a share of what it was. [steps + destination, query]"""
    before, after = (get(spec, workspace).array("outputs.npy").mean(0) for spec in (full, made))
    return after / before - 1
