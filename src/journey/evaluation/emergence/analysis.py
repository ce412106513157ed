"""When properties of the final sample are determined along the trajectory.

    S  steps, t falling;  Q  queries;  n  continuations of each query from each step
    B  bootstrap replicates over queries; arrays begin with the observed value, [1 + B, …]
    f  a statistic of the appearance of an image

Landmarks of a curve over the steps are those of the nearest non-decreasing curve, which rises from
0% at the first step to 100% at the last.
"""

import numpy as np

from journey.attribution.targets import STEP
from journey.data.parts import FAMILIES, read_parts
from journey.diffusion.trajectories import decode_pictures
from journey.engine.seeding import numpy_generator
from journey.engine.workspace import Workspace, get
from journey.evaluation import statistics
from journey.evaluation.classifiers import Classifiers
from journey.evaluation.ranking import base_rate, class_share
from journey.evaluation.rows import Row, make_row, rows_of_targets
from journey.pipeline.images import ImageSet, as_pixels
from journey.pipeline.interfaces import Continuations, Sample

FLAT = 1e-9  # a curve that rises by less is flat
MEAN_CURVE = "mean_curve"
HALFWAY, CENTRE = "halfway", "centre"  # definitions of the step where scores are strongest

MEAN_OF_STEPS, SEEN, UNSEEN = "mean_of_steps", "seen", "unseen"  # all queries, or some of them
NUM_READ = 100  # held-out portraits on which the reading of parts is tested

ByName = dict[str, np.ndarray]  # an array for each classifier, family of parts or statistic


class PartsReader:
    """Reads the parts of portraits from their pixels; a family takes the place of a classifier."""

    def __init__(self, new_heads: bool) -> None:
        self.new_heads = new_heads

    def labels(self, pictures: np.ndarray, features: np.ndarray | None = None) -> ByName:
        """Return the variants in pictures in −1…1 [..., C, H, W] by family, [...]."""
        shape = pictures.shape[:-3]
        pixels = (np.clip(pictures, -1, 1) + 1) / 2
        parts, _ = read_parts(pixels.reshape(-1, *pictures.shape[-3:]), self.new_heads)
        return {name: of.reshape(shape) for name, of in zip(FAMILIES, parts.T, strict=True)}

    def accuracy_rows(self, held_out: ImageSet, parts: np.ndarray) -> list[Row]:
        """Return rows of the share of held-out portraits whose parts [N, 6] are read correctly."""
        read = self.labels(np.asarray(as_pixels(held_out.images[:NUM_READ])))
        rows = []
        for (name, variants), expected in zip(read.items(), parts[:NUM_READ].T, strict=True):
            conditions = {"quantity": "accuracy", "method": name, "target": "held_out"}
            share = float((variants == expected).mean())
            rows.append(make_row(conditions, *statistics.share_interval(share, len(variants))))
        return rows


def appearance(pictures: np.ndarray) -> ByName:
    """Compute statistics of how pictures look.

    ink         mean intensity, 0…1
    slant       how far a stroke leans to the right per row that it rises: −μ_xy / μ_yy with the
                second moments of the intensity, y downwards
    symmetry    Pearson correlation of the pixels with those of the mirror image
    red, green, blue, saturation  means over the picture, 0…1; saturation as in HSV

    Args:
        pictures: Pixels in −1…1, [..., C, H, W].

    Returns:
        The first three of one channel, or the last four of three channels, float64 [...].

    Raises:
        ValueError: The pictures have neither one nor three channels.
    """
    intensity = (pictures.astype(np.float64) + 1) / 2
    channels, height, width = pictures.shape[-3:]
    if channels == 3:
        red, green, blue = np.moveaxis(intensity.mean((-2, -1)), -1, 0)
        most, least = intensity.max(-3), intensity.min(-3)
        saturation = _ratio(most - least, most).mean((-2, -1))
        return {"red": red, "green": green, "blue": blue, "saturation": saturation}
    if channels != 1:
        raise ValueError(f"pictures have {channels} channels: must be 1 or 3")
    grey = intensity[..., 0, :, :]

    # Slant: 0 of an image without ink, or with ink in one row only.
    y, x = np.mgrid[:height, :width]
    mass = _ratio(grey, grey.sum((-2, -1))[..., None, None])
    dx = x - (mass * x).sum((-2, -1), keepdims=True)
    dy = y - (mass * y).sum((-2, -1), keepdims=True)
    slant = -_ratio((mass * dx * dy).sum((-2, -1)), (mass * dy * dy).sum((-2, -1)))

    # Symmetry: 1 of a constant image.
    centred = grey - grey.mean((-2, -1), keepdims=True)
    variance = np.square(centred).mean((-2, -1))
    correlation = _ratio((centred * centred[..., ::-1]).mean((-2, -1)), variance)
    symmetry = np.where(variance > 1e-12, correlation, 1.0)
    return {"ink": grey.mean((-2, -1)), "slant": slant, "symmetry": symmetry}


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b, and 0 where b is zero."""
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.zeros(a.shape), where=np.abs(b) > 1e-12)[()]


def monotone(curves: np.ndarray) -> np.ndarray:
    """Return the non-decreasing curves that are nearest in squared distance. [..., S]

    Isotonic regression in closed form (Barlow et al. 1972, Section 1.2): at each step, the maximum
    over beginnings of blocks of the minimum mean of a block that contains the step.

    >>> monotone(np.array([0.0, 2.0, 1.0, 4.0]))
    array([0. , 1.5, 1.5, 4. ])
    """
    num_steps = curves.shape[-1]
    rising = np.full(curves.shape, -np.inf)
    for first in range(num_steps):
        means = curves[..., first:].cumsum(-1) / np.arange(1, num_steps - first + 1)
        smallest = np.minimum.accumulate(means[..., ::-1], -1)[..., ::-1]
        rising[..., first:] = np.maximum(rising[..., first:], smallest)
    return rising


def crossing(rising: np.ndarray, steps: np.ndarray, share: float) -> np.ndarray:
    """Return the t at which non-decreasing curves [..., S] have made a share of their rise. [...]

    Curves are linear between steps. NaN: the curve is flat.

    >>> crossing(np.array([0.1, 0.1, 0.5, 0.9]), np.array([400, 300, 200, 100]), 0.25)
    np.float64(250.0)
    """
    level = rising[..., 0] + share * (rising[..., -1] - rising[..., 0])
    after = np.maximum(1, (rising >= level[..., None]).argmax(-1))
    low = np.take_along_axis(rising, (after - 1)[..., None], -1)[..., 0]
    high = np.take_along_axis(rising, after[..., None], -1)[..., 0]
    flat = rising[..., -1] - rising[..., 0] < FLAT
    part = np.where(flat, np.nan, (level - low) / np.where(flat, 1, high - low))
    return steps[after - 1] + part * (steps[after] - steps[after - 1])


def halfway(shares: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the t at which the curve of each query [S, Q] has risen halfway, or NaN. [Q]"""
    return crossing(monotone(shares.T), steps, 0.5)


def width(rising: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return how many timesteps non-decreasing curves take from 25% to 75% of their rise. [...]"""
    return crossing(rising, steps, 0.25) - crossing(rising, steps, 0.75)


def steepest(rising: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the middle of the two adjacent steps between which curves are steepest. [...]

    >>> steepest(np.array([0.0, 0.1, 0.2, 0.9]), np.array([400, 200, 100, 20]))
    np.float64(60.0)
    """
    first = (np.diff(rising) / -np.diff(steps)).argmax(-1)
    return (steps[first] + steps[first + 1]) / 2


def centre(curves: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the mean t under non-negative curves, linear between steps; NaN where 0. [...]

    >>> centre(np.array([0.0, 1.0, 0.0]), np.array([300, 200, 100]))
    np.float64(200.0)
    """
    mass = -np.trapezoid(curves, steps, axis=-1)
    moment = -np.trapezoid(curves * steps, steps, axis=-1)
    return np.divide(moment, mass, out=np.full(mass.shape, np.nan), where=mass > FLAT)[()]


def explained_variance(f: np.ndarray, query_weights: np.ndarray) -> np.ndarray:
    """Estimate the share of the variance of f that x_t explains, 1 − E[Var(f | x_t)] / Var(f).

    Var(f) does not depend on the step. It is estimated at the first one, as E[Var(f | x_t)] plus
    the variance over queries of E[f | x_t], less the part of it that is due to the finite n.

    Args:
        f: The statistic of each continuation, [S, Q, n].
        query_weights: How often each replicate contains each query, [1 + B, Q].

    Returns:
        The share, [1 + B, S].
    """
    num_queries, count = f.shape[1:]
    share = query_weights / query_weights.sum(1, keepdims=True)
    within = np.einsum("sq,bq->bs", f.var(-1, ddof=1), share)
    means = f[0].mean(-1)  # [Q]
    centred = means - (share @ means)[:, None]
    between = (share * centred**2).sum(1) * num_queries / (num_queries - 1) - within[:, 0] / count
    return 1 - within / (within[:, 0] + np.maximum(0, between))[:, None]


def attribution_steps(shares: np.ndarray, base: np.ndarray, steps: np.ndarray) -> ByName:
    """Return the t at which the share of the query's class in the top is strongest, or NaN. [Q]

    Args:
        shares: Share of the query's class among the images that are ranked first, [S, Q].
        base: Its share among all training images, [Q].
        steps: t of each step, [S].

    Returns:
        By definition: where the share has risen halfway, and the centre of its excess.
    """
    excess = np.maximum(0, shares - base)
    return {HALFWAY: halfway(shares, steps), CENTRE: centre(excess.T, steps)}


def observe_continuations(
    continuations: tuple[Continuations, ...],
    classifiers: Classifiers | PartsReader,
    trajectories: Sample,
    workspace: Workspace,
) -> tuple[ByName, ByName]:
    """Return labels, by classifier or family, and appearance of the continuations. [S, Q, n]

    The first continuation of each query is excluded: it has the noise of the trajectory itself.
    """
    labels: dict[str, list[np.ndarray]] = {}
    looks: dict[str, list[np.ndarray]] = {}
    for spec in continuations:
        artifact = get(spec, workspace)
        examples = artifact.array("final.npy")[0, :, 1:]
        features = examples[..., :0]  # parts are read without an encoder
        if spec.encoder is not None:
            features = artifact.array("features.npy")[0, :, 1:]
        flat = examples.reshape(-1, *examples.shape[2:])
        pictures = decode_pictures(flat, trajectories, workspace)
        pictures = pictures.reshape(*examples.shape[:2], *pictures.shape[1:])  # [Q, n, C, H, W]
        for name, values in classifiers.labels(pictures, features).items():
            labels.setdefault(name, []).append(values)
        for name, values in appearance(pictures).items():
            looks.setdefault(name, []).append(values)
    return (
        {name: np.stack(values) for name, values in labels.items()},
        {name: np.stack(values) for name, values in looks.items()},
    )


class Bootstrap:
    """Bootstrap weights over queries, shared by all numbers of a result, [1 + B, Q]."""

    def __init__(self, num_queries: int, num_replicates: int, seed: int) -> None:
        self.random = numpy_generator(seed, "emergence")
        self.weights = statistics.bootstrap_with_observed(num_queries, num_replicates, self.random)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean over queries, the last axis, in every replicate. [1 + B, …]"""
        return statistics.mean_over_queries(values, self.weights)

    def correlation_rows(self, a: np.ndarray, b: np.ndarray, **conditions: str) -> list[Row]:
        """Return a row of the rank correlation of a and b [Q], with its null: shuffled queries.

        Queries where either is NaN are excluded. If too few are left, there is no row.
        """
        valid = np.isfinite(a) & np.isfinite(b)
        if valid.sum() < statistics.MIN_OBSERVATIONS:
            return []
        weights = self.weights[:, valid]
        weights = weights[weights.sum(1) > 0]
        ends, null = statistics.rank_correlation(a[valid], b[valid], weights, self.random)
        counts = {"null_low": null[0], "null_high": null[1], "num_queries": int(valid.sum())}
        return [make_row(conditions, *ends) | counts]


def classifier_rows(
    classifiers: Classifiers, labels: ByName, bootstrap: Bootstrap, steps: np.ndarray
) -> list[Row]:
    """Return rows of accuracy and agreement on held-out images, and agreement on continuations."""
    rows, count = [], classifiers.num_held_out
    for name, accuracy in classifiers.accuracy.items():
        conditions = {"quantity": "accuracy", "method": name, "target": "held_out"}
        rows.append(make_row(conditions, *statistics.share_interval(accuracy, count)))
    conditions = {"quantity": "agreement", "method": " and ".join(labels)}
    agreement = statistics.share_interval(classifiers.agreement, count)
    rows.append(make_row(conditions | {"target": "held_out"}, *agreement))
    first, second = labels.values()
    return rows + step_rows(bootstrap.mean((first == second).mean(-1)), steps, **conditions)


def class_rows(correct: ByName, bootstrap: Bootstrap, steps: np.ndarray) -> list[Row]:
    """Return rows of P(class of the final sample | x_t) and of when it rises in a single query.

    `correct` says which continuations have that class, by classifier, [S, Q, n].
    """
    rows = []
    for name, hits in correct.items():
        shares = hits.mean(-1)
        rows += curve_rows(bootstrap.mean(shares), steps, quantity="probability", method=name)
        widths = bootstrap.mean(width(monotone(shares.T), steps))
        rows += scalar_rows(widths, quantity="width", method=name, target="query")
        a, b = (halfway(hits[..., half::2].mean(-1), steps) for half in (0, 1))
        conditions = {"quantity": "reliability", "method": name, "target": "split_halves"}
        rows += bootstrap.correlation_rows(a, b, **conditions)
    return rows


def curve_rows(replicates: np.ndarray, steps: np.ndarray, **conditions: str) -> list[Row]:
    """Return rows of a curve over the steps [1 + B, S], and of its landmarks."""
    rising = monotone(replicates)
    landmarks = {
        "steepest": steepest(rising, steps),
        "halfway": crossing(rising, steps, 0.5),
        "width": width(rising, steps),
    }
    rows = step_rows(replicates, steps, **conditions)
    for quantity, values in landmarks.items():
        rows += scalar_rows(values, **conditions | {"quantity": quantity, "target": MEAN_CURVE})
    return rows


def step_rows(replicates: np.ndarray, steps: np.ndarray, **conditions: str) -> list[Row]:
    """Return a row for each step, of replicates [1 + B, S]."""
    intervals = {STEP: statistics.percentiles(replicates)}
    return rows_of_targets(intervals, [int(t) for t in steps], **conditions)


def scalar_rows(replicates: np.ndarray, **conditions: str) -> list[Row]:
    """Return a row of one number [1 + B]; none if it is NaN, as landmarks of flat curves are."""
    if not np.isfinite(replicates[0]):
        return []
    return [make_row(conditions, *statistics.percentiles(replicates[np.isfinite(replicates)]))]


def ranking_rows(
    top: np.ndarray,
    train_labels: np.ndarray,
    labels: np.ndarray,
    bootstrap: Bootstrap,
    steps: np.ndarray,
    conditions: dict[str, str],
    unseen: np.ndarray | None = None,
) -> list[Row]:
    """Return rows of how many images that are ranked first have the feature of a query.

    class_share  their share (precision)
    recall       their number, relative to all training images with the feature
    excess       the share minus its mean for the features of other queries: permuted queries

    Args:
        top: Training images that are ranked first. [S, Q, k]
        train_labels: The feature of each training image. [N]
        labels: The feature of each query. [Q]
        bootstrap: The replicates.
        steps: t of each step. [S]
        conditions: What identifies the rows.
        unseen: Whether a query's composition is in no training image, if that is known. [Q]
    """
    share = class_share(top, train_labels, labels)  # [S, Q]
    having = base_rate(train_labels, labels) * len(train_labels)
    recall = np.divide(share * top.shape[-1], having, out=np.zeros_like(share), where=having > 0)
    others = np.zeros(share.shape)
    for shift in range(1, len(labels)):
        others += class_share(top, train_labels, np.roll(labels, shift)) / (len(labels) - 1)
    rows = []
    for quantity, values in {"class_share": share, "recall": recall}.items():
        rows += step_rows(bootstrap.mean(values), steps, quantity=quantity, **conditions)
    excess = share - others
    conditions = conditions | {"quantity": "excess"}
    rows += step_rows(bootstrap.mean(excess), steps, **conditions)
    rows += scalar_rows(bootstrap.mean(excess.mean(0)), **conditions, target=MEAN_OF_STEPS)
    if unseen is not None:
        for target, queries in ((SEEN, ~unseen), (UNSEEN, unseen)):
            if queries.sum() >= statistics.MIN_OBSERVATIONS:
                of_some = np.where(queries, excess.mean(0), np.nan)
                rows += scalar_rows(bootstrap.mean(of_some), **conditions, target=target)
    return rows


def prediction_rows(
    method: str, emergence: ByName, strongest: dict[str, ByName], bootstrap: Bootstrap
) -> list[Row]:
    """Return rank correlations over queries of where classes emerge and where scores are strongest.

    Args:
        method: The method that made the scores.
        emergence: t where the class of each query emerges, by classifier, [Q].
        strongest: t where its scores are strongest, by classifier and definition, [Q].
        bootstrap: The replicates.
    """
    rows = []
    for name, definitions in strongest.items():
        for definition, at in definitions.items():
            conditions = {"quantity": "step_correlation", "method": method, "classifier": name}
            rows += bootstrap.correlation_rows(emergence[name], at, **conditions, target=definition)
    return rows
