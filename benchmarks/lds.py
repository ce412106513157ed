"""The LDS of every step and query, compared with `dattri`.

command   OMP_NUM_THREADS=2 python benchmarks/lds.py
bar       9 steps × 1,000 queries × 64 subsets of N = 50,000: at least 5× faster, and equal to
          1e-6 except for ties
"""

import time

import numpy as np
import torch
from dattri.metric import lds as dattri_lds

from journey.evaluation.lds.datamodeling import linear, predict
from journey.evaluation.statistics import weighted_spearman

STEPS, QUERIES, SUBSETS, N = 9, 1000, 64, 50_000


def main() -> None:
    """Print the seconds of both, their ratio and their differences.

    All steps have the same scores. `predict` applies three score transforms, as in an evaluation;
    only the linear one is compared.
    """
    random = np.random.default_rng(0)
    scores = random.standard_normal((1, 1, QUERIES, N), np.float32)
    members = np.stack([random.permutation(N)[: N // 2] for _ in range(SUBSETS)])
    masks = np.zeros((SUBSETS, N), bool)
    np.put_along_axis(masks, members, True, 1)
    measured = random.standard_normal((STEPS, QUERIES, SUBSETS))

    started = time.perf_counter()
    ours = []
    for step in range(STEPS):
        predicted = linear(predict(scores, masks, np.ones((1, scores.shape[2]))))[0, 0]
        ours.append(weighted_spearman(predicted, measured[step], np.ones((1, SUBSETS)))[0])
    seconds = time.perf_counter() - started

    by_image, indices = torch.from_numpy(scores[0, 0].T), torch.from_numpy(members)
    started = time.perf_counter()
    theirs = [dattri_lds(by_image, (torch.from_numpy(-m.T), indices))[0].numpy() for m in measured]
    reference = time.perf_counter() - started
    differences = np.abs(np.array(ours) - np.array(theirs))
    count = (differences > 1e-6).sum()
    print(
        f"ours {seconds:.1f} s, dattri {reference:.1f} s, ratio {reference / seconds:.1f}, ", end=""
    )
    print(f"{torch.get_num_threads()} threads")
    print(
        f"{count} of {differences.size} differ by more than 1e-6, at most {differences.max():.1e}"
    )


if __name__ == "__main__":
    main()
