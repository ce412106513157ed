"""Settings that several components share, and the enumerations that settings and mathematics share.

A setting is one field, made by `setting`: its default, its range and a sentence that documents it.
Range checks, the axes of `vary`, and whether a setting has an effect are derived from the field.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from journey.engine.checks import (
    LAMBDA,
    MOST,
    MOST_MODELS,
    require,
    require_candidates,
    require_count,
    require_samples,
)
from journey.engine.spec import omitted_default
from journey.engine.workspace import Precision

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def setting(
    default: T,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    omit_default: bool = False,
    varies: bool = True,
    used_if: Mapping[str, tuple[Enum | str, ...] | range] | None = None,
    path: bool = False,
) -> T:
    """Return a dataclass field with its range and its documentation.

    Args:
        default: The default. Each instance gets a copy of a list.
        help: One sentence that says what the setting does.
        least: Smallest allowed value, or item of a list, which then has distinct items.
        most: Largest allowed value, or item of a list; by default 10⁶.
        above: Excluded lower end of the range, instead of `least`.
        below: Excluded upper end of the range, instead of `most`.
        omit_default: Whether cache keys omit the setting at its default. So a new setting leaves
            existing keys unchanged.
        varies: Whether a gradient setting is an axis of `vary`.
        used_if: Other settings, and the values of them with which this setting has an effect.
        path: Whether it is a path of this machine, whose ~ is expanded.
    """
    if least is not None and most is None:
        most = MOST
    limits = (least, most, above, below)
    metadata = {
        "help": help, "range": limits, "varies": varies, "used_if": used_if or {}, "path": path,
    }  # fmt: skip
    if omit_default:
        metadata["omitted_default"] = default
    if isinstance(default, list):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_ranges(settings: DataclassInstance, where: str) -> None:
    """Check that every setting is in the range that its field declares.

    Args:
        settings: An instance of a dataclass of settings.
        where: The name of the settings, such as `training`.

    Raises:
        ConfigError: A setting is out of range. The message names it as `where.field`.
    """
    for f in fields(settings):
        least, most, above, below = f.metadata.get("range", (None, None, None, None))
        low, high = (least if above is None else above), (most if below is None else below)
        if low is None or high is None:
            continue
        name, value = f"{where}.{f.name}", getattr(settings, f.name)
        if isinstance(value, list):
            require_candidates(name, value, low, high)
            continue
        shown = [str(end) if isinstance(value, int) else f"{end:g}" for end in (low, high)]
        if above is None and below is None:
            require(low <= value <= high, name, value, f"in {shown[0]}…{shown[1]}")
        else:  # NaN is in no range
            inside = low <= value <= high and value not in (above, below)
            opening, closing = "[" if above is None else "(", "]" if below is None else ")"
            require(inside, name, value, f"in {opening}{shown[0]}, {shown[1]}{closing}")


def has_effect(settings: DataclassInstance, name: str) -> bool:
    """Return whether a setting has an effect, all others being as they are."""
    return not unmet_condition(settings, name)


def unmet_condition(settings: DataclassInstance, name: str) -> str:
    """Return the values of another setting that would give a setting an effect; "" if it has one.

    >>> unmet_condition(FeatureSettings(projection=Projection.none), "projection_dim")
    'projection=sparse, gaussian or rademacher'
    """
    (used_if,) = (f.metadata.get("used_if", {}) for f in fields(settings) if f.name == name)
    for other, values in used_if.items():
        # A setting that the component lacks, such as `kernel`, is as the component needs it.
        if hasattr(settings, other) and getattr(settings, other) not in values:
            if isinstance(values, range):
                return f"{other} is at least {values.start}"
            *first, last = (v.value if isinstance(v, Enum) else repr(v) for v in values)
            return f"{other}={', '.join(first)}{' or ' * bool(first)}{last}"
    return ""


# Layers that are adapted by default, as in the training scripts of diffusers.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass
class LoRA:
    """Adapters of low rank (Hu et al. 2022): W + (alpha / rank) B A, where only A and B change."""

    rank: int = setting(
        0, "Train adapters of this rank in place of all weights, by peft; 0: none.", least=0
    )
    alpha: float = setting(0.0, "Scale B A by alpha / rank; 0 means the rank.", least=0, most=MOST)
    targets: list[str] = setting(ATTENTION, "Adapt the layers whose names end with one of these.")

    def check(self, where: str) -> None:
        """Raise ConfigError unless all settings are allowed; `where` is their name."""
        check_ranges(self, where)
        used, allowed = self.rank > 0, "left as it is unless rank is positive"
        require(used or self.alpha == 0, f"{where}.alpha", self.alpha, allowed)
        require(used or self.targets == ATTENTION, f"{where}.targets", self.targets, allowed)
        distinct = 0 < len(self.targets) == len(set(self.targets)) and all(self.targets)
        allowed = "a list of distinct ends of names, such as [to_q, to_v]"
        require(distinct, f"{where}.targets", self.targets, allowed)


@dataclass
class Optimization:
    """How a network is trained."""

    num_steps: int = setting(600, "Train for this many optimizer steps.", least=1, most=10**9)
    batch_size: int = setting(64, "Use this many images in each step.", least=1)
    learning_rate: float = setting(
        1e-3, "Reach this rate after warm-up; a cosine to zero follows.", least=1e-12, most=10
    )
    warmup_steps: int = setting(
        100, "Raise the learning rate linearly for this many steps.", least=0, most=10**9
    )
    weight_decay: float = setting(1e-4, "Decay weights at this rate in AdamW.", least=0, most=1000)
    adam_epsilon: float = setting(
        1e-8, "Add this to AdamW's denominator.", least=1e-30, most=1, omit_default=True
    )
    clip_norm: float = setting(1.0, "Clip gradients to this norm.", least=1e-12, most=1e12)
    ema_decay: float = setting(
        0.0, "Average weights with this decay; 0 takes the last weights.", least=0, below=1
    )
    flip: bool = setting(
        False, "Mirror images, left to right, half of the time.", omit_default=True
    )

    def check(self, where: str) -> None:
        """Raise ConfigError unless all settings are allowed; `where` is their name."""
        check_ranges(self, where)
        require_count(f"{where}.warmup_steps", self.warmup_steps, least=0, most=self.num_steps)


@dataclass
class Training(Optimization):
    """How a diffusion model is trained."""

    caption_dropout: float = setting(
        0.0, "Leave out this fraction of captions or classes.", least=0, below=1, omit_default=True
    )
    # Begin at the weights in this folder, or of this name in the hub's cache: a network, or a
    # pipeline. Cache keys have a hash of its files.
    start: str = field(default="", compare=False, metadata={"not_in_key": True, "path": True})
    lora: LoRA = omitted_default(LoRA())

    def check(self, where: str) -> None:
        """Raise ConfigError unless all settings are allowed; `where` is their name."""
        Optimization.check(self, where)
        self.lora.check(f"{where}.lora")
        allowed = f"0 without {where}.start: adapters change a trained network"
        require(
            bool(self.start) or not self.lora.rank, f"{where}.lora.rank", self.lora.rank, allowed
        )


@dataclass
class Autoencoding(Optimization):
    """How an autoencoder of images is trained, on the mean of their absolute and squared errors."""

    num_steps: int = setting(2000, "Train for this many optimizer steps.", least=1, most=10**9)
    learning_rate: float = setting(2e-3, "Reach this rate after warm-up.", least=1e-12, most=10)
    block_out_channels: list[int] = setting(
        [16, 32, 32], "Give the levels these channels; each but the first halves the image."
    )
    latent_channels: int = setting(4, "Give latents this many channels.", least=1, most=64)
    kl_weight: float = setting(
        1e-6, "Weight the mean divergence of latents from N(0, 1) by this.", least=0, most=1e3
    )

    def check(self, where: str) -> None:
        """Raise ConfigError unless all settings are allowed; `where` is their name."""
        Optimization.check(self, where)
        channels = self.block_out_channels
        valid = 0 < len(channels) <= 8 and all(0 < c <= 2**12 and c % 8 == 0 for c in channels)
        allowed = f"a list of 1…8 multiples of 8 up to {2**12}"
        require(valid, f"{where}.block_out_channels", channels, allowed)


class Prediction(Enum):
    """What a network predicts."""

    noise = "noise"  # ε
    velocity = "velocity"  # √ᾱ ε − √(1 − ᾱ) x_0
    sample = "sample"  # x_0
    flow = "flow"  # ε − x_0, at x_t = (1 − s) x_0 + s ε with s = (t + 1) / T (rectified flow)


class Sampler(Enum):
    """How a trajectory goes from one timestep to the next."""

    ddpm = "ddpm"
    ddim = "ddim"


class Start(Enum):
    """Where the trajectories of the queries begin."""

    generated = "generated"  # at pure noise
    injected = "injected"  # at every step anew, at a noisy version of an injected image
    images = "images"  # likewise, of an image in a folder


@dataclass
class Sampling:
    """How queries are generated, and at which steps they are attributed and evaluated."""

    sampler: Sampler = setting(Sampler.ddpm, "Sample trajectories by this method.")
    num_inference_steps: int = setting(1000, "Visit this many timesteps.", least=1)
    num_queries: int = setting(
        24,
        "Generate this many queries, which are evaluated in two halves.",
        least=1,
        used_if={"start": (Start.generated, Start.injected)},
    )
    steps: list[int] = setting(
        [600, 500, 400, 300, 200, 100, 20],
        "Attribute these timesteps; they are in falling order.",
        least=0,
    )
    prompts: list[str] = setting([], "Give queries these prompts, or names of classes, in turn.")
    guidance: float = setting(
        1.0, "Scale classifier-free guidance by this; 1 means none.", least=0, most=100
    )
    start: Start = setting(
        Start.generated, "Begin at noise, or at an injected or a given image.", omit_default=True
    )
    images: str = setting(
        "",
        "Take the images in this folder as queries, noisy at every step.",
        omit_default=True,
        used_if={"start": (Start.images,)},
        path=True,
    )
    guided_outputs: bool = setting(
        False, "Attribute and evaluate the guided prediction, not the conditional one."
    )

    def check(self, where: str) -> None:
        """Raise ConfigError unless all settings are allowed; `where` is their name."""
        check_ranges(self, where)
        falling = self.steps == sorted(self.steps, reverse=True)
        require(falling, f"{where}.steps", self.steps, "in falling order")
        count, allowed = len(self.prompts), f"at most num_queries={self.num_queries}"
        require(count <= self.num_queries, f"{where}.prompts", f"{count} prompts", allowed)

    def check_schedule(self, where: str, num_timesteps: int, from_end: bool) -> None:
        """Raise ConfigError unless the sampler visits all steps; see `visited_timesteps`."""
        steps, count = self.steps, self.num_inference_steps
        on_schedule = all(t < num_timesteps for t in steps)
        require(on_schedule, f"{where}.steps", steps, f"in [0, {num_timesteps})")
        require_count(f"{where}.num_inference_steps", count, most=num_timesteps)
        visited = visited_timesteps(num_timesteps, count, from_end)
        stride = num_timesteps // count
        last = f"{visited[-1]} plus " if visited[-1] else ""
        allowed = f"timesteps the sampler visits: {last}multiples of {stride} up to {visited[0]}"
        require(set(steps) <= set(visited), f"{where}.steps", steps, allowed)


def visited_timesteps(
    num_timesteps: int, num_inference_steps: int, from_end: bool = False
) -> list[int]:
    """Return the timesteps a sampler visits, in falling order, T // num_inference_steps apart.

    They end at 0, the spacing "leading" of diffusers. With `from_end`, they begin at T − 1.

    >>> visited_timesteps(1000, 4)
    [750, 500, 250, 0]
    >>> visited_timesteps(1000, 4, from_end=True)
    [999, 749, 499, 249]
    """
    stride = num_timesteps // num_inference_steps
    first = num_timesteps - 1 if from_end else (num_inference_steps - 1) * stride
    return [first - i * stride for i in range(num_inference_steps)]


class Batching(Enum):
    """The mini-batches of a retrained model."""

    coupled = "coupled"  # those of the full data, with their noise, without the removed images
    independent = "independent"  # batches of the subset: removing one image changes all of them


class Unit(Enum):
    """What is kept in a subset, or left out of it, as a whole."""

    images = "images"  # single ones
    classes = "classes"
    # Images whose ids differ in the last of three parts or more: crops of a photograph, duplicates.
    sources = "sources"
    near_duplicates = "near_duplicates"  # joined by root mean square differences below 0.1


class TrajectoryWeights(Enum):
    """How the outputs of the steps are weighted in the output of a trajectory."""

    relative = "relative"  # each over its value under the full model
    plain = "plain"  # equally: their mean is dominated by the last steps


@dataclass
class Retraining:
    """Models retrained on random subsets, and how their outputs are measured."""

    num_subsets: int = setting(
        32,
        "Retrain on this many random subsets (M); a ceiling needs seven.",
        least=8,
        used_if={"bank": ("",)},
    )
    num_seeds: int = setting(
        1, "Train this many models on each subset (R).", least=1, used_if={"bank": ("",)}
    )
    fraction: float = setting(0.5, "Keep this fraction of each class.", above=0, below=1)
    by: Unit = setting(
        Unit.images,
        "Keep or leave out images, or whole groups of them.",
        omit_default=True,
        used_if={"bank": ("",)},
    )
    batches: Batching = setting(
        Batching.independent, "Form mini-batches alone, or coupled to those of the full data."
    )
    num_samples: int = setting(
        32, "Average each measured output over this many noise samples.", least=1
    )
    antithetic: bool = setting(False, "Draw noise samples in pairs (ε, −ε).")
    trajectory: TrajectoryWeights = setting(
        TrajectoryWeights.relative, "Weight the steps of a trajectory relatively, or equally."
    )
    bank: str = setting(
        "", "Evaluate with the models that this CSV or JSON file lists instead.", path=True
    )
    bank_numbers: str = setting(
        "", "Read the numbers of the training images in the files of a bank's subsets.", path=True
    )

    def check(self, where: str) -> None:
        """Raise ConfigError unless all settings are allowed; `where` is their name."""
        check_ranges(self, where)
        num_models = self.num_subsets * self.num_seeds
        require_count(f"{where}.num_subsets × num_seeds", num_models, most=MOST_MODELS)
        require_samples(where, self.num_samples, self.antithetic)
        unit = 4 if self.antithetic else 2  # the noise ceiling compares two halves
        whole = self.num_samples % unit == 0
        require(whole, f"{where}.num_samples", self.num_samples, f"a multiple of {unit}")
        for name, path in (("bank", self.bank), ("bank_numbers", self.bank_numbers)):
            require(not path or os.path.isfile(path), f"{where}.{name}", path, "a file")
        used, allowed = self.bank != "", "left out without retraining.bank"
        require(used or not self.bank_numbers, f"{where}.bank_numbers", self.bank_numbers, allowed)


class Target(Enum):
    """The output of a query that is attributed."""

    step = "step"  # one output for each step of the trajectory
    trajectory = "trajectory"  # the mean of the outputs of all steps
    final_sample = "final_sample"  # the output of the final sample


class QueryExample(Enum):
    """The clean example that stands for a query at step t; x_0 is its final sample."""

    estimate = "estimate"  # x̂0_t
    mean = "mean"  # the mean of continuations from x_t, a Monte-Carlo estimate of E[x_0 | x_t]
    continuation = "continuation"  # x_0, the continuation with the trajectory's own noise
    noisy = "noisy"  # x_0 with one noise sample, the ε for which add_noise(x_0, t, ε) = x_t


class Output(Enum):
    """The function whose gradient is taken, averaged over noise samples and elements."""

    loss = "loss"  # (ε − ε_θ)²
    square = "square"  # ε_θ²
    mean = "mean"  # ε_θ
    absolute = "absolute"  # |ε − ε_θ|


class ImageTarget(Enum):
    """A number of a final image x, given the query's own x_0; D is the number of elements.

    All but `direction` rise where what the query owes to its proponents is lost.
    """

    distance = "distance"  # ‖x − x_0‖² / D
    projection = "projection"  # −⟨x, x_0 − m⟩ / D, m the mean of the training images
    class_loss = "class_loss"  # −log p(class of x_0 | x), by a linear classifier of pixels
    direction = "direction"  # ⟨x, u⟩ / √D, u the first principal axis of the training images
    features = "features"  # squared distance of the features of an encoder, a mean over them


class Augmentation(Enum):
    """Which view of a training image a noise sample has: mirrored or not, and which caption."""

    none = "none"  # the image as it is, with its first caption
    both = "both"  # all views in turn
    random = "random"


class DampingUnit(Enum):
    """What λ is relative to: a mean of the eigenvalues of ΦᵀΦ."""

    eigenvalue = "eigenvalue"  # ‖Φ‖² / min(N, p): the mean of those that can be positive
    diagonal = "diagonal"  # ‖Φ‖² / p: the mean of all, as in the literature


class Kernel(Enum):
    """The matrix between the features of a query and of a training image."""

    gram = "gram"  # φ_qᵀ (ΦᵀΦ + λI)⁻¹ φ_i
    ekfac = "ekfac"  # g_qᵀ (G + λI)⁻¹ g_i, G the generalised Gauss–Newton matrix by EK-FAC
    identity = "identity"  # φ_qᵀ φ_i


class Scale(Enum):
    """What a score is divided by."""

    none = "none"
    gradient = "gradient"  # ‖φ_i‖
    influence = "influence"  # ‖K⁻¹ φ_i‖
    cosine = "cosine"  # ‖φ_q‖ ‖φ_i‖
    leverage = "leverage"  # 1 − φ_iᵀ K⁻¹ φ_i: rescaled influence (arXiv 2506.06656)


class ScoreTransform(Enum):
    """The function of the scores that is reported."""

    linear = "linear"
    square = "square"


class Ensemble(Enum):
    """The checkpoints over which scores are averaged."""

    seeds = "seeds"  # independent trainings
    run = "run"  # intermediate checkpoints of one training, weighted by their learning rates


class Projection(Enum):
    """How a gradient becomes a feature."""

    sparse = "sparse"  # Johnson–Lindenstrauss, one random bucket and sign per coordinate
    gaussian = "gaussian"
    rademacher = "rademacher"
    kronecker = "kronecker"  # LoGra: both sides of every layer, without the gradient of any weight
    none = "none"  # the whole gradient: the exact kernel


class Storage(Enum):
    """The numbers that features are stored as: all but the first with a scale for every row."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"

    @property
    def num_bytes(self) -> int:
        """Return the bytes of one number."""
        return {Storage.fp32: 4, Storage.fp16: 2, Storage.int8: 1}[self]


@dataclass
class FeatureSettings:
    """What determines the projected gradient of an example under one model."""

    num_samples: int = setting(
        32, "Average each gradient over this many noise samples (t, ε).", least=1
    )
    noise_set: int = setting(0, "Use this one of many independent sets of noise samples.", least=0)
    share_noise: bool = setting(
        False,
        "Use the noise samples of training images for final samples, too.",
        used_if={"target": (Target.final_sample,)},
    )
    stratified: bool = setting(
        True, "Draw one timestep from each of num_samples equal parts of the schedule."
    )
    antithetic: bool = setting(False, "Draw noise samples in pairs (ε, −ε).")
    train_timesteps: int = setting(
        0,
        "Noise training images at this many timesteps around the query's; 0 means all.",
        least=0,
        used_if={"target": (Target.step,)},
    )
    flips: Augmentation = setting(
        Augmentation.none, "Mirror training images or not.", omit_default=True, varies=False
    )
    captions: Augmentation = setting(
        Augmentation.none, "Use one caption of an image or all.", omit_default=True, varies=False
    )
    precision: Precision = setting(Precision.fp32, "Compute gradients in this precision.")
    projection: Projection = setting(Projection.sparse, "Project gradients by this method.")
    projection_dim: int = setting(
        4096,
        "Project gradients to this dimension (p).",
        least=1,
        used_if={"projection": (Projection.sparse, Projection.gaussian, Projection.rademacher)},
    )
    projection_rank: int = setting(
        16,
        "Project each side of every layer to this rank.",
        least=2,
        omit_default=True,
        used_if={"projection": (Projection.kronecker,)},
    )
    storage: Storage = setting(Storage.fp32, "Store features in this format.", omit_default=True)


@dataclass
class GradientSettings(FeatureSettings):
    """The settings that all gradient methods share, unless a method has another value."""

    num_checkpoints: int = setting(
        3, "Average scores over this many checkpoints.", least=1, most=MOST_MODELS
    )
    first_checkpoint: int = setting(
        0,
        "Begin with this checkpoint; retrained models share the training seeds 0, 1, ….",
        least=0,
        most=MOST_MODELS,
    )
    noise_per_checkpoint: bool = setting(
        False,
        "Use set noise_set + k for checkpoint k, so that the luck of noise samples averages out.",
        omit_default=True,
        used_if={"num_checkpoints": range(2, MOST_MODELS + 1)},
    )
    damping: list[float] = setting(
        [0.01, 0.1, 1.0, 10.0, 100.0],
        "Compute scores with each of these λ, relative to damping_unit.",
        least=LAMBDA[0],
        most=LAMBDA[1],
        used_if={"kernel": (Kernel.gram, Kernel.ekfac)},
    )
    damping_unit: DampingUnit = setting(
        DampingUnit.eigenvalue,
        "Measure λ in this unit.",
        varies=False,
        used_if={"kernel": (Kernel.gram,)},
    )

    def check(self, where: str) -> None:
        """Raise ConfigError unless all settings are allowed; `where` is their name."""
        check_ranges(self, where)
        require_samples(where, self.num_samples, self.antithetic)
        count, num_samples = self.train_timesteps, self.num_samples
        allowed = f"0 (all) or at least num_samples={num_samples}"
        require(count == 0 or count >= num_samples, f"{where}.train_timesteps", count, allowed)
