"""The reliability of measured outputs, and the ceiling that it sets to rank correlations with them.

    y_mrh = μ + subset_m + seed_r + (subset × seed)_mr + noise_mrh

M  subsets
R  training seeds: independent trainings on each subset
h  the two halves of the noise samples of a measurement
T  targets
Q  queries
ρ  reliability: the share of the variance over subsets that another measurement would find again

All models are measured with the same noise samples. A shift of all subsets is therefore no noise:
every component is a variance over subsets. The best predictor of the mean over seeds and noise
samples is its expectation; the two correlate by √ρ (Spearman 1904).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from journey.evaluation.rows import Row, select

NUM_QUANTILES = 64  # of the distribution of reliabilities over queries

LOG_STEP = 1e-4  # of a numerical derivative

MIN_RATIO = 1e-300  # where measurements agree to the last bit

CEILINGS = {"noise_samples": "ceiling, these models", "training_seeds": "ceiling, over seeds"}
"""Titles of the ceilings: noise is that of the noise samples, or of training and noise samples."""


def ceiling_of(quantity: str) -> str:
    """Return the quantity that is the ceiling of another."""
    return "ceiling" if quantity == "lds" else f"{quantity}_ceiling"


def titled_ceilings(rows: list[Row], quantity: str) -> list[Row]:
    """Return the rows of the ceilings of a quantity, with titles as their methods."""
    ceilings = select(rows, quantity=ceiling_of(quantity))
    return [row | {"method": CEILINGS[str(row["method"])]} for row in ceilings]


@dataclass(frozen=True)
class Shares:
    """The share of noise in the variance over subsets of the mean over seeds and noise samples.

    Attributes:
        ratio: Mean square of the noise over that of the mean. [T, Q]
        df: Degrees of freedom of the numerator; those of the denominator are M − 1.
        num_subsets: M.
    """

    ratio: np.ndarray
    df: int
    num_subsets: int

    @property
    def unbiased(self) -> np.ndarray:
        """Return the unbiased estimate of 1 − ρ. [T, Q]"""
        return self.ratio * (self.num_subsets - 3) / (self.num_subsets - 1)

    @property
    def variation(self) -> float:
        """Return the squared coefficient of variation of an F(df, M − 1) variable."""
        denominator = self.num_subsets - 1
        return 2 * (self.df + denominator - 2) / (self.df * (denominator - 4))

    def reliability(self) -> np.ndarray:
        """Return the mean of ρ over queries. [T]"""
        return 1 - self.unbiased.mean(-1)


def given_seed(outputs: np.ndarray) -> Shares:
    """Return the noise in outputs [M, R, 2, T, Q] if these models were measured again."""
    num_subsets, num_seeds = outputs.shape[:2]
    first, second = np.moveaxis(outputs, 2, 0)  # [M, R, T, Q]
    noise = (first - second).var(0, ddof=1).mean(0) / 4 / num_seeds
    return Shares(noise / _total_variance(outputs), num_seeds * (num_subsets - 1), num_subsets)


def over_seeds(outputs: np.ndarray) -> Shares:
    """Return the noise in outputs [M, R, 2, T, Q], R ≥ 2, if other models were trained too."""
    num_subsets, num_seeds = outputs.shape[:2]
    means = outputs.mean(2)  # [M, R, T, Q]
    residual = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean((0, 1))
    df = (num_subsets - 1) * (num_seeds - 1)
    noise = np.square(residual).sum((0, 1)) / df / num_seeds
    return Shares(noise / _total_variance(outputs), df, num_subsets)


def _total_variance(outputs: np.ndarray) -> np.ndarray:
    """Return the variance over subsets of the mean over seeds and noise samples. [T, Q]"""
    return outputs.mean((1, 2)).var(0, ddof=1)


def expected_spearman(correlation: np.ndarray, num: int) -> np.ndarray:
    """Return the expected Spearman's ρ of `num` normal pairs with a correlation (Moran 1948).

    >>> expected_spearman(np.array([0.0, 1.0]), 16).round(6)
    array([0., 1.])
    """
    factor = 6 / (np.pi * (num + 1))
    return factor * (np.arcsin(correlation) + (num - 2) * np.arcsin(correlation / 2))


def ceiling(shares: Shares, num_ranked: int) -> np.ndarray:
    """Return the best predictor's expected rank correlation over `num_ranked` subsets. [T]

    √ρ of the mean of ρ is too high where queries differ, and the estimate of ρ of one query can be
    negative. The reliabilities of the queries are therefore modelled as Beta distributed, with
    the mean and the variance of the estimates beyond their own noise. Where the mean is negative,
    the ceiling is minus that of its absolute value: nothing is clipped.
    """
    from scipy.stats import beta

    mean = 1 - shares.unbiased.mean(-1)
    variance = np.square(shares.unbiased).mean(-1) / (1 + shares.variation) - np.square(1 - mean)
    sizes = np.minimum(np.abs(mean), 1)
    ceilings = np.sign(mean) * expected_spearman(np.sqrt(sizes), num_ranked)

    spread = (variance > 0) & (mean > 0) & (mean < 1)
    m, v = mean[spread], variance[spread]
    concentration = np.maximum(m * (1 - m) / v - 1, 1e-2)
    quantiles = (np.arange(NUM_QUANTILES)[:, None] + 0.5) / NUM_QUANTILES
    rho = beta.ppf(quantiles, m * concentration, (1 - m) * concentration)  # [quantiles, spread]
    ceilings[spread] = expected_spearman(np.sqrt(rho), num_ranked).mean(0)
    return ceilings


@dataclass(frozen=True)
class Jackknife:
    """A mean over queries, and its values without each subset and without each query.

    Attributes:
        value: The mean. [T]
        without_subset: The mean without each subset. [M, T]
        without_query: The mean without each query. [Q, T]
        contributions: First-order change of each query's part without each subset. [M, T, Q]
    """

    value: np.ndarray
    without_subset: np.ndarray
    without_query: np.ndarray
    contributions: np.ndarray

    def interval(self, targets: list[int]) -> tuple[float, float, float]:
        """Return the mean over some targets and its 95% interval over queries and subsets.

        The variance is V_queries + V_subsets − V_interaction, as in
        `journey.evaluation.statistics.interval`; the interval is symmetric on Fisher's scale.
        """
        from scipy.stats import t

        value = self.value[targets].mean(-1, keepdims=True)
        subsets = _variance(self.without_subset[..., targets].mean(-1, keepdims=True))
        queries = _variance(self.without_query[..., targets].mean(-1, keepdims=True))
        parts = self.contributions[:, targets].mean(1, keepdims=True)  # [M, 1, Q]

        num_queries = len(self.without_query)
        of_one_query = _variance(parts).sum(-1)
        covariance = (_variance(parts.sum(-1)) - of_one_query) / (num_queries * (num_queries - 1))
        interaction = np.maximum(0, of_one_query - num_queries * covariance)
        variance = np.maximum(subsets + queries - interaction, np.maximum(subsets, queries))

        inside = np.clip(value, -0.999, 0.999)
        half = t.ppf(0.975, num_queries - 1) * np.sqrt(variance) / (1 - np.square(inside))
        low, high = np.tanh(np.arctanh(inside) - half), np.tanh(np.arctanh(inside) + half)
        low, high = np.minimum(low, value), np.maximum(high, value)  # where the value is ±1
        return value.item(), low.item(), high.item()


def ceilings(
    outputs: np.ndarray, shares_of: Callable[[np.ndarray], Shares], num_ranked: int
) -> Jackknife:
    """Return the ceilings of outputs [M, R, 2, T, Q] by `given_seed` or `over_seeds`."""
    num_subsets, num_queries = len(outputs), outputs.shape[-1]
    observed = shares_of(outputs)
    value = ceiling(observed, num_ranked)
    without_subset = [shares_of(np.delete(outputs, m, 0)) for m in range(num_subsets)]
    without_query, slopes = [], []
    for q in range(num_queries):
        others = replace(observed, ratio=np.delete(observed.ratio, q, -1))
        without_query.append(ceiling(others, num_ranked))
        factors = np.where(np.arange(num_queries) == q, np.exp(LOG_STEP), 1.0)
        shifted = replace(observed, ratio=observed.ratio * factors)
        slopes.append((ceiling(shifted, num_ranked) - value) / LOG_STEP)

    ratios = np.stack([shares.ratio for shares in without_subset])  # [M, T, Q]
    logs = np.log(np.maximum(ratios, MIN_RATIO))
    return Jackknife(
        value,
        np.stack([ceiling(shares, num_ranked) for shares in without_subset]),
        np.stack(without_query),
        (logs - logs.mean(0)) * np.stack(slopes, -1),
    )


def _variance(without: np.ndarray) -> np.ndarray:
    """Return the jackknife variance of a value without each of K items [K, …] (Efron 1982)."""
    return (len(without) - 1) * without.var(0)
