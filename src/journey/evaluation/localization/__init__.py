"""Retrainings without a region's proponents, and what they are called beside it.

Localization: do scores of a region predict what retraining does to that region, and does leaving out a region's proponents
change that region?
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from journey.attribution.baselines import Encoder
from journey.attribution.targets import PAIRED_STEPS
from journey.engine.checks import require, require_count, require_region_inside, require_regions
from journey.engine.seeding import numpy_generator
from journey.engine.spec import describe
from journey.engine.workspace import Workspace
from journey.evaluation import rows
from journey.evaluation.ranking import candidate_index, candidate_settings
from journey.evaluation.statistics import bootstrap_with_observed
from journey.pipeline import subsets
from journey.pipeline.examples import Region, quarters
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


WHOLE = "whole image"


RANDOM, OTHERS, ALL = "random images", "other regions", "all regions"


@dataclass(frozen=True)
class Removal:
    """How some queries go on under a model without some images, and what their outputs in every region are then."""

    ends: Continuations
    outputs: tuple[Measure, ...]  # [region]


RESERVED = {WHOLE, RANDOM, OTHERS, ALL}


REMOVAL_SETTINGS = ("step", "num_removals", "count", "num_random", "num_continuations")


SEEN_BY = Encoder(side=96)  # continuations come with what an encoder sees, which nothing here reads


@dataclass(frozen=True)
class LocalizationInputs(Inputs):
    """What the result of `localization` are computed from."""

    scores: dict[str, dict[str, Score]]  # [method][region]; the whole image first
    outputs: dict[str, tuple[tuple[Measure, ...], ...]]  # [region][subset][training seed]
    reference: Removal  # the full model
    removed: dict[str, tuple[Removal, ...]]  # [region][query]: without the region's proponents
    random: tuple[Removal, ...]  # without random images


@dataclass
class Localization(Evaluation):
    """Every method with one hyper-parameter, its scores as they are. The first method's proponents are left out."""

    name: ClassVar[str] = "localization"
    regions: dict[str, list[int]] = field(
        default_factory=dict
    )  # of each a box, or one for each query; none: the quarters
    paired_steps: list[int] = field(
        default_factory=lambda: [600, 500, 400, 300]
    )  # over which matrices are averaged
    step: int = 300  # t, whose proponents are left out, and at which journeys are entered
    num_removals: int = 8  # the first queries, for each region
    count: int = 50  # images that are left out
    num_random: int = 4  # random removals of as many, for all of these queries
    num_continuations: int = 8  # of each query
    candidates: dict[str, float] = field(
        default_factory=dict
    )  # the hyper-parameter of a method that has several
    num_bootstrap: int = 1000

    def check(self, where: str) -> None:
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        require_count(f"{where}.num_removals", self.num_removals, least=2)  # for an interval
        for name in ("count", "num_random", "num_continuations"):
            require_count(f"{where}.{name}", getattr(self, name))
        fine = len(self.regions) != 1 and not RESERVED & self.regions.keys()
        allowed = f"two regions or more, none called {', '.join(sorted(RESERVED))}; or none, for the quarters"
        require(fine, f"{where}.regions", self.regions, allowed)
        for name, region in self.regions.items():
            require_regions(f"{where}.regions.{name}", region)
        paired = self.paired_steps
        require(
            len(set(paired)) == len(paired) > 0,
            f"{where}.paired_steps",
            paired,
            "a non-empty list, each once",
        )

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        kept = f"among sampling.steps={sampling.steps}"
        require(
            set(self.paired_steps) <= set(sampling.steps),
            f"{where}.paired_steps",
            self.paired_steps,
            kept,
        )
        require(self.step in sampling.steps, f"{where}.step", self.step, kept)
        require_count(
            f"{where}.num_removals", self.num_removals, least=2, most=sampling.num_queries
        )
        SEEN_BY.weights(f"evaluation={self.name}")
        several = sampling.sampler is Sampler.ddpm or self.num_continuations == 1
        require(
            several,
            f"{where}.num_continuations",
            self.num_continuations,
            "1 with sampling.sampler=ddim: all are alike",
        )

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        height, width = trajectories.checkpoint.model.example_shape(images.images.shape[1:])[1:]
        for name, region in (self.regions or quarters(height, width)).items():
            require_region_inside(
                f"{where}.regions.{name}", region, height, width, trajectories.num_queries
            )
        subsets.require_removable(f"{where}.count", self.count, images.labels)

    # ------------------------------------------------------------------------------------------- what it needs

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> LocalizationInputs:
        """scores: [method][region], the whole image first; outputs: [region][subset][seed]; full and random: how queries go on
        under the full model and without random images; removed: the same without a region's proponents, [region][query].

        Raises: ConfigError naming a method of which no region can be asked, or of which one hyper-parameter must be named.
        """
        regions = self._regions(experiment)
        by_method = {
            name: self._of_regions(name, score, experiment, regions)
            for name, score in scores.items()
        }
        first = next(iter(by_method))
        candidate = candidate_index(first, scores[first].method, self.candidates)
        queries, removed = tuple(range(self.num_removals)), {}
        for region, score in list(by_method[first].items())[1:]:
            keeps = [
                WithoutTop(score, candidate, self.step, query, self.count) for query in queries
            ]
            removed[region] = tuple(
                self._removal(experiment, keep, (q,))
                for keep, q in zip(keeps, queries, strict=True)
            )
        by_chance = [
            WithoutRandom(index, self.count, experiment.seed) for index in range(self.num_random)
        ]
        return LocalizationInputs(
            scores=by_method,
            outputs={name: _on_subsets(experiment, region) for name, region in regions.items()},
            reference=self._removal(experiment, FullData(), queries),
            removed=removed,
            random=tuple(self._removal(experiment, keep, queries) for keep in by_chance),
        )

    def _regions(self, experiment: Experiment) -> dict[str, Region]:
        """By name; the whole image first."""
        height, width = experiment.model.example_shape(experiment.images.shape)[1:]
        named = self.regions or quarters(height, width)
        return {WHOLE: (), **{name: tuple(region) for name, region in named.items()}}

    def _of_regions(
        self, name: str, score: Score, experiment: Experiment, regions: dict[str, Region]
    ) -> dict[str, Score]:
        """A method's scores of every region."""
        method = score.method
        candidate_index(name, method, self.candidates)
        asked = {region: method.restricted_to(box) for region, box in regions.items()}
        able = all(each is not None for each in asked.values())
        require(
            able,
            f"method.{name}",
            method.label,
            "one that can be asked about a region, such as journey or pixel",
        )
        return {region: experiment.scores(each) for region, each in asked.items()}

    def _removal(self, experiment: Experiment, keep: Subset, queries: tuple[int, ...]) -> Removal:
        model = experiment.retrained(keep)
        ends = experiment.continuations(model, self.step, queries, self.num_continuations, SEEN_BY)
        named = [region for region in self._regions(experiment).values() if region]
        return Removal(
            ends,
            tuple(
                replace(experiment.outputs(model, region), steps=(self.step,)) for region in named
            ),
        )

    # ---------------------------------------------------------------------------------------------- what it finds

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        """Raises: ValueError if leaving images out changes nothing."""
        from journey.evaluation.localization import findings

        first, outputs = next(iter(spec.scores)), spec.inputs_as(LocalizationInputs).outputs
        num_queries, num_subsets = spec.trajectories.num_queries, len(outputs[WHOLE])
        random = numpy_generator(spec.seed, "localization")
        sizes = (num_queries, num_subsets, self.num_removals)
        of_queries, of_subsets, of_removals = (
            bootstrap_with_observed(size, self.num_bootstrap, random) for size in sizes
        )
        means = findings.Means(spec.steps, self.paired_steps, of_queries)
        return {
            "num_train": spec.trajectories.checkpoint.images.num_train,
            "num_queries": num_queries,
            "num_subsets": num_subsets,
            "num_seeds": len(outputs[WHOLE][0]),
            "draws": outputs[WHOLE][0][0].num_samples,
            "num_bootstrap": self.num_bootstrap,
            "steps": list(spec.steps),
            "paired_steps": list(self.paired_steps),
            "regions": {name: list(of[0][0].region) for name, of in outputs.items()},
            "removed": {**{name: vars(self)[name] for name in REMOVAL_SETTINGS}, "method": first},
            "candidates": candidate_settings(spec.scores, self.candidates),
            "rows": [
                *findings.prediction_rows(spec, self.candidates, means, of_subsets, workspace),
                *findings.removal_rows(spec, self.step, of_removals, workspace),
            ],
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

    # ------------------------------------------------------------------------------------------ how it is shown

    def candidate_index(self, result: dict, method: str) -> dict[str, float] | None:
        return result["candidates"][method]

    def headline(self, result: dict) -> list[rows.Row]:
        return rows.select(result["rows"], quantity="own_locality", target=PAIRED_STEPS)

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.localization.show import localization_tables

        return localization_tables(result)

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.localization.show import (
            lds_matrices,
            locality_by_step,
            removal_figure,
        )

        return {
            "localization.png": lds_matrices(result),
            "locality_by_step.png": locality_by_step(result),
            "removal.png": removal_figure(result),
        }


def _on_subsets(experiment: Experiment, region: Region) -> tuple[tuple[Measure, ...], ...]:
    """The outputs of all subset models in a region. [subset][seed]"""
    of, found = experiment.retraining, []
    for index in range(of.num_subsets):
        models = [
            experiment.retrained(experiment.random_subset(index), repeat)
            for repeat in range(of.num_seeds)
        ]
        found.append(tuple(experiment.outputs(model, region) for model in models))
    return tuple(found)
