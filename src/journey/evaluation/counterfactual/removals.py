"""What a counterfactual evaluation is computed from: removals, and the retrained models."""

from dataclasses import dataclass

from journey.attribution.baselines import Embeddings
from journey.pipeline.interfaces import Continuations, Evaluate, Inputs, Measure

PROPONENTS, OPPONENTS = "proponents", "opponents"

RANDOM, SEED, SAME = "random removal", "another seed", "same model"

CONTROLS = (RANDOM, SEED, SAME)


@dataclass(frozen=True)
class Removal:
    """Which images are removed.

    Attributes:
        method: The method that ranks them, or a control.
        side: Proponents or opponents.
        count: Number of images; 0 if none is removed.
        step: t of the ranking, from which trajectories are continued.
    """

    method: str
    side: str
    count: int
    step: int

    @property
    def is_control(self) -> bool:
        """Return whether no method ranks the images."""
        return self.method in CONTROLS


@dataclass(frozen=True)
class Change:
    """A retrained model, and what is compared with the full model.

    Attributes:
        removal: Which images are removed.
        continuations: Continued trajectories, by rising windows; the last one reaches the end.
        measured: Outputs of all queries.
    """

    removal: Removal
    continuations: tuple[Continuations, ...]
    measured: Measure

    @property
    def windows(self) -> tuple[int, ...]:
        """Return all windows in rising order."""
        return tuple(w for continuations in self.continuations for w in continuations.windows)

    @property
    def queries(self) -> tuple[int, ...]:
        """Return the queries whose trajectories are continued."""
        return self.continuations[-1].queries


@dataclass(frozen=True)
class CounterfactualInputs(Inputs):
    """What the effects of removals are computed from.

    Attributes:
        changes: Every retrained model.
        before: Continuations under the full model, twice as many, by step.
        reference: Outputs of the full model.
        embeddings: Features that the classifiers are trained on.
        lds: The LDS of the same scores, if it is compared.
    """

    changes: tuple[Change, ...]
    before: tuple[Continuations, ...]
    reference: Measure
    embeddings: Embeddings
    lds: Evaluate | None
