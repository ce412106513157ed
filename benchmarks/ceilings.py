"""Do the 95% intervals of ceilings cover the true ceiling? A coverage of 0.93 to 0.97 is right.

    command   OMP_NUM_THREADS=1 python benchmarks/ceilings.py [simulations] [seed]

Simulated outputs of 32 subsets × R training seeds × 2 halves of the noise samples and 24 queries
are normal, with a part that all queries have in common. Reliabilities are equal (0.5), or have a
Beta(2, 2) distribution over queries. Both ceilings are simulated: given the trained models, and
over training seeds.
"""

import sys

import numpy as np
from scipy.stats import beta

from journey.evaluation.lds import reliability

M, Q, NUM_RANKED, COMMON = 32, 24, 16, 0.3
CASES = (
    ("given_seed", 1),
    ("given_seed", 2),
    ("given_seed", 5),
    ("over_seeds", 2),
    ("over_seeds", 5),
)


def main(num_simulations: int = 400, seed: int = 0) -> None:
    """Print a line for each ceiling and distribution of reliabilities."""
    for name, num_seeds in CASES:
        shares_of = getattr(reliability, name)
        for unequal in (False, True):
            rho = np.array([0.5])
            if unequal:
                rho = beta.ppf((np.arange(100_000) + 0.5) / 100_000, 2, 2)
            truth = reliability.expected_spearman(np.sqrt(rho), NUM_RANKED).mean()
            random, intervals = np.random.default_rng(seed), []
            for _ in range(num_simulations):
                rho = np.full(Q, 0.5)
                if unequal:
                    rho = beta.rvs(2, 2, size=Q, random_state=random)
                outputs = simulate(random, name, num_seeds, rho)
                limits = reliability.ceilings(outputs, shares_of, NUM_RANKED)
                intervals.append(limits.interval([0]))
            value, low, high = np.array(intervals).T
            coverage = np.mean((low <= truth) & (truth <= high))
            print(
                f"{name} R={num_seeds} {'unequal' if unequal else 'equal':7}",
                f"truth {truth:.3f}  mean {value.mean():.3f}",
                f"width {np.mean(high - low):.3f}  coverage {coverage:.3f}",
                flush=True,
            )


def simulate(random: np.random.Generator, name: str, num_seeds: int, rho: np.ndarray) -> np.ndarray:
    """Return outputs [M, R, 2, 1, Q] whose mean over seeds and halves has reliability rho [Q]."""
    common = random.standard_normal((M, 1, 1, 1, 1))
    subset = random.standard_normal((M, 1, 1, 1, Q))
    subset = np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * subset
    training = random.standard_normal((M, num_seeds, 1, 1, Q))
    noise = random.standard_normal((M, num_seeds, 2, 1, Q))
    variance = num_seeds * (1 - rho) / rho  # of one seed's noise, where the signal has variance 1
    if name == "given_seed":
        signal = np.sqrt(0.5) * subset + np.sqrt(0.5 * num_seeds) * training
        return signal + np.sqrt(2 * variance) * noise
    return subset + np.sqrt(variance / 2) * training + np.sqrt(variance) * noise


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
