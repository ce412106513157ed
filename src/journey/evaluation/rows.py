"""One shape of result for every evaluation: flat rows, which the same code draws and tables.

quantity  what is stated: lds, ceiling, difference, …
method    of which method; against: minus which other one; readout: how its scores were read
target    step, paired_steps, trajectory or destination; step: which timestep, of a step
value, low, high  with its 95% interval
"""

from collections.abc import Sequence

import numpy as np

from journey.evaluation.statistics import interval
from journey.evaluation.targets import STEP

Row = dict[str, str | int | float]


def of_targets(replicates: dict[str, np.ndarray], steps: Sequence[int], **what: str) -> list[Row]:
    """Rows of a quantity at several targets, each with its interval.

    replicates: the observed value first, then resampled ones, [B], or for the steps [B, S].
    """
    found = []
    for target, values in replicates.items():
        low, high = interval(values[1:])
        if target == STEP:
            ends = zip(steps, values[0], low, high, strict=True)
            found += [_row(what | {"target": target, "step": t}, *numbers) for t, *numbers in ends]
        else:
            found.append(_row(what | {"target": target}, values[0], low, high))
    return found


def _row(what: dict, value: float, low: float, high: float) -> Row:
    return {**what, "value": float(value), "low": float(low), "high": float(high)}


def select(rows: list[Row], **what: str | int) -> list[Row]:
    """The rows that say so.

    >>> select([{"method": "trak", "value": 1.0}, {"method": "pixel", "value": 2.0}], method="trak")
    [{'method': 'trak', 'value': 1.0}]
    """
    return [row for row in rows if all(row.get(key) == value for key, value in what.items())]


def names(rows: list[Row], quantity: str) -> list[str]:
    """The methods that a quantity is stated for, in their order."""
    return list(dict.fromkeys(str(row["method"]) for row in select(rows, quantity=quantity)))
