"""What pictures look like, in numbers. Pictures in −1…1, [..., C, H, W]; a number for each, [...].

ink         mean intensity, 0…1
slant       how far a stroke leans to the right for each row that it rises: minus the shear of the intensity's second moments
symmetry    correlation of a picture with its mirror image, left to right
red, green, blue, saturation  means over the picture, 0…1; saturation as in HSV


When something is decided along a journey: curves over the steps, [..., S], t falling.

S  steps;  Q  queries;  n  continuations of each from each step;  f  a number of what a continuation ends in
way  of a rising curve, from its first value to its last: 0 at the first step, 1 at the last


What an evaluation of emergence states: what continuations show, when that is decided, and whether attributions know of it.

S  steps;  Q  queries;  n  continuations;  B  bootstrap replicates, the observed value first
"""

import numpy as np

from journey.attribution.targets import STEP
from journey.diffusion.trajectories import decode_pictures
from journey.engine.seeding import numpy_generator
from journey.engine.workspace import Workspace, get
from journey.evaluation import rows, statistics
from journey.evaluation.classifiers import Classifiers
from journey.pipeline.interfaces import Continuations, Sample, Score


def appearance_numbers(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """What can be said of pictures of one channel, or of three. Raises: ValueError of others."""
    intensity = (pictures.astype(np.float64) + 1) / 2
    match pictures.shape[-3]:
        case 1:
            grey = intensity[..., 0, :, :]
            return {"ink": grey.mean((-2, -1)), "slant": slant(grey), "symmetry": symmetry(grey)}
        case 3:
            means = np.moveaxis(intensity.mean((-2, -1)), -1, 0)
            return {
                **dict(zip(("red", "green", "blue"), means, strict=True)),
                "saturation": saturation(intensity),
            }
        case other:
            raise ValueError(f"pictures have {other} channels: must be 1 or 3")


def slant(intensity: np.ndarray) -> np.ndarray:
    """−μ_xy / μ_yy of intensity [..., H, W], y downwards; 0 where there is none, or all of it is in one row.

    >>> slant(np.eye(4)[::-1])
    np.float64(1.0)
    """
    height, width = intensity.shape[-2:]
    y, x = np.mgrid[:height, :width]
    mass = intensity.sum((-2, -1))
    share = _ratio(intensity, mass[..., None, None])
    dx, dy = (axis - (share * axis).sum((-2, -1), keepdims=True) for axis in (x, y))
    return -_ratio((share * dx * dy).sum((-2, -1)), (share * dy * dy).sum((-2, -1)))


def symmetry(intensity: np.ndarray) -> np.ndarray:
    """Pearson correlation of pixels [..., H, W] with those of the mirror image; 1 where all are alike."""
    centred = intensity - intensity.mean((-2, -1), keepdims=True)
    variance = np.square(centred).mean((-2, -1))
    return np.where(
        variance > 1e-12, _ratio((centred * centred[..., ::-1]).mean((-2, -1)), variance), 1.0
    )


def saturation(intensity: np.ndarray) -> np.ndarray:
    """Mean over pixels of (max − min) / max of red, green and blue [..., 3, H, W]; 0 of black."""
    most, least = intensity.max(-3), intensity.min(-3)
    return _ratio(most - least, most).mean((-2, -1))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is nothing."""
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.zeros(a.shape), where=np.abs(b) > 1e-12)[()]


FLAT = 1e-9  # a curve that rises by less has gone no way


def monotone(curves: np.ndarray) -> np.ndarray:
    """The rising curves that are nearest in squares (isotonic regression), in closed form: at each step, the largest, over the
    steps where a block may begin, of the smallest mean of a block that holds the step (Barlow et al. 1972, Section 1.2).

    >>> monotone(np.array([0.0, 2.0, 1.0, 4.0]))
    array([0. , 1.5, 1.5, 4. ])
    """
    num = curves.shape[-1]
    rising = np.full(curves.shape, -np.inf)
    for first in range(num):
        means = curves[..., first:].cumsum(-1) / np.arange(
            1, num - first + 1
        )  # of the blocks that begin here
        smallest = np.minimum.accumulate(means[..., ::-1], -1)[
            ..., ::-1
        ]  # of those that hold each step
        rising[..., first:] = np.maximum(rising[..., first:], smallest)
    return rising


def crossing(rising: np.ndarray, steps: np.ndarray, share: float) -> np.ndarray:
    """The t at which rising curves have gone a share of their way, linear between steps; NaN of a flat one. [...]

    >>> crossing(np.array([0.1, 0.1, 0.5, 0.9]), np.array([400, 300, 200, 100]), 0.25)
    np.float64(250.0)
    """
    level = rising[..., 0] + share * (rising[..., -1] - rising[..., 0])
    after = np.maximum(1, (rising >= level[..., None]).argmax(-1))
    low, high = (np.take_along_axis(rising, at[..., None], -1)[..., 0] for at in (after - 1, after))
    flat = rising[..., -1] - rising[..., 0] < FLAT
    part = np.where(flat, np.nan, (level - low) / np.where(flat, 1, high - low))
    return steps[after - 1] + part * (steps[after] - steps[after - 1])


def width(rising: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """How many timesteps rising curves take from 25% to 75% of their way. [...]"""
    return crossing(rising, steps, 0.25) - crossing(rising, steps, 0.75)


def steepest(rising: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The middle of the two neighbouring steps between which rising curves rise most for each timestep. [...]

    >>> steepest(np.array([0.0, 0.1, 0.2, 0.9]), np.array([400, 200, 100, 20]))
    np.float64(60.0)
    """
    at = (np.diff(rising) / -np.diff(steps)).argmax(-1)
    return (steps[at] + steps[at + 1]) / 2


def decided(f: np.ndarray, query_weights: np.ndarray) -> np.ndarray:
    """The share of the variance of f that x_t has decided, 1 − E[Var(f | x_t)] / Var(f). f: [S, Q, n] → [B, S]

    query_weights: how often each replicate holds each query, [B, Q]. Var(f) is the same whatever step it is taken at, and is
    taken where it is known best, at the first: E[Var(f | x_t)] there, and the variance over queries of E[f | x_t], of which
    the n continuations leave a part that is subtracted.
    """
    num_queries, count = f.shape[1:]
    share = query_weights / query_weights.sum(1, keepdims=True)
    undecided = np.einsum("sq,bq->bs", f.var(-1, ddof=1), share)
    means = f[0].mean(-1)  # [Q]
    centred = means - (share @ means)[:, None]
    between = (share * centred**2).sum(1) * num_queries / (num_queries - 1) - undecided[
        :, 0
    ] / count
    return 1 - undecided / (undecided[:, 0] + np.maximum(0, between))[:, None]


def centre(curves: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The mean t under curves that are nowhere negative, linear between steps; NaN where they are zero. [...]

    >>> centre(np.array([0.0, 1.0, 0.0]), np.array([300, 200, 100]))
    np.float64(200.0)
    """
    mass, moment = (-np.trapezoid(of, steps, axis=-1) for of in (curves, curves * steps))
    return np.divide(moment, mass, out=np.full(mass.shape, np.nan), where=mass > FLAT)[()]


RISE, CENTRE = "rise", "centre"  # two ways to say where the attributions of a class are strongest


CURVE = "mean_curve"


LEAST_RELATED = 4  # queries that a rank correlation is over


PerQuery = dict[
    str, np.ndarray
]  # of each classifier or number, by its name: an array with an axis of queries


class Resampled:
    """One draw of bootstrap weights for everything, [1 + B, Q], and what is shuffled against."""

    def __init__(self, num_queries: int, num_bootstrap: int, seed: int) -> None:
        self.random = numpy_generator(seed, "emergence")
        self.weights = statistics.bootstrap_with_observed(num_queries, num_bootstrap, self.random)

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
        ends, null = statistics.rank_correlation(a[both], b[both], weights[held], self.random)
        return [
            rows.make_row(what, *ends)
            | {"null_low": null[0], "null_high": null[1], "num_queries": int(both.sum())}
        ]


def observe_continuations(
    continued: tuple[Continuations, ...],
    by: Classifiers,
    trajectories: Sample,
    workspace: Workspace,
) -> tuple[PerQuery, PerQuery]:
    """What each classifier says of the continuations, and what they look like. Each [S, Q, n]"""
    said, looks = [], []
    for of in continued:
        made = get(of, workspace)
        examples, features = (made.array(f"{name}.npy")[0, :, 1:] for name in ("final", "features"))
        pictures = decode_pictures(
            examples.reshape(-1, *examples.shape[2:]), trajectories, workspace
        )
        pictures = pictures.reshape(*examples.shape[:2], *pictures.shape[1:])  # [Q, n, C, H, W]
        said.append(by.labels(pictures, features))
        looks.append(appearance_numbers(pictures))
    return _stacked(said), _stacked(looks)


def _stacked(of_steps: list[PerQuery]) -> PerQuery:
    return {name: np.stack([of_step[name] for of_step in of_steps]) for name in of_steps[0]}


def middle_candidate(score: Score, workspace: Workspace) -> np.ndarray:
    """Of a method's hyper-parameters, those in the middle of the candidates: no judge chooses here. [S, Q, N]"""
    scores = get(score, workspace).array("scores.npy")
    return scores[len(scores) // 2]


def classifier_rows(
    by: Classifiers, said: PerQuery, drawn: Resampled, steps: np.ndarray
) -> list[rows.Row]:
    """How far the classifiers can be trusted: on held-out images, and how often they agree, there and on continuations."""
    held_out = {"target": "held_out"}
    found = [
        rows.make_row(
            {"quantity": "accuracy", "method": name, **held_out},
            *statistics.share_interval(share, by.num_held_out),
        )
        for name, share in by.accuracy.items()
    ]
    agreement = {"quantity": "agreement", "method": " and ".join(said)}
    found.append(
        rows.make_row(
            agreement | held_out, *statistics.share_interval(by.agreement, by.num_held_out)
        )
    )
    first, second = said.values()
    agreed = drawn.mean((first == second).mean(-1))  # [1 + B, S]
    return found + step_rows(agreed, steps, **agreement)


def halfway(shares: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The t at which the rising curve of each query has gone half of its way: shares [S, Q] → [Q]; NaN where it does not rise."""
    return crossing(monotone(shares.T), steps, 0.5)


def classes_emerge(
    said: PerQuery, own: PerQuery, drawn: Resampled, steps: np.ndarray
) -> list[rows.Row]:
    """P(a query's own class | x_t) by each classifier; how long it takes, on average, in a single query; and how well the step at
    which it emerges is known, from one half of the continuations to the other.
    """
    found = []
    for name, labels in said.items():
        right = labels == own[name][:, None]  # [S, Q, n]
        shares = right.mean(-1)
        found += _curve(drawn.mean(shares), steps, quantity="probability", method=name)
        widths = width(monotone(shares.T), steps)
        found += number_row(drawn.mean(widths), quantity="width", method=name, target="query")
        halves = [halfway(right[..., half::2].mean(-1), steps) for half in (0, 1)]
        found += drawn.related(
            *halves, quantity="reliability", method=name, target="halves of the continuations"
        )
    return found


def looks_emerge(looks: PerQuery, drawn: Resampled, steps: np.ndarray) -> list[rows.Row]:
    """The share of the variance of every number that x_t has decided."""
    found = []
    for name, f in looks.items():
        found += _curve(decided(f, drawn.weights), steps, quantity="decided", method=name)
    return found


def _curve(replicates: np.ndarray, steps: np.ndarray, **what: str) -> list[rows.Row]:
    """A curve [1 + B, S], and where and how long its nearest rising one rises."""
    rising = monotone(replicates)
    landmarks = {
        "steepest": steepest(rising, steps),
        "halfway": crossing(rising, steps, 0.5),
        "width": width(rising, steps),
    }
    found = step_rows(replicates, steps, **what)
    for quantity, values in landmarks.items():
        found += number_row(values, **what | {"quantity": quantity, "target": CURVE})
    return found


def by_class(
    said: np.ndarray, own: np.ndarray, names: tuple[str, ...]
) -> dict[str, dict[str, object]]:
    """P(class | x_t) of the queries that end in each class. said: [S, Q, n]"""
    found = {}
    for label in np.unique(own):
        of_class = (said[:, own == label] == label).mean((1, 2))
        found[names[label]] = {"num_queries": int((own == label).sum()), "curve": of_class.tolist()}
    return found


def strongest_steps(shares: np.ndarray, base: np.ndarray, steps: np.ndarray) -> PerQuery:
    """Where the share of a query's class among its top is strongest, in two ways: the t at which it has risen halfway, and the
    mean t of what it is above the base rate. shares: [S, Q], base: [Q] → [Q]
    """
    return {RISE: halfway(shares, steps), CENTRE: centre(np.maximum(0, shares - base).T, steps)}


def prediction_rows(
    method: str, emerges: PerQuery, strongest: dict[str, PerQuery], drawn: Resampled
) -> list[rows.Row]:
    """Whether the step at which a class emerges predicts where its attributions are strongest."""
    found = []
    for name, ways in strongest.items():
        for way, at in ways.items():
            found += drawn.related(
                emerges[name], at, quantity="predicts", method=method, by=name, target=way
            )
    return found


def step_rows(replicates: np.ndarray, steps: np.ndarray, **what: str) -> list[rows.Row]:
    return rows.rows_of_targets(
        {STEP: statistics.percentiles(replicates)}, [int(t) for t in steps], **what
    )


def number_row(replicates: np.ndarray, **what: str) -> list[rows.Row]:
    """One number [1 + B]; none where it is not there, such as the middle of a curve that does not rise."""
    if not np.isfinite(replicates[0]):
        return []
    return [rows.make_row(what, *statistics.percentiles(replicates[np.isfinite(replicates)]))]


def as_list(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
