"""What a model was trained on: one value."""

from dataclasses import dataclass
from typing import Any, ClassVar

from journey.config.groups import neutral

Score = Any  # journey.artifacts.specs.Score, which is built on this


@dataclass(frozen=True)
class All:
    """Every training image, once."""

    label: ClassVar[str] = ""
    share: ClassVar[float] = 1.0  # of the images that is kept, roughly


@dataclass(frozen=True)
class RandomSubset:
    """A class-stratified random subset of the training images."""

    index: int
    fraction: float
    seed: int

    @property
    def label(self) -> str:
        return f"-m{self.index}"

    @property
    def share(self) -> float:
        return self.fraction


@dataclass(frozen=True)
class Without:
    """All but the `count` images that a score ranks first for a query at a step (or last: its opponents)."""

    share: ClassVar[float] = 1.0
    score: Score
    candidate: int  # along the first axis of the scores
    step: int  # a timestep; any, where the method has one score a query
    query: int
    count: int
    opponents: bool = neutral(False)

    @property
    def label(self) -> str:
        side = "opponents" if self.opponents else "top"
        return f"-without-{side}{self.count}-q{self.query}-t{self.step}"


@dataclass(frozen=True)
class WithoutRandom:
    """All but `count` images, of each class as many as its share."""

    share: ClassVar[float] = 1.0
    index: int
    count: int
    seed: int

    @property
    def label(self) -> str:
        return f"-without-random{self.count}-{self.index}"


Keep = All | RandomSubset | Without | WithoutRandom
