"""Gradient methods: τ = φ_qᵀ K⁻¹ φ_i of projected gradients of an output. One space, of which `conf/method/` names points."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Curvature, Featurize, Sample, Score, Snapshot, Train
from journey.artifacts.workspace import Workspace, get
from journey.config.checks import require, require_boxes, require_count, require_inside
from journey.config.contracts import Method, Model
from journey.config.groups import (
    Asked,
    At,
    Attribution,
    Ensemble,
    Kernel,
    Output,
    Projection,
    Readout,
    Sampler,
    Scale,
    Storage,
    Views,
    neutral,
)
from journey.data import ImageSet

MOST_MOMENTS = 100  # of one training: each is made from the one before


@dataclass
class GradientMethod(Attribution, Method):
    """`Journey-TRAK` as it stands (Georgiev et al. 2023)."""

    kind: ClassVar[str] = "gradient"
    at: At = At.step
    output: Output = Output.loss
    normalize: bool = False  # every draw's gradient has unit norm before the mean
    kernel: Kernel = Kernel.gram
    scale: Scale = Scale.none
    readout: Readout = Readout.linear
    ensemble: Ensemble = Ensemble.seeds
    asked: Asked = neutral(Asked.estimate)  # of a query, at a step
    num_continuations: int = neutral(32)  # of which asked=mean takes the mean
    region: list[int] = neutral([])  # of the queries' output: a box, or one for each query; none: all of it

    @property
    def label(self) -> str:
        return f"{self.kernel.value}-{self.output.value}-{self.at.value}"

    def check(self, where: str) -> None:
        Attribution.check(self, where)
        if self.train_window:
            require(self.at is At.step, f"{where}.train_window", self.train_window, "0 (all timesteps) unless at=step")
        require_count(f"{where}.num_continuations", self.num_continuations)
        if self.at is At.destination:
            allowed = "estimate unless at=step or trajectory: a destination is the final image"
            require(self.asked is Asked.estimate, f"{where}.asked", self.asked.value, allowed)
        if self.ensemble is Ensemble.run:
            require_count(f"{where}.num_checkpoints", self.num_checkpoints, least=2)  # moments of one training
            whitened = self.kernel is Kernel.ekfac
            require(not whitened, f"{where}.kernel", self.kernel.value, "gram or identity where ensemble=run")
        if self.scale is Scale.influence:
            require(self.kernel is Kernel.gram, f"{where}.kernel", self.kernel.value, "gram, whose K⁻¹φ scale=influence needs")
        if self.projection is Projection.kronecker:
            allowed = "false with projection=kronecker, which forms no gradient that has a norm"
            require(not self.normalize, f"{where}.normalize", "true", allowed)
        if self.region:
            require_boxes(f"{where}.region", self.region)
            whole = "[] at a trajectory, whose steps are weighted by their whole outputs"
            require(self.at is not At.trajectory, f"{where}.region", self.region, whole)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require_count(f"{where}.num_draws", self.num_draws, most=model.num_timesteps)
        require_count(f"{where}.train_window", self.train_window, least=0, most=model.num_timesteps)
        if self.ensemble is Ensemble.run:
            require(not model.checkpoints, f"{where}.ensemble", "run", "seeds: model.checkpoints have no past")
            require_count(f"{where}.num_checkpoints", self.num_checkpoints, least=2, most=num_steps - 1)
            require_count(f"{where}.num_checkpoints", self.num_checkpoints, least=2, most=MOST_MOMENTS)

    def check_data(self, where: str, journeys: Sample, images: ImageSet) -> None:
        height, width = journeys.checkpoint.model.example_shape(images.images.shape[1:])[1:]
        if self.region:
            require_inside(f"{where}.region", self.region, height, width, journeys.num_queries)

    def within(self, region: Sequence[int]) -> "GradientMethod | None":
        return None if self.at is At.trajectory else replace(self, region=list(region))

    def heeds(self, setting: str) -> bool:
        match setting:
            case "damping":
                return self.kernel is not Kernel.identity
            case "projection_dim":
                return self.projection.sized
            case "projection_rows":
                return self.projection is Projection.kronecker
            case "train_window":
                return self.at is At.step
            case "shared_draws":
                return self.at is At.destination
            case "asked":
                return self.at is not At.destination
        return True

    def candidates(self) -> list[dict[str, float]]:
        return [{}] if self.kernel is Kernel.identity else [{"damping": value} for value in self.damping]

    @property
    def in_units_of_output(self) -> bool:
        """Only of the loss itself, of which a step's score is a change."""
        return self.output is Output.loss and self.scale is Scale.none and not self.normalize and self.readout is Readout.linear

    # ------------------------------------------------------------------------------------------- what it needs

    def needs(self, recipes: Recipes) -> dict[str, object]:
        """train: [checkpoint][one for all steps, or one for each]; queries: [checkpoint]; full: what a trajectory's steps are
        weighted by.

        Raises: ConfigError if a mean is asked of continuations that are all alike.
        """
        random = self.asked is not Asked.mean or recipes.sampling.sampler is Sampler.ddpm
        require(random, "sampling.sampler", recipes.sampling.sampler.value, "ddpm where asked=mean: others continue in one way")
        checkpoints = self._checkpoints(recipes)
        windows = self._windows(recipes)
        train = tuple(tuple(self._features(recipes, c, None, window) for window in windows) for c in checkpoints)
        queries = tuple(self._features(recipes, c, recipes.journeys, None) for c in checkpoints)
        weighted = self.at is At.trajectory and self.in_units_of_output
        return {"train": train, "queries": queries, "full": recipes.full_outputs if weighted else None}

    def _checkpoints(self, recipes: Recipes) -> list[Train | Snapshot]:
        """The checkpoints of an ensemble; along a run, evenly spaced between its start and its end."""
        count = self.num_checkpoints
        if self.ensemble is Ensemble.seeds:
            return [recipes.trained(self.first_checkpoint + k) for k in range(count)]
        snapshots: list[Snapshot] = []
        for k in range(1, count + 1):
            step = recipes.training.num_steps * k // (count + 1)
            snapshots.append(Snapshot(recipes.trained(self.first_checkpoint), step, snapshots[-1] if snapshots else None))
        return snapshots

    def _windows(self, recipes: Recipes) -> list[tuple[int, int] | None]:
        """The timesteps of the training images for each step: as many as asked for, around it, within the schedule."""
        if not self.train_window:
            return [None]
        last = recipes.model.num_timesteps - self.train_window
        starts = [min(max(0, t - self.train_window // 2), last) for t in recipes.steps]
        return [(start, start + self.train_window) for start in starts]

    def _features(
        self, recipes: Recipes, checkpoint: Train | Snapshot, queries: Sample | None, window: tuple[int, int] | None
    ) -> Featurize:
        destination = queries is None or self.at is At.destination
        whitened = self.kernel is Kernel.ekfac
        asked = Asked.estimate if destination else self.asked
        own = asked is Asked.noisy  # whose one draw is that of the journey
        steps = recipes.steps if asked is Asked.mean else ()
        return Featurize(
            checkpoint=checkpoint,
            journeys=queries,
            steps=None if destination else recipes.steps,
            window=window,
            output=self.output,
            normalize=self.normalize,
            num_draws=1 if own else self.num_draws,
            redraw=0 if own else self.redraw,
            shared_draws=self.shared_draws and queries is not None and destination,
            stratified=self.stratified,
            antithetic=self.antithetic and not own,
            precision=self.precision,
            curvature=Curvature(checkpoint, self.precision, recipes.seed) if whitened else None,
            damping=tuple(self.damping) if whitened else (),
            projection=self.projection,
            projection_dim=self.projection_dim if self.projection.sized else 0,
            projection_rows=self.projection_rows if self.projection is Projection.kronecker else 0,
            seed=recipes.seed,
            guidance=1.0 if queries is None else recipes.guidance,
            flips=self.flips if queries is None else Views.none,
            captions=self.captions if queries is None else Views.none,
            asked=asked,
            continued=tuple(recipes.continuations(t, self.num_continuations) for t in steps),
            storage=self.storage,
            region=() if queries is None else tuple(self.region),
        )

    # ---------------------------------------------------------------------------------------------- its scores

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution.ensemble import add_scores, described
        from journey.attribution.stored import Scaled
        from journey.attribution.targets import step_weights

        def features(made: Featurize) -> np.ndarray | Scaled:
            found = get(made, workspace)
            codes = found.array("features.npy")
            return codes if made.storage is Storage.fp32 else Scaled(codes, found.array("scales.npy"))

        train = [[features(f) for f in steps] for steps in spec.needs["train"]]
        queries = [features(f)[:] for f in spec.needs["queries"]]
        weights = _weights([steps[0].checkpoint for steps in spec.needs["train"]])
        of_step = None
        if self.at is At.trajectory:
            of_step = step_weights(spec.needs["full"], spec.journeys, spec.steps, workspace)
        rest = (self.kernel, self.damping, self.damping_unit, self.scale, of_step)
        solved = add_scores(out, train, queries, weights, *rest)
        if self.readout is Readout.square:
            np.square(out, out=out)
        return described(solved)


def _weights(checkpoints: list[Train | Snapshot]) -> list[float]:
    """What each checkpoint counts: the same, or its learning rate (Pruthi et al. 2020)."""
    from journey.diffusion.training import learning_rate

    if isinstance(checkpoints[0], Snapshot):
        return [learning_rate(c.of.training, c.step) for c in checkpoints]
    return [1 / len(checkpoints)] * len(checkpoints)
