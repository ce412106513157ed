"""Rank correlation under resampling, and intervals.

M  subsets;  Q  queries;  B  bootstrap replicates;  w  how often a replicate holds each subset, [B, M]
"""

import numpy as np

BLOCK = 2**22  # elements of the largest temporary


def weighted_spearman(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's ρ of a and b [R, M], row by row, over M observations of which replicate k holds weights[k]. [B, R]

    Equal to Spearman's ρ (ties share their mean rank) of the observations each repeated as often as its weight.
    A row or replicate that is constant carries no order: its ρ is 0.
    """
    num_rows, num_observations = a.shape
    rows = max(1, BLOCK // (num_observations * max(len(weights), num_observations)))
    blocks = [slice(first, first + rows) for first in range(0, num_rows, rows)]
    return np.concatenate([_correlate(a[r], b[r], weights.astype(np.float64)) for r in blocks], 1)


def _correlate(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation of weighted midranks."""
    w = weights[:, None]  # [B, 1, M]
    total = w.sum(-1)
    x, y = _midranks(a, weights), _midranks(b, weights)  # [B, R, M]
    x -= (w * x).sum(-1, keepdims=True) / total[..., None]
    y -= (w * y).sum(-1, keepdims=True) / total[..., None]
    covariance = (w * x * y).sum(-1)
    scale = np.sqrt((w * x * x).sum(-1) * (w * y * y).sum(-1))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-9 * total)


def _midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank of each observation: the weight below it and half the weight of its equals. [B, R, M]"""
    x, y = values[:, :, None], values[:, None, :]
    below = (y < x) + 0.5 * (y == x)  # [R, M, M]
    return np.einsum("rij,bj->bri", below, weights, optimize=True)


def bootstrap_weights(num: int, num_replicates: int, random: np.random.Generator) -> np.ndarray:
    """How often each of `num` items is drawn in `num` draws with replacement. int [B, num]"""
    return random.multinomial(num, np.full(num, 1 / num), num_replicates)


def bootstrap_with_observed(
    num: int, num_replicates: int, random: np.random.Generator
) -> np.ndarray:
    """The weights of the data themselves, then those of bootstrap replicates. int [1 + replicates, num]"""
    return np.concatenate(
        [np.ones((1, num), np.int64), bootstrap_weights(num, num_replicates, random)]
    )


def query_interval(
    values: np.ndarray, query_weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `interval` of what subsets have no part in, over queries alone. values: [..., Q]; query_weights: [B, Q], ones first"""
    return interval(np.broadcast_to(values, (len(query_weights), *values.shape)), query_weights)


def interval(
    replicates: np.ndarray, query_weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over queries with its 95% interval, over queries and subsets. Each as replicates without their first and last axis.

    replicates: a statistic of each query under resampled subsets [B, …, Q], the observed one first; query_weights: [B, Q],
    ones first.

    Where both are resampled at once, what belongs to a query and a subset together is counted three times (Owen 2007), so the
    interval is drawn in to the variance of either alone, added, less what both hold:  V = V_queries + V_subsets − V_both. Ties
    in a resample lower a rank correlation, so its ends are taken from the mean of the replicates, and set around the observed
    value.
    """
    share = query_weights / query_weights.sum(1, keepdims=True)
    together = np.einsum("b...q,bq->b...", replicates, share)
    value, drawn = together[0], together[1:]
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    centre, spread = drawn.mean(0), drawn.std(0)
    wanted = np.sqrt(_variance(replicates)) * _student(len(share[0]))
    factor = np.divide(wanted, spread, out=np.ones_like(spread), where=spread > 0)
    return value, value + factor * (low - centre), value + factor * (high - centre)


def _student(num_queries: int) -> float:
    """How much wider an interval must be for its variance is estimated from few queries."""
    from scipy import stats  # here: importing it takes a while

    return float(stats.t.ppf(0.975, num_queries - 1) / stats.norm.ppf(0.975))


def _variance(replicates: np.ndarray) -> np.ndarray:
    """Of the mean over queries: from subsets alone and from queries alone, less what a query and a subset have together."""
    num_queries = replicates.shape[-1]
    of_subsets = replicates[1:].mean(-1).var(0)
    of_queries = replicates[0].var(-1, ddof=1) / num_queries
    each = replicates[1:].var(0).mean(-1)
    shared = (num_queries * of_subsets - each) / (num_queries - 1)  # mean covariance of two queries
    cell = np.maximum(0, each - shared) / num_queries
    return np.maximum(of_subsets + of_queries - cell, np.maximum(of_subsets, of_queries))


def query_mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values [Q] with Student's 95% interval."""
    return _student_interval(values.mean(), values.var(ddof=1) / len(values), len(values))


def models_and_queries_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values [R, Q], of R models that all queries share, with a 95% interval over both."""
    num_samples, num_queries = values.shape
    cells = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    of_cells = np.square(cells).sum() / max(1, (num_samples - 1) * (num_queries - 1))
    of_queries = values.mean(0).var(ddof=1) / num_queries
    of_draws = values.mean(1).var(ddof=1) / num_samples if num_samples > 1 else 0.0
    variance = max(of_queries + of_draws - of_cells / values.size, of_queries, of_draws)
    return _student_interval(
        values.mean(), variance, min(num_queries, num_samples) if num_samples > 1 else num_queries
    )


def _student_interval(mean: float, variance: float, count: int) -> tuple[float, float, float]:
    """Student's 95% interval of a mean, by the variance that it is estimated to have from so many."""
    from scipy import stats  # here: importing it takes a while

    half = float(stats.t.ppf(0.975, count - 1) * np.sqrt(variance))
    return float(mean), float(mean) - half, float(mean) + half


def mean_over_queries(values: np.ndarray, query_weights: np.ndarray) -> np.ndarray:
    """Of values [..., Q] in every replicate, of the queries for which there is one (not NaN). [1 + B, ...]"""
    known = np.isfinite(values)
    total = np.einsum("...q,bq->b...", np.where(known, values, 0.0), query_weights)
    count = np.einsum("...q,bq->b...", known.astype(np.float64), query_weights)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def percentiles(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The observed value, which comes first, and the 95% interval of the others: plain percentiles of a bootstrap."""
    low, high = np.percentile(replicates[1:], (2.5, 97.5), axis=0)
    return replicates[0], low, high


def rank_correlation(
    a: np.ndarray, b: np.ndarray, query_weights: np.ndarray, random: np.random.Generator
) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """Spearman's ρ over queries of a and b [Q], with its 95% interval by a bootstrap over queries (query_weights, [1 + B, Q]);
    and where 95% of ρ lie if queries are shuffled, as many times: what is found where nothing is related.
    """
    observed = percentiles(weighted_spearman(a[None], b[None], query_weights)[:, 0])
    shuffled = random.permuted(np.broadcast_to(b, (len(query_weights), len(b))), axis=1)
    rhos = weighted_spearman(np.broadcast_to(a, shuffled.shape), shuffled, np.ones((1, len(a))))[0]
    low, high = np.percentile(rhos, (2.5, 97.5))
    return tuple(float(end) for end in observed), (float(low), float(high))


def share_interval(share: float, count: int) -> tuple[float, float, float]:
    """A share of so many trials, and its 95% interval (Wilson 1927).

    >>> [round(end, 3) for end in of_share(0.9, 100)]
    [0.9, 0.826, 0.945]
    """
    z = 1.959964
    middle, spread = (
        share + z**2 / (2 * count),
        z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5,
    )
    return share, (middle - spread) / (1 + z**2 / count), (middle + spread) / (1 + z**2 / count)
