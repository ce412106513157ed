"""How much of what is measured would be measured again: variance components of outputs over subsets, seeds and draws.

    y_mrh = μ + subset_m + seed_r + (subset × seed)_mr + draw_mrh

    M  subsets;  R  seeds, independent trainings of each subset;  h  half of the measuring draws;  T  targets;  Q  queries

Draws are the same for every model, so what is common to all subsets is no noise: each component is a variance over subsets.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shares:
    """Noise in the mean over seeds and draws, as a share of that mean's variance over subsets: variance ratios [T, Q] whose
    numerator has df degrees of freedom and whose denominator M − 1. One minus it is the reliability.
    """

    ratio: np.ndarray
    df: int
    num_subsets: int

    @property
    def reliability(self) -> np.ndarray:
        """Unbiased where outputs are normal: E[MS_noise / MS_total] = (M − 1)/(M − 3) × the true ratio."""
        return 1 - self.ratio * (self.num_subsets - 3) / (self.num_subsets - 1)


def given_seed(outputs: np.ndarray) -> Shares:
    """Noise of draws alone: would these very models be measured alike again? outputs: [M, R, 2, T, Q]"""
    num_subsets, num_seeds = outputs.shape[:2]
    first, second = np.moveaxis(outputs, 2, 0)  # [M, R, T, Q]
    noise = (first - second).var(0, ddof=1).mean(0) / 4 / num_seeds
    return Shares(noise / _total(outputs), num_seeds * (num_subsets - 1), num_subsets)


def over_seeds(outputs: np.ndarray) -> Shares:
    """Noise of draws and of training: would other trainings on these subsets be measured alike? At least two seeds."""
    num_subsets, num_seeds = outputs.shape[:2]
    of_seed = outputs.mean(2)  # [M, R, T, Q]
    residual = of_seed - of_seed.mean(0) - of_seed.mean(1, keepdims=True) + of_seed.mean((0, 1))
    df = (num_subsets - 1) * (num_seeds - 1)
    noise = np.square(residual).sum((0, 1)) / df / num_seeds
    return Shares(noise / _total(outputs), df, num_subsets)


def _total(outputs: np.ndarray) -> np.ndarray:
    return outputs.mean((1, 2)).var(0, ddof=1)
