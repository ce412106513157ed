"""Kernel scores of a large training set, from disk, against the bare matrix products in memory.

command   OMP_NUM_THREADS=2 python benchmarks/scoring.py
bar       50,000 × 4,096 features, 1,000 queries: within 1.5× of ΦᵀΦ and φ_q Φᵀ as two float64 products
          (ours makes a little more than half of the symmetric one)
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from journey.artifacts.files import new_array
from journey.attribution.kernel import kernel_scores

N, P, QUERIES = 50_000, 4096, 1000


def main() -> None:
    """Print seconds of both and their ratio."""
    with tempfile.TemporaryDirectory() as directory:
        phi = new_array(Path(directory) / "features.npy", (N, P))
        random = np.random.default_rng(0)
        for first in range(0, N, 5000):
            phi[first : first + 5000] = random.standard_normal((5000, P), np.float32)
        queries = random.standard_normal((QUERIES, P), np.float32)
        out = new_array(Path(directory) / "scores.npy", (1, QUERIES, N))
        started = time.perf_counter()
        kernel_scores(out, phi, queries, [1.0])
        ours = time.perf_counter() - started

        wide, wide_queries = torch.from_numpy(np.array(phi)).double(), torch.from_numpy(queries).double()
        started = time.perf_counter()
        wide.T @ wide
        wide_queries @ wide.T
        bare = time.perf_counter() - started
    print(f"ours {ours:.1f} s, two bare products {bare:.1f} s, ratio {ours / bare:.2f}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
