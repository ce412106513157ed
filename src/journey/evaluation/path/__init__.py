"""How attributions change along the trajectory, and how far x̂0_t is from E[x_0 | x_t].

Queries are x̂0_t, which stands in for E[x_0 | x_t]; it is compared with the mean of continuations.
Its effect on attributions is the LDS of methods with other query examples
(`vary.query_example=[mean,continuation,noisy]`), all evaluated on the outputs of x̂0_t.

    S  steps;  Q  queries;  N  training images;  n  continuations of each query from each step
"""

import json
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from journey.attribution.baselines import Embeddings, Encoder
from journey.attribution.targets import STEP
from journey.data.images import train_images
from journey.engine.checks import require_count
from journey.engine.seeding import numpy_generator
from journey.engine.workspace import Workspace, get
from journey.evaluation.emergence import check_classes, check_continuations
from journey.evaluation.lds import LDS
from journey.evaluation.ranking import (
    base_rate,
    class_share,
    rank_correlations,
    top_images,
    top_overlap,
)
from journey.evaluation.rows import Row, make_row, rows_of_targets
from journey.evaluation.statistics import (
    bootstrap_with_observed,
    mean_over_queries,
    percentiles,
)
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    Continuations,
    Evaluate,
    Evaluation,
    Experiment,
    Inputs,
    Model,
    Result,
    Sample,
    Score,
)
from journey.pipeline.settings import Sampling

CLASSIFIER = "pixels"  # which of the classifiers labels the final samples


def estimate_distances(
    x0_hat: np.ndarray, samples: np.ndarray, final: np.ndarray
) -> dict[str, np.ndarray]:
    """Estimate squared distances between x̂0_t, E[x_0 | x_t] and the final sample, without bias.

    With m the mean of n samples, means over elements:

    spread            Var(x_0 | x_t)
    monte_carlo       spread / n = E‖m − E[x_0 | x_t]‖², which the next two subtract
    estimate_to_mean  ‖x̂0_t − E[x_0 | x_t]‖² = E‖x̂0_t − m‖² − spread / n
    mean_to_final     ‖E[x_0 | x_t] − x_0‖²; its expectation is the spread
    estimate_to_final ‖x̂0_t − x_0‖²; its expectation is estimate_to_mean + spread

    Args:
        x0_hat: x̂0_t, [Q, …].
        samples: Samples of x_0 given x_t, by continuations, [Q, n, …].
        final: The final sample x_0 of the trajectory, which is none of the n, [Q, …].

    Returns:
        The squared distances by name, float64 [Q].
    """
    elements = tuple(range(1, final.ndim))
    x0_hat, samples, final = (array.astype(np.float64) for array in (x0_hat, samples, final))
    mean, spread = samples.mean(1), samples.var(1, ddof=1).mean(elements)
    monte_carlo = spread / samples.shape[1]
    return {
        "estimate_to_mean": np.square(x0_hat - mean).mean(elements) - monte_carlo,
        "monte_carlo": monte_carlo,
        "spread": spread,
        "mean_to_final": np.square(mean - final).mean(elements) - monte_carlo,
        "estimate_to_final": np.square(x0_hat - final).mean(elements),
    }


@dataclass(frozen=True)
class PathInputs(Inputs):
    """The artifacts that the result of `path` is computed from."""

    continuations: tuple[Continuations, ...]  # [step]
    embeddings: Embeddings  # which the classifiers are trained on
    lds: Evaluate  # the LDS of the same scores


@dataclass
class AlongPath(Evaluation):
    """How attributions change along the trajectory, and what x̂0_t is an estimate of."""

    name: ClassVar[str] = "path"
    continues_trajectories: ClassVar[bool] = True
    show: ClassVar[str] = "journey.evaluation.path.show"
    num_continuations: int = 32  # of each query from each step, beside the trajectory itself
    encoder: Encoder = field(default_factory=lambda: Encoder(side=96))  # of the second classifier
    top_k: int = 50  # images that are ranked first
    num_bootstrap: int = 2000  # replicates of the bootstrap
    lds: LDS = field(default_factory=LDS)

    def check(self, where: str) -> None:
        require_count(f"{where}.num_continuations", self.num_continuations, least=2, most=10_000)
        require_count(f"{where}.top_k", self.top_k)
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        self.encoder.check(f"{where}.encoder")
        self.lds.check(f"{where}.lds")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        check_continuations(sampling, min_steps=2)
        self.encoder.weights(f"{where}.encoder")
        self.lds.check_run(f"{where}.lds", sampling, model)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        check_classes(where, self.top_k, images)

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> PathInputs:
        continuations = [
            experiment.own_continuations(t, self.num_continuations) for t in experiment.steps
        ]
        embeddings = Embeddings(experiment.images, self.encoder)
        return PathInputs(
            tuple(continuations), embeddings, experiment.evaluation_of(self.lds, scores)
        )

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> Result:
        from journey.diffusion.trajectories import continuation_samples, trajectory_at
        from journey.evaluation.classifiers import classify_final_samples, train_classifiers

        inputs, trajectories = spec.inputs_as(PathInputs), spec.trajectories
        random = numpy_generator(spec.seed, "path")
        weights = bootstrap_with_observed(trajectories.num_queries, self.num_bootstrap, random)
        lds = json.loads((get(inputs.lds, workspace).path / "result.json").read_text())

        # Classes of the final samples. [Q]
        train = train_images(trajectories.checkpoint.images, workspace)
        trained = train_classifiers(inputs.embeddings, workspace)
        labels = classify_final_samples(trained, inputs.embeddings, trajectories, workspace)
        classes = labels[CLASSIFIER]
        base = percentiles(mean_over_queries(base_rate(train.labels, classes), weights))
        conditions = {"quantity": "base_rate", "method": "all images", "target": "training images"}
        rows = [make_row(conditions, *base)]

        # How scores differ between steps, with the hyper-parameters that the LDS chose.
        for method, score in spec.scores.items():
            if score.shape[1] == 1:  # one score for all steps
                continue
            chosen = self.lds.chosen(lds, method) or {}
            candidate = score.method.candidates().index(chosen)
            scores = get(score, workspace).array("scores.npy")[candidate]  # [S, Q, N]
            rows += _correlation_rows(method, scores, weights, spec.steps)
            top = top_images(scores, self.top_k)  # [S, Q, k]
            overlap = percentiles(mean_over_queries(top_overlap(top), weights))
            rows += rows_of_targets(
                {STEP: overlap}, spec.steps[1:], quantity="top_overlap", method=method
            )
            shares = class_share(top, train.labels, classes)
            share = percentiles(mean_over_queries(shares, weights))
            rows += rows_of_targets(
                {STEP: share}, spec.steps, quantity="class_share", method=method
            )

        # How far x̂0_t is from E[x_0 | x_t].
        final = get(trajectories, workspace).array("final.npy")
        x0_hats = trajectory_at("x0_hat", trajectories, spec.steps, workspace).numpy()
        distances: dict[str, list[np.ndarray]] = {}
        for x0_hat, continuations in zip(x0_hats, inputs.continuations, strict=True):
            samples = continuation_samples(continuations, workspace)
            for name, values in estimate_distances(x0_hat, samples, final).items():
                distances.setdefault(name, []).append(values)
        for name, of_steps in distances.items():
            means = percentiles(mean_over_queries(np.stack(of_steps), weights))
            rows += rows_of_targets({STEP: means}, spec.steps, quantity="distance", method=name)

        return {
            "num_train": len(train),
            "num_queries": trajectories.num_queries,
            "num_continuations": self.num_continuations,
            "num_bootstrap": self.num_bootstrap,
            "top_k": self.top_k,
            "accuracy": trained.accuracy[CLASSIFIER],  # on held-out images
            "num_held_out": trained.num_held_out,
            **{key: value for key, value in lds.items() if key not in ("rows", "num_bootstrap")},
            "rows": rows + lds["rows"],
        }

    def headline(self, result: dict) -> list[Row]:
        return self.lds.headline(result)

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        return self.lds.chosen(result, method)


def _correlation_rows(
    method: str, scores: np.ndarray, weights: np.ndarray, steps: tuple[int, ...]
) -> list[Row]:
    """Return rank correlations of every two steps, of a query with itself and with the others."""
    rows = []
    names = ("rank_correlation", "rank_correlation_others")
    for quantity, rhos in zip(names, rank_correlations(scores), strict=True):
        for i, t in enumerate(steps):
            ends = percentiles(mean_over_queries(rhos[i, i:], weights))
            for u, *interval in zip(steps[i:], *ends, strict=True):
                pair: Row = {"quantity": quantity, "method": method, "target": STEP, "step": t}
                rows.append(make_row(pair | {"other_step": u}, *interval))
    return rows
