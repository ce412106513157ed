"""When what a final image shows is decided: journeys are continued from each step, many times, and what they end in is looked at.

A query's class emerges where its share of the continuations rises. Whether attributions know of it is asked of every method that
scores steps: do the classes of the images it ranks first turn into that of the query where the class emerges?
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey import data
from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Continuations, Embedded, Evaluate, Sample, Score
from journey.artifacts.workspace import Workspace, get
from journey.attribution.methods.encoder import Encoder
from journey.attribution.targets import STEP
from journey.config.checks import require, require_count
from journey.config.contracts import Evaluation, Model
from journey.config.groups import Sampler, Sampling
from journey.data import ImageSet
from journey.diffusion.pictures import decoded
from journey.evaluation import proponents, rows, statistics
from journey.evaluation.emergence import appearance, transitions
from journey.seeding import numpy_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from journey.evaluation.classifiers import Classifiers

RISE, CENTRE = "rise", "centre"  # two ways to say where the attributions of a class are strongest
CURVE = "mean_curve"
LEAST_RELATED = 4  # queries that a rank correlation is over

PerQuery = dict[str, np.ndarray]  # of each classifier or number, by its name: an array with an axis of queries


@dataclass
class Emergence(Evaluation):
    kind: ClassVar[str] = "emergence"
    num_continuations: int = 64  # from each step, for each query, beside that of the journey itself
    encoder: Encoder = field(default_factory=lambda: Encoder(side=96))  # of the classifier of features
    top_k: int = 50  # training images whose classes are counted
    num_bootstrap: int = 2000

    def check(self, where: str) -> None:
        require_count(f"{where}.num_continuations", self.num_continuations, least=4, most=10_000)
        require_count(f"{where}.top_k", self.top_k)
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        self.encoder.check(f"{where}.encoder")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        random = sampling.sampler is Sampler.ddpm
        require(random, "sampling.sampler", sampling.sampler.value, "ddpm: others go on from x_t in one way only")
        require(len(sampling.steps) >= 3, "sampling.steps", sampling.steps, "at least 3 steps, of which a curve is made")
        self.encoder.weights(f"{where}.encoder")

    def check_data(self, where: str, journeys: Sample, images: ImageSet) -> None:
        classes, num_train = len(np.unique(images.labels)), len(images)
        require(classes > 1, "dataset", f"images of {classes} class", "of two or more, which classifiers can tell apart")
        require(self.top_k < num_train, f"{where}.top_k", self.top_k, f"less than the {num_train} training images")

    def needs(self, recipes: Recipes, scores: dict[str, Score]) -> dict[str, object]:
        """continued: [step]; embedded: what the classifiers learn from."""
        continued = tuple(recipes.continuations(t, self.num_continuations, self.encoder) for t in recipes.steps)
        return {"continued": continued, "embedded": Embedded(recipes.images, self.encoder)}

    def judge(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        from journey.evaluation import classifiers  # here: importing scikit-learn takes a while

        # What the final images show, and what continuations from each step do.
        embedded: Embedded = spec.needs["embedded"]
        by = classifiers.trained(embedded, workspace)
        own = classifiers.of_finals(by, embedded, spec.journeys, workspace)  # [Q]
        said, looks = _seen(spec.needs["continued"], by, spec.journeys, workspace)  # [S, Q, n]

        # When it is decided, and whether attributions know of it.
        steps, num_queries = np.array(spec.steps), spec.journeys.num_queries
        drawn = Resampled(num_queries, self.num_bootstrap, spec.seed)
        train = data.train_images(spec.journeys.checkpoint.images, workspace)
        emerges = {name: halfway((said[name] == own[name][:, None]).mean(-1), steps) for name in own}  # [Q]
        found = _trusted(by, said, drawn, steps) + _classes_emerge(said, own, drawn, steps) + _looks_emerge(looks, drawn, steps)
        bases = {name: proponents.base_rate(train.labels, own[name]) for name in own}  # [Q]
        for name, base in bases.items():
            found += _stated(drawn.mean(base), quantity="base_rate", method="all images", by=name, target="training images")
        strongest = {}
        for method, score in spec.scores.items():
            if score.shape[1] > 1:  # it scores steps
                of_top = proponents.top(_middle(score, workspace), self.top_k)
                shares = {name: proponents.class_share(of_top, train.labels, own[name]) for name in own}  # [S, Q]
                for name, share in shares.items():
                    found += _of_steps(drawn.mean(share), steps, quantity="class_share", method=method, by=name)
                strongest[method] = {name: _strongest(shares[name], bases[name], steps) for name in own}
                found += _predicted(method, emerges, strongest[method], drawn)
        return {
            "num_train": len(train),
            "num_queries": num_queries,
            "num_continuations": self.num_continuations,
            "num_bootstrap": self.num_bootstrap,
            "top_k": self.top_k,
            "steps": list(spec.steps),
            "rows": found,
            "queries": {
                "class": {name: [train.class_names[label] for label in labels] for name, labels in own.items()},
                "emerges": {name: _listed(where) for name, where in emerges.items()},
                "strongest": {
                    method: {name: {way: _listed(at) for way, at in ways.items()} for name, ways in of.items()}
                    for method, of in strongest.items()
                },
            },
            "classes": {name: _by_class(said[name], own[name], train.class_names) for name in own},
        }

    # ------------------------------------------------------------------------------------------ how it is shown

    def headline(self, result: dict) -> list[rows.Row]:
        return rows.select(result["rows"], quantity="predicts", target=RISE)

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.emergence import tables

        return tables.tables(result)

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.emergence import figures

        pictures = {"emergence.png": figures.emergence(result), "classes.png": figures.classes(result)}
        if result["queries"]["strongest"]:
            pictures["attribution.png"] = figures.attribution(result)
        return pictures


class Resampled:
    """One draw of bootstrap weights for everything, [1 + B, Q], and what is shuffled against."""

    def __init__(self, num_queries: int, num_bootstrap: int, seed: int) -> None:
        self.random = numpy_generator(seed, "emergence")
        self.weights = statistics.observed_first(num_queries, num_bootstrap, self.random)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Over queries, the last axis, in every replicate. [1 + B, …]"""
        return statistics.mean_over_queries(values, self.weights)

    def related(self, a: np.ndarray, b: np.ndarray, **what: str) -> list[rows.Row]:
        """The rank correlation of a and b [Q] over the queries that have both, with where it lies if queries are shuffled."""
        both = np.isfinite(a) & np.isfinite(b)
        if both.sum() < LEAST_RELATED:
            return []
        weights = self.weights[:, both]
        held = weights.sum(1) > 0
        ends, null = statistics.related(a[both], b[both], weights[held], self.random)
        return [rows.row(what, *ends) | {"null_low": null[0], "null_high": null[1], "num_queries": int(both.sum())}]


# ----------------------------------------------------------------------------------------------- what is seen


def _seen(
    continued: tuple[Continuations, ...], by: "Classifiers", journeys: Sample, workspace: Workspace
) -> tuple[PerQuery, PerQuery]:
    """What each classifier says of the continuations, and what they look like. Each [S, Q, n]"""
    said, looks = [], []
    for of in continued:
        made = get(of, workspace)
        examples, features = (made.array(f"{name}.npy")[0, :, 1:] for name in ("final", "features"))
        pictures = decoded(examples.reshape(-1, *examples.shape[2:]), journeys, workspace)
        pictures = pictures.reshape(*examples.shape[:2], *pictures.shape[1:])  # [Q, n, C, H, W]
        said.append(by.labels(pictures, features))
        looks.append(appearance.numbers(pictures))
    return _stacked(said), _stacked(looks)


def _stacked(of_steps: list[PerQuery]) -> PerQuery:
    return {name: np.stack([of_step[name] for of_step in of_steps]) for name in of_steps[0]}


def _middle(score: Score, workspace: Workspace) -> np.ndarray:
    """Of a method's hyper-parameters, those in the middle of the candidates: no judge chooses here. [S, Q, N]"""
    scores = get(score, workspace).array("scores.npy")
    return scores[len(scores) // 2]


def _trusted(by: "Classifiers", said: PerQuery, drawn: Resampled, steps: np.ndarray) -> list[rows.Row]:
    """How far the classifiers can be trusted: on held-out images, and how often they agree, there and on continuations."""
    held_out = {"target": "held_out"}
    found = [
        rows.row({"quantity": "accuracy", "method": name, **held_out}, *statistics.of_share(share, by.num_held_out))
        for name, share in by.accuracy.items()
    ]
    agreement = {"quantity": "agreement", "method": " and ".join(said)}
    found.append(rows.row(agreement | held_out, *statistics.of_share(by.agreement, by.num_held_out)))
    first, second = said.values()
    agreed = drawn.mean((first == second).mean(-1))  # [1 + B, S]
    return found + _of_steps(agreed, steps, **agreement)


# ------------------------------------------------------------------------------------------- when it is decided


def halfway(shares: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The t at which the rising curve of each query has gone half of its way: shares [S, Q] → [Q]; NaN where it does not rise."""
    return transitions.crossing(transitions.monotone(shares.T), steps, 0.5)


def _classes_emerge(said: PerQuery, own: PerQuery, drawn: Resampled, steps: np.ndarray) -> list[rows.Row]:
    """P(a query's own class | x_t) by each classifier; how long it takes, on average, in a single query; and how well the step at
    which it emerges is known, from one half of the continuations to the other.
    """
    found = []
    for name, labels in said.items():
        right = labels == own[name][:, None]  # [S, Q, n]
        shares = right.mean(-1)
        found += _curve(drawn.mean(shares), steps, quantity="probability", method=name)
        widths = transitions.width(transitions.monotone(shares.T), steps)
        found += _stated(drawn.mean(widths), quantity="width", method=name, target="query")
        halves = [halfway(right[..., half::2].mean(-1), steps) for half in (0, 1)]
        found += drawn.related(*halves, quantity="reliability", method=name, target="halves of the continuations")
    return found


def _looks_emerge(looks: PerQuery, drawn: Resampled, steps: np.ndarray) -> list[rows.Row]:
    """The share of the variance of every number that x_t has decided."""
    found = []
    for name, f in looks.items():
        found += _curve(transitions.decided(f, drawn.weights), steps, quantity="decided", method=name)
    return found


def _curve(replicates: np.ndarray, steps: np.ndarray, **what: str) -> list[rows.Row]:
    """A curve [1 + B, S], and where and how long its nearest rising one rises."""
    rising = transitions.monotone(replicates)
    landmarks = {
        "steepest": transitions.steepest(rising, steps),
        "halfway": transitions.crossing(rising, steps, 0.5),
        "width": transitions.width(rising, steps),
    }
    found = _of_steps(replicates, steps, **what)
    for quantity, values in landmarks.items():
        found += _stated(values, **what | {"quantity": quantity, "target": CURVE})
    return found


def _by_class(said: np.ndarray, own: np.ndarray, names: tuple[str, ...]) -> dict[str, dict[str, object]]:
    """P(class | x_t) of the queries that end in each class. said: [S, Q, n]"""
    found = {}
    for label in np.unique(own):
        of_class = (said[:, own == label] == label).mean((1, 2))
        found[names[label]] = {"num_queries": int((own == label).sum()), "curve": of_class.tolist()}
    return found


# ------------------------------------------------------------------------------- whether attributions know of it


def _strongest(shares: np.ndarray, base: np.ndarray, steps: np.ndarray) -> PerQuery:
    """Where the share of a query's class among its top is strongest, in two ways: the t at which it has risen halfway, and the
    mean t of what it is above the base rate. shares: [S, Q], base: [Q] → [Q]
    """
    return {RISE: halfway(shares, steps), CENTRE: transitions.centre(np.maximum(0, shares - base).T, steps)}


def _predicted(method: str, emerges: PerQuery, strongest: dict[str, PerQuery], drawn: Resampled) -> list[rows.Row]:
    """Whether the step at which a class emerges predicts where its attributions are strongest."""
    found = []
    for name, ways in strongest.items():
        for way, at in ways.items():
            found += drawn.related(emerges[name], at, quantity="predicts", method=method, by=name, target=way)
    return found


# -------------------------------------------------------------------------------------------------------- rows


def _of_steps(replicates: np.ndarray, steps: np.ndarray, **what: str) -> list[rows.Row]:
    return rows.of_targets({STEP: statistics.percentiles(replicates)}, [int(t) for t in steps], **what)


def _stated(replicates: np.ndarray, **what: str) -> list[rows.Row]:
    """One number [1 + B]; none where it is not there, such as the middle of a curve that does not rise."""
    if not np.isfinite(replicates[0]):
        return []
    return [rows.row(what, *statistics.percentiles(replicates[np.isfinite(replicates)]))]


def _listed(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
