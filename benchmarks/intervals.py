"""Does the interval of an LDS hold the true one? Simulated worlds of known truth: a share of 0.95 is right.

    command   OMP_NUM_THREADS=1 python benchmarks/intervals.py [worlds]

Predictions and outputs of 24 queries over 32 subsets, normal, correlated by `mean` ± `deviation` between queries, with a part
that all queries have in common. Beside ours, the plain percentiles of resampling queries and subsets at once, which count
three times what a query and a subset have together.
"""

import sys

import numpy as np

from journey.evaluation.lds.reliability import expected_spearman
from journey.evaluation.statistics import bootstrap_weights, interval, weighted_spearman

M, Q, B = 32, 24, 300
WORLDS = (
    (0.0, 0.0, 0.0),
    (0.3, 0.0, 0.0),
    (0.3, 0.2, 0.0),
    (0.3, 0.1, 0.3),
    (0.3, 0.1, 0.8),
    (0.7, 0.1, 0.1),
)


def main(num_worlds: int) -> None:
    """A line for each kind of world."""
    for mean, deviation, common in WORLDS:
        random = np.random.default_rng(0)
        correlations = _correlations(random, mean, deviation, 100_000)
        truth = float(expected_spearman(correlations, M // 2).mean())
        found = np.array([evaluate(random, mean, deviation, common) for _ in range(num_worlds)])
        value, low, high, plain_low, plain_high = found.T
        ours, plain = (
            (a <= truth) & (truth <= b) for a, b in ((low, high), (plain_low, plain_high))
        )
        what = f"mean {mean} ± {deviation}, common {common}: truth {truth:.3f}, mean {value.mean():.3f}"
        widths = f"holds {ours.mean():.3f} (width {np.mean(high - low):.3f})"
        print(
            f"{what}; {widths}; plain {plain.mean():.3f} ({np.mean(plain_high - plain_low):.3f})",
            flush=True,
        )


def evaluate(
    random: np.random.Generator, mean: float, deviation: float, common: float
) -> tuple[float, ...]:
    """LDS, our interval and the plain one, as `datamodeling.lds` has its replicates: two halves of the subsets."""
    c = _correlations(random, mean, deviation, Q)[:, None]
    predicted, other = _outputs(random, common), _outputs(random, common)
    measured = c * predicted + np.sqrt(1 - c**2) * other
    half = random.permutation(M) % 2
    subset_weights, query_weights = np.ones((B + 1, M)), np.ones((B + 1, Q))
    query_weights[1:] = bootstrap_weights(Q, B, random)
    replicates = 0
    for side in (0, 1):
        kept = half == side
        subset_weights[1:, kept] = bootstrap_weights(kept.sum(), B, random)
        replicates = (
            replicates
            + weighted_spearman(predicted[:, kept], measured[:, kept], subset_weights[:, kept]) / 2
        )
    together = (replicates * query_weights).sum(1)[1:] / Q
    return tuple(
        map(float, (*interval(replicates, query_weights), *np.percentile(together, (2.5, 97.5))))
    )


def _correlations(
    random: np.random.Generator, mean: float, deviation: float, count: int
) -> np.ndarray:
    return np.clip(mean + deviation * random.standard_normal(count), -0.95, 0.95)


def _outputs(random: np.random.Generator, common: float) -> np.ndarray:
    """[Q, M]"""
    return np.sqrt(common) * random.standard_normal((1, M)) + np.sqrt(
        1 - common
    ) * random.standard_normal((Q, M))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
