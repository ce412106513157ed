"""Gradient methods: τ = φ_qᵀ K⁻¹ φ_i, of projected gradients φ of an output.

Journey-TRAK (Georgiev et al. 2023) is the default; `conf/method/` has other choices.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

import numpy as np

from journey.engine.checks import (
    require,
    require_count,
    require_region_inside,
    require_regions,
    require_types,
)
from journey.engine.spec import Shapes, Spec, omitted_default
from journey.engine.workspace import Precision, Workspace, get
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    Continuations,
    Experiment,
    Inputs,
    IntermediateCheckpoint,
    Measure,
    Model,
    Sample,
    Score,
    SecondOrderMethod,
    Train,
    forward_passes,
)
from journey.pipeline.settings import (
    Augmentation,
    Ensemble,
    FeatureSettings,
    GradientSettings,
    Kernel,
    Output,
    Projection,
    QueryExample,
    Sampler,
    Scale,
    ScoreTransform,
    Storage,
    Target,
    has_effect,
    setting,
    unmet_condition,
)

if TYPE_CHECKING:
    from journey.attribution.kernel import Conditioning, Features

MOST_INTERMEDIATE = 100  # intermediate checkpoints of a training, each computed from the last


@dataclass(frozen=True)
class EKFACFactors(Spec):
    """The generalised Gauss–Newton matrix of the training loss at a model, by EK-FAC.

    It is estimated from one noise sample per training image, stratified in each mini-batch.
    """

    stage: ClassVar[str] = "ekfac"
    maker: ClassVar[str] = "journey.attribution.ekfac:make_ekfac"
    folder: ClassVar[str] = "ekfac"
    version: ClassVar[int] = 4
    checkpoint: Train
    precision: Precision
    seed: int
    batch_size: int = 16  # images

    @property
    def label(self) -> str:
        return self.checkpoint.label

    @property
    def work(self) -> float:
        return 6.0 * self.checkpoint.images.num_train * self.checkpoint.forward

    def size_given(self, parameters: Shapes) -> int:
        """Return the bytes of the bases of all layers, and of the eigenvalues."""
        numbers = sum(map(math.prod, parameters.values()))
        for num_outputs, num_inputs in _layer_sides(parameters, matrices_only=True):
            numbers += num_outputs**2 + num_inputs**2
        return 4 * numbers


@dataclass(frozen=True)
class Featurize(Spec):
    """Projected per-example gradients under one model, of the training images or of the queries.

    Attributes:
        trajectories: The trajectories of the queries, or None for the training images.
        settings: The settings of the gradients. Settings without effect have their defaults.
        steps: The steps of which queries have gradients, or None for their final samples.
        first_timestep: The first of `settings.train_timesteps` timesteps of training images.
        curvature: The matrix whose inverse square root preconditions gradients, or None.
        damping: Values of λ that are added to `curvature`, relative to its mean eigenvalue.
        guidance: Guidance of the queries' prediction.
        continuations: From each step, with query_example=mean.
        region: Region of the queries' output: one box, or one for each query; (): the whole output.
    """

    stage: ClassVar[str] = "featurize"
    maker: ClassVar[str] = "journey.attribution.features:make_features"
    folder: ClassVar[str] = "features"
    version: ClassVar[int] = 4
    checkpoint: Train | IntermediateCheckpoint
    trajectories: Sample | None
    settings: FeatureSettings
    seed: int
    steps: tuple[int, ...] | None = None
    first_timestep: int = omitted_default(0)
    output: Output = Output.loss
    normalize: bool = False
    curvature: EKFACFactors | None = None
    damping: tuple[float, ...] = ()
    guidance: float = omitted_default(1.0)
    query_example: QueryExample = omitted_default(QueryExample.estimate)
    continuations: tuple[Continuations, ...] = omitted_default(())
    region: tuple[int, ...] = omitted_default(())

    @property
    def label(self) -> str:
        examples = "step" if self.steps is not None else "final"
        if self.trajectories is None:
            examples = "train"
            if self.settings.train_timesteps:
                examples += f"-t{self.first_timestep}"
        if self.query_example is not QueryExample.estimate:
            examples += f"-{self.query_example.value}"
        return f"{self.checkpoint.label}-{self.output.value}-{examples}"

    @property
    def rate_name(self) -> str:
        """Return the name of the speed: gradients are normalised, preconditioned, never formed."""
        projected = self.settings.projection is Projection.kronecker
        name = self.stage + " kronecker" * projected + " normalized" * self.normalize
        return name + " preconditioned" * (self.curvature is not None)

    @property
    def num_samples(self) -> int:
        """Return the noise samples of each gradient."""
        return self.settings.num_samples

    @property
    def num_rows(self) -> int:
        """Return the number of gradients."""
        if self.trajectories is None:
            return self.checkpoint.training_run.images.num_train
        return self.trajectories.num_queries * len(self.steps or (0,))

    @property
    def work(self) -> float:
        passes = 3.0 * self.num_rows * self.num_samples * forward_passes(self.guidance)
        if self.damping and self.settings.projection is Projection.kronecker:
            passes *= len(self.damping)  # each λ has its own backward passes
        return passes * self.checkpoint.training_run.forward

    @property
    def size(self) -> int | None:
        if not has_effect(self.settings, "projection_dim"):
            return None  # the network decides
        return self._size_of(self.settings.projection_dim)

    def size_given(self, parameters: Shapes) -> int | None:
        """Return the bytes of the features, of whatever dimension."""
        if self.settings.projection is Projection.none:
            return self._size_of(sum(map(math.prod, parameters.values())))
        if self.settings.projection is not Projection.kronecker:
            return self.size
        rank, dimension = self.settings.projection_rank, 0
        for num_outputs, num_inputs in _layer_sides(parameters, self.curvature is not None):
            dimension += min(rank, num_outputs) * min(rank, num_inputs)
        return self._size_of(dimension)

    def _size_of(self, dimension: int) -> int:
        rows, storage = self.num_rows * max(1, len(self.damping)), self.settings.storage
        scales = 0 if storage is Storage.fp32 else 4 * rows
        return storage.num_bytes * rows * dimension + scales


def _layer_sides(parameters: Shapes, matrices_only: bool) -> Iterator[tuple[int, int]]:
    """Yield the outputs of every layer, and the inputs of one output, the bias among them."""
    for name, shape in parameters.items():
        layer, _, role = name.rpartition(".")
        if role == "weight" and (len(shape) > 1 or not matrices_only):
            yield shape[0], math.prod(shape[1:]) + (f"{layer}.bias" in parameters)


@dataclass(frozen=True)
class GradientInputs(Inputs):
    """What the scores of a gradient method are computed from.

    Attributes:
        train: Features of the training images [checkpoint][one for all steps, or one for each].
        queries: Features of the queries [checkpoint].
        reference: Outputs of the full model, by which a trajectory weights its steps.
    """

    train: tuple[tuple[Featurize, ...], ...]
    queries: tuple[Featurize, ...]
    reference: Measure | None


@dataclass
class GradientMethod(GradientSettings, SecondOrderMethod):
    """Attribution by gradients. The defaults are Journey-TRAK (Georgiev et al. 2023)."""

    name: ClassVar[str] = "gradient"
    target: Target = setting(Target.step, "Attribute this output of a query.")
    output: Output = setting(Output.loss, "Take the gradient of this function.")
    normalize: bool = setting(
        False, "Scale the gradient of every noise sample to unit norm before averaging."
    )
    kernel: Kernel = setting(Kernel.gram, "Compare features by this kernel.")
    scale: Scale = setting(Scale.none, "Divide scores by this.")
    score_transform: ScoreTransform = setting(ScoreTransform.linear, "Transform scores at the end.")
    ensemble: Ensemble = setting(Ensemble.seeds, "Average over these checkpoints.")
    query_example: QueryExample = setting(
        QueryExample.estimate,
        "Let this clean example stand for a query at a step.",
        omit_default=True,
        used_if={"target": (Target.step, Target.trajectory)},
    )
    num_continuations: int = setting(
        32,
        "Average this many continuations for query_example=mean.",
        least=1,
        omit_default=True,
        used_if={"query_example": (QueryExample.mean,)},
    )
    region: list[int] = setting(
        [],
        "Take the output of this box of the queries, or of one box for each; none: of all.",
        omit_default=True,
    )

    @property
    def label(self) -> str:
        return f"{self.kernel.value}-{self.output.value}-{self.target.value}"

    def check(self, where: str) -> None:
        GradientSettings.check(self, where)
        count, target, kernel = self.train_timesteps, self.target, self.kernel
        if count:
            allowed = "0 (all timesteps) unless target=step"
            require(target is Target.step, f"{where}.train_timesteps", count, allowed)
        if target is Target.final_sample:
            plain, value = self.query_example is QueryExample.estimate, self.query_example.value
            allowed = "estimate unless target=step or trajectory"
            require(plain, f"{where}.query_example", value, allowed)
        if self.ensemble is Ensemble.run:
            require_count(f"{where}.num_checkpoints", self.num_checkpoints, least=2)
            allowed = "gram or identity where ensemble=run"
            require(kernel is not Kernel.ekfac, f"{where}.kernel", kernel.value, allowed)
        if self.scale in (Scale.influence, Scale.leverage):
            allowed = f"gram, whose K⁻¹φ scale={self.scale.value} needs"
            require(kernel is Kernel.gram, f"{where}.kernel", kernel.value, allowed)
        if self.projection is Projection.kronecker:
            allowed = "false with projection=kronecker, which computes no gradient that has a norm"
            require(not self.normalize, f"{where}.normalize", "true", allowed)
        if self.projection is Projection.none:
            allowed = "fp32 with projection=none, whose kernel is exact"
            plain = self.storage is Storage.fp32
            require(plain, f"{where}.storage", self.storage.value, allowed)
        if self.region:
            require_regions(f"{where}.region", self.region)
            allowed = "[] with target=trajectory, which weights steps by their whole outputs"
            require(target is not Target.trajectory, f"{where}.region", self.region, allowed)

    @classmethod
    def from_values(cls, where: str, values: Mapping[str, object]) -> "GradientMethod":
        """Return a method with some settings, whose choices may be texts, such as `"ekfac"`.

        Args:
            where: The name of the settings in messages.
            values: Values of settings by name; others have their defaults.
        """
        converted: dict[str, Any] = dict(values)
        types = get_type_hints(cls)
        names = [f.name for f in fields(cls)]
        for name, value in values.items():
            require(name in names, f"{where}.{name}", value, f"a setting: {', '.join(names)}")
            is_choice = isinstance(types[name], type) and issubclass(types[name], Enum)
            if is_choice and isinstance(value, str):
                options = types[name].__members__
                allowed = f"one of {', '.join(options)}"
                require(value in options, f"{where}.{name}", value, allowed)
                converted[name] = options[value]
        method = cls(**converted)
        require_types(method, f"{where}.")
        method.check(where)
        for name, value in values.items():
            condition = unmet_condition(method, name)
            require(not condition, f"{where}.{name}", value, f"left out unless {condition}")
        return method

    def check_standalone(self, where: str, num_timesteps: int) -> None:
        """Check that one score per output follows from networks and examples alone.

        Raises:
            ConfigError: It needs other artifacts of a run, or there are several values of damping.
        """
        self.check(where)
        require(self.ensemble is Ensemble.seeds, f"{where}.ensemble", self.ensemble.value, "seeds")
        target, example = self.target, self.query_example
        single = target is not Target.trajectory
        require(single, f"{where}.target", target.value, "step or final_sample")
        allowed = "estimate; pass other examples as queries"
        estimate = example is QueryExample.estimate
        require(estimate, f"{where}.query_example", example.value, allowed)
        allowed = "one value, such as [0.1]"
        require(len(self.candidates()) == 1, f"{where}.damping", self.damping, allowed)
        require_count(f"{where}.num_samples", self.num_samples, most=num_timesteps)
        count = self.train_timesteps
        require_count(f"{where}.train_timesteps", count, least=0, most=num_timesteps)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        most = model.num_timesteps
        require_count(f"{where}.num_samples", self.num_samples, most=most)
        require_count(f"{where}.train_timesteps", self.train_timesteps, least=0, most=most)
        if self.ensemble is Ensemble.run:
            allowed = "seeds: models of model.checkpoints have no intermediate checkpoints"
            require(not model.checkpoints, f"{where}.ensemble", "run", allowed)
            most = min(num_steps - 1, MOST_INTERMEDIATE)
            require_count(f"{where}.num_checkpoints", self.num_checkpoints, least=2, most=most)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        if self.region:
            model, queries = trajectories.checkpoint.model, trajectories.num_queries
            height, width = model.example_shape(images.images.shape[1:])[1:]
            require_region_inside(f"{where}.region", self.region, height, width, queries)

    def restricted_to(self, region: Sequence[int]) -> "GradientMethod | None":
        return None if self.target is Target.trajectory else replace(self, region=list(region))

    def depends_on(self, setting: str) -> bool:
        return has_effect(self, setting)

    def candidates(self) -> list[dict[str, float]]:
        if self.kernel is Kernel.identity:
            return [{}]
        return [{"damping": value} for value in self.damping]

    @property
    def in_units_of_output(self) -> bool:  # type: ignore[override]
        """Return whether scores are changes of the loss: with its gradient, unscaled.

        A leverage has no unit: it corrects the change for the example's effect on itself.
        """
        unscaled = self.scale in (Scale.none, Scale.leverage) and not self.normalize
        linear = self.score_transform is ScoreTransform.linear
        return self.output is Output.loss and unscaled and linear

    def needs(self, experiment: Experiment) -> GradientInputs:
        """Return the features of training images and queries under every checkpoint.

        Raises:
            ConfigError: Continuations are to be averaged, but do not differ.
        """
        example, sampler = self.query_example, experiment.sampling.sampler
        allowed = "ddpm where query_example=mean: others have one continuation"
        random = example is not QueryExample.mean or sampler is Sampler.ddpm
        require(random, "sampling.sampler", sampler.value, allowed)

        steps = None if self.target is Target.final_sample else experiment.steps
        continuations: tuple[Continuations, ...] = ()
        if example is QueryExample.mean:
            count = self.num_continuations
            continuations = tuple(experiment.own_continuations(t, count) for t in experiment.steps)

        first_timesteps = self.first_timesteps(experiment.steps, experiment.model.num_timesteps)
        train, queries = [], []
        for k, checkpoint in enumerate(self._checkpoints(experiment), self.first_checkpoint):
            train_settings, query_settings = self.feature_settings(k)
            curvature = None
            if self.kernel is Kernel.ekfac:
                assert isinstance(checkpoint, Train)  # ensemble=run is refused with kernel=ekfac
                curvature = EKFACFactors(checkpoint, self.precision, experiment.seed)
            features = Featurize(
                checkpoint=checkpoint,
                trajectories=None,
                settings=train_settings,
                seed=experiment.seed,
                output=self.output,
                normalize=self.normalize,
                curvature=curvature,
                damping=tuple(self.damping) if curvature is not None else (),
            )
            train.append(tuple(replace(features, first_timestep=t) for t in first_timesteps))
            queries.append(
                replace(
                    features,
                    trajectories=experiment.trajectories,
                    settings=query_settings,
                    steps=steps,
                    guidance=experiment.guidance,
                    query_example=example,
                    continuations=continuations,
                    region=tuple(self.region),
                )
            )
        weighted = self.target is Target.trajectory and self.in_units_of_output
        reference = experiment.reference_outputs if weighted else None
        return GradientInputs(tuple(train), tuple(queries), reference)

    def interaction_inputs(self, experiment: Experiment, num_samples: int) -> Inputs | None:
        whole = self.target is not Target.step or self.query_example is QueryExample.noisy
        if whole or self.kernel is not Kernel.gram or not self.in_units_of_output:
            return None
        inputs, samples = self.needs(experiment), []
        for features in inputs.queries:
            single = replace(features.settings, num_samples=1, antithetic=False)
            for k in range(1, 1 + num_samples):
                settings = replace(single, noise_set=single.noise_set + k)
                samples.append(replace(features, settings=settings))
        return replace(inputs, queries=tuple(samples))

    def interactions(
        self, inputs: Inputs, spec: Score, groups: np.ndarray, workspace: Workspace
    ) -> np.ndarray:
        """Return ½ ‖A Σ_{i in group} u_i‖², u_i = K⁻¹ φ_i (arXiv 2605.15675), as the mean over
        checkpoints. A has the features of single noise samples, over √(their number): A Σ u_i are
        sums of the scores of single noise samples. AᵀA stands for the curvature of the output.
        """
        assert isinstance(inputs, GradientInputs)
        num_candidates, num_steps, num_queries, num_train = spec.shape
        num_checkpoints = len(inputs.train)
        samples = len(inputs.queries) // num_checkpoints
        members = groups.T.astype(np.float32)
        terms = np.zeros((num_candidates, num_steps, num_queries, len(groups)))
        for k, features in enumerate(inputs.train):
            of_samples = []  # [sample][step, query, p]
            for featurize in inputs.queries[k * samples : (k + 1) * samples]:
                values = load_features(featurize, workspace)[:]
                of_samples.append(values.reshape(num_steps, num_queries, -1))
            queries = np.concatenate(of_samples, 1).reshape(num_steps * samples * num_queries, -1)
            scores = np.zeros((num_candidates, num_steps, samples * num_queries, num_train))
            scores = scores.astype(np.float32)
            train = [[load_features(f, workspace) for f in features]]
            self.add_scores(scores, train, [queries], [1.0])
            sums = (scores @ members).reshape(*scores.shape[:2], samples, num_queries, -1)
            terms += np.square(sums, dtype=np.float64).mean(2) / 2 / num_checkpoints
        return terms

    def feature_settings(self, checkpoint: int) -> tuple[FeatureSettings, FeatureSettings]:
        """Return the settings of training images' and of queries' features under a checkpoint.

        Settings without effect have their defaults, so that they are not in the cache key.
        """
        used = {f.name for f in fields(FeatureSettings) if self.depends_on(f.name)}
        settings = FeatureSettings(**{name: getattr(self, name) for name in used})
        if self.noise_per_checkpoint:
            settings = replace(settings, noise_set=self.noise_set + checkpoint)
        train_settings = replace(settings, share_noise=False)
        query_settings = replace(
            settings, flips=Augmentation.none, captions=Augmentation.none, train_timesteps=0
        )
        if self.target is not Target.final_sample:  # all noise samples are at one timestep
            query_settings = replace(query_settings, stratified=True)
        if self.query_example is QueryExample.noisy:  # there is one such noise sample
            query_settings = replace(query_settings, num_samples=1, noise_set=0, antithetic=False)
        return train_settings, query_settings

    def first_timesteps(self, steps: Sequence[int], num_timesteps: int) -> list[int]:
        """Return the first timestep of the training images: one for all steps, or one for each.

        `train_timesteps` are around each step, but within the schedule.
        """
        if not self.train_timesteps:
            return [0]
        last = num_timesteps - self.train_timesteps
        middle = self.train_timesteps // 2
        return [min(max(0, t - middle), last) for t in steps]

    def _checkpoints(self, experiment: Experiment) -> Sequence[Train | IntermediateCheckpoint]:
        """Return the final checkpoints of trainings, or evenly spaced ones along a training."""
        count = self.num_checkpoints
        if self.ensemble is Ensemble.seeds:
            return [experiment.checkpoint(self.first_checkpoint + k) for k in range(count)]
        training = experiment.checkpoint(self.first_checkpoint)
        checkpoints: list[IntermediateCheckpoint] = []
        for k in range(1, count + 1):
            step = experiment.training.num_steps * k // (count + 1)
            previous = checkpoints[-1] if checkpoints else None
            checkpoints.append(IntermediateCheckpoint(training, step, previous))
        return checkpoints

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution.kernel import describe_conditioning
        from journey.attribution.targets import step_weights
        from journey.diffusion.training import learning_rate

        inputs = spec.inputs_as(GradientInputs)
        train = [[load_features(f, workspace) for f in steps] for steps in inputs.train]
        queries = [load_features(features, workspace)[:] for features in inputs.queries]

        # Checkpoints along a training are weighted by their learning rates (Pruthi et al. 2020).
        weights = []
        for features, *_ in inputs.train:
            checkpoint = features.checkpoint
            if isinstance(checkpoint, IntermediateCheckpoint):
                rate = learning_rate(checkpoint.training_run.training, checkpoint.step)
            else:
                rate = 1 / len(inputs.train)
            weights.append(rate)

        of_step = None
        if self.target is Target.trajectory:
            of_step = step_weights(inputs.reference, spec.trajectories, spec.steps, workspace)
        solved = self.add_scores(out, train, queries, weights, of_step)
        self.transform_scores(out)
        return describe_conditioning(solved)

    def add_scores(
        self,
        out: np.ndarray,
        train: "list[list[Features]]",
        queries: list[np.ndarray],
        weights: list[float],
        step_weights: np.ndarray | None = None,
    ) -> "list[list[Conditioning]]":
        """Add the weighted scores of checkpoints to `out`.

        Arguments are those of `journey.attribution.kernel.add_ensemble_scores`.

        Returns:
            The conditioning of K [checkpoint][damping].
        """
        from journey.attribution.kernel import add_ensemble_scores

        kernel = (self.kernel, self.damping, self.damping_unit, self.scale, step_weights)
        return add_ensemble_scores(out, train, queries, weights, *kernel)

    def transform_scores(self, out: np.ndarray) -> None:
        """Apply the score transform to the sum over checkpoints, in place."""
        if self.score_transform is ScoreTransform.square:
            np.square(out, out=out)


def load_features(spec: Featurize, workspace: Workspace) -> "Features":
    """Return features as an array, or as codes that are decoded where they are read."""
    from journey.attribution.projections import QuantizedFeatures

    artifact = get(spec, workspace)
    values = artifact.array("features.npy")
    if spec.settings.storage is Storage.fp32:
        return values
    return QuantizedFeatures(values, artifact.array("scales.npy"))
