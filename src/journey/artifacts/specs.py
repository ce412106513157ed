"""The graph of artifacts. A spec is exactly what determines an artifact: settings, and the specs it is made from.

    Images ─┬─ Train(all, seed) ── Sample ──┬── Featurize ── Score(method) ─┐
            │                               │                               ├── Evaluate
            └─ Train(some, seed) ── Measure ┘───────────────────────────────┘

Images of a latent model are Encoded first, by an Autoencoder. Some methods ask for more: Snapshot (a model along its
training), Curvature (the Gauss–Newton matrix at a model), Unlearn (losses after forgetting a query), Metagradient (a training
gone back through), Traker (scores of another program), Measure of subset models that do not judge. So do some evaluations:
Continuations of journeys under other models, Embedded images.

What is no part of any spec, because it changes no number beyond rounding: `compute` except its precision, `tracking`,
`task`, `name` and the directories. What was trained on is one value, of `journey.artifacts.keep`.

A field made by `neutral` is left out of the address while it has its neutral value, so a new setting does not re-address
what was made before it existed. `work` is what an artifact costs, in multiply-adds or the like: it scales estimates, and
is compared within a stage only. `size` is what settings tell of its bytes.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from journey.artifacts.keep import All, Keep
from journey.config.contracts import Dataset, Evaluation, Method, Model
from journey.config.groups import (
    Asked,
    Autoencoding,
    Batching,
    DampingUnit,
    Output,
    Precision,
    Projection,
    Sampler,
    Start,
    Storage,
    Training,
    Views,
    neutral,
)


def unaddressed() -> Any:
    """A field that describes an artifact and determines nothing of it."""
    return field(compare=False, metadata={"unaddressed": True})


def passes(guidance: float) -> int:
    """Through the network, for one prediction: one more without the prompt where it is guided."""
    return 1 if guidance == 1 else 2


class Spec:
    """What determines an artifact. Every subclass is a frozen dataclass with a `label` for people and its `work`."""

    stage: ClassVar[str]  # the module whose `make(spec, partial, workspace)` makes it
    folder: ClassVar[str]
    version: ClassVar[int]  # rises when the same settings give other numbers
    has_curves: ClassVar[bool] = False  # worth following while it is made

    @property
    def stage_name(self) -> str:
        """As people and addresses know it: where in the package it is is no part of that."""
        return self.stage.rpartition(".")[2]

    @property
    def size(self) -> int | None:
        """Bytes of its arrays; None: settings do not tell, or not all."""
        return None


@dataclass(frozen=True)
class Images(Spec):
    """The images of a dataset, training and held out, addressed by their content."""

    stage: ClassVar[str] = "journey.stages.images"
    folder: ClassVar[str] = "images"
    version: ClassVar[int] = 1
    content: str  # sha256 of every array and text
    dataset: Dataset = unaddressed()  # where they can be had
    num_train: int = unaddressed()
    shape: tuple[int, int, int] = unaddressed()  # of one image, C, H, W

    @property
    def label(self) -> str:
        return self.dataset.label

    @property
    def work(self) -> float:
        return float(self.num_train)


# ------------------------------------------------------------------------------------------------------ specs


@dataclass(frozen=True)
class Autoencoder(Spec):
    """An autoencoder of all training images, whose latents diffusion models work on."""

    stage: ClassVar[str] = "journey.stages.autoencode"
    folder: ClassVar[str] = "autoencoders"
    version: ClassVar[int] = 1
    has_curves: ClassVar[bool] = True
    images: Images
    autoencoding: Autoencoding
    seed: int

    @property
    def label(self) -> str:
        return self.images.label

    @property
    def work(self) -> float:
        """Images seen × their elements × channels: as many multiply-adds, roughly, but for a factor."""
        of = self.autoencoding
        return float(of.num_steps * of.batch_size * math.prod(self.images.shape[1:]) * sum(c * c for c in of.block_out_channels))


@dataclass(frozen=True)
class Encoded(Spec):
    """Training images as latents, and what their captions condition a model by."""

    stage: ClassVar[str] = "journey.stages.encode"
    folder: ClassVar[str] = "encoded"
    version: ClassVar[int] = 1
    images: Images
    encoders: str  # a hash of those that are not ours
    text_length: int  # tokens
    autoencoder: Autoencoder | None  # ours; None: that of the pipeline
    pretrained: str = unaddressed()  # the pipeline; none: our autoencoder, and MiniLM

    @property
    def label(self) -> str:
        return self.images.label

    @property
    def work(self) -> float:
        return float(self.images.num_train * math.prod(self.images.shape))


@dataclass(frozen=True)
class Train(Spec):
    """One diffusion model; with `released`, one that others trained, on all images as far as one knows."""

    stage: ClassVar[str] = "journey.stages.train"
    folder: ClassVar[str] = "models"
    version: ClassVar[int] = 2
    has_curves: ClassVar[bool] = True
    images: Images
    model: Model
    training: Training
    precision: Precision
    seed: int
    repeat: int  # which of several trainings on the same images, independent of each other
    keep: Keep = neutral(All())
    batches: Batching = neutral(Batching.own)  # of what is kept, or of all images, skipping the rest: of `All`, the same
    encoded: Encoded | None = neutral(None)  # what its network sees instead of images
    released: str = neutral("")  # a hash of the weights
    source: str = field(default="", compare=False, metadata={"unaddressed": True})  # where they are

    @property
    def label(self) -> str:
        return f"{self.images.label}-{self.model.label}{self.keep.label}-s{self.repeat}"

    @property
    def work(self) -> float:
        share = self.keep.share if self.batches is Batching.shared else 1.0
        if self.released:
            return 1.0
        return 3.0 * self.training.num_steps * self.training.batch_size * share * self.forward

    @property
    def forward(self) -> float:
        """Multiply-adds of one example through the network, roughly."""
        return self.model.multiply_adds(self.images.shape)


@dataclass(frozen=True)
class Sample(Spec):
    """The journeys of all queries, made by one model: what is kept of them at some steps, and where they end."""

    stage: ClassVar[str] = "journey.stages.sample"
    folder: ClassVar[str] = "journeys"
    version: ClassVar[int] = 2
    checkpoint: Train
    sampler: Sampler
    num_inference_steps: int
    num_queries: int
    steps: tuple[int, ...]
    seed: int
    prompts: tuple[str, ...] = neutral(())  # queries take them in turn
    guidance: float = neutral(1.0)
    start: Start = neutral(Start.generated)

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-{self.sampler.value}{self.num_inference_steps}"

    @property
    def work(self) -> float:
        visited = self.num_inference_steps if self.start is Start.generated else len(self.steps)
        return self.num_queries * visited * passes(self.guidance) * self.checkpoint.forward

    @property
    def size(self) -> int | None:
        shape = self.checkpoint.model.example_shape(self.checkpoint.images.shape)
        kept = 2 * len(self.steps) + 1  # x_t and x̂0_t of each step, and the end
        return None if self.prompts else 4 * kept * self.num_queries * math.prod(shape)


@dataclass(frozen=True)
class Measure(Spec):
    """One model's outputs on every query: at each step of its journey, and of its destination."""

    stage: ClassVar[str] = "journey.stages.measure"
    folder: ClassVar[str] = "outputs"
    version: ClassVar[int] = 3
    checkpoint: Train
    journeys: Sample
    steps: tuple[int, ...]
    num_draws: int
    antithetic: bool
    seed: int
    guidance: float = neutral(1.0)  # of the queries' prediction
    region: tuple[int, ...] = neutral(())  # of the outputs: a box, or one for each query

    @property
    def label(self) -> str:
        return self.checkpoint.label

    @property
    def work(self) -> float:
        outputs = self.journeys.num_queries * (len(self.steps) + 1)
        return outputs * self.num_draws * passes(self.guidance) * self.checkpoint.forward

    @property
    def size(self) -> int:
        return 8 * 2 * (len(self.steps) + 1) * self.journeys.num_queries


@dataclass(frozen=True)
class Embedded(Spec):
    """Training and held-out images as an encoder sees them."""

    stage: ClassVar[str] = "journey.stages.embed"
    folder: ClassVar[str] = "embedded"
    version: ClassVar[int] = 1
    images: Images
    encoder: Method

    @property
    def label(self) -> str:
        return f"{self.images.label}-{self.encoder.label}"

    @property
    def work(self) -> float:
        return float(self.images.num_train)


@dataclass(frozen=True)
class Continuations(Spec):
    """Where journeys that are entered at a step end, when a model goes on with them; and what an encoder sees there, if any."""

    stage: ClassVar[str] = "journey.stages.continuations"
    folder: ClassVar[str] = "continuations"
    version: ClassVar[int] = 1
    checkpoint: Train
    journeys: Sample
    step: int  # t, at which they are entered
    windows: tuple[int, ...]  # Δ: for how many timesteps the model drives, before that of the journeys does; t: to the end
    queries: tuple[int, ...]
    count: int  # of each query; the first with the noise that its journey had, the others with noise of their own
    encoder: Method | None  # None: nothing looks at them
    seed: int

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-from{self.step}"

    @property
    def work(self) -> float:
        share = self.step / self.checkpoint.model.num_timesteps
        passed = share * self.journeys.num_inference_steps * passes(self.journeys.guidance)
        return len(self.windows) * len(self.queries) * self.count * passed * self.checkpoint.forward


@dataclass(frozen=True)
class Snapshot(Spec):
    """A model as it was after `step` steps of its training, with all that the training continues from."""

    stage: ClassVar[str] = "journey.stages.snapshot"
    folder: ClassVar[str] = "snapshots"
    version: ClassVar[int] = 2
    of: Train
    step: int
    previous: "Snapshot | None"

    @property
    def label(self) -> str:
        return f"{self.of.label}-step{self.step}"

    @property
    def work(self) -> float:
        taken = self.step - (self.previous.step if self.previous else 0)
        return self.of.work * taken / self.of.training.num_steps


@dataclass(frozen=True)
class Curvature(Spec):
    """The generalised Gauss–Newton matrix of the training loss at a model, by EK-FAC, from a draw for each training image."""

    stage: ClassVar[str] = "journey.stages.curvature"
    folder: ClassVar[str] = "curvatures"
    version: ClassVar[int] = 3
    checkpoint: Train
    precision: Precision
    seed: int
    batch_size: int = 16  # images, each with a draw of its own; the draws of a batch are stratified

    @property
    def label(self) -> str:
        return self.checkpoint.label

    @property
    def work(self) -> float:
        return 6.0 * self.checkpoint.images.num_train * self.checkpoint.forward


@dataclass(frozen=True)
class Featurize(Spec):
    """Projected per-example gradients under one model, of the training images or (with `journeys`) of the queries."""

    stage: ClassVar[str] = "journey.stages.featurize"
    folder: ClassVar[str] = "features"
    version: ClassVar[int] = 4
    checkpoint: Train | Snapshot
    journeys: Sample | None
    steps: tuple[int, ...] | None  # the queries' x̂0_t, each at its t; None: clean examples, at all t or in `window`
    window: tuple[int, int] | None  # first and end of the timesteps that training images are asked at
    output: Output
    normalize: bool
    num_draws: int
    redraw: int  # which set of draws
    shared_draws: bool  # destinations are asked with the draws of training images
    stratified: bool
    antithetic: bool
    precision: Precision
    curvature: Curvature | None  # its inverse square root is applied, with every λ of `damping`
    damping: tuple[float, ...]
    projection: Projection
    projection_dim: int
    seed: int
    flips: Views = neutral(Views.none)  # of training images
    captions: Views = neutral(Views.none)
    guidance: float = neutral(1.0)  # of the queries' prediction
    asked: Asked = neutral(Asked.estimate)  # instead of the queries' x̂0_t
    continued: tuple[Continuations, ...] = neutral(())  # from each step, where their mean is asked
    region: tuple[int, ...] = neutral(())  # of the queries' output: a box, or one for each query
    projection_rows: int = neutral(0)  # on each side of every layer, of a Kronecker projection
    storage: Storage = neutral(Storage.fp32)

    @property
    def label(self) -> str:
        examples = "train" if self.journeys is None else "destination" if self.steps is None else "step"
        window = "" if self.window is None else f"-t{self.window[0]}"
        asked = "" if self.asked is Asked.estimate else f"-{self.asked.value}"
        return f"{self.checkpoint.label}-{self.output.value}-{examples}{window}{asked}"

    @property
    def trained(self) -> Train:
        """The training that the model is the end of, or a moment of."""
        return self.checkpoint.of if isinstance(self.checkpoint, Snapshot) else self.checkpoint

    @property
    def num_rows(self) -> int:
        if self.journeys is None:
            return self.trained.images.num_train
        return self.journeys.num_queries * len(self.steps or (0,))

    @property
    def work(self) -> float:
        times = len(self.damping) if self.damping and self.projection is Projection.kronecker else 1  # each λ by itself
        return 3.0 * self.num_rows * self.num_draws * times * passes(self.guidance) * self.trained.forward

    @property
    def size(self) -> int | None:
        of_each = max(1, len(self.damping)) * self.projection_dim
        return self.storage.num_bytes * self.num_rows * of_each or None  # 0: as many as the network has


@dataclass(frozen=True)
class Unlearn(Spec):
    """How much every training image's loss rises when one model forgets each query."""

    stage: ClassVar[str] = "journey.stages.unlearn"
    folder: ClassVar[str] = "unlearned"
    version: ClassVar[int] = 3
    checkpoint: Train
    curvature: Curvature
    journeys: Sample
    steps: tuple[int, ...] | None  # None: the destinations
    num_draws: int
    precision: Precision
    damping: float
    rise: tuple[float, ...]
    seed: int
    guidance: float = neutral(1.0)  # of the queries' prediction

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-{'destination' if self.steps is None else 'step'}"

    @property
    def num_queries(self) -> int:
        """Of all steps together."""
        return self.journeys.num_queries * len(self.steps or (0,))

    @property
    def work(self) -> float:
        return self.num_queries * len(self.rise) * self.checkpoint.images.num_train * self.num_draws * self.checkpoint.forward

    @property
    def size(self) -> int:
        return 4 * len(self.rise) * self.num_queries * self.checkpoint.images.num_train


@dataclass(frozen=True)
class Metagradient(Spec):
    """How much leaving each training image out raises every query's output, to first order, through all of the training."""

    stage: ClassVar[str] = "journey.stages.metagradient"
    folder: ClassVar[str] = "metagradients"
    version: ClassVar[int] = 1
    checkpoint: Train
    journeys: Sample
    step: int | None  # None: the destinations
    num_draws: int
    seed: int
    guidance: float = neutral(1.0)  # of the queries' prediction

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-{'destination' if self.step is None else f't{self.step}'}"

    @property
    def work(self) -> float:
        """Twice there, and once back for each query, at the cost of two."""
        return 2.0 * (1 + self.journeys.num_queries) * self.checkpoint.work

    @property
    def size(self) -> int:
        return 4 * self.journeys.num_queries * self.checkpoint.images.num_train


@dataclass(frozen=True)
class Traker(Spec):
    """The scores that `trak.TRAKer` gives training images under one model."""

    stage: ClassVar[str] = "journey.stages.traker"
    folder: ClassVar[str] = "traker"
    version: ClassVar[int] = 1
    checkpoint: Train
    journeys: Sample
    steps: tuple[int, ...]
    num_draws: int
    redraw: int
    stratified: bool
    antithetic: bool
    projection_dim: int
    damping: tuple[float, ...]
    damping_unit: DampingUnit
    seed: int

    @property
    def label(self) -> str:
        return self.checkpoint.label

    @property
    def num_queries(self) -> int:
        """Of all steps together."""
        return self.journeys.num_queries * len(self.steps)

    @property
    def num_rows(self) -> int:
        return self.checkpoint.images.num_train + self.num_queries

    @property
    def work(self) -> float:
        return 3.0 * self.num_rows * self.num_draws * self.checkpoint.forward

    @property
    def size(self) -> int:
        return 4 * len(self.damping) * self.num_queries * self.checkpoint.images.num_train


@dataclass(frozen=True)
class Score(Spec):
    """One method's scores[candidate, step, query, train]; a method with one score per query has a single step."""

    stage: ClassVar[str] = "journey.stages.score"
    folder: ClassVar[str] = "scores"
    version: ClassVar[int] = 4
    method: Method
    journeys: Sample
    steps: tuple[int, ...]
    seed: int
    needs: dict[str, object]  # the specs its method asks for, alone or in tuples

    @property
    def images(self) -> Images:
        """The training images that are scored."""
        return self.journeys.checkpoint.images

    @property
    def label(self) -> str:
        return f"{self.journeys.checkpoint.label}-{self.method.label}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the scores: candidates, steps, queries, training images."""
        num_steps = self.method.num_scores(len(self.steps))
        return len(self.method.candidates()), num_steps, self.journeys.num_queries, self.images.num_train

    @property
    def work(self) -> float:
        return float(math.prod(self.shape))

    @property
    def size(self) -> int:
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class Evaluate(Spec):
    """What an evaluation finds of all methods."""

    stage: ClassVar[str] = "journey.stages.evaluate"
    folder: ClassVar[str] = "evaluations"
    version: ClassVar[int] = 4
    evaluation: Evaluation
    scores: dict[str, Score]
    journeys: Sample
    steps: tuple[int, ...]
    seed: int
    needs: dict[str, object]  # the specs it judges by, alone or in tuples

    @property
    def label(self) -> str:
        return f"{self.journeys.label}-{self.evaluation.label}"

    @property
    def work(self) -> float:
        return float(sum(score.shape[0] for score in self.scores.values())) * self.journeys.num_queries
