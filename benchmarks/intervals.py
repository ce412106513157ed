"""Do the 95% intervals of the LDS cover the true LDS? A coverage of 0.95 is right.

    command   OMP_NUM_THREADS=1 python benchmarks/intervals.py [worlds] [file]

A world has M random halves of N images, effects of images on the outputs of Q queries, and two
methods with five values of λ each. Effects, training noise and the errors of scores have a part
that is common to all queries, one that is common to the queries of a class, and one of each query.
The errors of scores stand for the noise samples of attribution: every world draws them anew.

* null: scores are errors alone
* signal: scores are effects and errors; how well they predict differs between queries and λ
* permutation: the outputs of a world with a signal, permuted over the subsets; the LDS is 0

λ, or λ and score transform, are chosen on held-out cells. The true value of a null or a permutation
is 0. That of a world with a signal is the mean over all worlds, whose own error counts in the
coverage. Coverages and standard errors are written to experiments/protocol/intervals.json; worlds
that the file has already, as many of each, are skipped.
"""

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np

from journey.evaluation.lds.datamodeling import (
    SCORE_TRANSFORMS,
    Resampling,
    lds,
    linear,
    predict,
    query_centred,
    resampling,
)

FILE = Path(__file__).parents[1] / "experiments/protocol/intervals.json"
SIZES = ((24, 32), (24, 64), (96, 32), (96, 64))  # queries, subsets
KINDS = ("null", "permutation", "signal")
N, B, STEPS = 400, 300, 2
STRENGTHS = (0.5, 0.8, 1.0, 0.9, 0.6)  # of the effects in scores, by λ, relative to the best
SIGNALS = (0.3, 0.15)  # of the effects in the scores of either method
SPREAD = 0.1  # of the signal over queries
PARTS = {"effects": (0.3, 0.15), "noise": (0.4, 0.1), "errors": (0.5, 0.15)}
"""Shares of the variance that are common to all queries, and to those of a class."""
SUBSETS_SHARE = 0.3  # of the effects in the variance of outputs


def main(num_worlds: int = 400, file: Path = FILE) -> None:
    """Write the coverage of every statistic, for all sizes and kinds of worlds."""
    lines = json.loads(file.read_text()) if file.exists() else []
    lines = [line for line in lines if line["num_worlds"] == num_worlds]
    for (num_queries, num_subsets), kind in itertools.product(SIZES, KINDS):
        worlds = {"queries": num_queries, "subsets": num_subsets, "worlds": kind}
        if any(worlds.items() <= line.items() for line in lines):
            continue
        start, intervals = time.perf_counter(), []
        for seed in range(num_worlds):
            intervals.append(simulate(num_queries, num_subsets, kind, seed))
        for name in intervals[0]:
            value, low, high = np.array([world[name][:3] for world in intervals]).T
            truth = value.mean() if kind == "signal" else 0.0
            line = {
                **worlds,
                "statistic": name,
                "num_worlds": num_worlds,
                "truth": round(float(truth), 4),
                "coverage": round(float(np.mean((low <= truth) & (truth <= high))), 4),
                "deviation": round(float(value.std()), 4),
                "half_width": round(float(np.mean(high - low)) / 2, 4),
            }
            lines.append(line)
            print(*line.values(), flush=True)
        print(f"{(time.perf_counter() - start) / num_worlds:.2f} s a world", flush=True)
        file.write_text(json.dumps(lines, indent=1) + "\n")


def simulate(
    num_queries: int, num_subsets: int, kind: str, seed: int
) -> dict[str, tuple[float, ...]]:
    """Return the intervals of a world by the name of the statistic."""
    random = np.random.default_rng((seed, num_queries, num_subsets, KINDS.index(kind)))
    classes = random.integers(10, size=num_queries)
    masks = random.permuted(np.arange(num_subsets * N).reshape(num_subsets, N) % 2, axis=1) == 0

    # Outputs [T, Q, M], with the trajectory and the final sample, which are the mean over steps.
    effects = parts(random, (STEPS, num_queries, N), "effects", classes)
    noise = parts(random, (STEPS, num_queries, num_subsets), "noise", classes)
    signal = -(effects @ masks.T) / np.sqrt(N / 4)
    outputs = np.sqrt(SUBSETS_SHARE) * signal + np.sqrt(1 - SUBSETS_SHARE) * noise
    mean = outputs.mean(0, keepdims=True)
    measured = np.concatenate([outputs, mean, mean])
    if kind == "permutation":
        measured = measured[..., random.permutation(num_subsets)]

    resampled = resampling(num_queries, num_subsets, B, seed)
    weights = np.ones((STEPS, num_queries))
    primary, plain, result = [], [], {}
    for best in SIGNALS:
        scores = []
        error = parts(random, effects.shape, "errors", classes)
        spread = SPREAD * random.standard_normal((1, num_queries, 1))
        for strength in STRENGTHS:
            share = 0.0 if kind == "null" else np.clip(best * strength + spread, -0.9, 0.9)
            scores.append(share * effects + np.sqrt(1 - np.square(share)) * error)
            error = 0.7 * error + np.sqrt(0.51) * parts(random, error.shape, "errors", classes)
        predictions = predict(np.stack(scores), masks, weights)
        primary.append(lds(*centred(linear(predictions), measured, resampled)))
        plain.append(lds(linear(predictions), measured, resampled))
        if "chosen transform" not in result:
            transformed = lds(*centred(predictions, measured, resampled), len(SCORE_TRANSFORMS))
            result["chosen transform"] = transformed
    result |= {"primary": primary[0], "primary difference": primary[0].minus(primary[1])}
    result |= {"plain": plain[0], "plain difference": plain[0].minus(plain[1])}
    steps = list(range(STEPS))
    return {name: statistic.interval(steps) for name, statistic in result.items()}


def centred(
    predictions: np.ndarray, measured: np.ndarray, resampled: Resampling
) -> tuple[np.ndarray, np.ndarray, Resampling]:
    """Return the arguments of the query-centred LDS."""
    half = resampled.query_half
    return query_centred(predictions, half), query_centred(measured, half), resampled


def parts(
    random: np.random.Generator, shape: tuple[int, int, int], name: str, classes: np.ndarray
) -> np.ndarray:
    """Return normal values [S, Q, n] of unit variance with common parts; steps correlate by 0.7."""
    common, of_class = PARTS[name]
    num_steps, num_queries, count = shape

    def steps(rows: int) -> np.ndarray:
        values = random.standard_normal((num_steps, rows, count))
        for step in range(1, num_steps):
            values[step] = 0.7 * values[step - 1] + np.sqrt(0.51) * values[step]
        return values

    own = np.sqrt(1 - common - of_class) * steps(num_queries)
    return np.sqrt(common) * steps(1) + np.sqrt(of_class) * steps(10)[:, classes] + own


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *map(Path, sys.argv[2:]))
