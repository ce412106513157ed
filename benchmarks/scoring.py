"""Kernel scores of a large training set, from disk, against the bare matrix products in memory.

command   OMP_NUM_THREADS=2 python benchmarks/scoring.py
bar       50,000 × 4,096 features, 1,000 queries: within 1.2× of ΦᵀΦ and φ_q Φᵀ as two float64 products, in every storage
          (ours makes a little more than half of the symmetric one)
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from journey.attribution.kernel import kernel_scores
from journey.attribution.projections import DTYPES, QuantizedFeatures, quantize
from journey.engine.files import new_array
from journey.pipeline.settings import Storage

N, P, QUERIES = 50_000, 4096, 1000
BLOCK = 5000


def stored(phi: np.ndarray, storage: Storage, directory: Path) -> np.ndarray | QuantizedFeatures:
    """The same features, as a stage writes them."""
    if storage is Storage.fp32:
        return phi
    codes = new_array(directory / f"{storage.value}.npy", phi.shape, DTYPES[storage])
    scale = np.empty((len(phi), 1), np.float32)
    for first in range(0, len(phi), BLOCK):
        codes[first : first + BLOCK], scale[first : first + BLOCK] = quantize(
            phi[first : first + BLOCK], storage
        )
    return QuantizedFeatures(codes, scale)


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def bare(phi: np.ndarray, queries: np.ndarray) -> float:
    """Seconds of the two products, of what is in memory already."""
    wide, wide_queries = (
        torch.from_numpy(np.array(phi)).double(),
        torch.from_numpy(queries).double(),
    )

    def products() -> None:
        wide.T @ wide
        wide_queries @ wide.T

    return seconds(products)


def main() -> None:
    """Print seconds of both and their ratio, for each storage."""
    with tempfile.TemporaryDirectory() as name:
        directory, random = Path(name), np.random.default_rng(0)
        phi = new_array(directory / "features.npy", (N, P))
        for first in range(0, N, BLOCK):
            phi[first : first + BLOCK] = random.standard_normal((BLOCK, P), np.float32)
        queries = random.standard_normal((QUERIES, P), np.float32)
        out = new_array(directory / "scores.npy", (1, QUERIES, N))
        for storage in Storage:
            features = stored(phi, storage, directory)
            floor = bare(phi, queries)
            ours = seconds(lambda features=features: kernel_scores(out, features, queries, [1.0]))
            ratio = f"ours {ours:.1f} s, two bare products {floor:.1f} s, ratio {ours / floor:.2f}"
            print(f"{storage.value}: {ratio}, {torch.get_num_threads()} threads", flush=True)


if __name__ == "__main__":
    main()
