"""What is computed (specs), and what a component of each group implements (interfaces).

A spec is exactly what determines an artifact: settings, and the specs it is computed from.

    Images ─┬─ Train(FullData) ── Sample ──┬── features ── Score(method) ──┐
            │                              │                               ├── Evaluate
            └─ Train(subset) ─── Measure ──┴───────────────────────────────┘

Specs contain components, and components return specs, so both are defined here. Specs of a single
component, such as features, are defined beside it. Importing this file does not import torch.
"""

from __future__ import annotations

import importlib
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from journey.engine.checks import require, require_count, require_within
from journey.engine.spec import (
    Component,
    Shapes,
    Spec,
    cache_key,
    not_in_key,
    omitted_default,
)
from journey.engine.workspace import Precision
from journey.pipeline.images import ImageSet
from journey.pipeline.pretrained import files_hash, locate_checkpoint
from journey.pipeline.settings import (
    Autoencoding,
    Batching,
    LoRA,
    Retraining,
    Sampler,
    Sampling,
    Start,
    Target,
    Training,
    TrajectoryWeights,
    Unit,
    check_ranges,
    visited_timesteps,
)

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from rich.table import Table

    from journey.engine.store import Artifact
    from journey.engine.workspace import Workspace
    from journey.pipeline.examples import Examples
    from journey.pipeline.schedule import Schedule

Row = dict[str, str | int | float]
"""One number of a result and its description; `journey.evaluation.rows` explains the keys."""

Result = dict[str, object]
"""The result of an evaluation, as JSON. `rows` is a list of `Row`."""


@dataclass(frozen=True)
class FullData:
    """All training images."""

    label: ClassVar[str] = ""
    fraction: ClassVar[float] = 1.0


@dataclass(frozen=True)
class RandomSubset:
    """A class-stratified random subset of the training images, or of whole groups of them."""

    index: int
    fraction: float
    seed: int
    by: Unit = omitted_default(Unit.images)

    @property
    def label(self) -> str:
        """Return the part of an artifact's name that tells this subset from others."""
        return f"-m{self.index}"


@dataclass(frozen=True)
class WithoutTop:
    """All training images but the `count` that a score ranks first for a query at a step.

    Attributes:
        candidate: Index of the hyper-parameter along the first axis of the scores.
        step: The timestep. It is ignored where the method has one score per query.
        opponents: Remove the images that are ranked last instead.
    """

    fraction: ClassVar[float] = 1.0
    score: Score
    candidate: int
    step: int
    query: int
    count: int
    opponents: bool = omitted_default(False)

    @property
    def label(self) -> str:
        """Return the part of an artifact's name that tells this subset from others."""
        side = "opponents" if self.opponents else "top"
        return f"-without-{side}{self.count}-q{self.query}-t{self.step}"


@dataclass(frozen=True)
class WithoutRandom:
    """All training images but `count` random ones, from each class in proportion to its size."""

    fraction: ClassVar[float] = 1.0
    index: int
    count: int
    seed: int

    @property
    def label(self) -> str:
        """Return the part of an artifact's name that tells this subset from others."""
        return f"-without-random{self.count}-{self.index}"


@dataclass(frozen=True)
class WithoutGroup:
    """All training images but those of one group.

    Attributes:
        by: What a group is.
        index: Its place in a random order of all groups that can be left out.
        seed: Seed of this order.
    """

    fraction: ClassVar[float] = 1.0
    by: Unit
    index: int
    seed: int

    @property
    def label(self) -> str:
        """Return the part of an artifact's name that tells this subset from others."""
        return f"-without-{self.by.value}-{self.index}"


@dataclass(frozen=True)
class ListedSubset:
    """The training images of a model that was trained elsewhere.

    Attributes:
        content: A hash of the mask.
        mask: Whether each image is in the subset, 8 images in a byte.
    """

    fraction: ClassVar[float] = 1.0
    content: str
    mask: bytes = not_in_key()

    @property
    def label(self) -> str:
        """Return the part of an artifact's name that tells this subset from others."""
        return f"-listed{self.content[:6]}"


Subset = FullData | RandomSubset | ListedSubset | WithoutTop | WithoutRandom | WithoutGroup


@dataclass(frozen=True)
class BankModel:
    """A retrained model that was trained elsewhere.

    Attributes:
        path: Its weights: a file, or a folder.
        key: The state dict that is taken where several in a file fit.
        subset: The images that it was trained on.
        seed: Its training seed.
        where: Its place in the list of the bank, for messages.
    """

    path: Path
    key: str
    subset: ListedSubset
    seed: int
    where: str


Bank = tuple[tuple[BankModel, ...], ...]
"""The models of a bank, [subset][seed]."""


@dataclass
class Dataset(Component):
    """A source of training images and held-out images."""

    licence: ClassVar[str] = "unknown"  # of the images
    reads_all_below: ClassVar[bool] = False  # whether every image below `root` is read
    # Number of held-out images whose duplicates are added to the training images.
    num_injected: int = omitted_default(0, kw_only=True)
    copies: int = omitted_default(1, kw_only=True)  # duplicates of each
    # Standard deviation of a duplicate's noise, where white − black is 1.
    jitter: float = omitted_default(0.0, kw_only=True)

    def check_duplicates(self, where: str) -> None:
        """Check the settings of injected duplicates.

        Raises:
            ConfigError: A setting is out of range, or has no effect.
        """
        require_count(f"{where}.num_injected", self.num_injected, least=0)
        require_count(f"{where}.copies", self.copies, most=1000)
        require_within(f"{where}.jitter", self.jitter, 0, 1)
        used, allowed = self.num_injected > 0, "left as it is unless num_injected is positive"
        require(used or self.copies == 1, f"{where}.copies", self.copies, allowed)
        require(used or self.jitter == 0, f"{where}.jitter", self.jitter, allowed)

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training images and the held-out images."""

    def sources(self) -> list[Path]:
        """Return the files that are read. Images are reloaded if one changes its size or time."""
        return []

    def notes(self) -> list[str]:
        """Return lines for plan and report: how many images were found, what was passed over."""
        return []


@dataclass
class Model(Component):
    """A denoiser, the space it works in, and its noise schedule.

    The default methods are those of a model of pixels.
    """

    pixels: ClassVar[bool] = True  # whether it works on pixels, or on latents
    reads_text: ClassVar[bool] = False  # whether captions and prompts condition it
    samplers: ClassVar[tuple[Sampler, ...]] = tuple(Sampler)  # those that are right for it
    # Whether x_t given x_0 is N(signal x_0, noise² I), as the nonparametric score (nda) assumes.
    nonparametric_scores: ClassVar[bool] = True
    network: ClassVar[str] = ""  # class of diffusers that `network_config` has the arguments of
    num_timesteps: int = 1000  # T
    # Paths of weights that were trained elsewhere.
    checkpoints: list[str] = field(
        default_factory=list, metadata={"not_in_key": True, "path": True}
    )
    # Which state dict of these files is taken where several fit, as in `ema` or `state_dict.model`.
    checkpoint_key: str = field(default="", metadata={"not_in_key": True})

    def check(self, where: str) -> None:
        """Check the settings; a model with others calls this and checks its own.

        Raises:
            ConfigError: A setting is not allowed, or a checkpoint is not on this machine.
        """
        require_count(f"{where}.num_timesteps", self.num_timesteps)
        for name in self.checkpoints:
            locate_checkpoint(name)
        used, allowed = bool(self.checkpoints), "left out without model.checkpoints"
        require(
            used or not self.checkpoint_key, f"{where}.checkpoint_key", self.checkpoint_key, allowed
        )

    def resolved(self) -> Model:
        """Return the model itself, or the one that its files describe."""
        return self

    def ready(self, training: Training | None = None) -> None:
        """Check the files of released weights, on this machine and before any image is read.

        Args:
            training: How models are trained: it may begin at weights, and checkpoints may be LoRA.

        Raises:
            ConfigError: They cannot be used. The message names the setting and the file.
        """
        training = training or Training()
        self.check_released("model.checkpoints", self.checkpoints, training.lora)
        if training.start:
            self.check_released("training.start", [training.start])

    def check_released(self, setting: str, names: Sequence[str], lora: LoRA | None = None) -> None:
        """Check the files of weights, `setting`, by their formats and configs.

        Args:
            setting: The setting that names them.
            names: Paths, or names in the hub's cache.
            lora: Settings of LoRA, where the files may be adapters.

        Raises:
            ConfigError: They cannot be used. The message names the setting and the file.
        """

    def check_sampler(self, where: str, sampler: Sampler) -> None:
        """Check that a sampler is right for the model.

        Raises:
            ConfigError: It is not. The message names the samplers that are.
        """
        allowed = f"one of {', '.join(s.value for s in self.samplers)} with model={self.name}"
        require(sampler in self.samplers, where, sampler.value, allowed)

    def fits(self, shape: tuple[int, int, int]) -> None:
        """Check that images of a shape [C, H, W] can go through the network.

        Raises:
            ConfigError: They cannot. The message names the setting.
        """

    def check_data(self, where: str, images: ImageSet) -> None:
        """Check settings against the training images.

        Raises:
            ConfigError: They do not fit. The message names the setting.
        """

    def example_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """Return the shape of a network input for an image of shape [C, H, W]."""
        return shape

    @property
    def has_dropout(self) -> bool:
        """Return whether it is trained with dropout, whose masks differ between processes."""
        return False

    @property
    def is_flow(self) -> bool:
        """Return whether it is a flow: its sampler visits timesteps from T − 1, pure noise, on."""
        return False

    @property
    def num_classes(self) -> int:
        """Return how many classes can condition the network, or 0; a setting where it is one."""
        return 0

    @property
    def null_class(self) -> bool:
        """Return whether a network of classes also has an embedding of no class."""
        return True

    @property
    def is_conditional(self) -> bool:
        """Return whether the network has a condition: a text or a class."""
        return self.reads_text or self.num_classes > 0

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Return the shape of a condition, a text [L, E] or a class []; None: unknown, or none."""
        return () if self.num_classes else None

    @abstractmethod
    def multiply_adds(self, shape: tuple[int, int, int]) -> float:
        """Return the approximate multiply-adds of a forward pass of one image, for plans."""

    def latents(self, images: Images, seed: int) -> Latents | None:
        """Return the latents that images are encoded to before training, or None."""
        return None

    def encode(self, images: ImageSet, latents: Artifact | None = None) -> Examples:
        """Return images as network inputs, with their classes if these condition the network."""
        import torch

        from journey.pipeline.examples import Examples
        from journey.pipeline.images import as_pixels

        condition = None
        if self.num_classes:
            condition = torch.from_numpy(images.labels.astype(np.int64))[:, None]
        return Examples(as_pixels(images.images[:]), condition=condition)

    def decode(self, x0: np.ndarray, latents: Artifact | None = None) -> np.ndarray:
        """Return network inputs [B, …] as pixels in −1…1 [B, C, H, W]."""
        return x0

    def check_prompts(self, where: str, prompts: Sequence[str], class_names: Sequence[str]) -> None:
        """Check that prompts can be read in full, or are names of classes.

        Raises:
            ConfigError: A prompt cannot, or is none.
        """
        if self.num_classes:
            allowed = f"among {', '.join(class_names[:20])}{', …' * (len(class_names) > 20)}"
            for prompt in prompts:
                require(prompt in class_names, where, prompt, allowed)

    def read(self, prompts: Sequence[str], class_names: Sequence[str]) -> torch.Tensor:
        """Return the condition of each prompt: of texts [prompts, L, E], of classes [prompts].

        Raises:
            ValueError: The model has no condition.
        """
        import torch

        if not self.num_classes:
            raise ValueError(f"model={self.name} has no condition")
        return torch.tensor([class_names.index(prompt) for prompt in prompts])

    def null_condition(self) -> torch.Tensor:
        """Return the condition of no text [L, E], or of no class []."""
        import torch

        return torch.tensor(self.num_classes) if self.num_classes else self.read([""], ())[0]

    def first_parameter(self) -> tuple[str, int]:
        """Return the name and the length of the first parameter of the class `network`.

        Files of released weights are looked at for it.

        Raises:
            ValueError: The network is of another class.
        """
        raise ValueError(f"model={self.name} has no network of diffusers")

    def network_config(self, shape: tuple[int, ...]) -> dict[str, object] | None:
        """Return the arguments of a class of diffusers, `network`, or None: it is of another one.

        Folders of released weights are compared with them field by field.
        """
        return None

    @abstractmethod
    def build(self, shape: tuple[int, ...]) -> torch.nn.Module:
        """Return an untrained network for a shape of inputs, from torch's global generator."""

    @abstractmethod
    def load(self, path: Path, device: torch.device) -> torch.nn.Module:
        """Return a trained network in evaluation mode."""

    @abstractmethod
    def schedule(self, device: torch.device) -> Schedule:
        """Return the noise schedule of training and sampling."""


@dataclass(frozen=True)
class Inputs:
    """The artifacts that a component computes its result from.

    Subclasses have a field for each: a spec, or tuples or dictionaries of specs.
    """


InputsT = TypeVar("InputsT", bound=Inputs)


@dataclass
class Method(Component):
    """An attribution method."""

    needs_pixels: ClassVar[bool] = False  # works with models of pixels only
    needs_latents: ClassVar[bool] = False  # works with models of latents only
    needs_text: ClassVar[bool] = False  # works with models that read text only
    # Whether scores predict changes of the output. A trajectory weights them as it weights outputs;
    # other scores are weighted equally.
    in_units_of_output: ClassVar[bool] = True
    # Whether the score of a step is that of the window from it to the next one, which add up.
    additive: ClassVar[bool] = False

    @property
    def target(self) -> Target:
        """Return the output of a query that is attributed; a setting where there is a choice."""
        return Target.step

    def check(self, where: str) -> None:
        """Check the ranges of the settings; a method with other rules overrides it."""
        check_ranges(self, where)

    def candidates(self) -> list[dict[str, float]]:
        """Return the hyper-parameter values along the first axis of the scores.

        An evaluation may choose among them.
        """
        return [{}]

    def depends_on(self, setting: str) -> bool:
        """Return whether a setting has an effect on the scores, all others being as they are."""
        return True

    def restricted_to(self, region: Sequence[int]) -> Method | None:
        """Return the method for the output of a region of the queries, or None if it has none."""
        return None

    def num_scores(self, num_steps: int) -> int:
        """Return how many scores a query has for each training image."""
        return num_steps if self.target is Target.step else 1

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        """Check settings against the model and the number of training steps.

        Raises:
            ConfigError: They do not fit. The message names the setting.
        """

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        """Check settings against the queries and the training images.

        Raises:
            ConfigError: They do not fit. The message names the setting.
        """

    def needs(self, experiment: Experiment) -> Inputs:
        """Return the artifacts that the scores are computed from."""
        return Inputs()

    @abstractmethod
    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        """Write the scores into `out`.

        Args:
            out: Zeros [candidate, step, query, train]; positive = proponent.
            spec: The spec of the scores.
            workspace: The store, and how to compute.

        Returns:
            Diagnostics of the computation, as JSON.
        """


class SecondOrderMethod(Method):
    """A method whose scores of a group of training images have a term that is no sum over them."""

    @abstractmethod
    def interaction_inputs(self, experiment: Experiment, num_samples: int) -> Inputs | None:
        """Return what `interactions` are computed from; None: these settings have none.

        Args:
            experiment: The experiment.
            num_samples: Noise samples whose features of queries are kept apart.
        """

    @abstractmethod
    def interactions(
        self, inputs: Inputs, spec: Score, groups: np.ndarray, workspace: Workspace
    ) -> np.ndarray:
        """Return the second-order terms of the scores of groups [candidate, step, query, group].

        Args:
            inputs: What `interaction_inputs` returned.
            spec: The scores.
            groups: Whether a group has a training image. [group, train]
            workspace: Where artifacts are.
        """


class ImageEncoderMethod(Method):
    """A method that compares images in the space of an encoder, which evaluations use as well."""

    @abstractmethod
    def load(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the encoder: a function of images in −1…1 [B, 1 or 3, H, W] to [B, E]."""


@dataclass
class Evaluation(Component):
    """A way to evaluate attribution methods."""

    # A module with functions of a result, `tables`, `texts` and `figures`; it may lack some.
    show: ClassVar[str] = ""
    continues_trajectories: ClassVar[bool] = False  # from x_t: they must have been sampled
    least_queries: ClassVar[int] = 4  # that it can evaluate: often in two halves
    # What a sweep maximises: conditions of a row of the result, such as {method: ekfac}, in place
    # of those of the headline's first row.
    objective: dict[str, str] = field(
        default_factory=dict, metadata={"not_in_key": True}, kw_only=True
    )

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        """Check settings against the sampling and the model.

        Raises:
            ConfigError: They do not fit. The message names the setting.
        """

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        """Check settings against the queries and the training images.

        Raises:
            ConfigError: They do not fit. The message names the setting.
        """

    def check_objective(self, where: str, methods: list[str]) -> None:
        """Check `objective`, given the methods of the run.

        Raises:
            ConfigError: They name no method of the run.
        """
        for key in ("method", "against"):
            value = self.objective.get(key, methods[0])
            require(value in methods, f"{where}.{key}", value, f"one of {', '.join(methods)}")

    @abstractmethod
    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> Inputs:
        """Return the artifacts that the result is computed from, besides the scores."""

    @abstractmethod
    def evaluate(self, spec: Evaluate, workspace: Workspace) -> Result:
        """Return the result. Its numbers are in `rows`."""

    def benchmark(self, spec: Evaluate, workspace: Workspace) -> dict[str, object] | None:
        """Return how the scores of others are evaluated from arrays alone, as JSON, or None.

        `outputs` has, for each training subset, the names of the outputs of its models.
        """
        return None

    def headline(self, result: Result) -> list[Row]:
        """Return the rows that stand for the result in a sweep or a tracker."""
        return result["rows"]  # type: ignore[return-value]

    def chosen(self, result: Result, method: str) -> dict[str, float] | None:
        """Return which candidate of a method to show, or None if the result does not say."""
        return None

    def tables(self, result: Result) -> list[Table]:
        """Return tables for the terminal. Without any, the rows are shown."""
        return self._shown("tables", result) or []

    def texts(self, result: Result) -> dict[str, str]:
        """Return text files for the report, by name."""
        return self._shown("texts", result) or {}

    def curves(self, result: Result) -> dict[str, list[Row]]:
        """Return the rows of the curves over the steps that the page shows, by title.

        Rows of a method may be of one of its candidates. Rows without a step are numbers of the
        trajectory or the final sample.
        """
        return {}

    def figures(self, result: Result) -> dict[str, Figure]:
        """Return the figures of the report by file name, from the result alone.

        `result["variant_axes"]` has, for each setting in which variants of the first method differ,
        pairs (value, method).
        """
        return self._shown("figures", result) or {}

    def _shown(self, name: str, result: Result) -> Any:
        """Return what a function of `show` returns; None if there is none."""
        if not self.show:
            return None
        module = importlib.import_module(self.show)  # only here: it imports matplotlib
        return getattr(module, name)(result) if hasattr(module, name) else None


def forward_passes(guidance: float) -> int:
    """Return the forward passes of one prediction: a guided one has another without the prompt."""
    return 1 if guidance == 1 else 2


@dataclass(frozen=True)
class Images(Spec):
    """The images of a dataset, training and held out, identified by their content."""

    stage: ClassVar[str] = "images"
    maker: ClassVar[str] = "journey.data.images:make_images"
    folder: ClassVar[str] = "images"
    version: ClassVar[int] = 1
    on_cpu: ClassVar[bool] = True
    content: str  # sha256 of every array and text
    dataset: Dataset = not_in_key()
    num_train: int = not_in_key()
    shape: tuple[int, int, int] = not_in_key()  # of one image, C, H, W

    @property
    def label(self) -> str:
        return self.dataset.label

    @property
    def work(self) -> float:
        return float(self.num_train)


@dataclass(frozen=True)
class QueryImages(Spec):
    """The images of a user that are queries, as large as the training images."""

    stage: ClassVar[str] = "queries"
    maker: ClassVar[str] = "journey.data.folder:make_query_images"
    folder: ClassVar[str] = "queries"
    version: ClassVar[int] = 1
    on_cpu: ClassVar[bool] = True
    content: str  # sha256 of names and pixels
    root: str = not_in_key()  # the folder that has them
    names: tuple[str, ...] = not_in_key()
    shape: tuple[int, int, int] = not_in_key()  # of one image, C, H, W

    @property
    def label(self) -> str:
        return f"{len(self.names)}images"

    @property
    def work(self) -> float:
        return float(len(self.names))


@dataclass(frozen=True)
class Autoencoder(Spec):
    """An autoencoder of all training images, on whose latents diffusion models work."""

    stage: ClassVar[str] = "autoencode"
    maker: ClassVar[str] = "journey.diffusion.autoencoder:make_autoencoder"
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
        settings = self.autoencoding
        channels = sum(c * c for c in settings.block_out_channels)
        pixels = math.prod(self.images.shape[1:])
        return float(settings.num_steps * settings.batch_size * pixels * channels)


@dataclass(frozen=True)
class Latents(Spec):
    """Training images as latents, and the text states of their captions."""

    stage: ClassVar[str] = "encode"
    maker: ClassVar[str] = "journey.diffusion.autoencoder:make_latents"
    folder: ClassVar[str] = "latents"
    version: ClassVar[int] = 1
    images: Images
    encoders: str  # a hash of the encoders that were trained elsewhere
    text_length: int  # tokens
    autoencoder: Autoencoder | None  # trained here; None: that of the pretrained pipeline
    pretrained: str = not_in_key()  # the pipeline; "": the autoencoder trained here, and MiniLM
    encoded: str = omitted_default("")  # a hash of latents that were computed elsewhere
    source: str = field(default="", compare=False, metadata={"not_in_key": True})  # their folder

    @property
    def label(self) -> str:
        return self.images.label

    @property
    def work(self) -> float:
        return float(self.images.num_train * math.prod(self.images.shape))


@dataclass(frozen=True)
class Train(Spec):
    """One diffusion model: trained here, or elsewhere (`released`)."""

    stage: ClassVar[str] = "train"
    maker: ClassVar[str] = "journey.diffusion.train:make_model"
    group_maker: ClassVar[str] = "journey.diffusion.train:make_models"
    folder: ClassVar[str] = "models"
    version: ClassVar[int] = 2
    has_curves: ClassVar[bool] = True
    images: Images
    model: Model
    training: Training
    precision: Precision
    seed: int
    training_seed: int  # of independent trainings on the same images; FullData: checkpoint index
    subset: Subset = omitted_default(FullData())
    batches: Batching = omitted_default(Batching.independent)
    latents: Latents | None = omitted_default(None)
    released: str = omitted_default("")  # a hash of the weights
    source: str = field(default="", compare=False, metadata={"not_in_key": True})  # their path
    # The model at whose weights training begins, or whose weights LoRA changes; None: untrained.
    start: Train | None = omitted_default(None)

    @property
    def label(self) -> str:
        return f"{self.images.label}-{self.model.label}{self.subset.label}-s{self.training_seed}"

    @property
    def work(self) -> float:
        if self.released:
            return 1.0
        fraction = self.subset.fraction if self.batches is Batching.coupled else 1.0
        return 3.0 * self.training.num_steps * self.training.batch_size * fraction * self.forward

    def size_given(self, parameters: Shapes) -> int:
        """Return the bytes of the parameters."""
        return 4 * sum(map(math.prod, parameters.values()))

    @property
    def group(self) -> str:
        """Return the key of the model of all images: networks that differ in their images or seed
        can be stacked. Coupled mini-batches have several sizes, and dropout another mask in each.
        """
        coupled = self.batches is Batching.coupled
        if self.released or coupled or self.model.has_dropout:
            return ""
        return cache_key(replace(self, subset=FullData(), training_seed=0))

    @property
    def training_run(self) -> Train:
        """Return the run that ends with this checkpoint; as of an `IntermediateCheckpoint`."""
        return self

    @property
    def forward(self) -> float:
        """Return the approximate multiply-adds of one forward pass of one example."""
        return self.model.multiply_adds(self.images.shape)


@dataclass(frozen=True)
class IntermediateCheckpoint(Spec):
    """A model after `step` steps of a training run, and the state to continue training from."""

    stage: ClassVar[str] = "intermediate"
    maker: ClassVar[str] = "journey.diffusion.train:make_intermediate_checkpoint"
    folder: ClassVar[str] = "intermediate"
    version: ClassVar[int] = 2
    training_run: Train
    step: int
    previous: IntermediateCheckpoint | None

    @property
    def label(self) -> str:
        return f"{self.training_run.label}-step{self.step}"

    @property
    def work(self) -> float:
        steps = self.step - (self.previous.step if self.previous else 0)
        return self.training_run.work * steps / self.training_run.training.num_steps


@dataclass(frozen=True)
class Sample(Spec):
    """The sampling trajectories of all queries: x_t and x̂0_t at some steps, and final samples."""

    stage: ClassVar[str] = "sample"
    maker: ClassVar[str] = "journey.diffusion.sampling:make_trajectories"
    folder: ClassVar[str] = "trajectories"
    version: ClassVar[int] = 2
    checkpoint: Train
    sampler: Sampler
    num_inference_steps: int
    num_queries: int
    steps: tuple[int, ...]
    seed: int
    # Query q has prompt q modulo their number; without any, a model of classes takes these in turn.
    prompts: tuple[str, ...] = omitted_default(())
    guidance: float = omitted_default(1.0)
    start: Start = omitted_default(Start.generated)
    images: QueryImages | None = omitted_default(None)

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-{self.sampler.value}{self.num_inference_steps}"

    @property
    def visited(self) -> list[int]:
        """Return the timesteps that the sampler visits, in falling order."""
        model = self.checkpoint.model
        return visited_timesteps(model.num_timesteps, self.num_inference_steps, model.is_flow)

    @property
    def work(self) -> float:
        visited = self.num_inference_steps if self.start is Start.generated else len(self.steps)
        return self.num_queries * visited * forward_passes(self.guidance) * self.checkpoint.forward

    @property
    def size(self) -> int | None:
        model, conditions = self.checkpoint.model, 0
        if model.is_conditional:
            if model.condition_shape is None:
                return None
            # In numbers of four bytes; a label has eight.
            conditions = 2 if model.num_classes else math.prod(model.condition_shape)
        example = math.prod(model.example_shape(self.checkpoint.images.shape))
        return 4 * self.num_queries * ((2 * len(self.steps) + 1) * example + conditions)


@dataclass(frozen=True)
class Measure(Spec):
    """One model's outputs for every query: at each step of its trajectory, and its final sample."""

    stage: ClassVar[str] = "measure"
    maker: ClassVar[str] = "journey.attribution.outputs:make_outputs"
    folder: ClassVar[str] = "outputs"
    version: ClassVar[int] = 3
    checkpoint: Train
    trajectories: Sample
    steps: tuple[int, ...]
    num_samples: int
    antithetic: bool
    seed: int
    guidance: float = omitted_default(1.0)
    region: tuple[int, ...] = omitted_default(())  # a box, or one for each query; (): everything
    # Whether the output of a step is the loss at x_t itself, whose noise makes it of the final
    # sample, in place of the mean over noise samples of x̂0_t.
    noisy: bool = omitted_default(False)

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}{'-noisy' * self.noisy}"

    @property
    def work(self) -> float:
        outputs = self.trajectories.num_queries * (len(self.steps) + 1)
        return outputs * self.num_samples * forward_passes(self.guidance) * self.checkpoint.forward

    @property
    def size(self) -> int:
        return 8 * 2 * (len(self.steps) + 1) * self.trajectories.num_queries


@dataclass(frozen=True)
class Continuations(Spec):
    """Final samples of trajectories that a model continues from x_t at a step.

    Attributes:
        step: t, where the model takes over: a stored step, or the sampler's first timestep.
        windows: Δ: for how many timesteps the model is used, before the model of the trajectories
            is used again; t: until the end.
        count: Continuations of each query. The first uses the trajectory's noise, others new noise.
        encoder: Encoder whose features of the final samples are computed too.
    """

    stage: ClassVar[str] = "continuations"
    maker: ClassVar[str] = "journey.diffusion.sampling:make_continuations"
    folder: ClassVar[str] = "continuations"
    version: ClassVar[int] = 1
    checkpoint: Train
    trajectories: Sample
    step: int
    windows: tuple[int, ...]
    queries: tuple[int, ...]
    count: int
    encoder: ImageEncoderMethod | None
    seed: int

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-from{self.step}"

    @property
    def work(self) -> float:
        sampling = self.trajectories
        steps = self.step / self.checkpoint.model.num_timesteps * sampling.num_inference_steps
        passes = steps * forward_passes(sampling.guidance)
        return len(self.windows) * len(self.queries) * self.count * passes * self.checkpoint.forward

    @property
    def size(self) -> int | None:
        if self.encoder is not None:
            return None  # the encoder decides
        example = self.checkpoint.model.example_shape(self.checkpoint.images.shape)
        return 4 * len(self.windows) * len(self.queries) * self.count * math.prod(example)


class _FromInputs:
    """A spec of what a component computes."""

    inputs: Inputs

    def inputs_as(self, inputs_type: type[InputsT]) -> InputsT:
        """Return the inputs that the component's `needs` returned, with their type.

        Raises:
            TypeError: They are of another type.
        """
        actual = self.inputs
        if not isinstance(actual, inputs_type):
            raise TypeError(f"inputs are {type(actual).__name__}, expected {inputs_type.__name__}")
        return actual


@dataclass(frozen=True)
class Score(Spec, _FromInputs):
    """One method's scores[candidate, step, query, train]; a single step if it scores queries."""

    stage: ClassVar[str] = "score"
    maker: ClassVar[str] = "journey.pipeline.stages:make_scores"
    folder: ClassVar[str] = "scores"
    version: ClassVar[int] = 4
    on_cpu: ClassVar[bool] = True
    method: Method
    trajectories: Sample
    steps: tuple[int, ...]
    seed: int
    inputs: Inputs

    @property
    def images(self) -> Images:
        """Return the training images that are scored."""
        return self.trajectories.checkpoint.images

    @property
    def label(self) -> str:
        return f"{self.trajectories.checkpoint.label}-{self.method.label}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the numbers of candidates, steps, queries and training images."""
        num_candidates = len(self.method.candidates())
        num_steps = self.method.num_scores(len(self.steps))
        return num_candidates, num_steps, self.trajectories.num_queries, self.images.num_train

    @property
    def work(self) -> float:
        return float(math.prod(self.shape))

    @property
    def size(self) -> int:
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class Evaluate(Spec, _FromInputs):
    """The result of an evaluation of all methods."""

    stage: ClassVar[str] = "evaluate"
    maker: ClassVar[str] = "journey.pipeline.stages:make_evaluation"
    folder: ClassVar[str] = "evaluations"
    version: ClassVar[int] = 5
    on_cpu: ClassVar[bool] = True
    evaluation: Evaluation
    scores: dict[str, Score]
    trajectories: Sample
    steps: tuple[int, ...]
    seed: int
    inputs: Inputs

    @property
    def label(self) -> str:
        return f"{self.trajectories.label}-{self.evaluation.label}"

    @property
    def work(self) -> float:
        num_candidates = sum(score.shape[0] for score in self.scores.values())
        return float(num_candidates) * self.trajectories.num_queries


@dataclass(frozen=True)
class Experiment:
    """The settings of an experiment, and the specs of its artifacts."""

    images: Images
    model: Model
    training: Training
    sampling: Sampling
    retraining: Retraining
    precision: Precision
    seed: int
    bank: Bank = ()  # models that are evaluated with in place of models retrained here
    query_images: QueryImages | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the steps of the trajectories that are attributed and evaluated."""
        return tuple(self.sampling.steps)

    @property
    def guidance(self) -> float:
        """Return the guidance of the prediction whose loss is a query's output."""
        return self.sampling.guidance if self.sampling.guided_outputs else 1.0

    @cached_property
    def latents(self) -> Latents | None:
        """Return the latents of the training images, if the model works on latents."""
        return self.model.latents(self.images, self.seed)

    def checkpoint(self, index: int) -> Train:
        """Return a model of all training images: trained here, or one of `model.checkpoints`.

        Raises:
            ConfigError: `model.checkpoints` names too few.
        """
        released = self.model.checkpoints
        if not released:
            return self._train(FullData(), index, Batching.independent)
        allowed = f"at least {index + 1} checkpoints, which the methods use"
        require(index < len(released), "model.checkpoints", released, allowed)
        return self._released("model.checkpoints", self.model, released[index], FullData(), index)

    def bank_model(self, entry: BankModel) -> Train:
        """Return a model of the bank."""
        model = replace(self.model, checkpoint_key=entry.key)
        return self._released("retraining.bank", model, str(entry.path), entry.subset, entry.seed)

    @cached_property
    def start(self) -> Train | None:
        """Return the model of `training.start`, or None: training begins with random weights."""
        if not (name := self.training.start):
            return None
        return self._released("training.start", self.model, name, FullData(), 0)

    def _released(
        self, setting: str, model: Model, source: str, subset: Subset, training_seed: int
    ) -> Train:
        """Return a model that was trained elsewhere, and that a setting names."""
        used = model.checkpoint_key and setting != "training.start"
        key = [model.checkpoint_key] if used else []
        lora = self.training.lora if setting == "model.checkpoints" else LoRA()
        return Train(
            images=self.images,
            model=model,
            training=Training(lora=lora),
            precision=self.precision,
            seed=self.seed,
            training_seed=training_seed,
            subset=subset,
            latents=self.latents,
            released=":".join([files_hash(locate_checkpoint(source, setting)), *key]),
            source=source,
            start=self.start if lora.rank else None,
        )

    def retrained(self, subset: Subset, training_seed: int = 0) -> Train:
        """Return a model of a subset of the training images."""
        match subset:
            case FullData():
                return self.checkpoint(training_seed)
            case RandomSubset():
                return self._train(subset, training_seed, self.retraining.batches)
            case _:  # a small change of the data is only visible where mini-batches are coupled
                return self._train(subset, training_seed, Batching.coupled)

    def _train(self, subset: Subset, training_seed: int, batches: Batching) -> Train:
        return Train(
            images=self.images,
            model=self.model,
            training=self.training,
            precision=self.precision,
            seed=self.seed,
            training_seed=training_seed,
            subset=subset,
            batches=batches,
            latents=self.latents,
            start=self.start,
        )

    def random_subset(self, index: int) -> RandomSubset:
        """Return a random subset of the training images."""
        return RandomSubset(index, self.retraining.fraction, self.seed, self.retraining.by)

    @cached_property
    def trajectories(self) -> Sample:
        """Return the trajectories of the queries, sampled by checkpoint 0 for all models."""
        sampling = self.sampling
        return Sample(
            checkpoint=self.checkpoint(0),
            sampler=sampling.sampler,
            num_inference_steps=sampling.num_inference_steps,
            num_queries=sampling.num_queries,
            steps=self.steps,
            seed=self.seed,
            prompts=tuple(sampling.prompts) or (("",) if self.model.reads_text else ()),
            guidance=sampling.guidance,
            start=sampling.start,
            images=self.query_images,
        )

    def continuations(
        self,
        model: Train,
        step: int,
        queries: tuple[int, ...],
        count: int,
        encoder: ImageEncoderMethod | None,
        windows: tuple[int, ...] = (),
    ) -> Continuations:
        """Return continuations of queries from a step under a model; to the end by default."""
        return Continuations(
            model, self.trajectories, step, windows or (step,), queries, count, encoder, self.seed
        )

    def own_continuations(
        self, step: int, count: int, encoder: ImageEncoderMethod | None = None
    ) -> Continuations:
        """Return `1 + count` continuations of each query under its model; the first repeats it."""
        queries = tuple(range(self.sampling.num_queries))
        return self.continuations(self.checkpoint(0), step, queries, 1 + count, encoder)

    def noisy_outputs(self, model: Train) -> Measure:
        """Return the losses of all queries at x_t itself under a model."""
        return replace(self.outputs(model), num_samples=2, antithetic=False, noisy=True)

    def outputs(self, model: Train, region: tuple[int, ...] = ()) -> Measure:
        """Return the outputs of all queries under a model, or of a region of them."""
        return Measure(
            checkpoint=model,
            trajectories=self.trajectories,
            steps=self.steps,
            num_samples=self.retraining.num_samples,
            antithetic=self.retraining.antithetic,
            seed=self.seed,
            guidance=self.guidance,
            region=region,
        )

    def subset_outputs(self, region: tuple[int, ...] = ()) -> tuple[tuple[Measure, ...], ...]:
        """Return the outputs under models of random subsets. [subset][training seed]"""
        outputs = []
        for entries in self.bank:
            outputs.append(tuple(self.outputs(self.bank_model(e), region) for e in entries))
        for index in range(0 if self.bank else self.retraining.num_subsets):
            subset = self.random_subset(index)
            models = [self.retrained(subset, seed) for seed in range(self.retraining.num_seeds)]
            outputs.append(tuple(self.outputs(model, region) for model in models))
        return tuple(outputs)

    def outputs_without_groups(self, by: Unit, number: int) -> tuple[tuple[Measure, ...], ...]:
        """Return the outputs under models without one group each. [group][training seed]"""
        outputs = []
        for index in range(number):
            subset = WithoutGroup(by, index, self.seed)
            models = [self.retrained(subset, seed) for seed in range(self.retraining.num_seeds)]
            outputs.append(tuple(map(self.outputs, models)))
        return tuple(outputs)

    @property
    def reference_outputs(self) -> Measure | None:
        """Return the full model's outputs if a trajectory weights its steps by them, else None."""
        relative = self.retraining.trajectory is TrajectoryWeights.relative
        return self.outputs(self.checkpoint(0)) if relative else None

    def scores(self, method: Method) -> Score:
        """Return the scores of a method."""
        return Score(method, self.trajectories, self.steps, self.seed, method.needs(self))

    def evaluation(self, evaluation: Evaluation, methods: dict[str, Method]) -> Evaluate:
        """Return the evaluation of methods, by their names."""
        scores = {name: self.scores(method) for name, method in methods.items()}
        return self.evaluation_of(evaluation, scores)

    def evaluation_of(self, evaluation: Evaluation, scores: dict[str, Score]) -> Evaluate:
        """Return the evaluation of scores, by the names of their methods."""
        inputs = evaluation.needs(self, scores)
        return Evaluate(evaluation, scores, self.trajectories, self.steps, self.seed, inputs)
