"""When something is decided along a journey: curves over the steps, [..., S], t falling.

S  steps;  Q  queries;  n  continuations of each from each step;  f  a number of what a continuation ends in
way  of a rising curve, from its first value to its last: 0 at the first step, 1 at the last
"""

import numpy as np

FLAT = 1e-9  # a curve that rises by less has gone no way


def monotone(curves: np.ndarray) -> np.ndarray:
    """The rising curves that are nearest in squares (isotonic regression), in closed form: at each step, the largest, over the
    steps where a block may begin, of the smallest mean of a block that holds the step (Barlow et al. 1972, Section 1.2).

    >>> monotone(np.array([0.0, 2.0, 1.0, 4.0]))
    array([0. , 1.5, 1.5, 4. ])
    """
    num = curves.shape[-1]
    rising = np.full(curves.shape, -np.inf)
    for first in range(num):
        means = curves[..., first:].cumsum(-1) / np.arange(1, num - first + 1)  # of the blocks that begin here
        smallest = np.minimum.accumulate(means[..., ::-1], -1)[..., ::-1]  # of those that hold each step
        rising[..., first:] = np.maximum(rising[..., first:], smallest)
    return rising


def crossing(rising: np.ndarray, steps: np.ndarray, share: float) -> np.ndarray:
    """The t at which rising curves have gone a share of their way, linear between steps; NaN of a flat one. [...]

    >>> crossing(np.array([0.1, 0.1, 0.5, 0.9]), np.array([400, 300, 200, 100]), 0.25)
    np.float64(250.0)
    """
    level = rising[..., 0] + share * (rising[..., -1] - rising[..., 0])
    after = np.maximum(1, (rising >= level[..., None]).argmax(-1))
    low, high = (np.take_along_axis(rising, at[..., None], -1)[..., 0] for at in (after - 1, after))
    flat = rising[..., -1] - rising[..., 0] < FLAT
    part = np.where(flat, np.nan, (level - low) / np.where(flat, 1, high - low))
    return steps[after - 1] + part * (steps[after] - steps[after - 1])


def width(rising: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """How many timesteps rising curves take from 25% to 75% of their way. [...]"""
    return crossing(rising, steps, 0.25) - crossing(rising, steps, 0.75)


def steepest(rising: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The middle of the two neighbouring steps between which rising curves rise most for each timestep. [...]

    >>> steepest(np.array([0.0, 0.1, 0.2, 0.9]), np.array([400, 200, 100, 20]))
    np.float64(60.0)
    """
    at = (np.diff(rising) / -np.diff(steps)).argmax(-1)
    return (steps[at] + steps[at + 1]) / 2


def decided(f: np.ndarray, query_weights: np.ndarray) -> np.ndarray:
    """The share of the variance of f that x_t has decided, 1 − E[Var(f | x_t)] / Var(f). f: [S, Q, n] → [B, S]

    query_weights: how often each replicate holds each query, [B, Q]. Var(f) is the same whatever step it is taken at, and is
    taken where it is known best, at the first: E[Var(f | x_t)] there, and the variance over queries of E[f | x_t], of which
    the n continuations leave a part that is subtracted.
    """
    num_queries, count = f.shape[1:]
    share = query_weights / query_weights.sum(1, keepdims=True)
    undecided = np.einsum("sq,bq->bs", f.var(-1, ddof=1), share)
    means = f[0].mean(-1)  # [Q]
    centred = means - (share @ means)[:, None]
    between = (share * centred**2).sum(1) * num_queries / (num_queries - 1) - undecided[:, 0] / count
    return 1 - undecided / (undecided[:, 0] + np.maximum(0, between))[:, None]


def centre(curves: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The mean t under curves that are nowhere negative, linear between steps; NaN where they are zero. [...]

    >>> centre(np.array([0.0, 1.0, 0.0]), np.array([300, 200, 100]))
    np.float64(200.0)
    """
    mass, moment = (-np.trapezoid(of, steps, axis=-1) for of in (curves, curves * steps))
    return np.divide(moment, mass, out=np.full(mass.shape, np.nan), where=mass > FLAT)[()]
