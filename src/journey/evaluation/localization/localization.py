"""Localization: do scores of a region predict what retraining does to that region, and does leaving out a region's proponents
change that region?
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey.artifacts.graph import describe
from journey.artifacts.keep import All, Keep, Without, WithoutRandom
from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Continuations, Evaluate, Measure, Sample, Score
from journey.artifacts.workspace import Workspace, get
from journey.attribution.methods.encoder import Encoder
from journey.attribution.targets import PAIRED, STEP
from journey.config.checks import require, require_box, require_count, require_inside
from journey.config.contracts import Evaluation, Model
from journey.config.groups import Sampler, Sampling
from journey.data import ImageSet, subsets, train_images
from journey.diffusion.regions import Region, quarters
from journey.evaluation import rows
from journey.evaluation.candidates import chosen, settings
from journey.evaluation.localization import locality
from journey.evaluation.statistics import interval, observed_first, query_interval
from journey.seeding import numpy_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

WHOLE = "whole image"
RANDOM, OTHERS, ALL = "random images", "other regions", "all regions"
RESERVED = {WHOLE, RANDOM, OTHERS, ALL}
REMOVAL_SETTINGS = ("step", "num_removals", "count", "num_random", "num_continuations")
SEEN_BY = Encoder(side=96)  # continuations come with what an encoder sees, which nothing here reads


@dataclass(frozen=True)
class Removal:
    """How some queries go on under a model without some images, and what their outputs in every region are then."""

    ends: Continuations
    outputs: tuple[Measure, ...]  # [region]


@dataclass
class Localization(Evaluation):
    """Every method with one hyper-parameter, its scores as they are. The first method's proponents are left out."""

    kind: ClassVar[str] = "localization"
    regions: dict[str, list[int]] = field(default_factory=dict)  # first row and column, end row and column; none: the quarters
    paired_steps: list[int] = field(default_factory=lambda: [600, 500, 400, 300])  # over which matrices are averaged
    step: int = 300  # t, whose proponents are left out, and at which journeys are entered
    num_removals: int = 8  # the first queries, for each region
    count: int = 50  # images that are left out
    num_random: int = 4  # random removals of as many, for all of these queries
    num_continuations: int = 8  # of each query
    candidates: dict[str, float] = field(default_factory=dict)  # the hyper-parameter of a method that has several
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
            require_box(f"{where}.regions.{name}", region)
        paired = self.paired_steps
        require(len(set(paired)) == len(paired) > 0, f"{where}.paired_steps", paired, "a non-empty list, each once")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        kept = f"among sampling.steps={sampling.steps}"
        require(set(self.paired_steps) <= set(sampling.steps), f"{where}.paired_steps", self.paired_steps, kept)
        require(self.step in sampling.steps, f"{where}.step", self.step, kept)
        require_count(f"{where}.num_removals", self.num_removals, least=2, most=sampling.num_queries)
        SEEN_BY.weights(f"evaluation={self.kind}")
        several = sampling.sampler is Sampler.ddpm or self.num_continuations == 1
        require(several, f"{where}.num_continuations", self.num_continuations, "1 with sampling.sampler=ddim: all are alike")

    def check_data(self, where: str, journeys: Sample, images: ImageSet) -> None:
        height, width = journeys.checkpoint.model.example_shape(images.images.shape[1:])[1:]
        for name, region in (self.regions or quarters(height, width)).items():
            require_inside(f"{where}.regions.{name}", region, height, width)
        subsets.require_removable(f"{where}.count", self.count, images.labels)

    # ------------------------------------------------------------------------------------------- what it needs

    def needs(self, recipes: Recipes, scores: dict[str, Score]) -> dict[str, object]:
        """scores: [method][region], the whole image first; outputs: [region][subset][seed]; full and random: how queries go on
        under the full model and without random images; removed: the same without a region's proponents, [region][query].

        Raises: ConfigError naming a method of which no region can be asked, or of which one hyper-parameter must be named.
        """
        regions = self._regions(recipes)
        by_method = {name: self._of_regions(name, score, recipes, regions) for name, score in scores.items()}
        first = next(iter(by_method))
        candidate = chosen(first, scores[first].method, self.candidates)
        queries, removed = tuple(range(self.num_removals)), {}
        for region, score in list(by_method[first].items())[1:]:
            keeps = [Without(score, candidate, self.step, query, self.count) for query in queries]
            removed[region] = tuple(self._removal(recipes, keep, (q,)) for keep, q in zip(keeps, queries, strict=True))
        by_chance = [WithoutRandom(index, self.count, recipes.seed) for index in range(self.num_random)]
        return {
            "scores": by_method,
            "outputs": {name: _on_subsets(recipes, region) for name, region in regions.items()},
            "full": self._removal(recipes, All(), queries),
            "removed": removed,
            "random": tuple(self._removal(recipes, keep, queries) for keep in by_chance),
        }

    def _regions(self, recipes: Recipes) -> dict[str, Region]:
        """By name; the whole image first."""
        height, width = recipes.model.example_shape(recipes.images.shape)[1:]
        named = self.regions or quarters(height, width)
        return {WHOLE: (), **{name: tuple(region) for name, region in named.items()}}

    def _of_regions(self, name: str, score: Score, recipes: Recipes, regions: dict[str, Region]) -> dict[str, Score]:
        """A method's scores of every region."""
        method = score.method
        chosen(name, method, self.candidates)
        asked = {region: method.within(box) for region, box in regions.items()}
        able = all(each is not None for each in asked.values())
        require(able, f"method.{name}", method.label, "one that can be asked about a region, such as journey or pixel")
        return {region: recipes.score(each) for region, each in asked.items()}

    def _removal(self, recipes: Recipes, keep: Keep, queries: tuple[int, ...]) -> Removal:
        model, seed = recipes.trained(0, keep), recipes.seed
        to_the_end, count = (self.step,), self.num_continuations
        ends = Continuations(model, recipes.journeys, self.step, to_the_end, queries, count, SEEN_BY, seed)
        named = [region for region in self._regions(recipes).values() if region]
        return Removal(ends, tuple(replace(recipes.measured(model, region), steps=(self.step,)) for region in named))

    # ---------------------------------------------------------------------------------------------- what it finds

    def judge(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        """Raises: ValueError if leaving images out changes nothing."""
        random = numpy_generator(spec.seed, "localization")
        num_queries, num_subsets = spec.journeys.num_queries, len(spec.needs["outputs"][WHOLE])
        query_weights = observed_first(num_queries, self.num_bootstrap, random)
        subset_weights = observed_first(num_subsets, self.num_bootstrap, random)
        removed_weights = observed_first(self.num_removals, self.num_bootstrap, random)
        first, outputs = next(iter(spec.scores)), spec.needs["outputs"]
        return {
            "num_train": spec.journeys.checkpoint.images.num_train,
            "num_queries": num_queries,
            "num_subsets": num_subsets,
            "num_seeds": len(outputs[WHOLE][0]),
            "draws": outputs[WHOLE][0][0].num_draws,
            "num_bootstrap": self.num_bootstrap,
            "steps": list(spec.steps),
            "paired_steps": list(self.paired_steps),
            "regions": {name: list(of[0][0].region) for name, of in outputs.items()},
            "removed": {**{name: vars(self)[name] for name in REMOVAL_SETTINGS}, "method": first},
            "candidates": settings(spec.scores, self.candidates),
            "rows": [
                *self._matrices(spec, workspace, query_weights, subset_weights),
                *self._removals(spec, workspace, removed_weights, first),
            ],
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

    def _matrices(
        self, spec: Evaluate, workspace: Workspace, query_weights: np.ndarray, subset_weights: np.ndarray
    ) -> list[rows.Row]:
        """LDS of every region's scores against every region's outputs, and how much more the diagonal has."""
        measured = np.stack(
            [_measured(of, workspace)[: len(spec.steps)] for of in spec.needs["outputs"].values()]
        )  # [R, S, Q, M]
        labels = train_images(spec.journeys.checkpoint.images, workspace).labels
        masks = np.stack([subsets.mask(labels, seeds[0].checkpoint.keep) for seeds in spec.needs["outputs"][WHOLE]])
        found, more = [], {"lds_locality": {}, "own_locality": {}}  # [B, S, Q], by method
        for method, of_regions in spec.needs["scores"].items():
            candidate = chosen(method, spec.scores[method].method, self.candidates)
            scores = [get(score, workspace).array("scores.npy")[candidate] for score in of_regions.values()]
            predicted = np.stack([locality.predicted(tau, masks, len(spec.steps)) for tau in scores])
            cells = locality.matrix(predicted, measured, subset_weights)  # [B, R, R, S, Q]
            names = list(of_regions)
            found += self._cells(cells, names, spec, query_weights, quantity="lds", method=method)
            more["lds_locality"][method] = locality.contrast(np.moveaxis(cells[:, 1:, 1:], (1, 2), (-2, -1)))
            cells = locality.matrix(locality.own(predicted[1:]), locality.own(measured[1:]), subset_weights)
            found += self._cells(cells, names[1:], spec, query_weights, quantity="own", method=method)
            more["own_locality"][method] = locality.contrast(np.moveaxis(cells, (1, 2), (-2, -1)))
        first = next(iter(spec.scores))
        for quantity, of_methods in more.items():
            for method, of in of_methods.items():
                found += self._steps(of, spec, query_weights, quantity=quantity, method=method)
                if method != first:
                    what = {"quantity": f"{quantity}_difference", "method": first, "against": method}
                    found += self._steps(of_methods[first] - of, spec, query_weights, **what)
        return found

    def _cells(
        self, cells: np.ndarray, names: list[str], spec: Evaluate, query_weights: np.ndarray, **what: str
    ) -> list[rows.Row]:
        """Every cell of a matrix [B, R, R, S, Q]: the mean of the paired steps."""
        paired = cells[:, :, :, self._paired(spec)].mean(3)
        found = []
        for r, s in np.ndindex(len(names), len(names)):
            of_targets = {PAIRED: interval(paired[:, r, s], query_weights)}
            found += rows.of_targets(of_targets, spec.steps, **what, scores=names[r], outputs=names[s])
        return found

    def _steps(self, of: np.ndarray, spec: Evaluate, query_weights: np.ndarray, **what: str) -> list[rows.Row]:
        """Of replicates [B, S, Q]: every step, and the mean of the paired ones."""
        paired = of[:, self._paired(spec)].mean(1)
        return rows.of_targets({STEP: interval(of, query_weights), PAIRED: interval(paired, query_weights)}, spec.steps, **what)

    def _paired(self, spec: Evaluate) -> list[int]:
        return [spec.steps.index(t) for t in self.paired_steps]

    def _removals(self, spec: Evaluate, workspace: Workspace, query_weights: np.ndarray, method: str) -> list[rows.Row]:
        """Where the change lies that leaving images out makes: in elements of where journeys end, and in the output."""
        full, removed = spec.needs["full"], spec.needs["removed"]
        names, boxes = list(removed), [m.region for m in full.outputs]
        changes, rises = zip(*(_joined([_changed(of, full, workspace) for of in removed[name]]) for name in names), strict=True)
        by_chance = [_changed(of, full, workspace) for of in spec.needs["random"]]
        change = np.stack([*changes, np.mean([square for square, _ in by_chance], 0)])  # [left out R + 1, Q, …]; random last
        rise = np.stack([*rises, np.mean([rise for _, rise in by_chance], 0)])  # [left out R + 1, R, Q]
        share = np.moveaxis(locality.shares(change, boxes), -1, 1)

        found: list[rows.Row] = []

        def state(values: np.ndarray, **what: str) -> None:
            of_removal = {"removal": query_interval(values, query_weights)}
            found.extend(rows.of_targets(of_removal, [], **what, method=method, step=self.step))

        for out, left_out in enumerate([*names, RANDOM]):
            state(change[out].reshape(self.num_removals, -1).mean(1), quantity="change", removed=left_out)
            for s, region in enumerate(names):
                state(share[out, s], quantity="share", removed=left_out, outputs=region)
                state(rise[out, s], quantity="rise", removed=left_out, outputs=region)
        for quantity, of in (("share", share), ("rise", rise)):
            inside = of[range(len(names)), range(len(names))]  # [R, Q]
            for against, otherwise in {OTHERS: locality.beside(of[:-1]), RANDOM: of[-1]}.items():
                for region, more in zip([*names, ALL], [*(inside - otherwise), (inside - otherwise).mean(0)], strict=True):
                    state(more, quantity=f"{quantity}_more", against=against, outputs=region)
        return found

    # ------------------------------------------------------------------------------------------ how it is shown

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        return result["candidates"][method]

    def headline(self, result: dict) -> list[rows.Row]:
        return rows.select(result["rows"], quantity="own_locality", target=PAIRED)

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.localization import figures

        return figures.tables(result)

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.localization import figures

        return {
            "localization.png": figures.matrices(result),
            "locality_by_step.png": figures.by_step(result),
            "removal.png": figures.removal(result),
        }


def _on_subsets(recipes: Recipes, region: Region) -> tuple[tuple[Measure, ...], ...]:
    """The outputs of all subset models in a region. [subset][seed]"""
    of, found = recipes.retraining, []
    for index in range(of.num_subsets):
        models = [recipes.trained(repeat, recipes.subset(index)) for repeat in range(of.num_seeds)]
        found.append(tuple(recipes.measured(model, region) for model in models))
    return tuple(found)


def _output(measured: Measure, workspace: Workspace) -> np.ndarray:
    """By all draws. [steps + destination, Q]"""
    return get(measured, workspace).array("outputs.npy").mean(0)


def _measured(of_subsets: tuple[tuple[Measure, ...], ...], workspace: Workspace) -> np.ndarray:
    """The mean over seeds of the outputs of all subset models. [steps + destination, Q, M]"""
    return np.stack([np.mean([_output(m, workspace) for m in seeds], 0) for seeds in of_subsets], -1)


def _changed(of: Removal, full: Removal, workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """Of the queries of a removal: the squared change of where they end, mean over continuations with the same noise, [Q', …],
    and the rise of the output of every region as a share of it, [R, Q'].
    """
    queries = list(of.ends.queries)
    before, after = (get(each.ends, workspace).array("final.npy")[0].astype(np.float64) for each in (full, of))
    was, now = (np.stack([_output(m, workspace)[0] for m in each.outputs])[:, queries] for each in (full, of))
    return np.square(after - before[queries]).mean(1), now / was - 1


def _joined(of_queries: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """What changed for one query each, as for several."""
    changes, rises = zip(*of_queries, strict=True)
    return np.concatenate(changes), np.concatenate(rises, 1)
