"""Does the interval of a ceiling hold the true one? Simulated worlds of known truth: a share of 0.93 to 0.97 is right.

    command   OMP_NUM_THREADS=1 python benchmarks/ceilings.py [worlds] [first seed]

Outputs of 32 subsets × R seeds × 2 halves of the draws and 24 queries, normal, with a part that all queries have in common.
Reliabilities are equal (0.5) or differ between queries as a Beta(2, 2) does. Of these models' draws, and over seeds.
"""

import sys
from functools import cache

import numpy as np
from scipy.stats import beta

from journey.evaluation.lds import reliability

M, Q, RANKED, COMMON = 32, 24, 16, 0.3


def main(num_worlds: int, seed: int) -> None:
    """A line for each kind of world."""
    for kind, num_seeds in (
        ("given_seed", 1),
        ("given_seed", 2),
        ("given_seed", 5),
        ("over_seeds", 2),
        ("over_seeds", 5),
    ):
        for unequal in (False, True):
            random = np.random.default_rng(seed)
            truth = true_ceiling(unequal)
            found = np.array(
                [evaluate(random, kind, num_seeds, unequal) for _ in range(num_worlds)]
            )
            value, low, high = found.T
            holds = np.mean((low <= truth) & (truth <= high))
            where = f"{kind} R={num_seeds} {'unequal' if unequal else 'equal'}"
            print(
                f"{where:28} truth {truth:.3f}  mean {value.mean():.3f}  width {np.mean(high - low):.3f}  holds {holds:.3f}",
                flush=True,
            )


def evaluate(
    random: np.random.Generator, kind: str, num_seeds: int, unequal: bool
) -> tuple[float, float, float]:
    """Ceiling and interval in one world."""
    outputs = world(
        random,
        kind,
        num_seeds,
        beta.rvs(2, 2, size=Q, random_state=random) if unequal else np.full(Q, 0.5),
    )
    value, low, high = reliability.ceilings(outputs, getattr(reliability, kind), RANKED).interval()
    return value[0], low[0], high[0]


def world(random: np.random.Generator, kind: str, num_seeds: int, rho: np.ndarray) -> np.ndarray:
    """Outputs [M, R, 2, 1, Q] of which the mean over seeds and draws has reliability rho [Q]."""
    common, own = random.standard_normal((M, 1, 1, 1, 1)), random.standard_normal((M, 1, 1, 1, Q))
    subset = np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * own
    training = random.standard_normal((M, num_seeds, 1, 1, Q))
    drawing = random.standard_normal((M, num_seeds, 2, 1, Q))
    noise = (1 - rho) / rho  # in the mean, where the signal is 1
    if kind == "given_seed":
        return (
            np.sqrt(0.5) * subset
            + np.sqrt(0.5 * num_seeds) * training
            + np.sqrt(2 * num_seeds * noise) * drawing
        )
    return subset + np.sqrt(num_seeds * noise / 2) * training + np.sqrt(num_seeds * noise) * drawing


@cache
def true_ceiling(unequal: bool) -> float:
    """Expected over queries."""
    rho = beta.ppf((np.arange(100_000) + 0.5) / 100_000, 2, 2) if unequal else np.array([0.5])
    return float(reliability.expected_spearman(np.sqrt(rho), RANKED).mean())


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 400, int(sys.argv[2]) if len(sys.argv) > 2 else 0
    )
