"""The LDS of arrays, for scores and retrained models of any program.

S steps;  Q queries;  N training images;  M subsets
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from journey.engine.checks import require
from journey.evaluation.lds import datamodeling, reliability
from journey.evaluation.lds.datamodeling import Interval

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LDSResult:
    """The query-centred LDS of linear scores, mean over steps and queries, with its interval.

    It is the statistic by which `experiment=…` compares methods. A significantly negative value
    suggests that scores have the opposite sign: positive scores must be proponents, images whose
    removal raises the loss.

    Attributes:
        value: The LDS of outputs minus their mean over queries.
        low: Lower end of its 95% interval, over queries and subsets.
        high: Upper end.
        steps: The same of each step.
        plain: The LDS of the outputs themselves, mean over steps.
        ceiling: The expected query-centred LDS of the best predictor of these models, with its
            interval, or None if outputs have no halves.
    """

    value: float
    low: float
    high: float
    steps: list[Interval]
    plain: Interval
    ceiling: tuple[float, float, float] | None


def lds(
    scores: "np.ndarray | Tensor",
    masks: "np.ndarray | Tensor",
    outputs: "np.ndarray | Tensor",
    seed: int = 0,
) -> LDSResult:
    """Return the linear datamodeling score, as `experiment=…` computes it for linear scores.

    Rank correlations are over the subsets of each of two random halves, and averaged.

    Args:
        scores: Scores of training images [S, Q, N], or [1, Q, N] for all steps.
        masks: Whether the training subset of a model holds an image. [M, N]
        outputs: Losses of the queries under M ≥ 8 retrained models [M, S, Q]; or, for ceilings, of
            R training seeds and two halves of the noise samples each [M, R, 2, S, Q].
        seed: Seed of the split into halves.
    """
    # Check the shapes.
    tau, members, measured = np.asarray(scores), np.asarray(masks), np.asarray(outputs, np.float64)
    allowed = "[M, S, Q] or [M, R, 2, S, Q], with M ≥ 8 and Q ≥ 4"
    shape = measured.shape
    fits = len(shape) == 3 or (len(shape) == 5 and shape[2] == 2)
    require(fits and shape[0] >= 8 and shape[-1] >= 4, "outputs.shape", shape, allowed)
    allowed = f"[{shape[0]}, N] of true and false"
    fits = members.ndim == 2 and len(members) == shape[0] and members.dtype == bool
    require(fits, "masks", f"{members.dtype} {members.shape}", allowed)
    allowed = f"[{shape[-2]} or 1, {shape[-1]}, {members.shape[1]}]"
    fits = tau.ndim == 3 and tau.shape[1:] == (shape[-1], members.shape[1])
    require(fits and len(tau) in (1, shape[-2]), "scores.shape", tau.shape, allowed)
    require(bool(np.isfinite(tau).all()), "scores", "NaN or infinite", "finite")
    require(bool(np.isfinite(measured).all()), "outputs", "NaN or infinite", "finite")

    # `datamodeling` expects outputs of a trajectory and of a final sample after those of the steps.
    # The mean over steps stands for both; neither is returned. Nothing is chosen: one replicate.
    num_subsets, num_steps, num_queries = shape[0], shape[-2], shape[-1]
    mean = measured.mean(-2, keepdims=True)
    measured = np.concatenate([measured, mean, mean], -2)
    by_target = measured if measured.ndim == 3 else measured.mean((1, 2))
    truth = np.moveaxis(by_target, 0, -1)  # [T, Q, M]
    varies = bool((truth.min(-1) < truth.max(-1)).all())
    require(varies, "outputs", "constant for a query", "such that retrained models differ")
    predictions = datamodeling.predict(tau[None], members, np.ones((num_steps, num_queries)))
    predictions = datamodeling.linear(predictions)
    resampled = datamodeling.resampling(num_queries, num_subsets, 1, seed)

    # The LDS, and that of query-centred values: at each step, and the mean over steps.
    all_steps = list(range(num_steps))
    plain = datamodeling.lds(predictions, truth, resampled).interval(all_steps)
    half = resampled.query_half
    predictions = datamodeling.query_centred(predictions, half)
    centred = datamodeling.lds(predictions, datamodeling.query_centred(truth, half), resampled)
    value, low, high = centred.interval(all_steps)[:3]
    steps = [centred.interval([step]) for step in all_steps]

    ceiling = None
    if measured.ndim == 5:
        outputs_centred = datamodeling.query_centred(measured[..., None], half)[..., 0]
        limits = reliability.ceilings(outputs_centred, reliability.given_seed, num_subsets // 2)
        ceiling = limits.interval(all_steps)
    return LDSResult(value, low, high, steps, plain, ceiling)
