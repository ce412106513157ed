"""Retrainings that an evaluation compares with the full model: whose, and what each is asked."""

from dataclasses import dataclass
from itertools import groupby

from journey.artifacts.specs import Continuations, Measure

PROPONENTS, OPPONENTS = "proponents", "opponents"
RANDOM, SEED, SAME = "random removal", "another seed", "same model"
FLOORS = (RANDOM, SEED, SAME)

What = tuple[str, str, int, int]
"""method or floor, side, count, step"""


@dataclass(frozen=True)
class Change:
    """A retraining, and what is asked of it. method: whose ranking, or which floor"""

    method: str
    side: str
    count: int  # images that are left out
    step: int  # whose ranking, and where journeys are entered
    continued: tuple[Continuations, ...]  # of rising windows, the last of which is the whole rest of a journey
    measured: Measure

    @property
    def windows(self) -> tuple[int, ...]:
        return tuple(window for of in self.continued for window in of.windows)

    @property
    def queries(self) -> tuple[int, ...]:
        return self.continued[-1].queries

    @property
    def what(self) -> What:
        return self.method, self.side, self.count, self.step


def grouped(changes: tuple[Change, ...]) -> dict[What, list[Change]]:
    """Changes of one method, side, count and step, in the order they were asked for."""
    return {what: list(of) for what, of in groupby(changes, key=lambda change: change.what)}
