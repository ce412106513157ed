"""How far x̂0_t is from E[x_0 | x_t], of which continuations from x_t are draws.

m  mean of n draws;  all squared distances are means over elements, of each query, [Q]


Along a journey: how much attributions of one step are those of another, and what x̂0_t, which steps are asked by, is worth.

x̂0_t stands in for E[x_0 | x_t], and is compared with the mean of continuations from x_t. What it means for attributions is in the
LDS of methods that differ in what they ask (`vary.query_example=[mean,continuation,noisy]`), all judged by the outputs of x̂0_t.
"""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey.attribution.baselines import Embeddings, Encoder
from journey.attribution.targets import STEP
from journey.data.images import train_images
from journey.engine.checks import require, require_count
from journey.engine.seeding import numpy_generator
from journey.engine.workspace import Workspace, get
from journey.evaluation import rows, statistics
from journey.evaluation.lds import LDS
from journey.evaluation.ranking import (
    base_rate,
    class_share,
    rank_correlations,
    top_images,
    top_overlap,
)
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    Continuations,
    Evaluate,
    Evaluation,
    Experiment,
    Inputs,
    Model,
    Sample,
    Score,
)
from journey.pipeline.settings import Sampler, Sampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


def estimate_distances(
    x0_hat: np.ndarray, draws: np.ndarray, final: np.ndarray
) -> dict[str, np.ndarray]:
    """x0_hat and final [Q, …], draws [Q, n, …]. Unbiased, whatever n:

    spread       Var(x_0 | x_t): of what is undecided
    monte_carlo  spread / n: what m is from E[x_0 | x_t], and has been taken off both of the next
    estimate_to_mean  ‖x̂0_t − E[x_0 | x_t]‖² = E‖x̂0_t − m‖² − spread / n
    mean_to_final  ‖E[x_0 | x_t] − x_0‖², of the final example x_0, which is a draw too and none of the n: spread, if averaged
    estimate_to_final  ‖x̂0_t − x_0‖²: estimate_to_mean + spread, if averaged
    """
    num_samples, elements = draws.shape[1], tuple(range(1, final.ndim))
    draws, x0_hat, final = (of.astype(np.float64) for of in (draws, x0_hat, final))
    mean, spread = draws.mean(1), draws.var(1, ddof=1).mean(elements)

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(a - b).mean(elements)

    monte_carlo = spread / num_samples
    return {
        "estimate_to_mean": squared(x0_hat, mean) - monte_carlo,
        "monte_carlo": monte_carlo,
        "spread": spread,
        "mean_to_final": squared(mean, final) - monte_carlo,
        "estimate_to_final": squared(x0_hat, final),
    }


CLASSES_BY = "pixels"  # which of the classifiers says what a final image shows


@dataclass(frozen=True)
class PathInputs(Inputs):
    """What the result of `path` are computed from."""

    continuations: tuple[Continuations, ...]  # [step]
    embeddings: Embeddings  # what the classifiers are trained on
    lds: Evaluate  # the LDS of the same scores


@dataclass
class AlongPath(Evaluation):
    name: ClassVar[str] = "path"
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
        require(
            random,
            "sampling.sampler",
            sampling.sampler.value,
            "ddpm: others go on from x_t in one way only",
        )
        require(
            len(sampling.steps) >= 2,
            "sampling.steps",
            sampling.steps,
            "at least 2 steps, which are compared",
        )
        self.encoder.weights(f"{where}.encoder")
        self.lds.check_run(f"{where}.lds", sampling, model)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        classes, num_train = len(np.unique(images.labels)), len(images)
        require(
            classes > 1,
            "dataset",
            f"images of {classes} class",
            "of two or more, which classifiers can tell apart",
        )
        require(
            self.top_k < num_train,
            f"{where}.top_k",
            self.top_k,
            f"less than the {num_train} training images",
        )

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> PathInputs:
        """continued: [step]; embedded: what the classifiers learn from; judged: the LDS of the same scores."""
        continued = tuple(
            experiment.own_continuations(t, self.num_continuations) for t in experiment.steps
        )
        embedded = Embeddings(experiment.images, self.encoder)
        return PathInputs(
            continuations=continued,
            embeddings=embedded,
            lds=experiment.evaluation_of(self.lds, scores),
        )

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        from journey.evaluation import classifiers

        random = numpy_generator(spec.seed, "path")
        weights = statistics.bootstrap_with_observed(
            spec.trajectories.num_queries, self.num_bootstrap, random
        )

        # LDS, and which hyper-parameters it chose.
        lds = json.loads(
            (get(spec.inputs_as(PathInputs).lds, workspace).path / "result.json").read_text()
        )

        # What each method says at one step and at another.
        train = train_images(spec.trajectories.checkpoint.images, workspace)
        embedded: Embeddings = spec.inputs_as(PathInputs).embeddings
        by = classifiers.train_classifiers(embedded, workspace)
        classes = classifiers.classify_final_samples(by, embedded, spec.trajectories, workspace)[
            CLASSES_BY
        ]  # [Q]
        found = _base(base_rate(train.labels, classes), weights)
        for method, score in spec.scores.items():
            if score.shape[1] > 1:  # it scores steps
                chosen = score.method.candidates().index(self.lds.chosen(lds, method))
                scores = get(score, workspace).array("scores.npy")[chosen]  # [S, Q, N]
                found += _ranks(method, scores, weights, spec.steps)
                found += _tops(
                    method,
                    top_images(scores, self.top_k),
                    train.labels,
                    classes,
                    weights,
                    spec.steps,
                )

        # What x̂0_t is worth.
        found += self._distances(spec, weights, workspace)
        return {
            "num_train": len(train),
            "num_queries": spec.trajectories.num_queries,
            "num_continuations": self.num_continuations,
            "num_bootstrap": self.num_bootstrap,
            "top_k": self.top_k,
            "accuracy": by.accuracy[
                CLASSES_BY
            ],  # held out, of what says the classes of final images
            "num_held_out": by.num_held_out,
            **{key: value for key, value in lds.items() if key not in ("rows", "num_bootstrap")},
            "rows": found + lds["rows"],
        }

    def _distances(
        self, spec: Evaluate, weights: np.ndarray, workspace: Workspace
    ) -> list[rows.Row]:
        """Squared distances, for each step, means over queries."""
        from journey.diffusion.trajectories import continuation_samples, trajectory_at

        final = get(spec.trajectories, workspace).array("final.npy")
        x0_hats = trajectory_at("x0_hat", spec.trajectories, spec.steps, workspace).numpy()
        of_steps = []
        for x0_hat, of in zip(x0_hats, spec.inputs_as(PathInputs).continuations, strict=True):
            of_steps.append(estimate_distances(x0_hat, continuation_samples(of, workspace), final))
        found = []
        for name in of_steps[0]:
            means = statistics.mean_over_queries(
                np.stack([of_step[name] for of_step in of_steps]), weights
            )  # [1 + B, S]
            found += rows.rows_of_targets(
                {STEP: statistics.percentiles(means)}, spec.steps, quantity="distance", method=name
            )
        return found

    # ------------------------------------------------------------------------------------------ how it is shown

    def headline(self, result: dict) -> list[rows.Row]:
        return self.lds.headline(result)

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        return self.lds.chosen(result, method)

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.path.show import path_tables

        return [*path_tables(result), *self.lds.tables(result)]

    def texts(self, result: dict) -> dict[str, str]:
        return self.lds.texts(result)

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.path.show import (
            correlation_figure,
            distance_figure,
            query_example_figure,
            query_example_variants,
            top_figure,
        )

        pictures = {"distances.png": distance_figure(result)}
        if rows.method_names(result["rows"], "rank_correlation"):
            pictures |= {
                "path.png": correlation_figure(result),
                "proponents.png": top_figure(result),
            }
        if len(query_example_variants(result)) > 1:
            pictures["asked.png"] = query_example_figure(result)
        return pictures


def _base(base: np.ndarray, weights: np.ndarray) -> list[rows.Row]:
    ends = statistics.percentiles(statistics.mean_over_queries(base, weights))
    return [
        rows.make_row(
            {"quantity": "base_rate", "method": "all images", "target": "training images"}, *ends
        )
    ]


def _ranks(
    method: str, scores: np.ndarray, weights: np.ndarray, steps: tuple[int, ...]
) -> list[rows.Row]:
    """Rank correlation of every two steps, of a query with itself and with the others. scores: [S, Q, N]"""
    found = []
    names = ("rank_correlation", "rank_correlation_others")
    for quantity, rhos in zip(names, rank_correlations(scores), strict=True):
        for i, t in enumerate(steps):
            ends = statistics.percentiles(
                statistics.mean_over_queries(rhos[i, i:], weights)
            )  # each [S − i]
            what = {"quantity": quantity, "method": method, "target": STEP, "step": t}
            found += [
                rows.make_row(what | {"other_step": u}, *its)
                for u, *its in zip(steps[i:], *ends, strict=True)
            ]
    return found


def _tops(
    method: str,
    of_top: np.ndarray,
    labels: np.ndarray,
    classes: np.ndarray,
    weights: np.ndarray,
    steps: tuple[int, ...],
) -> list[rows.Row]:
    """What of the top is kept from the step before, and how much of it has the query's class. of_top: [S, Q, k]"""
    kept = statistics.percentiles(statistics.mean_over_queries(top_overlap(of_top), weights))
    share = statistics.mean_over_queries(class_share(of_top, labels, classes), weights)
    return [
        *rows.rows_of_targets({STEP: kept}, steps[1:], quantity="kept", method=method),
        *rows.rows_of_targets(
            {STEP: statistics.percentiles(share)}, steps, quantity="class_share", method=method
        ),
    ]
