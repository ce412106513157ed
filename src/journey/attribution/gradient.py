"""Gradient methods: τ = φ_qᵀ K⁻¹ φ_i of projected gradients of an output. One space, of which `conf/method/` names points."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from journey.engine.checks import require, require_count, require_region_inside, require_regions
from journey.engine.spec import Spec, omitted_default
from journey.engine.workspace import Precision, Workspace, get
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    Continuations,
    Experiment,
    Inputs,
    IntermediateCheckpoint,
    Measure,
    Method,
    Model,
    Sample,
    Score,
    Train,
    forward_passes,
)
from journey.pipeline.settings import (
    Augmentation,
    Ensemble,
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
)


@dataclass(frozen=True)
class EKFACFactors(Spec):
    """The generalised Gauss–Newton matrix of the training loss at a model, by EK-FAC, from a draw for each training image."""

    stage: ClassVar[str] = "ekfac"
    maker: ClassVar[str] = "journey.attribution.ekfac:make_ekfac"
    folder: ClassVar[str] = "ekfac"
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

    stage: ClassVar[str] = "featurize"
    maker: ClassVar[str] = "journey.attribution.features:make_features"
    folder: ClassVar[str] = "features"
    version: ClassVar[int] = 4
    checkpoint: Train | IntermediateCheckpoint
    trajectories: Sample | None
    steps: (
        tuple[int, ...] | None
    )  # the queries' x̂0_t, each at its t; None: clean examples, at all t or in `window`
    window: (
        tuple[int, int] | None
    )  # first and end of the timesteps that training images are asked at
    output: Output
    normalize: bool
    num_samples: int
    noise_set: int  # which set of draws
    share_noise: bool  # destinations are asked with the draws of training images
    stratified: bool
    antithetic: bool
    precision: Precision
    curvature: EKFACFactors | None  # its inverse square root is applied, with every λ of `damping`
    damping: tuple[float, ...]
    projection: Projection
    projection_dim: int
    seed: int
    flips: Augmentation = omitted_default(Augmentation.none)  # of training images
    captions: Augmentation = omitted_default(Augmentation.none)
    guidance: float = omitted_default(1.0)  # of the queries' prediction
    query_example: QueryExample = omitted_default(
        QueryExample.estimate
    )  # instead of the queries' x̂0_t
    continuations: tuple[Continuations, ...] = omitted_default(
        ()
    )  # from each step, where their mean is asked
    region: tuple[int, ...] = omitted_default(
        ()
    )  # of the queries' output: a box, or one for each query
    projection_rank: int = omitted_default(
        0
    )  # on each side of every layer, of a Kronecker projection
    storage: Storage = omitted_default(Storage.fp32)

    @property
    def label(self) -> str:
        examples = (
            "train"
            if self.trajectories is None
            else "destination"
            if self.steps is None
            else "step"
        )
        window = "" if self.window is None else f"-t{self.window[0]}"
        asked = (
            "" if self.query_example is QueryExample.estimate else f"-{self.query_example.value}"
        )
        return f"{self.checkpoint.label}-{self.output.value}-{examples}{window}{asked}"

    @property
    def rate_name(self) -> str:
        """Return the name of the speed: gradients normalised one by one, or preconditioned, have speeds of their own."""
        return (
            self.stage
            + " normalized" * self.normalize
            + " preconditioned" * (self.curvature is not None)
        )

    @property
    def trained(self) -> Train:
        """Return the training whose final or intermediate checkpoint is used."""
        return self.checkpoint.training_run

    @property
    def num_rows(self) -> int:
        if self.trajectories is None:
            return self.trained.images.num_train
        return self.trajectories.num_queries * len(self.steps or (0,))

    @property
    def work(self) -> float:
        times = (
            len(self.damping) if self.damping and self.projection is Projection.kronecker else 1
        )  # each λ by itself
        return (
            3.0
            * self.num_rows
            * self.num_samples
            * times
            * forward_passes(self.guidance)
            * self.trained.forward
        )

    @property
    def size(self) -> int | None:
        of_each = max(1, len(self.damping)) * self.projection_dim
        return (
            self.storage.num_bytes * self.num_rows * of_each or None
        )  # 0: as many as the network has


MOST_INTERMEDIATE = 100  # of one training: each is made from the one before


@dataclass(frozen=True)
class GradientInputs(Inputs):
    """What the scores of `gradient` are computed from."""

    train: tuple[tuple[Featurize, ...], ...]  # [checkpoint][one for all steps, or one for each]
    queries: tuple[Featurize, ...]  # [checkpoint]
    reference: Measure | None  # outputs that a trajectory weights its steps by


@dataclass
class GradientMethod(GradientSettings, Method):
    """`Journey-TRAK` as it stands (Georgiev et al. 2023)."""

    name: ClassVar[str] = "gradient"
    target: Target = Target.step
    output: Output = Output.loss
    normalize: bool = False  # every draw's gradient has unit norm before the mean
    kernel: Kernel = Kernel.gram
    scale: Scale = Scale.none
    score_transform: ScoreTransform = ScoreTransform.linear
    ensemble: Ensemble = Ensemble.seeds
    query_example: QueryExample = omitted_default(QueryExample.estimate)  # of a query, at a step
    num_continuations: int = omitted_default(32)  # of which query_example=mean takes the mean
    region: list[int] = omitted_default(
        []
    )  # of the queries' output: a box, or one for each query; none: all of it

    @property
    def label(self) -> str:
        return f"{self.kernel.value}-{self.output.value}-{self.target.value}"

    def check(self, where: str) -> None:
        GradientSettings.check(self, where)
        if self.train_timesteps:
            require(
                self.target is Target.step,
                f"{where}.train_timesteps",
                self.train_timesteps,
                "0 (all timesteps) unless target=step",
            )
        require_count(f"{where}.num_continuations", self.num_continuations)
        if self.target is Target.final_sample:
            allowed = "estimate unless target=step or trajectory: a destination is the final image"
            require(
                self.query_example is QueryExample.estimate,
                f"{where}.query_example",
                self.query_example.value,
                allowed,
            )
        if self.ensemble is Ensemble.run:
            require_count(
                f"{where}.num_checkpoints", self.num_checkpoints, least=2
            )  # moments of one training
            whitened = self.kernel is Kernel.ekfac
            require(
                not whitened,
                f"{where}.kernel",
                self.kernel.value,
                "gram or identity where ensemble=run",
            )
        if self.scale is Scale.influence:
            require(
                self.kernel is Kernel.gram,
                f"{where}.kernel",
                self.kernel.value,
                "gram, whose K⁻¹φ scale=influence needs",
            )
        if self.projection is Projection.kronecker:
            allowed = "false with projection=kronecker, which forms no gradient that has a norm"
            require(not self.normalize, f"{where}.normalize", "true", allowed)
        if self.region:
            require_regions(f"{where}.region", self.region)
            whole = "[] at a trajectory, whose steps are weighted by their whole outputs"
            require(self.target is not Target.trajectory, f"{where}.region", self.region, whole)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require_count(f"{where}.num_samples", self.num_samples, most=model.num_timesteps)
        require_count(
            f"{where}.train_timesteps", self.train_timesteps, least=0, most=model.num_timesteps
        )
        if self.ensemble is Ensemble.run:
            require(
                not model.checkpoints,
                f"{where}.ensemble",
                "run",
                "seeds: model.checkpoints have no past",
            )
            require_count(
                f"{where}.num_checkpoints", self.num_checkpoints, least=2, most=num_steps - 1
            )
            require_count(
                f"{where}.num_checkpoints", self.num_checkpoints, least=2, most=MOST_INTERMEDIATE
            )

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        height, width = trajectories.checkpoint.model.example_shape(images.images.shape[1:])[1:]
        if self.region:
            require_region_inside(
                f"{where}.region", self.region, height, width, trajectories.num_queries
            )

    def restricted_to(self, region: Sequence[int]) -> "GradientMethod | None":
        return None if self.target is Target.trajectory else replace(self, region=list(region))

    def depends_on(self, setting: str) -> bool:
        match setting:
            case "damping":
                return self.kernel is not Kernel.identity
            case "projection_dim":
                return self.projection.sized
            case "projection_rank":
                return self.projection is Projection.kronecker
            case "train_timesteps":
                return self.target is Target.step
            case "share_noise":
                return self.target is Target.final_sample
            case "asked":
                return self.target is not Target.final_sample
        return True

    def candidates(self) -> list[dict[str, float]]:
        return (
            [{}]
            if self.kernel is Kernel.identity
            else [{"damping": value} for value in self.damping]
        )

    @property
    def in_units_of_output(self) -> bool:
        """Only of the loss itself, of which a step's score is a change."""
        return (
            self.output is Output.loss
            and self.scale is Scale.none
            and not self.normalize
            and self.score_transform is ScoreTransform.linear
        )

    # ------------------------------------------------------------------------------------------- what it needs

    def needs(self, experiment: Experiment) -> GradientInputs:
        """train: [checkpoint][one for all steps, or one for each]; queries: [checkpoint]; full: what a trajectory's steps are
        weighted by.

        Raises: ConfigError if a mean is asked of continuations that are all alike.
        """
        random = (
            self.query_example is not QueryExample.mean
            or experiment.sampling.sampler is Sampler.ddpm
        )
        require(
            random,
            "sampling.sampler",
            experiment.sampling.sampler.value,
            "ddpm where query_example=mean: others continue in one way",
        )
        checkpoints = self._checkpoints(experiment)
        windows = self._windows(experiment)
        train = tuple(
            tuple(self._features(experiment, c, None, window) for window in windows)
            for c in checkpoints
        )
        queries = tuple(
            self._features(experiment, c, experiment.trajectories, None) for c in checkpoints
        )
        weighted = self.target is Target.trajectory and self.in_units_of_output
        return GradientInputs(
            train=train,
            queries=queries,
            reference=experiment.reference_outputs if weighted else None,
        )

    def _checkpoints(self, experiment: Experiment) -> list[Train | IntermediateCheckpoint]:
        """The checkpoints of an ensemble; along a run, evenly spaced between its start and its end."""
        count = self.num_checkpoints
        if self.ensemble is Ensemble.seeds:
            return [experiment.checkpoint(self.first_checkpoint + k) for k in range(count)]
        snapshots: list[IntermediateCheckpoint] = []
        for k in range(1, count + 1):
            step = experiment.training.num_steps * k // (count + 1)
            snapshots.append(
                IntermediateCheckpoint(
                    experiment.checkpoint(self.first_checkpoint),
                    step,
                    snapshots[-1] if snapshots else None,
                )
            )
        return snapshots

    def _windows(self, experiment: Experiment) -> list[tuple[int, int] | None]:
        """The timesteps of the training images for each step: as many as asked for, around it, within the schedule."""
        if not self.train_timesteps:
            return [None]
        last = experiment.model.num_timesteps - self.train_timesteps
        starts = [min(max(0, t - self.train_timesteps // 2), last) for t in experiment.steps]
        return [(start, start + self.train_timesteps) for start in starts]

    def _features(
        self,
        experiment: Experiment,
        checkpoint: Train | IntermediateCheckpoint,
        queries: Sample | None,
        window: tuple[int, int] | None,
    ) -> Featurize:
        destination = queries is None or self.target is Target.final_sample
        whitened = self.kernel is Kernel.ekfac
        asked = QueryExample.estimate if destination else self.query_example
        own = asked is QueryExample.noisy  # whose one draw is that of the journey
        steps = experiment.steps if asked is QueryExample.mean else ()
        return Featurize(
            checkpoint=checkpoint,
            trajectories=queries,
            steps=None if destination else experiment.steps,
            window=window,
            output=self.output,
            normalize=self.normalize,
            num_samples=1 if own else self.num_samples,
            noise_set=0 if own else self.noise_set,
            share_noise=self.share_noise and queries is not None and destination,
            stratified=self.stratified,
            antithetic=self.antithetic and not own,
            precision=self.precision,
            curvature=EKFACFactors(checkpoint, self.precision, experiment.seed)
            if whitened
            else None,
            damping=tuple(self.damping) if whitened else (),
            projection=self.projection,
            projection_dim=self.projection_dim if self.projection.sized else 0,
            projection_rank=self.projection_rank if self.projection is Projection.kronecker else 0,
            seed=experiment.seed,
            guidance=1.0 if queries is None else experiment.guidance,
            flips=self.flips if queries is None else Augmentation.none,
            captions=self.captions if queries is None else Augmentation.none,
            query_example=asked,
            continuations=tuple(
                experiment.own_continuations(t, self.num_continuations) for t in steps
            ),
            storage=self.storage,
            region=() if queries is None else tuple(self.region),
        )

    # ---------------------------------------------------------------------------------------------- its scores

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution.kernel import add_ensemble_scores, describe_conditioning
        from journey.attribution.projections import QuantizedFeatures
        from journey.attribution.targets import step_weights

        def features(made: Featurize) -> np.ndarray | QuantizedFeatures:
            found = get(made, workspace)
            codes = found.array("features.npy")
            return (
                codes
                if made.storage is Storage.fp32
                else QuantizedFeatures(codes, found.array("scales.npy"))
            )

        train = [[features(f) for f in steps] for steps in spec.inputs_as(GradientInputs).train]
        queries = [features(f)[:] for f in spec.inputs_as(GradientInputs).queries]
        weights = _checkpoint_weights(
            [steps[0].checkpoint for steps in spec.inputs_as(GradientInputs).train]
        )
        of_step = None
        if self.target is Target.trajectory:
            of_step = step_weights(
                spec.inputs_as(GradientInputs).reference, spec.trajectories, spec.steps, workspace
            )
        rest = (self.kernel, self.damping, self.damping_unit, self.scale, of_step)
        solved = add_ensemble_scores(out, train, queries, weights, *rest)
        if self.score_transform is ScoreTransform.square:
            np.square(out, out=out)
        return describe_conditioning(solved)


def _checkpoint_weights(checkpoints: list[Train | IntermediateCheckpoint]) -> list[float]:
    """What each checkpoint counts: the same, or its learning rate (Pruthi et al. 2020)."""
    from journey.diffusion.training import learning_rate

    if isinstance(checkpoints[0], IntermediateCheckpoint):
        return [learning_rate(c.training_run.training, c.step) for c in checkpoints]
    return [1 / len(checkpoints)] * len(checkpoints)
