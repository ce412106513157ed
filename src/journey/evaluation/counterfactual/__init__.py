"""Retraining counterfactuals (Georgiev et al. 2023, Section 5).

Remove the images that a method ranks first for a query at a step, retrain from scratch, continue
the query's trajectory from that step with the retrained model, and measure what has changed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from journey.attribution.baselines import Embeddings, Encoder
from journey.engine.checks import require, require_count
from journey.engine.spec import omitted_default
from journey.engine.workspace import Workspace, get
from journey.evaluation.counterfactual.removals import (
    OPPONENTS,
    PROPONENTS,
    RANDOM,
    SEED,
    Change,
    CounterfactualInputs,
    Removal,
)
from journey.evaluation.lds import LDS
from journey.evaluation.ranking import candidate_index, candidate_settings
from journey.evaluation.rows import Row, select
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    Evaluate,
    Evaluation,
    Experiment,
    FullData,
    Model,
    Sample,
    Score,
    Subset,
    WithoutRandom,
    WithoutTop,
)
from journey.pipeline.settings import Sampler, Sampling
from journey.pipeline.subsets import require_removable


@dataclass
class Counterfactual(Evaluation):
    """The effects of removing what each method ranks first, beside those of controls."""

    name: ClassVar[str] = "counterfactual"
    continues_trajectories: ClassVar[bool] = True
    show: ClassVar[str] = "journey.evaluation.counterfactual.show"
    steps: list[int] = field(default_factory=lambda: [400])  # t of rankings and continuations
    counts: list[int] = field(default_factory=lambda: [30, 100])  # numbers of removed proponents
    opponents: list[int] = field(default_factory=list)  # numbers of removed opponents
    windows: list[int] = field(default_factory=lambda: [100])  # Δ, timesteps of the retrained model
    short_windows: list[int] = omitted_default([])  # further Δ, for the largest of counts alone
    num_queries: int = 12  # the first queries of the run
    num_continuations: int = 32  # of each query
    num_random: int = 6  # random removals of each size
    num_seeds: int = 4  # retrained models of all images
    dimensions: int = 16  # principal axes of the features, for the Fréchet distance
    encoder: Encoder = field(default_factory=lambda: Encoder(side=96))  # of the features
    beside_lds: bool = omitted_default(True)  # compare with the LDS, which needs subset models
    candidates: dict[str, float] = omitted_default({})  # the hyper-parameter, if there are several

    def check(self, where: str) -> None:
        for name in ("steps", "counts", "opponents", "windows", "short_windows"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"{where}.{name}", values, "distinct")
        for name in ("steps", "counts"):
            values = getattr(self, name)
            require(len(values) > 0, f"{where}.{name}", values, "a non-empty list")
        for name in ("num_queries", "num_continuations", "num_random", "num_seeds"):
            least = 1 if name == "num_seeds" else 2
            require_count(f"{where}.{name}", getattr(self, name), least=least, most=10_000)
        require_count(f"{where}.dimensions", self.dimensions, most=1000)
        most = self.num_continuations - 1
        allowed = f"at most {most}: num_continuations={most + 1}"
        require(self.dimensions <= most, f"{where}.dimensions", self.dimensions, allowed)
        self.encoder.check(f"{where}.encoder")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        allowed = f"among sampling.steps={sampling.steps}"
        require(set(self.steps) <= set(sampling.steps), f"{where}.steps", self.steps, allowed)
        require_count(f"{where}.num_queries", self.num_queries, least=2, most=sampling.num_queries)
        sampler, allowed = sampling.sampler, "ddpm: with ddim all continuations of x_t are equal"
        require(sampler is Sampler.ddpm, "sampling.sampler", sampler.value, allowed)
        self.encoder.weights(f"{where}.encoder")
        stride = model.num_timesteps // sampling.num_inference_steps
        for t in self.steps:
            shortest = min([*self.windows, t])
            for name, most in (("windows", t), ("short_windows", shortest - 1)):
                allowed = f"a multiple of {stride} in 1…{most}: trajectories continue from t={t}"
                for window in getattr(self, name):
                    fits = 0 < window <= most and window % stride == 0
                    require(fits, f"{where}.{name}", window, allowed)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        for name in ("counts", "opponents"):
            for count in getattr(self, name):
                require_removable(f"{where}.{name}", count, images.labels)

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> CounterfactualInputs:
        queries, full = tuple(range(self.num_queries)), experiment.checkpoint(0)
        before = []
        for t in self.steps:
            count = 2 * self.num_continuations
            before.append(experiment.continuations(full, t, queries, count, self.encoder))
        lds = LDS(paired_steps=list(self.steps))
        return CounterfactualInputs(
            changes=tuple(self._changes(experiment, scores, queries)),
            before=tuple(before),
            reference=experiment.outputs(full),
            embeddings=Embeddings(experiment.images, self.encoder),
            lds=experiment.evaluation_of(lds, scores) if self.beside_lds else None,
        )

    def _changes(
        self, experiment: Experiment, scores: dict[str, Score], queries: tuple[int, ...]
    ) -> Iterator[Change]:
        """Yield the models without what a method ranks first for a query, then the controls."""
        sizes = [(PROPONENTS, count) for count in self.counts]
        sizes += [(OPPONENTS, count) for count in self.opponents]
        for t in self.steps:
            for name, score in scores.items():
                candidate = candidate_index(name, score.method, self.candidates)
                # A method with one ranking for all steps shares its models between steps.
                has_steps = score.method.num_scores(len(experiment.steps)) > 1
                step = t if has_steps else experiment.steps[0]
                for side, count in sizes:
                    removal = Removal(name, side, count, t)
                    for query in queries:
                        opponents = side == OPPONENTS
                        subset = WithoutTop(score, candidate, step, query, count, opponents)
                        yield self._change(experiment, removal, subset, (query,))
        for t in self.steps:
            for count in dict.fromkeys([*self.counts, *self.opponents]):
                for index in range(self.num_random):
                    removal = Removal(RANDOM, PROPONENTS, count, t)
                    random = WithoutRandom(index, count, experiment.seed)
                    yield self._change(experiment, removal, random, queries)
            for seed in range(1, 1 + self.num_seeds):
                removal = Removal(SEED, PROPONENTS, 0, t)
                yield self._change(experiment, removal, FullData(), queries, seed)

    def _change(
        self,
        experiment: Experiment,
        removal: Removal,
        subset: Subset,
        queries: tuple[int, ...],
        training_seed: int = 0,
    ) -> Change:
        """Return a retrained model with its continuations and outputs."""
        model, t = experiment.retrained(subset, training_seed), removal.step
        windows = [(*sorted(w for w in self.windows if w != t), t)]
        is_largest = removal.side == PROPONENTS and removal.count in (max(self.counts), 0)
        if self.short_windows and is_largest:
            windows.insert(0, tuple(sorted(self.short_windows)))
        continuations = [
            experiment.continuations(model, t, queries, self.num_continuations, self.encoder, group)
            for group in windows
        ]
        return Change(removal, tuple(continuations), experiment.outputs(model))

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        from journey.evaluation.counterfactual import changes

        effects = changes.measure_effects(spec, self.dimensions, workspace)
        rows, lds = effects.rows(), {}
        inputs = spec.inputs_as(CounterfactualInputs)
        if inputs.lds is not None:
            result = json.loads((get(inputs.lds, workspace).path / "result.json").read_text())
            sizes = {key: result[key] for key in ("num_subsets", "num_seeds", "num_queries")}
            lds = {"lds": sizes}
            rows += effects.rows_beside_lds(result["rows"], self.counts)
        return {
            "num_train": spec.trajectories.checkpoint.images.num_train,
            "num_queries": self.num_queries,
            "num_continuations": self.num_continuations,
            "num_random": self.num_random,
            "num_seeds": self.num_seeds,
            "dimensions": self.dimensions,
            "steps": list(self.steps),
            "counts": list(self.counts),
            "opponents": list(self.opponents),
            "windows": {
                str(t): sorted({*self.short_windows, *self.windows, t}) for t in self.steps
            },
            "accuracy": effects.accuracy,
            "candidates": candidate_settings(spec.scores, self.candidates),
            **lds,
            "rows": rows,
            "per_query": effects.per_query(),
            "pictures": effects.pictures(max(self.counts)),
        }

    def headline(self, result: dict) -> list[Row]:
        rises = select(result["rows"], quantity="rise", target="step")
        return [row for row in rises if "against" not in row]
