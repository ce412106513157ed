"""The rows of a result, and tables of them. Every evaluation writes its numbers as such rows.

quantity  what the number is: lds, query_centred, ceiling, difference, …
method    whose number it is; against: the method that is subtracted
score_transform  how scores became predictions: linear, with hyper-parameters chosen on held-out
          data; chosen, likewise, among several transforms; or shown, linear, with those of the
          scores that page and pictures show
candidate  place of the hyper-parameters among those of the method, where none is chosen
classifier  the classifier whose labels the number depends on
target    step, paired_steps, trajectory or final_sample
step      the timestep, where the target is a step
value, low, high     the number and its 95% interval, which few observations do not have
low_90, high_90      the 90% interval of a difference, by which equivalence is decided
null_low, null_high  the central 95% of its null distribution
"""

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Literal

import numpy as np

from journey.attribution.targets import STEP
from journey.engine.checks import require
from journey.engine.text import printable
from journey.pipeline.interfaces import Row

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.table import Table

Number = float | np.ndarray  # a single one

LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"−": "$-$", "±": r"$\pm$", "×": r"$\times$", "⊣": r"$\dashv$", "λ": r"$\lambda$"}
)
"""What shows a character in LaTeX."""

Interval = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Value, lower end and upper end."""


def make_row(
    conditions: Mapping[str, str | int | float], value: Number, low: Number, high: Number
) -> Row:
    """Return a row: the conditions that identify a number, the number and its interval.

    There is no interval if its ends are NaN: too few observations were averaged.
    """
    row: Row = {**conditions, "value": float(value)}
    if np.isnan(low) and np.isnan(high):
        return row
    return {**row, "low": float(low), "high": float(high)}


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


def difference_of(quantity: str) -> str:
    """Return the quantity of the paired differences of another.

    >>> difference_of("query_centred"), difference_of("lds")
    ('query_centred_difference', 'difference')
    """
    return "difference" if quantity in ("lds", "recall") else f"{quantity}_difference"


def objective_row(rows: list[Row], headline: list[Row], objective: dict[str, str]) -> Row:
    """Return the row that a sweep maximises: of the first row of the headline, or of an objective.

    Args:
        rows: All rows of a result.
        headline: Those that stand for it.
        objective: Conditions that replace those of the headline's first row.

    Raises:
        ConfigError: No row, or more than one, meets the conditions.
    """
    texts = {key: value for key, value in headline[0].items() if isinstance(value, str)}
    if "against" in objective:
        texts["quantity"] = difference_of(texts["quantity"])
        texts.pop("score_transform", None)  # which rows of the former protocol do not name
    conditions = texts | objective
    candidates = list(rows)
    if "against" in objective:  # a difference is stored in one direction
        candidates += [negated(row) for row in rows if "difference" in str(row["quantity"])]
    fitting = []
    for row in candidates:
        texts = {key: str(row.get(key, "")) for key in conditions}
        if texts == conditions and ("against" in row) == ("against" in conditions):
            fitting.append(row)
    allowed = f"those of one row; {len(fitting)} rows fit"
    require(len(fitting) == 1, "evaluation.objective", conditions, allowed)
    return fitting[0]


def method_names(rows: list[Row], quantity: str) -> list[str]:
    """Return the methods for which there is a quantity, in the order of the rows."""
    return list(dict.fromkeys(str(row["method"]) for row in select(rows, quantity=quantity)))


RANDOM = "random"  # images whose removal is a control

MARGIN = 0.05  # of equivalence: 5 points of LDS × 100


class Verdict(Enum):
    """What a paired difference a − b says about the claim that a is better than b."""

    supported = "supported"  # the 95% interval is above 0
    opposite = "opposite supported"  # the 95% interval is below 0
    equivalent = "equivalent"  # the 90% interval is within ± MARGIN: two one-sided tests of 5%
    undecided = "undecided"


def verdict(difference: Row) -> Verdict:
    """Return the verdict of a difference with its 95% and 90% intervals.

    A difference that is both above 0 and within the margin supports the claim.

    >>> ends = {"value": 0.01, "low": -0.03, "high": 0.05, "low_90": -0.02, "high_90": 0.04}
    >>> verdict(ends).value, verdict(ends | {"high_90": 0.06}).value
    ('equivalent', 'undecided')
    """
    low, high = float(difference["low"]), float(difference["high"])
    if low > 0:
        return Verdict.supported
    if high < 0:
        return Verdict.opposite
    within = float(difference["low_90"]) > -MARGIN and float(difference["high_90"]) < MARGIN
    return Verdict.equivalent if within else Verdict.undecided


def negated(difference: Row) -> Row:
    """Return the difference of two methods in the other direction."""
    flipped = difference | {"method": difference["against"], "against": difference["method"]}
    flipped["value"] = -float(difference["value"])
    for low, high in (("low", "high"), ("low_90", "high_90")):
        if low in difference:
            flipped |= {low: -float(difference[high]), high: -float(difference[low])}
    return flipped


def percent(rows: list[Row]) -> list[Row]:
    """Return rows with their value and its interval × 100.

    >>> percent([{"method": "trak", "value": 0.25, "low": 0.125, "high": 0.5}])
    [{'method': 'trak', 'value': 25.0, 'low': 12.5, 'high': 50.0}]
    """
    scaled: list[Row] = []
    for row in rows:
        scaled.append(dict(row))
        for key in ("value", "low", "high"):
            if key in row:
                scaled[-1][key] = 100 * float(row[key])
    return scaled


def in_order(rows: list[Row], methods: Sequence[str]) -> list[Row]:
    """Return rows in the order of their methods, with differences of an earlier minus a later one.

    Rows of what is no method of the run, such as a ceiling, come first. The effect of a control is
    always subtracted: that of removing random images.
    """
    places = {name: i for i, name in enumerate(methods)}

    def place(row: Row) -> tuple[int, int]:
        first, second = (places.get(str(row.get(key)), -1) for key in ("method", "against"))
        return first, second

    ordered = []
    for row in rows:
        is_control = row.get("against") == RANDOM and "difference" not in str(row["quantity"])
        first, second = place(row)
        ordered.append(negated(row) if first > second >= 0 and not is_control else row)
    return sorted(ordered, key=place)


def without_pairs_of_variants(rows: list[Row], plain: Sequence[str]) -> list[Row]:
    """Return rows without differences of variants, but for those from their or the first method.

    Args:
        rows: Rows in the order of the run's methods.
        plain: The methods that are no variants.
    """
    kept = []
    for row in rows:
        if "against" not in row or "difference" not in str(row["quantity"]):
            kept.append(row)
            continue
        name, other = str(row["method"]), str(row["against"])
        if name == plain[0] or other.startswith(f"{name}-") or {name, other} <= set(plain):
            kept.append(row)
    return kept


def error_bars(rows: list[Row]) -> np.ndarray:
    """Return the distances from values to the lower and upper ends of their intervals. [2, rows]

    Those of rows without an interval are NaN, which is not drawn.
    """
    ends = []
    for row in rows:
        ends.append((row["value"], row.get("low", np.nan), row.get("high", np.nan)))
    value, low, high = np.array(ends, float).reshape(-1, 3).T
    return np.maximum(0, np.stack([value - low, high - value]))


def format_interval(row: Row, digits: int, times: float = 1.0, sign: str = "") -> str:
    """Return a value with its interval, if it has one, times a factor.

    A sign of "+" marks positive numbers.

    >>> format_interval({"value": -0.1234, "low": -0.2, "high": 0.001}, 1, times=100)
    '−12.3 [−20.0, 0.1]'
    """
    texts = []
    for end in ("value", "low", "high"):
        if end in row:
            texts.append(f"{times * float(row[end]):{sign}z.{digits}f}".replace("-", "−"))
    return "{} [{}, {}]".format(*texts) if len(texts) == 3 else texts[0]


def format_half_width(row: Row) -> str:
    """Return 100 × a value ± half the width of its interval.

    >>> format_half_width({"value": 0.2, "low": 0.1, "high": 0.34})
    '20 ± 12'
    """
    half_width = 50 * (float(row["high"]) - float(row["low"]))
    return f"{100 * float(row['value']):z.0f} ± {half_width:.0f}".replace("-", "−")


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
    lines = []
    for texts in (frame.columns, *frame.itertuples(index=False)):
        cells = [markdown_text(str(text)) for text in texts]
        lines.append(f"| {' | '.join(cells)} |")
    lines.insert(1, "| --- " * len(frame.columns) + "|")
    return "\n".join(lines)


def latex_table(frame: "DataFrame") -> str:
    r"""Return a table as LaTeX, for the package booktabs, with its texts as they are.

    >>> from pandas import DataFrame
    >>> print(latex_table(DataFrame([{"method": "gradient_dot", "LDS": "−2 ± 1"}])))
    \begin{tabular}{ll}
    \toprule
    method & LDS \\
    \midrule
    gradient\_dot & $-$2 $\pm$ 1 \\
    \bottomrule
    \end{tabular}
    """
    lines = []
    for texts in (frame.columns, *frame.itertuples(index=False)):
        lines.append(" & ".join(printable(str(text)).translate(LATEX) for text in texts) + r" \\")
    lines.insert(1, r"\midrule")
    begin = rf"\begin{{tabular}}{{{'l' * len(frame.columns)}}}"
    return "\n".join([begin, r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"])


def markdown_text(text: str) -> str:
    r"""Return text as Markdown that shows it, in a line or a cell.

    >>> print(markdown_text("a|b <i> `c` *d* gradient_dot _e_ [f](g) $x$"))
    a\|b &lt;i> \`c\` \*d\* gradient_dot \_e\_ [f]\(g) \$x\$
    """
    text = re.sub(r"([\\`|*~$])", r"\\\1", printable(text))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside words, they are no emphasis
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")
    return re.sub(r"(?<=\])(?=[(\[:])", r"\\", text)
