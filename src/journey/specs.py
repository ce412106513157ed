"""The graph of artifacts. A spec is exactly what determines an artifact: settings, and the specs it is made from.

    masks ── Train(full, seed) ── Sample ──┬── Featurize ── Score(method) ─┐
      │                                    │                               ├── Evaluate
      └── Train(subset, seed) ── Measure ──┘───────────────────────────────┘

Some methods ask for more: Snapshot (a model along its training), Curvature (the Gauss–Newton matrix at a model), Unlearn
(losses after forgetting a query), Measure of subset models that do not judge.

What is no part of any spec, because it changes no number beyond rounding: `compute` except its precision, `tracking`,
`task`, `name` and the directories.
"""

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import ClassVar

from journey import config


@dataclass(frozen=True)
class Subset:
    """Which class-stratified random subset of the training images a model sees."""

    index: int
    fraction: float
    seed: int


@dataclass(frozen=True)
class Train:
    """One diffusion model."""

    stage: ClassVar[str] = "train"
    folder: ClassVar[str] = "models"
    version: ClassVar[int] = 1
    dataset: config.Dataset
    model: config.Model
    training: config.Training
    precision: config.Precision
    seed: int
    repeat: int  # which of several trainings on the same images, independent of each other
    subset: Subset | None = None

    @property
    def label(self) -> str:
        subset = "" if self.subset is None else f"-m{self.subset.index}"
        return f"{self.dataset.name}-{self.model.name}{subset}-s{self.repeat}"


@dataclass(frozen=True)
class Sample:
    """The journeys of all queries, made by one model."""

    stage: ClassVar[str] = "sample"
    folder: ClassVar[str] = "journeys"
    version: ClassVar[int] = 1
    model: Train
    sampler: config.Sampler
    num_inference_steps: int
    num_queries: int
    seed: int

    @property
    def label(self) -> str:
        return f"{self.model.label}-{self.sampler.value}{self.num_inference_steps}"


@dataclass(frozen=True)
class Measure:
    """One model's outputs on every query: at each step of its journey, and of its destination."""

    stage: ClassVar[str] = "measure"
    folder: ClassVar[str] = "outputs"
    version: ClassVar[int] = 1
    model: Train
    journeys: Sample
    steps: tuple[int, ...]
    num_draws: int
    antithetic: bool
    seed: int

    @property
    def label(self) -> str:
        return self.model.label


@dataclass(frozen=True)
class Snapshot:
    """A model as it was after `step` steps of its training, with all that the training continues from."""

    stage: ClassVar[str] = "snapshot"
    folder: ClassVar[str] = "snapshots"
    version: ClassVar[int] = 1
    of: Train
    step: int
    previous: "Snapshot | None"

    @property
    def label(self) -> str:
        return f"{self.of.label}-step{self.step}"


@dataclass(frozen=True)
class Curvature:
    """The generalised Gauss–Newton matrix of the training loss at a model, by EK-FAC, from a draw for each training image."""

    stage: ClassVar[str] = "curvature"
    folder: ClassVar[str] = "curvatures"
    version: ClassVar[int] = 2
    model: Train
    precision: config.Precision
    seed: int

    @property
    def label(self) -> str:
        return self.model.label


@dataclass(frozen=True)
class Featurize:
    """Projected per-example gradients under one model, of the training images or (with `journeys`) of the queries."""

    stage: ClassVar[str] = "featurize"
    folder: ClassVar[str] = "features"
    version: ClassVar[int] = 2
    model: Train | Snapshot
    journeys: Sample | None
    steps: tuple[int, ...] | None  # the queries' x̂0_t, each at its t; None: clean examples, at all t or in `window`
    window: tuple[int, int] | None  # first and end of the timesteps that training images are asked at
    output: config.Output
    normalize: bool
    num_draws: int
    stratified: bool
    antithetic: bool
    precision: config.Precision
    curvature: Curvature | None  # its inverse square root is applied, with every λ of `damping`
    damping: tuple[float, ...]
    projection: config.Projection
    projection_dim: int
    seed: int

    @property
    def label(self) -> str:
        examples = "train" if self.journeys is None else "destination" if self.steps is None else "step"
        window = "" if self.window is None else f"-t{self.window[0]}"
        return f"{self.model.label}-{self.output.value}-{examples}{window}"


@dataclass(frozen=True)
class Unlearn:
    """How much every training image's loss rises when one model forgets each query."""

    stage: ClassVar[str] = "unlearn"
    folder: ClassVar[str] = "unlearned"
    version: ClassVar[int] = 1
    model: Train
    curvature: Curvature
    journeys: Sample
    steps: tuple[int, ...] | None  # None: the destinations
    num_draws: int
    precision: config.Precision
    damping: float
    rise: tuple[float, ...]
    seed: int

    @property
    def label(self) -> str:
        return f"{self.model.label}-{'destination' if self.steps is None else 'step'}"


@dataclass(frozen=True)
class Score:
    """One method's scores[candidate, step, query, train]; a method with one score per query has a single step.

    Of the artifacts, those that its method asks for.
    """

    stage: ClassVar[str] = "score"
    folder: ClassVar[str] = "scores"
    version: ClassVar[int] = 2
    method: config.Method
    journeys: Sample
    steps: tuple[int, ...]
    seed: int
    train_features: tuple[tuple[Featurize, ...], ...] = ()  # [checkpoint][one for all steps, or one for each]
    query_features: tuple[Featurize, ...] = ()  # [checkpoint]
    unlearned: tuple[Unlearn, ...] = ()  # [checkpoint]
    outputs: tuple[Measure, ...] = ()  # [subset]

    @property
    def label(self) -> str:
        return f"{self.journeys.model.label}-{self.method.name}"


@dataclass(frozen=True)
class Evaluate:
    """The linear datamodeling scores of all methods."""

    stage: ClassVar[str] = "evaluate"
    folder: ClassVar[str] = "evaluations"
    version: ClassVar[int] = 2
    evaluation: config.LDS
    scores: dict[str, Score]
    outputs: tuple[tuple[Measure, ...], ...]  # [subset][seed]
    steps: tuple[int, ...]
    seed: int

    @property
    def label(self) -> str:
        return f"{self.outputs[0][0].journeys.label}-{self.evaluation.name}"


Spec = Train | Sample | Measure | Snapshot | Curvature | Featurize | Unlearn | Score | Evaluate


# ------------------------------------------------------------------------------------ addresses, and the graph


def describe(value: object) -> object:
    """A spec or setting as JSON; an artifact it is made from is named by its address."""
    if isinstance(value, Spec):
        return address(value)
    if is_dataclass(value):
        return {f.name: describe(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    return value


def contents(spec: Spec) -> dict:
    """What an address is the hash of: the format version of the stage and every field of the spec."""
    described = {f.name: describe(getattr(spec, f.name)) for f in fields(spec)}
    return {"stage": spec.stage, "version": spec.version, **described}


def address(spec: Spec) -> str:
    """Where in a store the artifact of a spec lives: folder, readable label, 48 bits of a hash of its contents."""
    text = json.dumps(contents(spec), sort_keys=True)
    return f"{spec.folder}/{spec.label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def parents(spec: Spec) -> list[Spec]:
    """The specs a spec is directly made from."""
    return [found for value in vars(spec).values() for found in _specs_in(value)]


def _specs_in(value: object) -> list[Spec]:
    if isinstance(value, Spec):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [found for item in value for found in _specs_in(item)] if isinstance(value, tuple) else []


def ancestors(spec: Spec) -> list[Spec]:
    """Everything an artifact is made from, each once."""
    found: dict[str, Spec] = {}
    waiting = parents(spec)
    while waiting:
        ancestor = waiting.pop()
        if (key := address(ancestor)) not in found:
            found[key] = ancestor
            waiting.extend(parents(ancestor))
    return list(found.values())
