"""Do the 95% intervals of LDS cover the true LDS? A coverage of 0.95 is right.

    command   OMP_NUM_THREADS=1 python benchmarks/intervals.py [simulations]

Simulated predictions and outputs of 24 queries over 32 subsets are normal. Their correlation
differs between queries (mean ± deviation), and a part is common to all queries. The plain interval
is shown too: percentiles of resampling queries and subsets at once, which counts the variance of
their interaction three times.
"""

import sys

import numpy as np

from journey.evaluation.lds.reliability import expected_spearman
from journey.evaluation.statistics import bootstrap_weights, interval, weighted_spearman

M, Q, B = 32, 24, 300
CASES = (  # mean and deviation of the correlations, common share of the variance
    (0.0, 0.0, 0.0),
    (0.3, 0.0, 0.0),
    (0.3, 0.2, 0.0),
    (0.3, 0.1, 0.3),
    (0.3, 0.1, 0.8),
    (0.7, 0.1, 0.1),
)


def main(num_simulations: int = 400) -> None:
    """Print a line for each case."""
    for mean, deviation, common in CASES:
        random = np.random.default_rng(0)
        truth = expected_spearman(correlations(random, mean, deviation, 100_000), M // 2).mean()
        results = [simulate(random, mean, deviation, common) for _ in range(num_simulations)]
        value, low, high, plain_low, plain_high = np.array(results).T
        coverage = np.mean((low <= truth) & (truth <= high))
        plain_coverage = np.mean((plain_low <= truth) & (truth <= plain_high))
        print(
            f"mean {mean} ± {deviation}, common {common}:",
            f"truth {truth:.3f}, mean {value.mean():.3f};",
            f"coverage {coverage:.3f} (width {np.mean(high - low):.3f});",
            f"plain {plain_coverage:.3f} ({np.mean(plain_high - plain_low):.3f})",
            flush=True,
        )


def simulate(
    random: np.random.Generator, mean: float, deviation: float, common: float
) -> tuple[float, ...]:
    """Return the LDS, its interval and the plain interval, with the subsets split into halves.

    Replicates are those of `journey.evaluation.lds.datamodeling.lds`.
    """
    c = correlations(random, mean, deviation, Q)[:, None]
    predicted, other = simulate_outputs(random, common), simulate_outputs(random, common)
    measured = c * predicted + np.sqrt(1 - c**2) * other
    subset_half = random.permutation(M) % 2
    subset_weights, query_weights = np.ones((B + 1, M)), np.ones((B + 1, Q))
    query_weights[1:] = bootstrap_weights(Q, B, random)
    replicates = np.zeros((B + 1, Q))
    for half in (0, 1):
        members = subset_half == half
        subset_weights[1:, members] = bootstrap_weights(members.sum(), B, random)
        weights = subset_weights[:, members]
        replicates += weighted_spearman(predicted[:, members], measured[:, members], weights) / 2
    means = (replicates * query_weights).sum(1)[1:] / Q
    plain = np.percentile(means, (2.5, 97.5))
    return tuple(map(float, (*interval(replicates, query_weights), *plain)))


def correlations(
    random: np.random.Generator, mean: float, deviation: float, count: int
) -> np.ndarray:
    """Return the correlations of `count` queries."""
    return np.clip(mean + deviation * random.standard_normal(count), -0.95, 0.95)


def simulate_outputs(random: np.random.Generator, common: float) -> np.ndarray:
    """Return outputs of unit variance, a share of which all queries have in common. [Q, M]"""
    shared = random.standard_normal((1, M))
    return np.sqrt(common) * shared + np.sqrt(1 - common) * random.standard_normal((Q, M))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
