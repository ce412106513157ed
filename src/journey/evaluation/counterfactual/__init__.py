"""Retrainings that an evaluation compares with the full model: whose, and what each is asked.

Retraining counterfactuals (Georgiev et al. 2023, Section 5): leave out the images that a method ranks first for a query at a
step, retrain from scratch, enter the query's journey at that step, and see what has changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from journey.attribution.baselines import Embeddings, Encoder
from journey.engine.checks import require, require_count
from journey.engine.spec import omitted_default
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds import LDS
from journey.evaluation.ranking import candidate_index, candidate_settings
from journey.evaluation.rows import Row, select
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    Continuations,
    Evaluate,
    Evaluation,
    Experiment,
    FullData,
    Inputs,
    Measure,
    Model,
    Sample,
    Score,
    Subset,
    WithoutRandom,
    WithoutTop,
)
from journey.pipeline.settings import Sampler, Sampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


PROPONENTS, OPPONENTS = "proponents", "opponents"


RANDOM, SEED, SAME = "random removal", "another seed", "same model"


CONTROLS = (RANDOM, SEED, SAME)


RemovalKey = tuple[str, str, int, int]
"""method or floor, side, count, step"""


@dataclass(frozen=True)
class Change:
    """A retraining, and what is asked of it. method: whose ranking, or which floor"""

    method: str
    side: str
    count: int  # images that are left out
    step: int  # whose ranking, and where journeys are entered
    continuations: tuple[
        Continuations, ...
    ]  # of rising windows, the last of which is the whole rest of a journey
    measured: Measure

    @property
    def windows(self) -> tuple[int, ...]:
        return tuple(window for of in self.continuations for window in of.windows)

    @property
    def queries(self) -> tuple[int, ...]:
        return self.continuations[-1].queries

    @property
    def what(self) -> RemovalKey:
        return self.method, self.side, self.count, self.step


def group_changes(changes: tuple[Change, ...]) -> dict[RemovalKey, list[Change]]:
    """Changes of one method, side, count and step, in the order they were asked for."""
    return {what: list(of) for what, of in groupby(changes, key=lambda change: change.what)}


@dataclass(frozen=True)
class CounterfactualInputs(Inputs):
    """What the result of `counterfactual` are computed from."""

    changes: tuple[Change, ...]  # every retraining
    before: tuple[Continuations, ...]  # [step]: twice as many continuations under the full model
    reference: Measure  # outputs of the full model
    embeddings: Embeddings  # what the classifiers are trained on
    lds: Evaluate | None  # the LDS of the same scores


@dataclass
class Counterfactual(Evaluation):
    name: ClassVar[str] = "counterfactual"
    steps: list[int] = field(default_factory=lambda: [400])  # t: where journeys are entered
    counts: list[int] = field(
        default_factory=lambda: [30, 100]
    )  # k: how many proponents are left out
    opponents: list[int] = field(default_factory=list)  # how many opponents, by further retrainings
    windows: list[int] = field(
        default_factory=lambda: [100]
    )  # Δ: beside the whole rest of the journey
    short_windows: list[int] = omitted_default(
        []
    )  # further Δ, for the largest count of proponents alone
    num_queries: int = 12  # the first of them
    num_continuations: int = 32  # of each
    num_random: int = 6  # random removals of each count
    num_seeds: int = 4  # retrainings on everything
    dimensions: int = 16  # of the space of the Fréchet distance
    encoder: Encoder = field(default_factory=lambda: Encoder(side=96))
    beside_lds: bool = omitted_default(
        True
    )  # judge the same scores by LDS too, whose subset models large data cannot afford
    candidates: dict[str, float] = omitted_default(
        {}
    )  # the hyper-parameter of a method that has several

    def check(self, where: str) -> None:
        for name in ("steps", "counts", "opponents", "windows", "short_windows"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"{where}.{name}", values, "distinct")
        require(len(self.steps) > 0, f"{where}.steps", self.steps, "a non-empty list")
        require(len(self.counts) > 0, f"{where}.counts", self.counts, "a non-empty list")
        for name, least in {
            "num_queries": 2,
            "num_continuations": 2,
            "num_random": 2,
            "num_seeds": 1,
        }.items():
            require_count(f"{where}.{name}", getattr(self, name), least=least, most=10_000)
        most = self.num_continuations - 1
        require_count(f"{where}.dimensions", self.dimensions, most=1000)
        fits = self.dimensions <= most
        require(
            fits,
            f"{where}.dimensions",
            self.dimensions,
            f"at most {most}: num_continuations={most + 1}",
        )
        self.encoder.check(f"{where}.encoder")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        known = f"among sampling.steps={sampling.steps}"
        require(set(self.steps) <= set(sampling.steps), f"{where}.steps", self.steps, known)
        require_count(f"{where}.num_queries", self.num_queries, least=2, most=sampling.num_queries)
        needed = "ddpm: what follows x_t by ddim is one image, whatever the noise"
        require(
            sampling.sampler is Sampler.ddpm, "sampling.sampler", sampling.sampler.value, needed
        )
        self.encoder.weights(f"{where}.encoder")
        stride = model.num_timesteps // sampling.num_inference_steps
        for t in self.steps:
            shortest = min([*self.windows, t])
            for name, most in (("windows", t), ("short_windows", shortest - 1)):
                for window in getattr(self, name):
                    fine = 0 < window <= most and window % stride == 0
                    allowed = f"a multiple of {stride} in 1…{most}: journeys are entered at t={t}"
                    require(fine, f"{where}.{name}", window, allowed)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        from journey.pipeline.subsets import require_removable

        for name in ("counts", "opponents"):
            for count in getattr(self, name):
                require_removable(f"{where}.{name}", count, images.labels)

    # ------------------------------------------------------------------------------------------- what it needs

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> CounterfactualInputs:
        """changes: every retraining; before: [step], of the full model, twice as many continuations; lds: the same methods,
        judged by random subsets, or None.

        Raises: ConfigError naming a method of which one hyper-parameter must be named.
        """
        everyone, twice = tuple(range(self.num_queries)), 2 * self.num_continuations
        return CounterfactualInputs(
            changes=(*self._removals(experiment, scores), *self._floors(experiment, everyone)),
            before=tuple(
                experiment.continuations(experiment.checkpoint(0), t, everyone, twice, self.encoder)
                for t in self.steps
            ),
            reference=experiment.outputs(experiment.checkpoint(0)),
            embeddings=Embeddings(experiment.images, self.encoder),
            lds=experiment.evaluation_of(LDS(paired_steps=list(self.steps)), scores)
            if self.beside_lds
            else None,
        )

    def _removals(self, experiment: Experiment, scores: dict[str, Score]) -> Iterator[Change]:
        wanted = [(PROPONENTS, k) for k in self.counts] + [(OPPONENTS, k) for k in self.opponents]
        for t in self.steps:
            for name, score in scores.items():
                candidate = candidate_index(name, score.method, self.candidates)
                by_step = score.method.num_scores(len(experiment.steps)) > 1
                for side, count in wanted:
                    for query in range(self.num_queries):
                        step = (
                            t if by_step else experiment.steps[0]
                        )  # so that steps share what is one ranking
                        keep = WithoutTop(score, candidate, step, query, count, side == OPPONENTS)
                        yield self._change(experiment, name, side, count, t, keep, 0, (query,))

    def _floors(self, experiment: Experiment, queries: tuple[int, ...]) -> Iterator[Change]:
        for t in self.steps:
            for count in dict.fromkeys([*self.counts, *self.opponents]):
                for index in range(self.num_random):
                    keep = WithoutRandom(index, count, experiment.seed)
                    yield self._change(experiment, RANDOM, PROPONENTS, count, t, keep, 0, queries)
            for repeat in range(1, 1 + self.num_seeds):
                yield self._change(experiment, SEED, PROPONENTS, 0, t, FullData(), repeat, queries)

    def _change(
        self,
        experiment: Experiment,
        method: str,
        side: str,
        count: int,
        t: int,
        keep: Subset,
        repeat: int,
        queries: tuple[int, ...],
    ) -> Change:
        model = experiment.retrained(keep, repeat)
        windows = [(*sorted(w for w in self.windows if w != t), t)]
        if self.short_windows and side == PROPONENTS and count in (max(self.counts), 0):
            windows.insert(0, tuple(sorted(self.short_windows)))
        of = (model, t, queries, self.num_continuations, self.encoder)
        continued = tuple(experiment.continuations(*of, some) for some in windows)
        return Change(method, side, count, t, continued, experiment.outputs(model))

    # ------------------------------------------------------------------------------------------------ its result

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        import json

        from journey.evaluation.counterfactual import changes

        judged = changes.measure_effects(spec, self.dimensions, workspace)
        lds, beside = spec.inputs_as(CounterfactualInputs).lds, {}
        found = judged.stated()
        if lds is not None:
            of_lds = json.loads((get(lds, workspace).path / "result.json").read_text())
            beside = {
                "lds": {key: of_lds[key] for key in ("num_subsets", "num_seeds", "num_queries")}
            }
            found += judged.against_lds(of_lds["rows"])
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
            "windows": {str(t): judged.windows_at(t) for t in self.steps},
            "accuracy": judged.accuracy,
            "candidates": candidate_settings(spec.scores, self.candidates),
            **beside,
            "rows": found,
            "pictures": judged.pictures(),
        }

    def headline(self, result: dict) -> list[Row]:
        return [
            row
            for row in select(result["rows"], quantity="rise", target="step")
            if "against" not in row
        ]

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.counterfactual.show import counterfactual_tables

        return counterfactual_tables(result)

    def texts(self, result: dict) -> dict[str, str]:
        from journey.evaluation.counterfactual.show import counterfactual_markdown

        return {"counterfactual.md": counterfactual_markdown(result)}

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.counterfactual.show import (
            before_after,
            by_count,
            by_window,
            lds_against_removal,
        )

        found = {f"effect_by_count_t{t}.png": by_count(result, t) for t in result["steps"]}
        for t in result["steps"]:
            if len(result["windows"][str(t)]) > 1:
                found[f"effect_by_window_t{t}.png"] = by_window(result, t)
            found[f"before_after_t{t}.png"] = before_after(result, t)
        if "lds" in result:
            found["lds_against_removal.png"] = lds_against_removal(result)
        return found
