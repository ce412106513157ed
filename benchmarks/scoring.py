"""Kernel scores of a large training set, read from disk, compared with matrix products in memory.

command   OMP_NUM_THREADS=2 python benchmarks/scoring.py
bar       50,000 × 4,096 features, 1,000 queries, every storage: within 1.2× of ΦᵀΦ and φ_q Φᵀ
          as two float64 products (ours computes little more than half of the symmetric one)
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from journey.attribution.kernel import kernel_scores
from journey.attribution.projections import DTYPES, QuantizedFeatures, quantize
from journey.engine.files import new_array
from journey.pipeline.settings import Storage

N, P, QUERIES = 50_000, 4096, 1000
BLOCK = 5000


def store(phi: np.ndarray, storage: Storage, directory: Path) -> np.ndarray | QuantizedFeatures:
    """Return features in a storage, as the stage `featurize` writes them."""
    if storage is Storage.fp32:
        return phi
    codes = new_array(directory / f"{storage.value}.npy", phi.shape, DTYPES[storage])
    scale = np.empty((len(phi), 1), np.float32)
    for first in range(0, len(phi), BLOCK):
        rows = slice(first, first + BLOCK)
        codes[rows], scale[rows] = quantize(phi[rows], storage)
    return QuantizedFeatures(codes, scale)


def main() -> None:
    """Print the seconds of both and their ratio, for each storage."""
    with tempfile.TemporaryDirectory() as name:
        directory, random = Path(name), np.random.default_rng(0)
        phi = new_array(directory / "features.npy", (N, P))
        for first in range(0, N, BLOCK):
            phi[first : first + BLOCK] = random.standard_normal((BLOCK, P), np.float32)
        queries = random.standard_normal((QUERIES, P), np.float32)
        out = new_array(directory / "scores.npy", (1, QUERIES, N))
        for storage in Storage:
            features = store(phi, storage, directory)
            wide, wide_queries = torch.from_numpy(np.array(phi)).double(), torch.from_numpy(queries)
            wide_queries = wide_queries.double()
            started = time.perf_counter()
            wide.T @ wide
            wide_queries @ wide.T
            floor = time.perf_counter() - started
            del wide
            started = time.perf_counter()
            kernel_scores(out, features, queries, [1.0])
            ours = time.perf_counter() - started
            print(f"{storage.value}: ours {ours:.1f} s, two products {floor:.1f} s, ", end="")
            print(f"ratio {ours / floor:.2f}, {torch.get_num_threads()} threads", flush=True)


if __name__ == "__main__":
    main()
