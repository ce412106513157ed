"""One shape of result for every evaluation: flat rows, which the same code draws and tables.

quantity  what is stated: lds, specific, ceiling, difference, …
method    of which method; against: minus which other one; readout: how its scores were read
by        which of several instruments saw it
target    step, paired_steps, trajectory or destination; step: which timestep, of a step
value, low, high  with its 95% interval; null_low, null_high: where 95% of it would be if nothing was the matter
"""

from collections.abc import Sequence

import numpy as np

from journey.attribution.targets import STEP

Row = dict[str, str | int | float]


Interval = tuple[np.ndarray, np.ndarray, np.ndarray]  # value, and the ends of its interval


def rows_of_targets(found: dict[str, Interval], steps: Sequence[int], **what: str) -> list[Row]:
    """Rows of a quantity at several targets, each with its interval.

    found: value, low and high of each, scalars, or for the steps [S].

    >>> of_targets({"trajectory": (np.float64(0.2), np.float64(0.1), np.float64(0.3))}, [], quantity="lds")
    [{'quantity': 'lds', 'target': 'trajectory', 'value': 0.2, 'low': 0.1, 'high': 0.3}]
    """
    rows = []
    for target, ends in found.items():
        if target == STEP:
            rows += [
                make_row(what | {"target": target, "step": t}, *numbers)
                for t, *numbers in zip(steps, *ends, strict=True)
            ]
        else:
            rows.append(make_row(what | {"target": target}, *ends))
    return rows


def make_row(what: dict, value: float, low: float, high: float) -> Row:
    """What is stated, and its numbers."""
    return {**what, "value": float(value), "low": float(low), "high": float(high)}


def select(rows: list[Row], **what: str | int) -> list[Row]:
    """The rows that say so.

    >>> select([{"method": "trak", "value": 1.0}, {"method": "pixel", "value": 2.0}], method="trak")
    [{'method': 'trak', 'value': 1.0}]
    """
    return [row for row in rows if all(row.get(key) == value for key, value in what.items())]


def method_names(rows: list[Row], quantity: str) -> list[str]:
    """The methods that a quantity is stated for, in their order."""
    return list(dict.fromkeys(str(row["method"]) for row in select(rows, quantity=quantity)))


def format_interval(row: Row, digits: int, times: float = 1.0, sign: str = "") -> str:
    """A value with its interval, in words of a table.

    >>> spelled({"value": -0.1234, "low": -0.2, "high": 0.001}, 1, times=100)
    '−12.3 [−20.0, 0.1]'
    """
    value, low, high = (
        f"{times * row[end]:{sign}z.{digits}f}".replace("-", "−")
        for end in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def error_bars(rows: list[Row]) -> np.ndarray:
    """Distances from the values to both ends of their intervals. [2, rows]"""
    value, low, high = (np.array([row[key] for row in rows]) for key in ("value", "low", "high"))
    return np.maximum(0, np.stack([value - low, high - value]))
