"""How far x̂0_t is from E[x_0 | x_t], of which continuations from x_t are draws.

m  mean of n draws;  all squared distances are means over elements, of each query, [Q]
"""

import numpy as np


def distances(x0_hat: np.ndarray, draws: np.ndarray, final: np.ndarray) -> dict[str, np.ndarray]:
    """x0_hat and final [Q, …], draws [Q, n, …]. Unbiased, whatever n:

    spread       Var(x_0 | x_t): of what is undecided
    monte_carlo  spread / n: what m is from E[x_0 | x_t], and has been taken off both of the next
    estimate_to_mean  ‖x̂0_t − E[x_0 | x_t]‖² = E‖x̂0_t − m‖² − spread / n
    mean_to_final  ‖E[x_0 | x_t] − x_0‖², of the final example x_0, which is a draw too and none of the n: spread, if averaged
    estimate_to_final  ‖x̂0_t − x_0‖²: estimate_to_mean + spread, if averaged
    """
    num_draws, elements = draws.shape[1], tuple(range(1, final.ndim))
    draws, x0_hat, final = (of.astype(np.float64) for of in (draws, x0_hat, final))
    mean, spread = draws.mean(1), draws.var(1, ddof=1).mean(elements)

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(a - b).mean(elements)

    monte_carlo = spread / num_draws
    return {
        "estimate_to_mean": squared(x0_hat, mean) - monte_carlo,
        "monte_carlo": monte_carlo,
        "spread": spread,
        "mean_to_final": squared(mean, final) - monte_carlo,
        "estimate_to_final": squared(x0_hat, final),
    }
