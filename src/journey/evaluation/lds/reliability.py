"""How much of what is measured would be measured again, and what ceiling that sets to a rank correlation with it.

    y_mrh = μ + subset_m + seed_r + (subset × seed)_mr + draw_mrh

    M  subsets;  R  seeds, independent trainings of each subset;  h  half of the measuring draws;  T  targets;  Q  queries

Draws are the same for every model, so what is common to all subsets is no noise: every component is a variance over subsets.
The reliability ρ of the mean over seeds and draws is the share of its variance that would be measured again; the best
predictor of it, what is expected of it, correlates by √ρ (Spearman 1904). Of these very models only the draws are noise; over
seeds, training is noise too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

PARTS = 64  # of the distribution of reliabilities over queries, of equal probability


NUDGE = 1e-4  # of a logarithm, for a slope


TINY = 1e-300  # where measurements agree to the last bit


@dataclass(frozen=True)
class Shares:
    """Noise in the mean over seeds and draws, as a share of that mean's variance over subsets.

    ratio: of mean squares [T, Q], whose numerator has `df` degrees of freedom and whose denominator M − 1.
    """

    ratio: np.ndarray
    df: int
    num_subsets: int

    @property
    def unbiased(self) -> np.ndarray:
        """1 − ρ. [T, Q]"""
        return self.ratio * (self.num_subsets - 3) / (self.num_subsets - 1)

    @property
    def variation(self) -> float:
        """The squared coefficient of variation of a ratio of mean squares: of F with `df` and M − 1 degrees of freedom."""
        denominator = self.num_subsets - 1
        return 2 * (self.df + denominator - 2) / (self.df * (denominator - 4))

    def reliability(self) -> np.ndarray:
        """ρ, mean over queries. [T]"""
        return 1 - self.unbiased.mean(-1)


def given_seed(outputs: np.ndarray) -> Shares:
    """Noise of draws alone: would these very models be measured alike again? outputs: [M, R, 2, T, Q]"""
    num_subsets, num_seeds = outputs.shape[:2]
    first, second = np.moveaxis(outputs, 2, 0)  # [M, R, T, Q]
    noise = (first - second).var(0, ddof=1).mean(0) / 4 / num_seeds
    return Shares(noise / _total(outputs), num_seeds * (num_subsets - 1), num_subsets)


def over_seeds(outputs: np.ndarray) -> Shares:
    """Noise of draws and of training: would other trainings on these subsets be measured alike? At least two seeds."""
    num_subsets, num_seeds = outputs.shape[:2]
    of_seed = outputs.mean(2)  # [M, R, T, Q]
    residual = of_seed - of_seed.mean(0) - of_seed.mean(1, keepdims=True) + of_seed.mean((0, 1))
    df = (num_subsets - 1) * (num_seeds - 1)
    noise = np.square(residual).sum((0, 1)) / df / num_seeds
    return Shares(noise / _total(outputs), df, num_subsets)


def _total(outputs: np.ndarray) -> np.ndarray:
    return outputs.mean((1, 2)).var(0, ddof=1)


def expected_spearman(correlation: np.ndarray, num: int) -> np.ndarray:
    """Mean of Spearman's ρ of `num` pairs of normal variables that correlate so (Moran 1948).

    >>> expected_spearman(np.array([0.0, 1.0]), 16).round(6)
    array([0., 1.])
    """
    return (
        6 / (np.pi * (num + 1)) * (np.arcsin(correlation) + (num - 2) * np.arcsin(correlation / 2))
    )


def ceiling(shares: Shares, num_ranked: int) -> np.ndarray:
    """The mean over queries of what the best predictor's rank correlation is expected to be, over `num_ranked` subsets. [T]

    √ρ of a mean ρ is too high where queries differ, and √ρ of each query's estimate has no meaning where noise makes that
    negative. So the reliabilities of all queries are taken to be Beta distributed, with the mean and variance that estimates
    have beyond their own noise. A mean that is not positive gives minus what its size would: nothing is clipped.
    """
    from scipy.stats import beta

    mean = 1 - shares.unbiased.mean(-1)
    variance = np.square(shares.unbiased).mean(-1) / (1 + shares.variation) - np.square(1 - mean)
    sizes = np.minimum(np.abs(mean), 1)
    found = np.sign(mean) * expected_spearman(np.sqrt(sizes), num_ranked)
    spread = (variance > 0) & (mean > 0) & (mean < 1)
    m, v = mean[spread], variance[spread]
    concentration = np.maximum(m * (1 - m) / v - 1, 1e-2)
    quantiles = (np.arange(PARTS)[:, None] + 0.5) / PARTS
    rho = beta.ppf(quantiles, m * concentration, (1 - m) * concentration)  # [PARTS, spread]
    found[spread] = expected_spearman(np.sqrt(rho), num_ranked).mean(0)
    return found


@dataclass(frozen=True)
class Jackknife:
    """A mean over queries at every target, and what it would be without each subset and each query.

    value [T]; without_subset [M, T]; without_query [Q, T]; parts [M, T, Q]: by how much the share that each query has in the
    value changes without each subset, to first order.
    """

    value: np.ndarray
    without_subset: np.ndarray
    without_query: np.ndarray
    parts: np.ndarray

    def mean(self, targets: list[int]) -> "Jackknife":
        """Of some targets, as one."""
        kept = (
            each[..., targets].mean(-1, keepdims=True)
            for each in (self.value, self.without_subset, self.without_query)
        )
        return Jackknife(*kept, self.parts[:, targets].mean(1, keepdims=True))

    def interval(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value, and the ends of its 95% interval over queries and subsets, on Fisher's scale. [T] each

        V = V_queries + V_subsets − V_both, as `journey.evaluation.statistics.interval` has it.
        """
        from scipy.stats import t

        num_queries = len(self.without_query)
        subsets, queries = _variance(self.without_subset), _variance(self.without_query)
        each = _variance(self.parts).sum(-1)
        shared = (_variance(self.parts.sum(-1)) - each) / (num_queries * (num_queries - 1))
        variance = np.maximum(
            subsets + queries - np.maximum(0, each - num_queries * shared),
            np.maximum(subsets, queries),
        )
        inside = np.clip(self.value, -0.999, 0.999)
        reach = t.ppf(0.975, num_queries - 1) * np.sqrt(variance) / (1 - np.square(inside))
        return self.value, np.tanh(np.arctanh(inside) - reach), np.tanh(np.arctanh(inside) + reach)


def ceilings(
    outputs: np.ndarray, shares_of: Callable[[np.ndarray], Shares], num_ranked: int
) -> Jackknife:
    """Ceilings of all targets, by `given_seed` or `over_seeds`. outputs: [M, R, 2, T, Q]"""
    observed = shares_of(outputs)
    dropped = [shares_of(np.delete(outputs, m, 0)) for m in range(len(outputs))]
    value = ceiling(observed, num_ranked)
    num_queries = outputs.shape[-1]
    without_query = [
        ceiling(replace(observed, ratio=np.delete(observed.ratio, q, -1)), num_ranked)
        for q in range(num_queries)
    ]
    logs = np.log(np.maximum(np.stack([of.ratio for of in dropped]), TINY))  # [M, T, Q]
    nudged = [np.where(np.arange(num_queries) == q, np.exp(NUDGE), 1.0) for q in range(num_queries)]
    slopes = [
        (ceiling(replace(observed, ratio=observed.ratio * by), num_ranked) - value) / NUDGE
        for by in nudged
    ]  # [Q][T]
    parts = (logs - logs.mean(0)) * np.stack(slopes, -1)
    return Jackknife(
        value, np.stack([ceiling(of, num_ranked) for of in dropped]), np.stack(without_query), parts
    )


def _variance(without: np.ndarray) -> np.ndarray:
    """Of a value, from what it is without each of several (Efron 1982). [K, …] → […]"""
    return (len(without) - 1) * without.var(0)
