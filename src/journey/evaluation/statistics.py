"""Rank correlations under resampling, and intervals.

M  subsets, or other observations
Q  queries
B  bootstrap replicates; "[1 + B, …]" has the observed data first
w  number of times that a replicate holds each observation [B, M]
"""

import numpy as np

from journey.engine.seeding import numpy_generator

BLOCK = 2**22  # elements of the largest temporary array

NUM_TAU_BOOTSTRAP = 2000  # replicates of the interval of Kendall's τ

MIN_OBSERVATIONS = 4
"""Fewest queries or models whose mean has an interval. Student's quantile for three is 4.3 and for
two 12.7: an interval leaves the range of a cosine or a distance, and says nothing."""


def weighted_spearman(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Spearman's ρ of the rows of a and b [R, M] under the weights [B, M]. [B, R]

    It equals Spearman's ρ, with mean ranks for ties, after repeating each observation as often as
    its weight. ρ of a constant is 0.
    """
    num_rows, num_observations = a.shape
    size = max(1, BLOCK // (num_observations * max(len(weights), num_observations)))
    w = weights.astype(np.float64)
    blocks = []
    for first in range(0, num_rows, size):
        rows = slice(first, first + size)
        blocks.append(_weighted_correlation(a[rows], b[rows], w))
    return np.concatenate(blocks, 1)


def _weighted_correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted Pearson correlation of weighted mid-ranks. [B, R]"""
    w = weights[:, None]  # [B, 1, M]
    total = w.sum(-1)
    x, y = _weighted_ranks(a, weights), _weighted_ranks(b, weights)  # [B, R, M]
    x -= (w * x).sum(-1, keepdims=True) / total[..., None]
    y -= (w * y).sum(-1, keepdims=True) / total[..., None]
    covariance = (w * x * y).sum(-1)
    scale = np.sqrt((w * x * x).sum(-1) * (w * y * y).sum(-1))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-9 * total)


def _weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return mid-ranks: the weight of smaller values and half that of equal ones. [B, R, M]"""
    x, y = values[:, :, None], values[:, None, :]
    below = (y < x) + 0.5 * (y == x)  # [R, M, M]
    return np.einsum("rij,bj->bri", below, weights, optimize=True)


def spearman_derivatives(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Spearman's ρ of rows of a [C, R, M] and b [R, M], and its derivatives in weights.

    The derivatives are those of `weighted_spearman` at equal weights, where they sum to zero: the
    influence of each observation on ρ (infinitesimal jackknife, Efron 1982). To first order, a
    replicate with weights w has ρ + Σ_m (w_m − 1) derivative_m. ρ of a constant is 0, as are its
    derivatives.

    Returns:
        ρ [C, R] and the derivatives [C, R, M].
    """
    num_candidates, num_rows, num_observations = a.shape
    size = max(1, BLOCK // (num_candidates * num_observations**2))
    rho, derivatives = np.empty((num_candidates, num_rows)), np.empty(a.shape)
    for first in range(0, num_rows, size):
        rows = slice(first, first + size)
        rho[:, rows], derivatives[:, rows] = _correlation_derivatives(a[:, rows], b[rows])
    return rho, derivatives


def _correlation_derivatives(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ρ [C, R] and its derivatives [C, R, M] of rows that are one block."""
    # The sign of each pair, −1, 0 or 1, whose sums are twice the centred ranks. Sums of float32 are
    # exact here: multiples of 1/2 below 2²³ for fewer than 2,000 observations.
    signs_a, signs_b = _signs(a), _signs(b)  # [C, R, M, M], [R, M, M]
    x, y = -signs_a.sum(-1) / 2, -signs_b.sum(-1) / 2

    # A weight changes its own term of each sum of products, and the ranks of all above it.
    by_a = signs_a @ np.stack([x, np.broadcast_to(y, x.shape)], -1) / 2  # [C, R, M, 2]
    by_b = signs_b @ np.moveaxis(np.concatenate([x, y[None]]), 0, -1) / 2  # [R, M, C + 1]
    x_of_b, y_of_b = np.moveaxis(by_b, -1, 0)[:-1], by_b[..., -1]
    x, y = x.astype(np.float64), y.astype(np.float64)
    covariance = (x * y).sum(-1, keepdims=True)
    spread_x, spread_y = (x * x).sum(-1, keepdims=True), (y * y).sum(-1, keepdims=True)
    d_covariance = x * y + by_a[..., 1] + x_of_b
    d_spread_x, d_spread_y = x * x + 2 * by_a[..., 0], y * y + 2 * y_of_b

    constant = (spread_x == 0) | (spread_y == 0)
    spread_x, spread_y = np.where(spread_x == 0, 1, spread_x), np.where(spread_y == 0, 1, spread_y)
    scale = np.sqrt(spread_x * spread_y)
    rho = covariance / scale
    derivatives = d_covariance / scale - rho / 2 * (d_spread_x / spread_x + d_spread_y / spread_y)
    derivatives -= derivatives.mean(-1, keepdims=True)
    return rho[..., 0], np.where(constant, 0, derivatives)


def _signs(values: np.ndarray) -> np.ndarray:
    """Return the sign of value_j − value_i [..., i, j], float32, of values [..., M]."""
    return np.sign(values[..., None, :] - values[..., :, None]).astype(np.float32)


def bootstrap_weights(num: int, num_replicates: int, random: np.random.Generator) -> np.ndarray:
    """Return how often `num` draws with replacement hold each of `num` items. int [B, num]"""
    return random.multinomial(num, np.full(num, 1 / num), num_replicates)


def bootstrap_with_observed(
    num: int, num_replicates: int, random: np.random.Generator
) -> np.ndarray:
    """Return the observed data's weights, which are 1, and those of replicates. [1 + B, num]"""
    observed = np.ones((1, num), np.int64)
    return np.concatenate([observed, bootstrap_weights(num, num_replicates, random)])


def mean_over_queries(values: np.ndarray, query_weights: np.ndarray) -> np.ndarray:
    """Return the mean of values [..., Q] over queries that are not NaN, by replicate. [1 + B, …]"""
    is_number = np.isfinite(values)
    total = np.einsum("...q,bq->b...", np.where(is_number, values, 0.0), query_weights)
    count = np.einsum("...q,bq->b...", is_number.astype(np.float64), query_weights)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def percentiles(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the observed value and the 95% percentile interval of [1 + B, …] replicates."""
    low, high = np.percentile(replicates[1:], (2.5, 97.5), axis=0)
    return replicates[0], low, high


def rank_correlation(
    a: np.ndarray, b: np.ndarray, query_weights: np.ndarray, random: np.random.Generator
) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """Return Spearman's ρ over queries with its 95% bootstrap interval, and its null distribution.

    The central 95% of the null distribution are returned: of 1 + B random permutations of `b`.

    Args:
        a: A number of each query. [Q]
        b: Another. [Q]
        query_weights: Bootstrap weights. [1 + B, Q]
        random: Source of the permutations.
    """
    value, low, high = percentiles(weighted_spearman(a[None], b[None], query_weights)[:, 0])
    shuffled = random.permuted(np.broadcast_to(b, (len(query_weights), len(b))), axis=1)
    rhos = weighted_spearman(np.broadcast_to(a, shuffled.shape), shuffled, np.ones((1, len(a))))[0]
    null_low, null_high = np.percentile(rhos, (2.5, 97.5))
    return (float(value), float(low), float(high)), (float(null_low), float(null_high))


def kendall_tau(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Return Kendall's τ-b over methods of two means over queries, 0 of a constant.

    The 95% interval resamples queries; its ends are NaN for fewer than MIN_OBSERVATIONS.

    Args:
        a: A number of each method and query, or one for all queries. [method, Q] or [method, 1]
        b: Another of each method and query. [method, Q]
        seed: Seed of the bootstrap.
    """
    random, num_queries = numpy_generator(seed, "tau"), b.shape[1]
    resamples = random.integers(num_queries, size=(NUM_TAU_BOOTSTRAP, num_queries))
    replicates = np.concatenate([np.arange(num_queries)[None], resamples])  # [1 + B, Q]
    signs = []  # of the difference of every two methods [1 + B, method, method]
    for values in (np.broadcast_to(a, b.shape), b):
        means = values[:, replicates].mean(2).T
        signs.append(np.sign(means[:, :, None] - means[:, None]))
    concordant = (signs[0] * signs[1]).sum((1, 2))
    untied = np.sqrt(np.square(signs[0]).sum((1, 2)) * np.square(signs[1]).sum((1, 2)))
    taus = np.divide(concordant, untied, out=np.zeros_like(untied), where=untied > 0)
    value, low, high = map(float, percentiles(taus))
    if num_queries < MIN_OBSERVATIONS:
        low = high = float("nan")
    return value, low, high


def interval(
    replicates: np.ndarray, query_weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean over queries and its 95% interval over queries and subsets. […] each

    Resampling queries and subsets at once counts the variance of their interaction three times
    (Owen 2007). The bootstrap interval is therefore scaled to the variance

        V = V_queries + V_subsets − V_interaction.

    Ties in a resample lower a rank correlation. The interval is therefore measured from the mean of
    the replicates and placed around the observed value. The ends are NaN for fewer than
    MIN_OBSERVATIONS queries.

    Args:
        replicates: A statistic of each query under resampled subsets. [1 + B, …, Q]
        query_weights: Weights of the queries. [1 + B, Q]
    """
    from scipy import stats  # slow to import

    shares = query_weights / query_weights.sum(1, keepdims=True)
    means = np.einsum("b...q,bq->b...", replicates, shares)
    value, resampled = means[0], means[1:]
    if len(shares[0]) < MIN_OBSERVATIONS:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
    centre, deviation = resampled.mean(0), resampled.std(0)

    # The variance is estimated from few queries: Student's t instead of the normal distribution.
    widening = float(stats.t.ppf(0.975, len(shares[0]) - 1) / stats.norm.ppf(0.975))
    from_subsets, of_one_query = replicates[1:].mean(-1).var(0), replicates[1:].var(0).mean(-1)
    target = np.sqrt(variance_of_mean(replicates[0], from_subsets, of_one_query)) * widening
    factor = np.divide(target, deviation, out=np.ones_like(deviation), where=deviation > 0)
    return value, value + factor * (low - centre), value + factor * (high - centre)


def query_interval(
    values: np.ndarray, query_weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the `interval` of values [..., Q] that do not depend on subsets. […] each"""
    return interval(np.broadcast_to(values, (len(query_weights), *values.shape)), query_weights)


def variance_of_mean(
    values: np.ndarray, from_subsets: np.ndarray, of_one_query: np.ndarray
) -> np.ndarray:
    """Return the variance of the mean over queries: V_queries + V_subsets − V_interaction. […]

    Args:
        values: The statistic of each query. [..., Q]
        from_subsets: Variance of its mean over queries that subsets cause, V_subsets. […]
        of_one_query: Variance of one query's statistic that subsets cause, mean over queries. […]
    """
    num_queries = values.shape[-1]
    from_queries = values.var(-1, ddof=1) / num_queries
    covariance = (num_queries * from_subsets - of_one_query) / (num_queries - 1)  # of two queries
    interaction = np.maximum(0, of_one_query - covariance) / num_queries
    least = np.maximum(from_subsets, from_queries)
    return np.maximum(from_subsets + from_queries - interaction, least)


def query_mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of values [Q] and its 95% interval by Student's t."""
    return _student_interval(values.mean(), values.var(ddof=1) / len(values), len(values))


def models_and_queries_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of values [R, Q] of R models and its 95% interval over models and queries."""
    num_models, num_queries = values.shape
    from_queries = values.mean(0).var(ddof=1) / num_queries
    if num_models == 1:
        return _student_interval(values.mean(), from_queries, num_queries)
    from_models = values.mean(1).var(ddof=1) / num_models
    residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    df = max(1, (num_models - 1) * (num_queries - 1))
    interaction = np.square(residuals).sum() / df / values.size
    variance = max(from_queries + from_models - interaction, from_queries, from_models)
    return _student_interval(values.mean(), variance, min(num_queries, num_models))


def _student_interval(mean: float, variance: float, count: int) -> tuple[float, float, float]:
    """Return a mean and its 95% interval by Student's t, from the variance of the mean.

    The ends are NaN for fewer than MIN_OBSERVATIONS.
    """
    from scipy import stats  # slow to import

    if count < MIN_OBSERVATIONS:
        return float(mean), float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, count - 1) * np.sqrt(variance))
    return float(mean), float(mean) - half, float(mean) + half


def share_interval(share: float, count: int) -> tuple[float, float, float]:
    """Return a share of `count` trials and its 95% interval (Wilson 1927).

    >>> [round(end, 3) for end in share_interval(0.9, 100)]
    [0.9, 0.826, 0.945]
    """
    from scipy import stats  # slow to import

    trials = stats.binomtest(round(share * count), count)
    low, high = trials.proportion_ci(method="wilson")
    return share, float(low), float(high)
