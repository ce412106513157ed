"""Settings that have one kind only, and the enumerations that settings and mathematics share."""

from dataclasses import dataclass, field
from enum import Enum

from journey.engine.checks import (
    MOST_MODELS,
    require,
    require_candidates,
    require_count,
    require_positive,
    require_samples,
    require_within,
)
from journey.engine.spec import omitted_default
from journey.engine.workspace import Precision


@dataclass
class Training:
    num_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 1e-3  # peak: linear warm-up, then a cosine to zero
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    clip_norm: float = 1.0  # of the gradient
    ema_decay: float = 0.0  # 0: the last weights themselves
    flip: bool = omitted_default(False)  # images are mirrored, left to right, half of the time
    caption_dropout: float = omitted_default(
        0.0
    )  # share of examples that are shown without their caption

    def check(self, where: str) -> None:
        """Raises: ConfigError."""
        require_count(f"{where}.num_steps", self.num_steps, most=10**9)
        require_count(f"{where}.batch_size", self.batch_size)
        require_positive(f"{where}.learning_rate", self.learning_rate)
        require_within(
            f"{where}.learning_rate", self.learning_rate, 1e-12, 10
        )  # outside, nothing is learnt
        require_count(f"{where}.warmup_steps", self.warmup_steps, least=0, most=self.num_steps)
        require_within(f"{where}.weight_decay", self.weight_decay, 0, 1000)
        require_positive(f"{where}.clip_norm", self.clip_norm)
        require_within(f"{where}.clip_norm", self.clip_norm, 1e-12, 1e12)
        require(0 <= self.ema_decay < 1, f"{where}.ema_decay", self.ema_decay, "in [0, 1)")
        require(
            0 <= self.caption_dropout < 1,
            f"{where}.caption_dropout",
            self.caption_dropout,
            "in [0, 1)",
        )


@dataclass
class Autoencoding(Training):
    """How an autoencoder of images is trained, on the mean of their absolute and squared errors."""

    num_steps: int = 2000
    learning_rate: float = 2e-3
    block_out_channels: list[int] = field(
        default_factory=lambda: [16, 32, 32]
    )  # each level but the first halves the image
    latent_channels: int = 4
    kl_weight: float = 1e-6  # of the divergence of latents from N(0, 1), a mean over their elements

    def check(self, where: str) -> None:
        """Raises: ConfigError."""
        Training.check(self, where)
        channels = self.block_out_channels
        fine = 0 < len(channels) <= 8 and all(0 < c <= 2**12 and c % 8 == 0 for c in channels)
        require(
            fine,
            f"{where}.block_out_channels",
            channels,
            f"a list of 1…8 multiples of 8 up to {2**12}",
        )
        require_count(f"{where}.latent_channels", self.latent_channels, most=64)
        require_within(f"{where}.kl_weight", self.kl_weight, 0, 1e3)
        require(
            self.caption_dropout == 0,
            f"{where}.caption_dropout",
            self.caption_dropout,
            "0: there are no captions",
        )


class Prediction(Enum):
    """What a network predicts."""

    noise = "noise"  # ε
    velocity = "velocity"  # √ᾱ ε − √(1 − ᾱ) x_0


class Sampler(Enum):
    ddpm = "ddpm"
    ddim = "ddim"


class Start(Enum):
    """Where the journeys of the queries begin."""

    generated = "generated"  # at pure noise
    injected = "injected"  # at each step anew, at a noisy version of an image that is planted in the training data


@dataclass
class Sampling:
    """The journeys: how query images are generated, and at which of their steps they are attributed and judged."""

    sampler: Sampler = Sampler.ddpm
    num_inference_steps: int = 1000
    num_queries: int = 24
    steps: list[int] = field(default_factory=lambda: [600, 500, 400, 300, 200, 100, 20])
    prompts: list[str] = field(
        default_factory=list
    )  # of a model that reads text: queries take them in turn; none: no text
    guidance: float = 1.0  # towards the prompt, away from none; 1: none
    start: Start = omitted_default(Start.generated)
    guided_outputs: bool = False  # queries are attributed and judged by the guided prediction, not by that with their prompt alone

    def check(self, where: str) -> None:
        """Raises: ConfigError."""
        require_count(f"{where}.num_queries", self.num_queries, least=4)  # two for each half
        require_count(f"{where}.num_inference_steps", self.num_inference_steps)
        distinct = len(set(self.steps)) == len(self.steps) > 0
        require(distinct, f"{where}.steps", self.steps, "a non-empty list of distinct timesteps")
        require(
            self.steps == sorted(self.steps, reverse=True),
            f"{where}.steps",
            self.steps,
            "in falling order",
        )
        require_within(f"{where}.guidance", self.guidance, 0, 100)
        named = len(self.prompts) <= self.num_queries
        require(
            named,
            f"{where}.prompts",
            f"{len(self.prompts)} prompts",
            f"at most num_queries={self.num_queries}",
        )

    def check_schedule(self, where: str, num_timesteps: int) -> None:
        """Refuse steps that are not visited on a schedule of so many timesteps. Raises: ConfigError."""
        inference_steps = self.num_inference_steps
        require(
            all(0 <= t < num_timesteps for t in self.steps),
            f"{where}.steps",
            self.steps,
            f"in [0, {num_timesteps})",
        )
        require_count(f"{where}.num_inference_steps", inference_steps, most=num_timesteps)
        visited = visited_timesteps(num_timesteps, inference_steps)
        allowed = f"timesteps the sampler visits: multiples of {num_timesteps // inference_steps} up to {visited[0]}"
        require(set(self.steps) <= set(visited), f"{where}.steps", self.steps, allowed)


def visited_timesteps(num_timesteps: int, num_inference_steps: int) -> list[int]:
    """The timesteps a sampler visits, in falling order ("leading" spacing: multiples of T // num_inference_steps).

    >>> visited_timesteps(1000, 4)
    [750, 500, 250, 0]
    """
    stride = num_timesteps // num_inference_steps
    return [i * stride for i in reversed(range(num_inference_steps))]


class Batching(Enum):
    """What a retrained model's batches are."""

    coupled = (
        "coupled"  # the full data's, with their timesteps and noise; what is left out is skipped
    )
    independent = (
        "independent"  # of the images it keeps, so that leaving one out changes all of them
    )


class TrajectoryWeights(Enum):
    """What the output of a trajectory is."""

    relative = "relative"  # the mean over steps of their outputs, each over what it is under the full model
    plain = "plain"  # the mean over steps of their outputs, nearly all of which are the last ones


@dataclass
class Retraining:
    """Models retrained on random subsets, and how each is measured: LDS and datamodels share them."""

    num_subsets: int = 32  # M
    num_seeds: int = 1  # R trainings of each subset
    fraction: float = 0.5  # of each class that a subset keeps
    batches: Batching = (
        Batching.independent
    )  # as experiments/protocol chose; a small removal shows with shared ones only
    num_samples: int = 32  # of each measured output
    antithetic: bool = False
    trajectory: TrajectoryWeights = TrajectoryWeights.relative

    def check(self, where: str) -> None:
        """Raises: ConfigError."""
        require_count(
            f"{where}.num_subsets", self.num_subsets, least=8
        )  # four in each half; a ceiling needs seven
        require_count(f"{where}.num_seeds", self.num_seeds)
        require_count(
            f"{where}.num_subsets × num_seeds", self.num_subsets * self.num_seeds, most=MOST_MODELS
        )
        require(
            0 < self.fraction < 1, f"{where}.fraction", self.fraction, "strictly between 0 and 1"
        )
        require_samples(where, self.num_samples, self.antithetic)
        halves = 4 if self.antithetic else 2  # the ceiling compares halves of the draws
        require(
            self.num_samples % halves == 0,
            f"{where}.num_samples",
            self.num_samples,
            f"a multiple of {halves}",
        )


class Target(Enum):
    """Which output of a query is attributed: one per step of the journey, their mean, or one of the final image."""

    step = "step"
    trajectory = "trajectory"
    final_sample = "final_sample"


class QueryExample(Enum):
    """What of a query is asked at a step t of its journey, whose final example is x_0."""

    estimate = "estimate"  # x̂0_t
    mean = "mean"  # the mean of continuations from x_t: E[x_0 | x_t] but for its Monte-Carlo error
    continuation = "continuation"  # a single one, that with the journey's own noise: x_0
    noisy = "noisy"  # x_0 with one draw, the ε that makes it x_t: the very example that the journey was at


class Output(Enum):
    """The function of an example whose gradient is taken, averaged over draws and elements."""

    loss = "loss"  # (ε − ε_θ)²
    square = "square"  # ε_θ²
    mean = "mean"  # ε_θ
    absolute = "absolute"  # |ε − ε_θ|


class Augmentation(Enum):
    """How the draws of a training image see it, of which there are several views: mirrored or not, by one of its captions."""

    none = "none"  # as it is, by its first caption
    both = "both"  # in turn
    random = "random"


class DampingUnit(Enum):
    """What λ is relative to: a mean of the eigenvalues of ΦᵀΦ."""

    eigenvalue = "eigenvalue"  # ‖Φ‖² / min(N, p): of those that can be other than zero
    diagonal = "diagonal"  # ‖Φ‖² / p: of all, the mean diagonal, as the literature has it


class Kernel(Enum):
    gram = "gram"  # φ_qᵀ (ΦᵀΦ + λI)⁻¹ φ_i
    ekfac = "ekfac"  # g_qᵀ (G + λI)⁻¹ g_i, G the generalised Gauss–Newton matrix by EK-FAC
    identity = "identity"  # φ_qᵀ φ_i


class Scale(Enum):
    """What a score is divided by."""

    none = "none"
    gradient = "gradient"  # ‖φ_i‖
    influence = "influence"  # ‖K⁻¹ φ_i‖
    cosine = "cosine"  # ‖φ_q‖ ‖φ_i‖


class ScoreTransform(Enum):
    linear = "linear"
    square = "square"


class Ensemble(Enum):
    """What the checkpoints are."""

    seeds = "seeds"  # independent trainings, averaged
    run = "run"  # moments of one training, weighted by their learning rates


class Projection(Enum):
    sparse = "sparse"  # Johnson–Lindenstrauss, one random bucket and sign per coordinate
    gaussian = "gaussian"
    rademacher = "rademacher"
    kronecker = (
        "kronecker"  # inside every layer, of both its sides: the gradient of no weight is formed
    )
    none = "none"  # the whole gradient: the exact kernel

    @property
    def sized(self) -> bool:
        """Whether `projection_dim` is what its features number."""
        return self not in (Projection.kronecker, Projection.none)


class Storage(Enum):
    """How features are stored: all but the first with a scale for every row."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"

    @property
    def num_bytes(self) -> int:
        """Of a number."""
        return {Storage.fp32: 4, Storage.fp16: 2, Storage.int8: 1}[self]


@dataclass
class GradientSettings:
    """What all gradient methods do, unless one of them says otherwise."""

    num_checkpoints: int = 3
    first_checkpoint: int = 0  # retrained models share their seeds with checkpoints 0, 1, …; others show what that is worth
    num_samples: int = 32  # (timestep, noise) pairs per gradient
    noise_set: int = 0  # which of many independent sets of draws
    share_noise: bool = False  # destinations are asked with the draws of training images, as a step's queries cannot be
    stratified: bool = True  # timesteps of training images one from each of num_samples equal parts, or independent
    antithetic: bool = False  # draws come in pairs (ε, −ε)
    train_timesteps: int = (
        0  # how many timesteps around the query's step training images are asked at; 0: all
    )
    flips: Augmentation = omitted_default(Augmentation.none)
    captions: Augmentation = omitted_default(Augmentation.none)
    precision: Precision = Precision.fp32  # of the gradients
    projection: Projection = Projection.sparse
    projection_dim: int = 4096
    projection_rank: int = omitted_default(
        16
    )  # of projection=kronecker, on each side of every layer
    storage: Storage = omitted_default(Storage.fp32)  # of the features
    damping: list[float] = field(
        default_factory=lambda: [0.01, 0.1, 1.0, 10.0, 100.0]
    )  # candidates for λ, relative
    damping_unit: DampingUnit = DampingUnit.eigenvalue

    def check(self, where: str) -> None:
        """Refuse what no gradient method can do. Raises: ConfigError."""
        require_count(f"{where}.num_checkpoints", self.num_checkpoints, most=MOST_MODELS)
        require_count(f"{where}.first_checkpoint", self.first_checkpoint, least=0, most=MOST_MODELS)
        require_samples(where, self.num_samples, self.antithetic)
        require_count(f"{where}.noise_set", self.noise_set, least=0)
        require_count(f"{where}.projection_dim", self.projection_dim)
        require_count(f"{where}.projection_rank", self.projection_rank, least=2)
        require_candidates(f"{where}.damping", self.damping)
        window, draws = self.train_timesteps, self.num_samples
        allowed = f"0 (all) or at least num_samples={draws}"
        require(window == 0 or window >= draws, f"{where}.train_timesteps", window, allowed)
