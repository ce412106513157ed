"""What an evaluation of emergence states: what continuations show, when that is decided, and whether attributions know of it.

S  steps;  Q  queries;  n  continuations;  B  bootstrap replicates, the observed value first
"""

import numpy as np

from journey.artifacts.specs import Continuations, Sample, Score
from journey.artifacts.workspace import Workspace, get
from journey.attribution.targets import STEP
from journey.diffusion.pictures import decoded
from journey.evaluation import rows, statistics
from journey.evaluation.classifiers import Classifiers
from journey.evaluation.emergence import appearance, transitions
from journey.seeding import numpy_generator

RISE, CENTRE = "rise", "centre"  # two ways to say where the attributions of a class are strongest
CURVE = "mean_curve"
LEAST_RELATED = 4  # queries that a rank correlation is over

PerQuery = dict[str, np.ndarray]  # of each classifier or number, by its name: an array with an axis of queries


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


def seen(
    continued: tuple[Continuations, ...], by: Classifiers, journeys: Sample, workspace: Workspace
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


def middle(score: Score, workspace: Workspace) -> np.ndarray:
    """Of a method's hyper-parameters, those in the middle of the candidates: no judge chooses here. [S, Q, N]"""
    scores = get(score, workspace).array("scores.npy")
    return scores[len(scores) // 2]


def trusted(by: Classifiers, said: PerQuery, drawn: Resampled, steps: np.ndarray) -> list[rows.Row]:
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
    return found + of_steps(agreed, steps, **agreement)


# ------------------------------------------------------------------------------------------- when it is decided


def halfway(shares: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The t at which the rising curve of each query has gone half of its way: shares [S, Q] → [Q]; NaN where it does not rise."""
    return transitions.crossing(transitions.monotone(shares.T), steps, 0.5)


def classes_emerge(said: PerQuery, own: PerQuery, drawn: Resampled, steps: np.ndarray) -> list[rows.Row]:
    """P(a query's own class | x_t) by each classifier; how long it takes, on average, in a single query; and how well the step at
    which it emerges is known, from one half of the continuations to the other.
    """
    found = []
    for name, labels in said.items():
        right = labels == own[name][:, None]  # [S, Q, n]
        shares = right.mean(-1)
        found += _curve(drawn.mean(shares), steps, quantity="probability", method=name)
        widths = transitions.width(transitions.monotone(shares.T), steps)
        found += stated(drawn.mean(widths), quantity="width", method=name, target="query")
        halves = [halfway(right[..., half::2].mean(-1), steps) for half in (0, 1)]
        found += drawn.related(*halves, quantity="reliability", method=name, target="halves of the continuations")
    return found


def looks_emerge(looks: PerQuery, drawn: Resampled, steps: np.ndarray) -> list[rows.Row]:
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
    found = of_steps(replicates, steps, **what)
    for quantity, values in landmarks.items():
        found += stated(values, **what | {"quantity": quantity, "target": CURVE})
    return found


def by_class(said: np.ndarray, own: np.ndarray, names: tuple[str, ...]) -> dict[str, dict[str, object]]:
    """P(class | x_t) of the queries that end in each class. said: [S, Q, n]"""
    found = {}
    for label in np.unique(own):
        of_class = (said[:, own == label] == label).mean((1, 2))
        found[names[label]] = {"num_queries": int((own == label).sum()), "curve": of_class.tolist()}
    return found


# ------------------------------------------------------------------------------- whether attributions know of it


def strongest(shares: np.ndarray, base: np.ndarray, steps: np.ndarray) -> PerQuery:
    """Where the share of a query's class among its top is strongest, in two ways: the t at which it has risen halfway, and the
    mean t of what it is above the base rate. shares: [S, Q], base: [Q] → [Q]
    """
    return {RISE: halfway(shares, steps), CENTRE: transitions.centre(np.maximum(0, shares - base).T, steps)}


def predicted(method: str, emerges: PerQuery, strongest: dict[str, PerQuery], drawn: Resampled) -> list[rows.Row]:
    """Whether the step at which a class emerges predicts where its attributions are strongest."""
    found = []
    for name, ways in strongest.items():
        for way, at in ways.items():
            found += drawn.related(emerges[name], at, quantity="predicts", method=method, by=name, target=way)
    return found


# -------------------------------------------------------------------------------------------------------- rows


def of_steps(replicates: np.ndarray, steps: np.ndarray, **what: str) -> list[rows.Row]:
    return rows.of_targets({STEP: statistics.percentiles(replicates)}, [int(t) for t in steps], **what)


def stated(replicates: np.ndarray, **what: str) -> list[rows.Row]:
    """One number [1 + B]; none where it is not there, such as the middle of a curve that does not rise."""
    if not np.isfinite(replicates[0]):
        return []
    return [rows.row(what, *statistics.percentiles(replicates[np.isfinite(replicates)]))]


def listed(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
