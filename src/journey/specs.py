"""The graph of artifacts. A spec is exactly what determines an artifact: settings, and the specs it is made from.

    masks ── Train(full, seed) ─────────────┬── Featurize ── Score(method) ─┐
      │                                     Sample ──┘                      ├── Evaluate
      └── Train(subset, seed) ── Measure(Sample's journeys) ────────────────┘

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
class Featurize:
    """Projected per-example gradients under one model, of the training images or (with `journeys`) of the queries."""

    stage: ClassVar[str] = "featurize"
    folder: ClassVar[str] = "features"
    version: ClassVar[int] = 1
    model: Train
    journeys: Sample | None
    steps: tuple[int, ...] | None  # the queries' x̂0_t, each at its t; None: clean examples, at all t
    num_draws: int
    antithetic: bool
    projection: config.Projection
    projection_dim: int
    seed: int

    @property
    def label(self) -> str:
        examples = "train" if self.journeys is None else "destination" if self.steps is None else "step"
        return f"{self.model.label}-{examples}"


@dataclass(frozen=True)
class Score:
    """One method's scores[damping, step, query, train]; a method with one score per query has a single step."""

    stage: ClassVar[str] = "score"
    folder: ClassVar[str] = "scores"
    version: ClassVar[int] = 1
    method: config.Method
    journeys: Sample
    steps: tuple[int, ...]  # whose x̂0_t a method without features looks at
    train_features: tuple[Featurize, ...]
    query_features: tuple[Featurize, ...]
    seed: int

    @property
    def label(self) -> str:
        return f"{self.journeys.model.label}-{self.method.name}"


@dataclass(frozen=True)
class Evaluate:
    """The linear datamodeling scores of all methods."""

    stage: ClassVar[str] = "evaluate"
    folder: ClassVar[str] = "evaluations"
    version: ClassVar[int] = 1
    evaluation: config.LDS
    scores: dict[str, Score]
    outputs: tuple[tuple[Measure, ...], ...]  # [subset][seed]
    steps: tuple[int, ...]
    seed: int

    @property
    def label(self) -> str:
        return f"{self.outputs[0][0].journeys.label}-{self.evaluation.name}"


Spec = Train | Sample | Measure | Featurize | Score | Evaluate


# ------------------------------------------------------------------------------- from a run's settings to its specs


def full_model(run: config.Config, checkpoint: int) -> Train:
    """Checkpoint number `checkpoint`: trained on every training image."""
    return Train(run.dataset, run.model, run.training, run.compute.precision, run.seed, checkpoint)


def subset_model(run: config.Config, index: int, repeat: int) -> Train:
    """Training number `repeat` of subset `index`."""
    subset = Subset(index, run.evaluation.fraction, run.seed)
    return Train(run.dataset, run.model, run.training, run.compute.precision, run.seed, repeat, subset)


def journeys(run: config.Config) -> Sample:
    """The queries, made by checkpoint 0; every other checkpoint is asked about these."""
    sampling = run.sampling
    return Sample(full_model(run, 0), sampling.sampler, sampling.num_inference_steps, sampling.num_queries, run.seed)


def score(run: config.Config, method: config.Method) -> Score:
    """The scores of one method, with the features it needs."""
    steps = tuple(run.sampling.steps)
    if not isinstance(method, config.TRAK):
        return Score(method, journeys(run), steps, (), (), run.seed)
    checkpoints = range(method.num_checkpoints)
    at = steps if method.at is config.At.step else None
    train = tuple(_features(run, method, checkpoint, None, None) for checkpoint in checkpoints)
    query = tuple(_features(run, method, checkpoint, journeys(run), at) for checkpoint in checkpoints)
    return Score(method, journeys(run), (), train, query, run.seed)


def _features(
    run: config.Config, method: config.TRAK, checkpoint: int, queries: Sample | None, steps: tuple[int, ...] | None
) -> Featurize:
    return Featurize(
        model=full_model(run, checkpoint),
        journeys=queries,
        steps=steps,
        num_draws=method.num_draws,
        antithetic=method.antithetic,
        projection=method.projection,
        projection_dim=0 if method.projection is config.Projection.none else method.projection_dim,
        seed=run.seed,
    )


def evaluate(run: config.Config) -> Evaluate:
    """The whole experiment."""
    evaluation, steps = run.evaluation, tuple(run.sampling.steps)

    def measure(index: int, repeat: int) -> Measure:
        model = subset_model(run, index, repeat)
        return Measure(model, journeys(run), steps, evaluation.num_draws, evaluation.antithetic, run.seed)

    subsets, repeats = range(evaluation.num_subsets), range(evaluation.num_seeds)
    outputs = tuple(tuple(measure(index, repeat) for repeat in repeats) for index in subsets)
    scores = {name: score(run, method) for name, method in run.method.items()}
    return Evaluate(evaluation, scores, outputs, steps, run.seed)


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
