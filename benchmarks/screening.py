"""How few bytes of an image are enough to find the images that matter: screening a million synthetic features.

    command   OMP_NUM_THREADS=1 python benchmarks/screening.py [images]

The features are made up: s ∘ (√ρ c + √(1 − ρ) ε) with a spectrum s_j ∝ 1/√j, a centre c for every 50 images and noise ε; a query
is one more of a cluster. The true score is the inner product of whole features in float32. Printed for each way to keep them:
bytes an image, and which share of the true 100 highest is among the 100, 1,000 and 10,000 highest by what is kept (those would be
scored exactly). A block of images is in memory at a time, and the scores of ten queries.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

P = 512  # features
NUM_QUERIES = 10
PER_CLUSTER = 50
RHO = 0.3
BLOCK = 10_000
TOP = 100
SCREENED = (100, 1_000, 10_000)
SPECTRUM = (np.arange(1, P + 1) ** -0.5).astype(np.float32)


@dataclass(frozen=True)
class Kept:
    """What is kept of features [n, P], as what it is read back as, and queries to multiply with it: [n, k] and [q, k]."""

    num_bytes: float
    images: Callable[[np.ndarray], np.ndarray]
    queries: Callable[[np.ndarray], np.ndarray]


def main(num_images: int) -> None:
    """A line for each way."""
    random = np.random.default_rng(0)
    num_clusters = max(1, num_images // PER_CLUSTER)
    queries = _features(random, np.arange(NUM_QUERIES) % num_clusters)
    ways = {"all, float32": Kept(4 * P, _same, _same), **_ways(random)}
    scores = {name: np.empty((NUM_QUERIES, num_images), np.float32) for name in ways}
    for first in range(0, num_images, BLOCK):
        clusters = random.integers(num_clusters, size=min(BLOCK, num_images - first))
        block = _features(random, clusters)  # [n, P]
        for name, way in ways.items():
            scores[name][:, first : first + len(block)] = way.queries(queries) @ way.images(block).T
    true = _highest(scores["all, float32"], TOP)
    for name, way in ways.items():
        recalls = " ".join(
            f"{_recall(true, _highest(scores[name], count)):.3f}" for count in SCREENED
        )
        print(f"{name:28} {way.num_bytes:7.1f} bytes: {recalls}", flush=True)


def _features(random: np.random.Generator, clusters: np.ndarray) -> np.ndarray:
    """Images of some clusters, whose centres depend on their numbers alone. [n, P]"""
    unique, which = np.unique(clusters, return_inverse=True)
    centres = np.stack(
        [np.random.default_rng([1, int(one)]).standard_normal(P, np.float32) for one in unique]
    )
    noise = random.standard_normal((len(clusters), P), np.float32)
    return SPECTRUM * (np.float32(RHO**0.5) * centres[which] + np.float32((1 - RHO) ** 0.5) * noise)


def _ways(random: np.random.Generator) -> dict[str, Kept]:
    rotation = np.linalg.qr(random.standard_normal((P, P)))[0].astype(np.float32)
    ways = {"all, float16": Kept(2 * P, lambda x: x.astype(np.float16).astype(np.float32), _same)}
    for bits in (8, 4, 2):
        ways[f"all, int{bits}"] = Kept(
            P * bits / 8 + 2, lambda x, bits=bits: _rounded(x, bits), _same
        )
    ways["signs, rotated"] = Kept(P / 8 + 2, lambda x: _signs(x @ rotation), lambda x: x @ rotation)
    for k in (256, 128, 64, 32):
        dense = (random.standard_normal((P, k)) / k**0.5).astype(np.float32)
        ways[f"{k} random directions, int8"] = Kept(
            k + 2, lambda x, m=dense: _rounded(x @ m, 8), lambda x, m=dense: x @ m
        )
        ways[f"{k} principal axes, int8"] = Kept(
            k + 2, lambda x, k=k: _rounded(x[:, :k], 8), lambda x, k=k: x[:, :k]
        )
    return ways


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """To whole numbers of so many bits, times a scale of each row."""
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(x).max(1, keepdims=True) / largest
    return np.rint(x / scale) * scale


def _signs(x: np.ndarray) -> np.ndarray:
    """A bit for each, times the mean magnitude of each row."""
    return np.sign(x) * np.abs(x).mean(1, keepdims=True)


def _highest(scores: np.ndarray, count: int) -> list[set[int]]:
    """The images with the highest scores, of each query."""
    return [set(np.argpartition(row, -count)[-count:].tolist()) for row in scores]


def _recall(true: list[set[int]], found: list[set[int]]) -> float:
    return float(np.mean([len(a & b) / len(a) for a, b in zip(true, found, strict=True)]))


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:] or ["1000000"]))
