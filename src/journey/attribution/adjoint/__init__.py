"""Attribution of the final image: its gradient through the deterministic sampler, step by step.

A number s of the final image (`ImageTarget`) depends on the weights at every step of sampling. With
the adjoint λ_t = ∂s/∂x_t, the weights at step t contribute g_t = λ_{t−1}ᵀ ∂x_{t−1}/∂θ to the
gradient of s, which is Σ_t g_t. The score of a step is that of Σ g_t over its window, from the step
to the next attributed one, or to the end. Windows add up: the sum of their scores is the score of
the continuation from the first attributed step or, if that is the sampler's first, of the whole
generation.

    τ_i = gᵀ K⁻¹ φ_i,   φ_i the gradient of the loss of training image i: without it, s rises by τ_i
"""

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from journey.attribution.gradient import (
    EKFACFactors,
    Featurize,
    GradientMethod,
    load_features,
)
from journey.engine.checks import require
from journey.engine.spec import Shapes, Spec
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import ImageSet, check_several_classes
from journey.pipeline.interfaces import (
    Experiment,
    Inputs,
    Method,
    Model,
    Sample,
    Score,
    Train,
    forward_passes,
)
from journey.pipeline.settings import (
    FeatureSettings,
    GradientSettings,
    ImageTarget,
    Kernel,
    Projection,
    Sampler,
    Start,
    has_effect,
    setting,
)

PASSES = 4  # of one step: along the trajectory, again, and backward, which takes twice as long


@dataclass(frozen=True)
class AdjointFeatures(Spec):
    """Projected gradients of a number of every final image, by window, under one model.

    Attributes:
        trajectories: The trajectories, along which the model is differentiated.
        settings: The projection; other settings have their defaults.
        curvature: The matrix whose inverse square root preconditions gradients, or None.
        damping: Values of λ that are added to `curvature`, relative to its mean eigenvalue.
    """

    stage: ClassVar[str] = "adjoint"
    maker: ClassVar[str] = "journey.attribution.adjoint.stage:make_adjoint_features"
    folder: ClassVar[str] = "adjoint"
    version: ClassVar[int] = 1
    checkpoint: Train
    trajectories: Sample
    settings: FeatureSettings
    image_target: ImageTarget
    seed: int
    curvature: EKFACFactors | None
    damping: tuple[float, ...]

    @property
    def label(self) -> str:
        return f"{self.checkpoint.label}-{self.image_target.value}"

    @property
    def timesteps(self) -> list[int]:
        """Return the timesteps that the sampler visits from the first attributed step on."""
        trajectories = self.trajectories
        return [t for t in trajectories.visited if t <= trajectories.steps[0]]

    @property
    def work(self) -> float:
        passes = PASSES * len(self.timesteps) * forward_passes(self.trajectories.guidance)
        return self.trajectories.num_queries * passes * self.checkpoint.forward

    @property
    def size(self) -> int | None:
        if not has_effect(self.settings, "projection_dim"):
            return None  # the network decides
        return self._size_of(self.settings.projection_dim)

    def size_given(self, parameters: Shapes) -> int | None:
        """Return the bytes of the features, of whatever dimension."""
        if self.settings.projection is not Projection.none:
            return self.size
        return self._size_of(sum(int(np.prod(shape)) for shape in parameters.values()))

    def _size_of(self, dimension: int) -> int:
        rows = len(self.trajectories.steps) * self.trajectories.num_queries
        return 4 * rows * max(1, len(self.damping)) * dimension


@dataclass(frozen=True)
class AdjointInputs(Inputs):
    """What the scores are computed from: features of images and of queries, by checkpoint."""

    train: tuple[Featurize, ...]
    queries: tuple[AdjointFeatures, ...]


@dataclass
class Adjoint(GradientSettings, Method):
    """The gradient of the final image through the sampler, by windows of steps that add up."""

    name: ClassVar[str] = "adjoint"
    additive: ClassVar[bool] = True
    in_units_of_output: ClassVar[bool] = False  # but in those of a number of the image
    image_target: ImageTarget = setting(
        ImageTarget.projection, "Differentiate this number of the final image."
    )
    kernel: Kernel = setting(Kernel.gram, "Compare gradients by this kernel.")

    @property
    def label(self) -> str:
        return f"{self.name}-{self.kernel.value}-{self.image_target.value}"

    def check(self, where: str) -> None:
        GradientSettings.check(self, where)
        target = self.image_target
        allowed = "projection, class_loss or direction"
        if target is ImageTarget.distance:
            allowed += ": the gradient of the distance is zero at the image itself"
        differentiable = target not in (ImageTarget.distance, ImageTarget.features)
        require(differentiable, f"{where}.image_target", target.value, allowed)
        kronecker, name = self.projection is Projection.kronecker, f"{where}.projection"
        allowed = "another with method=adjoint, which adds up gradients of weights"
        require(not kronecker, name, self.projection.value, allowed)
        allowed = "0 with method=adjoint: windows add up if all have one kernel"
        count = self.train_timesteps
        require(count == 0, f"{where}.train_timesteps", count, allowed)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        self._gradient().check_run(where, model, num_steps)
        allowed = f"another with model={model.name}: the classifier is of pixels"
        valid = model.pixels or self.image_target is not ImageTarget.class_loss
        require(valid, f"{where}.image_target", self.image_target.value, allowed)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        if self.image_target is ImageTarget.class_loss:
            check_several_classes(f"{where}.image_target", self.image_target.value, images)

    def depends_on(self, setting: str) -> bool:
        return has_effect(self, setting)

    def candidates(self) -> list[dict[str, float]]:
        return self._gradient().candidates()

    def _gradient(self) -> GradientMethod:
        """Return the gradient method whose features of training images and kernel these are."""
        shared = {f.name: getattr(self, f.name) for f in fields(GradientSettings)}
        return GradientMethod(**shared, kernel=self.kernel)

    def needs(self, experiment: Experiment) -> AdjointInputs:
        """Return the features of training images and queries under every checkpoint.

        Raises:
            ConfigError: The sampler is not deterministic, or trajectories begin at an image.
        """
        sampling = experiment.sampling
        allowed = "ddim with method=adjoint, which differentiates a deterministic sampler"
        deterministic = sampling.sampler is Sampler.ddim
        require(deterministic, "sampling.sampler", sampling.sampler.value, allowed)
        generated, allowed = sampling.start is Start.generated, "generated with method=adjoint"
        require(generated, "sampling.start", sampling.start.value, allowed)

        inputs = self._gradient().needs(experiment)
        settings = FeatureSettings(precision=self.precision, projection=self.projection)
        if has_effect(self, "projection_dim"):
            settings.projection_dim = self.projection_dim
        queries = []
        for features in inputs.queries:
            assert isinstance(features.checkpoint, Train)  # no intermediate checkpoints are used
            spec = AdjointFeatures(
                checkpoint=features.checkpoint,
                trajectories=experiment.trajectories,
                settings=settings,
                image_target=self.image_target,
                seed=experiment.seed,
                curvature=features.curvature,
                damping=features.damping,
            )
            queries.append(spec)
        return AdjointInputs(tuple(train for (train,) in inputs.train), tuple(queries))

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution.kernel import describe_conditioning

        inputs = spec.inputs_as(AdjointInputs)
        train = [[load_features(features, workspace)] for features in inputs.train]
        queries = []
        for features in inputs.queries:
            by_step = get(features, workspace).array("features.npy")  # [S, Q, …]
            queries.append(by_step.reshape(-1, *by_step.shape[2:]))
        weights = [1 / len(train)] * len(train)
        return describe_conditioning(self._gradient().add_scores(out, train, queries, weights))
