"""Random subsets of the training images, on which models are retrained."""

import numpy as np

from journey import config
from journey.seeding import numpy_generator
from journey.specs import Subset


def mask(labels: np.ndarray, subset: Subset) -> np.ndarray:
    """Which examples a subset keeps: the same number of every class in every subset. bool [N]

    Depends on no other subset, so that more of them can be added later.

    Raises: ConfigError if the fraction keeps none or all of a class.
    """
    kept = np.zeros(len(labels), bool)
    random = numpy_generator(subset.seed, "subset", subset.index)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(subset.fraction * len(members))
        allowed = f"such that some but not all of the {len(members)} images of class {label} are kept"
        config.require(0 < count < len(members), "evaluation.fraction", subset.fraction, allowed)
        kept[random.permutation(members)[:count]] = True
    return kept
