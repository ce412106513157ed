"""LDS of every step and query against `dattri`'s.

command   OMP_NUM_THREADS=2 python benchmarks/lds.py
bar       9 steps × 1,000 queries × 64 subsets of N = 50,000: at least 5× faster, equal to 1e-6 apart from ties
"""

import time

import numpy as np
import torch
from dattri.metric import lds as dattri_lds

from journey.evaluation.lds.datamodeling import linear, predict
from journey.evaluation.statistics import weighted_spearman

STEPS, QUERIES, SUBSETS, N = 9, 1000, 64, 50_000


def main() -> None:
    """Print seconds of both, their ratio and how they differ; the scores of a step stand for all nine.

    Ours reads scores out in three ways, as an evaluation does, and one of them is compared.
    """
    random = np.random.default_rng(0)
    scores = random.standard_normal((1, 1, QUERIES, N), np.float32)
    kept = np.stack([random.permutation(N)[: N // 2] for _ in range(SUBSETS)])
    masks = np.zeros((SUBSETS, N), bool)
    np.put_along_axis(masks, kept, True, 1)
    measured = random.standard_normal((STEPS, QUERIES, SUBSETS))

    started = time.perf_counter()
    ours = []
    for step in range(STEPS):
        predicted = linear(predict(scores, masks, np.ones((1, scores.shape[2]))))[0, 0]
        ours.append(weighted_spearman(predicted, measured[step], np.ones((1, SUBSETS)))[0])
    seconds = time.perf_counter() - started

    by_image, indices = torch.from_numpy(scores[0, 0].T), torch.from_numpy(kept)
    started = time.perf_counter()
    theirs = [dattri_lds(by_image, (torch.from_numpy(-m.T), indices))[0].numpy() for m in measured]
    reference = time.perf_counter() - started
    differences = np.abs(np.array(ours) - np.array(theirs))
    apart = differences > 1e-6
    print(
        f"ours {seconds:.1f} s, dattri {reference:.1f} s, ratio {reference / seconds:.1f}, {torch.get_num_threads()} threads"
    )
    print(
        f"{apart.sum()} of {apart.size} differ by more than 1e-6; the largest difference is {differences.max():.1e}"
    )


if __name__ == "__main__":
    main()
