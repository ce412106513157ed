"""How few bytes per image are enough to find the most influential images of a million?

    command   OMP_NUM_THREADS=1 python benchmarks/screening.py [images]

Features are synthetic: s ∘ (√ρ c + √(1 − ρ) ε), with a spectrum s_j ∝ 1/√j, a centre c for every 50
images, and noise ε. A query is one more member of a cluster. The true score is the inner product of
whole float32 features.

For each compressed form, the output has its bytes per image, and the share of the true top 100 that
is among its top 100, 1,000 and 10,000. Those candidates would then be scored exactly. Memory holds
one block of images, and the scores of ten queries.

n  images of a block;  p  features;  k  numbers of the compressed form
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

Transform = Callable[[np.ndarray], np.ndarray]


def identity(x: np.ndarray) -> np.ndarray:
    """Return the features unchanged."""
    return x


@dataclass(frozen=True)
class Compression:
    """A compressed form of features."""

    num_bytes: float  # per image
    images: Transform  # features [n, p] to the values that are read back [n, k]
    queries: Transform = identity  # features of the queries to their multipliers [q, k]


def compressions(random: np.random.Generator) -> dict[str, Compression]:
    """Return all compressed forms by name."""
    rotation = np.linalg.qr(random.standard_normal((P, P)))[0].astype(np.float32)
    forms = {
        "all, float32": Compression(4 * P, identity),
        "all, float16": Compression(2 * P, lambda x: x.astype(np.float16).astype(np.float32)),
    }
    for bits in (8, 4, 2):
        forms[f"all, int{bits}"] = Compression(
            P * bits / 8 + 2, lambda x, bits=bits: round_to_bits(x, bits)
        )
    forms["signs, rotated"] = Compression(
        P / 8 + 2, lambda x: signs(x @ rotation), lambda x: x @ rotation
    )
    for k in (256, 128, 64, 32):
        dense = (random.standard_normal((P, k)) / k**0.5).astype(np.float32)
        forms[f"{k} random directions, int8"] = Compression(
            k + 2, lambda x, m=dense: round_to_bits(x @ m, 8), lambda x, m=dense: x @ m
        )
        forms[f"{k} principal axes, int8"] = Compression(
            k + 2, lambda x, k=k: round_to_bits(x[:, :k], 8), lambda x, k=k: x[:, :k]
        )
    return forms


def round_to_bits(x: np.ndarray, bits: int) -> np.ndarray:
    """Return integers of so many bits, times a scale of each row."""
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(x).max(1, keepdims=True) / largest
    return np.rint(x / scale) * scale


def signs(x: np.ndarray) -> np.ndarray:
    """Return the signs, times the mean magnitude of each row."""
    return np.sign(x) * np.abs(x).mean(1, keepdims=True)


def make_features(random: np.random.Generator, clusters: np.ndarray) -> np.ndarray:
    """Return features of images of clusters [n]; a centre depends on its cluster only. [n, p]"""
    unique, index = np.unique(clusters, return_inverse=True)
    centres = []
    for cluster in unique:
        centres.append(np.random.default_rng([1, int(cluster)]).standard_normal(P, np.float32))
    noise = random.standard_normal((len(clusters), P), np.float32)
    centre, rho = np.stack(centres)[index], np.float32(RHO)
    return SPECTRUM * (np.sqrt(rho) * centre + np.sqrt(1 - rho) * noise)


def top_images(scores: np.ndarray, count: int) -> list[set[int]]:
    """Return the images with the highest scores, for each query."""
    return [set(np.argpartition(row, -count)[-count:].tolist()) for row in scores]


def main(num_images: int = 1_000_000) -> None:
    """Print a line for each compressed form."""
    random = np.random.default_rng(0)
    num_clusters = max(1, num_images // PER_CLUSTER)
    queries = make_features(random, np.arange(NUM_QUERIES) % num_clusters)
    forms = compressions(random)
    scores = {name: np.empty((NUM_QUERIES, num_images), np.float32) for name in forms}
    for first in range(0, num_images, BLOCK):
        clusters = random.integers(num_clusters, size=min(BLOCK, num_images - first))
        block = make_features(random, clusters)
        columns = slice(first, first + len(block))
        for name, form in forms.items():
            scores[name][:, columns] = form.queries(queries) @ form.images(block).T
    true = top_images(scores["all, float32"], TOP)
    for name, form in forms.items():
        recalls = []
        for count in SCREENED:
            pairs = zip(true, top_images(scores[name], count), strict=True)
            recalls.append(np.mean([len(a & b) / TOP for a, b in pairs]))
        recalls = " ".join(f"{recall:.3f}" for recall in recalls)
        print(f"{name:28} {form.num_bytes:7.1f} bytes: {recalls}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
