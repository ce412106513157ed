"""What a kind may ask for: the artifacts of one experiment, by what they are."""

from dataclasses import dataclass
from functools import cached_property

from journey.artifacts.keep import All, Keep, RandomSubset
from journey.artifacts.released import content, network
from journey.artifacts.specs import Continuations, Encoded, Evaluate, Images, Measure, Sample, Score, Train
from journey.config.checks import require
from journey.config.contracts import Evaluation, Method, Model
from journey.config.groups import Batching, Precision, Retraining, Sampling, Training, Trajectory


@dataclass(frozen=True)
class Recipes:
    """The settings that artifacts are made from."""

    images: Images
    model: Model
    training: Training
    sampling: Sampling
    retraining: Retraining
    precision: Precision
    seed: int

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the journeys that are attributed and judged."""
        return tuple(self.sampling.steps)

    def trained(self, repeat: int, keep: Keep = All()) -> Train:  # noqa: B008 - a constant
        """Training number `repeat`; of all images, it is checkpoint number `repeat`, which others may have trained."""
        match keep:
            case All():
                batches = Batching.own
            case RandomSubset():
                batches = self.retraining.batches
            case _:
                batches = Batching.shared  # else a small change drowns in that of the batches
        released = self._released(repeat) if keep == All() else ""
        return Train(
            images=self.images,
            model=self.model,
            training=Training() if released else self.training,
            precision=self.precision,
            seed=self.seed,
            repeat=repeat,
            keep=keep,
            batches=batches,
            encoded=self.encoded,
            released=content(network(released)) if released else "",
            source=released,
        )

    def _released(self, repeat: int) -> str:
        """Where checkpoint number `repeat` is, if others trained the checkpoints. Raises: ConfigError if there are too few."""
        known = self.model.checkpoints
        require(not known or repeat < len(known), "model.checkpoints", known, f"at least {repeat + 1}: so many are asked for")
        return known[repeat] if known else ""

    @cached_property
    def encoded(self) -> Encoded | None:
        """What the training images are made into, once, if the model asks for it."""
        return self.model.encoded(self.images, self.seed)

    def subset(self, index: int) -> RandomSubset:
        """A random subset of the training images."""
        return RandomSubset(index, self.retraining.fraction, self.seed)

    @cached_property
    def journeys(self) -> Sample:
        """The queries, made by checkpoint 0; every other checkpoint is asked about these."""
        of = self.sampling
        return Sample(
            checkpoint=self.trained(0),
            sampler=of.sampler,
            num_inference_steps=of.num_inference_steps,
            num_queries=of.num_queries,
            steps=self.steps,
            seed=self.seed,
            prompts=tuple(of.prompts) or (("",) if self.model.reads_text else ()),
            guidance=of.guidance,
            start=of.start,
        )

    def continuations(self, step: int, count: int, encoder: Method | None = None) -> Continuations:
        """Of every query, from a step to the end, under the model of the journeys: its own, and after it `count` with other
        noise, each a draw from what that model makes of x_t.
        """
        everyone = tuple(range(self.sampling.num_queries))
        return self.continued(self.trained(0), step, everyone, 1 + count, encoder)

    def continued(
        self,
        model: Train,
        step: int,
        queries: tuple[int, ...],
        count: int,
        encoder: Method | None,
        windows: tuple[int, ...] = (),
    ) -> Continuations:
        """Where some journeys end when a model goes on with them from a step; for some windows, or to the end."""
        return Continuations(model, self.journeys, step, windows or (step,), queries, count, encoder, self.seed)

    def measured(self, model: Train, region: tuple[int, ...] = ()) -> Measure:
        """The outputs of one model on all queries, or on a region of them."""
        return Measure(
            checkpoint=model,
            journeys=self.journeys,
            steps=self.steps,
            num_draws=self.retraining.num_draws,
            antithetic=self.retraining.antithetic,
            seed=self.seed,
            guidance=self.guidance,
            region=region,
        )

    @property
    def guidance(self) -> float:
        """Of the prediction that queries are attributed and judged by."""
        return self.sampling.guidance if self.sampling.judge_guided else 1.0

    @property
    def full_outputs(self) -> Measure | None:
        """The outputs under the full model, which steps are weighted by in a trajectory; None: steps are not weighted."""
        return self.measured(self.trained(0)) if self.retraining.trajectory is Trajectory.relative else None

    def score(self, method: Method) -> Score:
        """The scores of one method, with the artifacts it needs."""
        return Score(method, self.journeys, self.steps, self.seed, method.needs(self))

    def evaluate(self, evaluation: Evaluation, methods: dict[str, Method]) -> Evaluate:
        """The judgement of all methods."""
        return self.judged(evaluation, {name: self.score(method) for name, method in methods.items()})

    def judged(self, evaluation: Evaluation, scores: dict[str, Score]) -> Evaluate:
        """The judgement of scores."""
        return Evaluate(evaluation, scores, self.journeys, self.steps, self.seed, evaluation.needs(self, scores))
