"""Do scores of a region predict its output, and does removing its proponents change that region?"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from journey.attribution.targets import PAIRED_STEPS, subset_masks
from journey.engine.checks import (
    ConfigError,
    require,
    require_count,
    require_region_inside,
    require_regions,
)
from journey.engine.seeding import numpy_generator
from journey.engine.spec import describe
from journey.engine.workspace import Workspace, get
from journey.evaluation.localization import analysis
from journey.evaluation.localization.analysis import ALL, OTHERS, RANDOM, WHOLE
from journey.evaluation.ranking import candidate_index, candidate_settings
from journey.evaluation.rows import Row, select
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
    Result,
    Sample,
    Score,
    Subset,
    WithoutRandom,
    WithoutTop,
)
from journey.pipeline.settings import Sampler, Sampling

RESERVED = {WHOLE, RANDOM, OTHERS, ALL}  # names that no region may have


@dataclass(frozen=True)
class Removal:
    """Continuations of some queries by a model without some images, and its outputs in regions."""

    continuations: Continuations
    outputs: tuple[Measure, ...]  # [region]


@dataclass(frozen=True)
class LocalizationInputs(Inputs):
    """The artifacts that the result of `localization` is computed from."""

    scores: dict[str, dict[str, Score]]  # [method][region]; the whole image first
    outputs: dict[str, tuple[tuple[Measure, ...], ...]]  # [region][subset][training seed]
    reference: Removal  # the full model
    removed: dict[str, tuple[Removal, ...]]  # [region][query]: without the region's proponents
    random: tuple[Removal, ...]  # without random images


@dataclass
class Localization(Evaluation):
    """Scores of regions, with one hyper-parameter per method; proponents are the first method's."""

    name: ClassVar[str] = "localization"
    show: ClassVar[str] = "journey.evaluation.localization.show"
    regions: dict[str, list[int]] = field(default_factory=dict)  # boxes by name; {}: the quarters
    paired_steps: list[int] = field(default_factory=lambda: [600, 500, 400, 300])  # of the matrices
    step: int = 300  # t: whose proponents are removed, and where trajectories are continued
    num_removals: int = 8  # the first queries, for each region
    count: int = 50  # images in each removal
    num_random: int = 4  # random removals of as many images, shared by these queries
    num_continuations: int = 8  # of each query
    candidates: dict[str, float] = field(default_factory=dict)  # of methods with several candidates
    num_bootstrap: int = 1000  # replicates of the bootstrap

    def check(self, where: str) -> None:
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        require_count(f"{where}.num_removals", self.num_removals, least=2)  # for an interval
        for name in ("count", "num_random", "num_continuations"):
            require_count(f"{where}.{name}", getattr(self, name))
        valid = len(self.regions) != 1 and not RESERVED & self.regions.keys()
        reserved = ", ".join(sorted(RESERVED))
        allowed = f"two regions or more, none called {reserved}; or none, for the quarters"
        require(valid, f"{where}.regions", self.regions, allowed)
        for name, region in self.regions.items():
            require_regions(f"{where}.regions.{name}", region)
        paired = self.paired_steps
        distinct = len(set(paired)) == len(paired) > 0
        require(distinct, f"{where}.paired_steps", paired, "a non-empty list without repetitions")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        paired, allowed = self.paired_steps, f"among sampling.steps={sampling.steps}"
        require(set(paired) <= set(sampling.steps), f"{where}.paired_steps", paired, allowed)
        require(self.step in sampling.steps, f"{where}.step", self.step, allowed)
        most = sampling.num_queries
        require_count(f"{where}.num_removals", self.num_removals, least=2, most=most)
        count = self.num_continuations
        allowed = "1 with sampling.sampler=ddim, whose continuations are all the same"
        differ = sampling.sampler is Sampler.ddpm or count == 1
        require(differ, f"{where}.num_continuations", count, allowed)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        height, width = trajectories.checkpoint.model.example_shape(images.images.shape[1:])[1:]
        for name, region in (self.regions or quarters(height, width)).items():
            label, num_queries = f"{where}.regions.{name}", trajectories.num_queries
            require_region_inside(label, region, height, width, num_queries)
        subsets.require_removable(f"{where}.count", self.count, images.labels)

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> LocalizationInputs:
        height, width = experiment.model.example_shape(experiment.images.shape)[1:]
        regions: dict[str, Region] = {WHOLE: ()}
        for region, box in (self.regions or quarters(height, width)).items():
            regions[region] = tuple(box)

        # Scores of every region by every method.
        by_method: dict[str, dict[str, Score]] = {}
        for name, score in scores.items():
            candidate_index(name, score.method, self.candidates)  # refuses an ambiguous one
            by_method[name] = {}
            for region, box in regions.items():
                method = score.method.restricted_to(box)
                if method is None:
                    allowed = "one that can attribute a region, such as journey or pixel"
                    raise ConfigError(f"method.{name}={score.method.label}: must be {allowed}")
                by_method[name][region] = experiment.scores(method)

        # Models without the proponents of a region, by the first method, and without random images.
        def removal(subset: Subset, queries: tuple[int, ...]) -> Removal:
            model = experiment.retrained(subset)
            continuations = experiment.continuations(
                model, self.step, queries, self.num_continuations, None
            )
            measures = []
            for box in list(regions.values())[1:]:
                measures.append(replace(experiment.outputs(model, box), steps=(self.step,)))
            return Removal(continuations, tuple(measures))

        first, queries = next(iter(by_method)), tuple(range(self.num_removals))
        candidate = candidate_index(first, scores[first].method, self.candidates)
        removed = {}
        for region, score in list(by_method[first].items())[1:]:
            removed[region] = tuple(
                removal(WithoutTop(score, candidate, self.step, q, self.count), (q,))
                for q in queries
            )
        random = []
        for index in range(self.num_random):
            random.append(removal(WithoutRandom(index, self.count, experiment.seed), queries))
        reference = removal(FullData(), queries)
        outputs = {region: experiment.subset_outputs(box) for region, box in regions.items()}
        return LocalizationInputs(by_method, outputs, reference, removed, tuple(random))

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> Result:
        inputs = spec.inputs_as(LocalizationInputs)
        trajectories, first = spec.trajectories, next(iter(spec.scores))
        images, subset_outputs = trajectories.checkpoint.images, inputs.outputs[WHOLE]
        num_queries, num_subsets = trajectories.num_queries, len(subset_outputs)
        random = numpy_generator(spec.seed, "localization")
        query_weights, subset_weights, removal_weights = (
            bootstrap_with_observed(size, self.num_bootstrap, random)
            for size in (num_queries, num_subsets, self.num_removals)
        )

        # LDS of the scores of every region against the outputs of every region.
        masks = subset_masks([seeds[0] for seeds in subset_outputs], workspace)
        of_regions = []
        for by_subset in inputs.outputs.values():
            means = []
            for seeds in by_subset:
                means.append(np.mean([_outputs(measure, workspace) for measure in seeds], 0))
            of_regions.append(np.stack(means, -1)[: len(spec.steps)])
        outputs = np.stack(of_regions)  # [R, S, Q, M]
        predictions = {}
        for method, by_region in inputs.scores.items():
            candidate = candidate_index(method, spec.scores[method].method, self.candidates)
            of_method = []
            for score in by_region.values():
                scores = get(score, workspace).array("scores.npy")[candidate]
                of_method.append(analysis.predicted_outputs(scores, masks, len(spec.steps)))
            predictions[method] = np.stack(of_method)
        names, weights = list(inputs.outputs), (subset_weights, query_weights)
        rows = analysis.prediction_rows(
            predictions, outputs, names, *weights, spec.steps, self.paired_steps
        )

        # Changes by removals of each region's proponents, and by random ones.
        changes, rises = [], []
        for removals in inputs.removed.values():
            pairs = [_changes(removal, inputs.reference, workspace) for removal in removals]
            changes.append(np.concatenate([change for change, _ in pairs]))
            rises.append(np.concatenate([rise for _, rise in pairs], 1))
        pairs = [_changes(removal, inputs.reference, workspace) for removal in inputs.random]
        changes.append(np.mean([change for change, _ in pairs], 0))
        rises.append(np.mean([rise for _, rise in pairs], 0))
        regions = {name: by_subset[0][0].region for name, by_subset in inputs.outputs.items()}
        rows += analysis.removal_rows(
            np.stack(changes),
            np.stack(rises),
            {name: regions[name] for name in names[1:]},
            removal_weights,
            {"method": first, "step": self.step},
        )
        settings = ("step", "num_removals", "count", "num_random", "num_continuations")
        return {
            "num_train": images.num_train,
            "num_queries": num_queries,
            "num_subsets": num_subsets,
            "num_seeds": len(subset_outputs[0]),
            "num_samples": subset_outputs[0][0].num_samples,
            "num_bootstrap": self.num_bootstrap,
            "steps": list(spec.steps),
            "paired_steps": list(self.paired_steps),
            "regions": {name: list(region) for name, region in regions.items()},
            "removal": {name: getattr(self, name) for name in settings} | {"method": first},
            "candidates": candidate_settings(spec.scores, self.candidates),
            "rows": rows,
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        return result["candidates"][method]

    def headline(self, result: dict) -> list[Row]:
        return select(result["rows"], quantity="region_centred_locality", target=PAIRED_STEPS)


def _outputs(measure: Measure, workspace: Workspace) -> np.ndarray:
    """Return outputs, by all noise samples. [steps + final sample, Q]"""
    return get(measure, workspace).array("outputs.npy").mean(0)


def _changes(
    removal: Removal, reference: Removal, workspace: Workspace
) -> tuple[np.ndarray, np.ndarray]:
    """Return the effect of a removal on its queries.

    It is the squared change of the final samples, a mean over continuations with the same noise,
    [Q', …]; and the relative rise of the output of every region, [R, Q'].
    """
    queries = list(removal.continuations.queries)
    samples, outputs = [], []
    for model in (reference, removal):
        final = get(model.continuations, workspace).array("final.npy")[0]
        samples.append(final.astype(np.float64))
        measures = [_outputs(measure, workspace)[0] for measure in model.outputs]
        outputs.append(np.stack(measures)[:, queries])
    return np.square(samples[1] - samples[0][queries]).mean(1), outputs[1] / outputs[0] - 1
