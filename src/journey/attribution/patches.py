"""Nonparametric local score: how much each training image's patches weigh in the optimal local denoiser of x_t; no model.

The optimal denoiser whose estimate of a pixel sees a patch Ω around it is a softmax over training images of
−‖x_t[Ω] − √ᾱ_t x_i[Ω]‖² / (2 (1 − ᾱ_t)) (Kamb and Ganguli 2024, local score without translation); τ_i is image i's
weight, averaged over pixels.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def score(train: Tensor, x_t: Tensor, alpha_bar: Tensor, patch_sizes: list[int]) -> np.ndarray:
    """train: clean images [N, C, H, W]; x_t: noisy queries [step, query, C, H, W]; alpha_bar: ᾱ_t [step].

    Returns [patch size, step, query, train].
    """
    scores = np.empty((len(patch_sizes), *x_t.shape[:2], len(train)), np.float32)
    for step, alpha in enumerate(alpha_bar.tolist()):
        for query, noisy in enumerate(x_t[step]):
            square = (noisy - alpha**0.5 * train).square().sum(1, keepdim=True)  # [N, 1, H, W]
            for i, size in enumerate(patch_sizes):
                distance = F.avg_pool2d(square, size, 1, size // 2) * size**2  # outside the image nothing differs
                weights = (-distance / (2 * (1 - alpha))).softmax(0)
                scores[i, step, query] = weights.mean((1, 2, 3)).numpy()
    return scores
