"""The rows of a result, and tables of them. Every evaluation writes its numbers as such rows.

quantity  what the number is: lds, query_centred, ceiling, difference, …
method    whose number it is; against: the method that is subtracted
score_transform  how scores became predictions: chosen (on held-out data) or linear
classifier  the classifier whose labels the number depends on
target    step, paired_steps, trajectory or final_sample
step      the timestep, where the target is a step
value, low, high     the number and its 95% interval
null_low, null_high  the central 95% of its null distribution
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from journey.attribution.targets import STEP
from journey.engine.text import printable
from journey.pipeline.interfaces import Row

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.table import Table

Number = float | np.ndarray  # a single one

Interval = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Value, lower end and upper end."""


def make_row(
    conditions: Mapping[str, str | int | float], value: Number, low: Number, high: Number
) -> Row:
    """Return a row: the conditions that identify a number, the number and its interval."""
    return {**conditions, "value": float(value), "low": float(low), "high": float(high)}


def rows_of_targets(
    intervals: dict[str, Interval], steps: Sequence[int], **conditions: str
) -> list[Row]:
    """Return the rows of several targets: arrays [S] of the target `step`, scalars of others.

    >>> ends = np.float64(0.2), np.float64(0.1), np.float64(0.3)
    >>> rows_of_targets({"trajectory": ends}, [], quantity="lds")
    [{'quantity': 'lds', 'target': 'trajectory', 'value': 0.2, 'low': 0.1, 'high': 0.3}]
    """
    rows = []
    for target, ends in intervals.items():
        if target != STEP:
            rows.append(make_row({**conditions, "target": target}, *ends))
            continue
        for t, value, low, high in zip(steps, *ends, strict=True):
            at_step: Row = {**conditions, "target": target, "step": t}
            rows.append(make_row(at_step, value, low, high))
    return rows


def select(rows: list[Row], **conditions: str | int | float) -> list[Row]:
    """Return the rows that have all of these values.

    >>> select([{"method": "trak", "value": 1.0}, {"method": "pixel", "value": 2.0}], method="trak")
    [{'method': 'trak', 'value': 1.0}]
    """
    selected = []
    for row in rows:
        if all(row.get(key) == value for key, value in conditions.items()):
            selected.append(row)
    return selected


def method_names(rows: list[Row], quantity: str) -> list[str]:
    """Return the methods for which there is a quantity, in the order of the rows."""
    return list(dict.fromkeys(str(row["method"]) for row in select(rows, quantity=quantity)))


def error_bars(rows: list[Row]) -> np.ndarray:
    """Return the distances from values to the lower and upper ends of their intervals. [2, rows]"""
    value, low, high = np.array([[row[key] for row in rows] for key in ("value", "low", "high")])
    return np.maximum(0, np.stack([value - low, high - value]))


def format_interval(row: Row, digits: int, times: float = 1.0, sign: str = "") -> str:
    """Return a value with its interval, times a factor; a sign of "+" marks positive numbers.

    >>> format_interval({"value": -0.1234, "low": -0.2, "high": 0.001}, 1, times=100)
    '−12.3 [−20.0, 0.1]'
    """
    numbers = [times * float(row[end]) for end in ("value", "low", "high")]
    value, low, high = (f"{number:{sign}z.{digits}f}".replace("-", "−") for number in numbers)
    return f"{value} [{low}, {high}]"


def format_half_width(row: Row) -> str:
    """Return 100 × a value ± half the width of its interval.

    >>> format_half_width({"value": 0.2, "low": 0.1, "high": 0.34})
    '20 ± 12'
    """
    value, low, high = (float(row[end]) for end in ("value", "low", "high"))
    return f"{100 * value:z.0f} ± {50 * (high - low):.0f}".replace("-", "−")


def target_name(row: Row) -> str:
    """Return the target of a row as the heading of a column.

    >>> target_name({"target": "step", "step": 400}), target_name({"target": "final_sample"})
    ('t=400', 'final sample')
    """
    return f"t={row['step']}" if "step" in row else str(row["target"]).replace("_", " ")


def pivot(
    rows: list[Row],
    index: str | Callable[[Row], str],
    columns: str | Callable[[Row], str],
    cell: Callable[[Row], str],
    heading: str | None = None,
) -> "DataFrame":
    """Return a table of texts with a cell for each row, "" where there is none.

    Lines and columns keep the order of the rows. The first column has the names of the lines.

    Args:
        rows: The rows.
        index: The name of a row's line: a key, or a function of the row.
        columns: The name of its column, likewise.
        cell: The text of its cell.
        heading: Heading of the first column; by default the key `index`, or "".

    >>> rows = [{"method": "trak", "step": t, "value": t / 1000} for t in (600, 300)]
    >>> pivot(rows, "method", target_name, lambda row: f"{row['value']}").to_dict("records")
    [{'method': 'trak', 't=600': '0.6', 't=300': '0.3'}]
    """
    from pandas import DataFrame

    if heading is None:
        heading = index if isinstance(index, str) else ""
    lines: dict[str, dict[str, str]] = {}
    names: dict[str, None] = {}  # of the columns, in order
    for row in rows:
        line = printable(str(row[index] if isinstance(index, str) else index(row)))
        column = printable(str(row[columns] if isinstance(columns, str) else columns(row)))
        lines.setdefault(line, {heading: line})[column] = cell(row)
        names[column] = None
    return DataFrame(list(lines.values()), columns=[heading, *names]).fillna("")


def rich_table(frame: "DataFrame", title: str, *sections: "DataFrame") -> "Table":
    """Return a table for the terminal, with further lines in sections below rules.

    Nothing is markup: brackets are intervals.
    """
    lines = [list(part.itertuples(index=False)) for part in (frame, *sections)]
    return terminal_table(frame.columns, lines, title)


def terminal_table(
    headings: Sequence[object],
    sections: Sequence[Sequence[Sequence[object]]],
    title: str = "",
    justify: Literal["left", "right"] = "right",
) -> "Table":
    """Return a table for the terminal. Nothing in it is markup or controls the terminal.

    Args:
        headings: The headings of the columns.
        sections: The lines of each section.
        title: The title; "" for none.
        justify: Justification of all columns but the first.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)) if title else None, title_justify="left")
    for i, name in enumerate(headings):
        table.add_column(Text(printable(str(name))), justify=justify if i else "left")
    for lines in sections:
        table.add_section()
        for line in lines:
            table.add_row(*(Text(printable(str(text))) for text in line))
    return table


def markdown_table(frame: "DataFrame") -> str:
    """Return a table as Markdown, with its texts as they are.

    >>> from pandas import DataFrame
    >>> print(markdown_table(DataFrame([{"method": "trak", "LDS": "20 [10, 34]"}])))
    | method | LDS |
    | --- | --- |
    | trak | 20 [10, 34] |
    """
    lines = [[markdown_text(str(name)) for name in frame.columns], ["---"] * len(frame.columns)]
    for line in frame.itertuples(index=False):
        lines.append([markdown_text(str(text)) for text in line])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    r"""Return text as Markdown that shows it, in a line or a cell.

    >>> print(markdown_text("a|b <i> `c` *d* gradient_dot _e_ [f](g) $x$"))
    a\|b &lt;i> \`c\` \*d\* gradient_dot \_e\_ [f]\(g) \$x\$
    """
    text = re.sub(r"([\\`|*~$])", r"\\\1", printable(text))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside words, they are no emphasis
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")
    return re.sub(r"(?<=\])(?=[(\[:])", r"\\", text)
