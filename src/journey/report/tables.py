"""Tables of the rows of any result, for the terminal."""

from typing import TYPE_CHECKING

from rich.table import Table

from journey.evaluation.rows import Row, pivot, select, terminal_table

if TYPE_CHECKING:
    from pandas import DataFrame

INTERVAL = "(× 100 ± half of the 95% interval)"


def row_tables(rows: list[Row], title: str) -> list[Table]:
    """Return a table for each quantity: a line for each method, a column for each target."""
    tables = []
    for quantity in dict.fromkeys(str(row["quantity"]) for row in rows):
        frame = pivot(select(rows, quantity=quantity), _method, _target, _value, "method")
        tables.append(_table(frame, f"{title}: {quantity}"))
    return tables


def sweep_table(points: dict[str, list[Row]]) -> Table:
    """Return the headlines of a sweep: a line for each point, a column for each method and target.

    Args:
        points: The rows of each point, by its overrides.
    """
    rows: list[Row] = []
    for point, headline in points.items():
        rows += [row | {"point": point} for row in headline]
    frame = pivot(rows, "point", lambda row: f"{_method(row)}, {_target(row)}", _value)
    return _table(frame, ", ".join(dict.fromkeys(str(row["quantity"]) for row in rows)))


def _table(frame: "DataFrame", title: str) -> Table:
    lines = list(frame.itertuples(index=False))
    return terminal_table(frame.columns, [lines], f"{title} {INTERVAL}", justify="left")


def _method(row: Row) -> str:
    """Return the method and what else names the row's line."""
    keys = ("method", "against", "classifier", "score_transform")
    return " ".join(str(row[key]) for key in keys if key in row)


def _target(row: Row) -> str:
    return f"t={row['step']}" if "step" in row else str(row["target"])


def _value(row: Row) -> str:
    value = f"{100 * float(row['value']):.0f}"
    if "low" not in row:
        return value
    return f"{value} ± {50 * (float(row['high']) - float(row['low'])):.0f}"
