"""What a kind of each group must offer. A kind is a dataclass of its settings; its deeds import what they need when called.

A kind's fields are its settings and part of every address; `kind` is its name. `check` refuses settings before anything runs.
Nothing here, nor at the top of any kind's file, imports torch.
"""

import functools
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from journey.config.checks import require, require_count, require_within
from journey.config.groups import At, Precision, Sampling, neutral

# What deeds are given and give is built on contracts, so here it has names only.
Recipes = Any  # journey.artifacts.recipes.Recipes
Spec = Any  # journey.artifacts.specs.Spec; Sample, Score and Evaluate are such
Sample = Any
Score = Any
Evaluate = Any
Artifact = Any  # journey.artifacts.store.Artifact
Store = Any  # journey.artifacts.store.Store
Workspace = Any  # journey.artifacts.workspace.Workspace
ImageSet = Any  # journey.data.ImageSet
Examples = Any  # journey.diffusion.examples.Examples
Schedule = Any  # journey.diffusion.schedule.Schedule
Network = Any  # torch.nn.Module
Device = Any  # torch.device
Tensor = Any  # torch.Tensor
Figure = Any  # matplotlib.figure.Figure
Table = Any  # rich.table.Table

Watcher = Callable[..., None]
"""log(values, step): by name, numbers, lists of rows, and paths of pictures or of a page"""


class Kind(ABC):
    """One of the choices of a group."""

    kind: ClassVar[str]

    @property
    def label(self) -> str:
        """For people, in the names of artifacts."""
        return self.kind

    def check(self, where: str) -> None:
        """Raises: ConfigError naming the setting, as `where.field`."""

    def content(self) -> str:
        """A hash of what beside its settings decides its numbers, such as a file it reads."""
        return ""


def fingerprint(kind: Kind) -> str:
    """What an address knows of a kind beside its settings: its content and, of a kind from outside this package, its source."""
    parts = [kind.content(), "" if type(kind).__module__.startswith("journey.") else _source(type(kind))]
    return ":".join(part for part in parts if part)


@functools.cache
def _source(kind: type) -> str:
    """A hash of the file a kind is defined in."""
    return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()[:16]


@dataclass
class Dataset(Kind):
    """Where images come from."""

    licence: ClassVar[str] = "unknown"  # of the images
    num_planted: int = neutral(0, kw_only=True)  # held-out images that are put among the training images
    copies: int = neutral(1, kw_only=True)  # of each of them
    jitter: float = neutral(0.0, kw_only=True)  # of a copy: standard deviation of its noise, 1 being white less black

    def check_planting(self, where: str) -> None:
        """Raises: ConfigError."""
        require_count(f"{where}.num_planted", self.num_planted, least=0)
        require_count(f"{where}.copies", self.copies, most=1000)
        require_within(f"{where}.jitter", self.jitter, 0, 1)
        used, allowed = self.num_planted > 0, "left as it is unless num_planted is positive"
        require(used or self.copies == 1, f"{where}.copies", self.copies, allowed)
        require(used or self.jitter == 0, f"{where}.jitter", self.jitter, allowed)

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet]:
        """The training images and the held-out rest."""

    def sources(self) -> list[Path]:
        """The files that are read. While none of them changes in size or time, images are not loaded again."""
        return []


@dataclass
class Model(Kind):
    """A denoiser, the space it works in and its noise schedule."""

    pixels: ClassVar[bool]  # whether it works on pixels
    reads_text: ClassVar[bool] = False  # whether captions and prompts condition it
    num_timesteps: int = 1000  # T
    checkpoints: list[str] = field(default_factory=list, metadata={"unaddressed": True})  # that others trained: files or folders

    @abstractmethod
    def fits(self, shape: tuple[int, int, int]) -> None:
        """Raises: ConfigError naming the setting if images of a shape (C, H, W) cannot go through."""

    @abstractmethod
    def example_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """Of what the network sees instead of an image of a shape."""

    @abstractmethod
    def multiply_adds(self, shape: tuple[int, int, int]) -> float:
        """Of one image through the network, roughly: what plans are scaled by."""

    def encoded(self, images: Spec, seed: int) -> Spec | None:
        """What images are made into, once, before a network sees them; None: nothing."""
        return None

    @abstractmethod
    def encode(self, images: ImageSet, encoded: Artifact | None = None) -> Examples:
        """Images in the space the network works in. encoded: what they were made into."""

    @abstractmethod
    def decode(self, x0: np.ndarray, encoded: Artifact | None = None) -> np.ndarray:
        """Examples [B, …] as pictures in −1…1, [B, C, H, W]."""

    def check_prompts(self, where: str, prompts: Sequence[str]) -> None:
        """Refuse prompts that it cannot read whole. Raises: ConfigError."""

    def read(self, texts: Sequence[str]) -> Tensor:
        """What texts condition a model by that reads any, [texts, L, E]. Raises: ValueError if this one reads none."""
        raise ValueError(f"model={self.kind} reads no text")

    @abstractmethod
    def build(self, shape: tuple[int, ...]) -> Network:
        """An untrained network for examples of a shape, initialised from torch's global generator."""

    @abstractmethod
    def load(self, path: Path, device: Device) -> Network:
        """A trained network, in evaluation mode."""

    @abstractmethod
    def schedule(self, device: Device) -> Schedule:
        """The schedule it is trained and sampled on."""


@dataclass
class Method(Kind):
    """How training images are scored."""

    at: ClassVar[At] = At.step
    needs_pixels: ClassVar[bool] = False  # whether only models of pixels will do
    needs_latents: ClassVar[bool] = False  # … of latents
    needs_text: ClassVar[bool] = False  # … that read text
    # Scores that are changes of the output are weighed in a trajectory as outputs are; steps of a cosine weigh the same.
    in_units_of_output: ClassVar[bool] = True

    def candidates(self) -> list[dict[str, float]]:
        """The hyper-parameters along the first axis of its scores, among which an evaluation chooses; one is no choice."""
        return [{}]

    def heeds(self, setting: str) -> bool:
        """Whether a setting, as the others are, has an effect on its scores."""
        return True

    def within(self, region: Sequence[int]) -> "Method | None":
        """The same method, asked about a part of its queries: a box of rows and columns, or one for each; none: all of it.

        None: it can be asked about all of them only.
        """
        return None

    def num_scores(self, num_steps: int) -> int:
        """How many scores a query has."""
        return num_steps if self.at is At.step else 1

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        """Refuse what only a whole run shows: num_steps are those of training. Raises: ConfigError."""

    def check_data(self, where: str, journeys: Sample, images: ImageSet) -> None:
        """Refuse what only the images and queries show. Raises: ConfigError."""

    def needs(self, recipes: Recipes) -> dict[str, object]:
        """The artifacts its scores are made from, by name: specs, alone or in tuples."""
        return {}

    @abstractmethod
    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        """Fill out [candidate, step, query, train], which begins as zeros; positive: proponent. Returns what is worth keeping
        about how, as JSON.
        """


@dataclass
class Evaluation(Kind):
    """How methods are judged."""

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        """Refuse what only a whole run shows. Raises: ConfigError."""

    def check_data(self, where: str, journeys: Sample, images: ImageSet) -> None:
        """Refuse what only the images and queries show. Raises: ConfigError."""

    @abstractmethod
    def needs(self, recipes: Recipes, scores: dict[str, Score]) -> dict[str, object]:
        """The artifacts it judges by, by name: specs, alone or in tuples. scores: of every method, by its name"""

    @abstractmethod
    def judge(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        """The result, as JSON; `rows` holds its numbers, flat: dictionaries as `journey.evaluation.rows` describes them."""

    def headline(self, result: dict) -> list[dict]:
        """The rows that stand for the result in a sweep or a tracker."""
        return result["rows"]

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        """Which of a method's candidates to show; None: it does not say."""
        return None

    def tables(self, result: dict) -> list[Table]:
        """For the terminal; none: its rows are tabled as they are."""
        return []

    def texts(self, result: dict) -> dict[str, str]:
        """Files of text for the report, by name."""
        return {}

    def curves(self, result: dict) -> dict[str, list[dict]]:
        """What the page draws along the journey, by title: rows of steps, a line for each of their methods."""
        return {}

    def figures(self, result: dict) -> dict[str, Figure]:
        """Pictures for the report, by file name, from the result alone.

        result["axes"]: what the first method was varied along, as (value, method).
        """
        return {}


@dataclass
class Compute(Kind):
    """On what to compute. Nothing here changes a number beyond rounding, except the precision, which is addressed."""

    device: str = "cpu"
    precision: Precision = Precision.fp32
    gradient_memory_gib: float = 2.0  # per worker
    checkpoint_seconds: float = 60.0
    processes: int = 1  # that train one model together; on CUDA each on a device of its own

    def ready(self) -> None:
        """Raises: ConfigError if what it computes on should be here and is not. Asked once, before anything."""

    @abstractmethod
    def make(self, targets: list[Spec], workspace: Workspace) -> Iterator[Spec]:
        """Make the targets and everything they need; yields each artifact's spec once it is there.

        Raises: JobsFailedError, after all jobs that do not depend on a failed one.
        """

    @abstractmethod
    def at_work(self, store: Store) -> dict[str, str]:
        """What is made now, by whomever, or will be without anybody asking again: "running" or "queued", by address.

        Touches nothing.
        """


@dataclass
class Tracking(Kind):
    """Where metrics go, beside the JSON lines in every artifact."""

    def ready(self) -> None:
        """Raises: ConfigError if it cannot be reached. Asked once, before anything."""

    @abstractmethod
    def watch(self, name: str, group: str, job_type: str, settings: dict) -> AbstractContextManager[Watcher | None]:
        """Follow one job; None: nobody does."""
