"""Along a journey: how much attributions of one step are those of another, and what x̂0_t, which steps are asked by, is worth.

x̂0_t stands in for E[x_0 | x_t], and is compared with the mean of continuations from x_t. What it means for attributions is in the
LDS of methods that differ in what they ask (`vary.asked=[mean,continuation,noisy]`), all judged by the outputs of x̂0_t.
"""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey import data
from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Embedded, Evaluate, Sample, Score
from journey.artifacts.workspace import Workspace, get
from journey.attribution.methods.encoder import Encoder
from journey.attribution.targets import STEP
from journey.config.checks import require, require_count
from journey.config.contracts import Evaluation, Model
from journey.config.groups import Sampler, Sampling
from journey.data import ImageSet
from journey.evaluation import proponents, rows, statistics
from journey.evaluation.lds.lds import LDS
from journey.evaluation.path.estimation import distances
from journey.seeding import numpy_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

CLASSES_BY = "pixels"  # which of the classifiers says what a final image shows


@dataclass
class AlongPath(Evaluation):
    kind: ClassVar[str] = "path"
    num_continuations: int = 32  # from each step, for each query, beside that of the journey itself
    encoder: Encoder = field(default_factory=lambda: Encoder(side=96))  # of the second classifier
    top_k: int = 50  # training images that are a method's top
    num_bootstrap: int = 2000
    lds: LDS = field(default_factory=LDS)

    def check(self, where: str) -> None:
        require_count(f"{where}.num_continuations", self.num_continuations, least=2, most=10_000)
        require_count(f"{where}.top_k", self.top_k)
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        self.encoder.check(f"{where}.encoder")
        self.lds.check(f"{where}.lds")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        random = sampling.sampler is Sampler.ddpm
        require(random, "sampling.sampler", sampling.sampler.value, "ddpm: others go on from x_t in one way only")
        require(len(sampling.steps) >= 2, "sampling.steps", sampling.steps, "at least 2 steps, which are compared")
        self.encoder.weights(f"{where}.encoder")
        self.lds.check_run(f"{where}.lds", sampling, model)

    def check_data(self, where: str, journeys: Sample, images: ImageSet) -> None:
        classes, num_train = len(np.unique(images.labels)), len(images)
        require(classes > 1, "dataset", f"images of {classes} class", "of two or more, which classifiers can tell apart")
        require(self.top_k < num_train, f"{where}.top_k", self.top_k, f"less than the {num_train} training images")

    def needs(self, recipes: Recipes, scores: dict[str, Score]) -> dict[str, object]:
        """continued: [step]; embedded: what the classifiers learn from; judged: the LDS of the same scores."""
        continued = tuple(recipes.continuations(t, self.num_continuations) for t in recipes.steps)
        embedded = Embedded(recipes.images, self.encoder)
        return {"continued": continued, "embedded": embedded, "judged": recipes.judged(self.lds, scores)}

    def judge(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        from journey.evaluation import classifiers  # here: importing scikit-learn takes a while

        random = numpy_generator(spec.seed, "path")
        weights = statistics.observed_first(spec.journeys.num_queries, self.num_bootstrap, random)

        # LDS, and which hyper-parameters it chose.
        lds = json.loads((get(spec.needs["judged"], workspace).path / "result.json").read_text())

        # What each method says at one step and at another.
        train = data.train_images(spec.journeys.checkpoint.images, workspace)
        embedded: Embedded = spec.needs["embedded"]
        by = classifiers.trained(embedded, workspace)
        classes = classifiers.of_finals(by, embedded, spec.journeys, workspace)[CLASSES_BY]  # [Q]
        found = _base(proponents.base_rate(train.labels, classes), weights)
        for method, score in spec.scores.items():
            if score.shape[1] > 1:  # it scores steps
                chosen = score.method.candidates().index(self.lds.chosen(lds, method))
                scores = get(score, workspace).array("scores.npy")[chosen]  # [S, Q, N]
                found += _ranks(method, scores, weights, spec.steps)
                found += _tops(method, proponents.top(scores, self.top_k), train.labels, classes, weights, spec.steps)

        # What x̂0_t is worth.
        found += self._distances(spec, weights, workspace)
        return {
            "num_train": len(train),
            "num_queries": spec.journeys.num_queries,
            "num_continuations": self.num_continuations,
            "num_bootstrap": self.num_bootstrap,
            "top_k": self.top_k,
            "accuracy": by.accuracy[CLASSES_BY],  # held out, of what says the classes of final images
            "num_held_out": by.num_held_out,
            **{key: value for key, value in lds.items() if key not in ("rows", "num_bootstrap")},
            "rows": found + lds["rows"],
        }

    def _distances(self, spec: Evaluate, weights: np.ndarray, workspace: Workspace) -> list[rows.Row]:
        """Squared distances, for each step, means over queries."""
        from journey.diffusion import journeys

        final = get(spec.journeys, workspace).array("final.npy")
        x0_hats = journeys.at_steps("x0_hat", spec.journeys, spec.steps, workspace).numpy()
        of_steps = []
        for x0_hat, of in zip(x0_hats, spec.needs["continued"], strict=True):
            of_steps.append(distances(x0_hat, journeys.continued(of, workspace), final))
        found = []
        for name in of_steps[0]:
            means = statistics.mean_over_queries(np.stack([of_step[name] for of_step in of_steps]), weights)  # [1 + B, S]
            found += rows.of_targets({STEP: statistics.percentiles(means)}, spec.steps, quantity="distance", method=name)
        return found

    # ------------------------------------------------------------------------------------------ how it is shown

    def headline(self, result: dict) -> list[rows.Row]:
        return self.lds.headline(result)

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        return self.lds.chosen(result, method)

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.path import tables

        return [*tables.tables(result), *self.lds.tables(result)]

    def texts(self, result: dict) -> dict[str, str]:
        return self.lds.texts(result)

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.path import figures

        pictures = {"distances.png": figures.distances(result)}
        if rows.names(result["rows"], "rank_correlation"):
            pictures |= {"path.png": figures.matrices(result), "proponents.png": figures.tops(result)}
        if len(figures.asked(result)) > 1:
            pictures["asked.png"] = figures.by_asked(result)
        return pictures


def _base(base: np.ndarray, weights: np.ndarray) -> list[rows.Row]:
    ends = statistics.percentiles(statistics.mean_over_queries(base, weights))
    return [rows.row({"quantity": "base_rate", "method": "all images", "target": "training images"}, *ends)]


def _ranks(method: str, scores: np.ndarray, weights: np.ndarray, steps: tuple[int, ...]) -> list[rows.Row]:
    """Rank correlation of every two steps, of a query with itself and with the others. scores: [S, Q, N]"""
    found = []
    names = ("rank_correlation", "rank_correlation_others")
    for quantity, rhos in zip(names, proponents.rank_correlations(scores), strict=True):
        for i, t in enumerate(steps):
            ends = statistics.percentiles(statistics.mean_over_queries(rhos[i, i:], weights))  # each [S − i]
            what = {"quantity": quantity, "method": method, "target": STEP, "step": t}
            found += [rows.row(what | {"other_step": u}, *its) for u, *its in zip(steps[i:], *ends, strict=True)]
    return found


def _tops(
    method: str, of_top: np.ndarray, labels: np.ndarray, classes: np.ndarray, weights: np.ndarray, steps: tuple[int, ...]
) -> list[rows.Row]:
    """What of the top is kept from the step before, and how much of it has the query's class. of_top: [S, Q, k]"""
    kept = statistics.percentiles(statistics.mean_over_queries(proponents.kept(of_top), weights))
    share = statistics.mean_over_queries(proponents.class_share(of_top, labels, classes), weights)
    return [
        *rows.of_targets({STEP: kept}, steps[1:], quantity="kept", method=method),
        *rows.of_targets({STEP: statistics.percentiles(share)}, steps, quantity="class_share", method=method),
    ]
