"""Tables of any result: its rows, or those of the points of a sweep."""

from rich.table import Table
from rich.text import Text

from journey.evaluation.rows import Row

INTERVAL = "(× 100 ± half of the 95% interval)"


def row_tables(rows: list[Row], title: str) -> list[Table]:
    """A table for each quantity: a line for each method, a column for each target."""
    tables = []
    for quantity in dict.fromkeys(row["quantity"] for row in rows):
        cells = [
            (_about(row), _target(row), _cell(row)) for row in rows if row["quantity"] == quantity
        ]
        tables.append(_pivot(cells, "method", f"{title}: {quantity} {INTERVAL}"))
    return tables


def sweep_table(points: dict[str, list[Row]]) -> Table:
    """The headline of every point: a line for each point, a column for each method and target. points: rows by overrides"""
    cells = [
        (point, f"{_about(row)}, {_target(row)}", _cell(row))
        for point, rows in points.items()
        for row in rows
    ]
    quantities = dict.fromkeys(str(row["quantity"]) for rows in points.values() for row in rows)
    return _pivot(cells, "point", f"{', '.join(quantities)} {INTERVAL}")


def _pivot(cells: list[tuple[str, str, str]], heading: str, title: str) -> Table:
    """A table of (line, column, text). Nothing is markup: brackets are values."""
    lines, columns = (list(dict.fromkeys(names)) for names in list(zip(*cells, strict=True))[:2])
    table = Table(heading, *columns, title=Text(title), title_justify="left")
    text = {(line, column): cell for line, column, cell in cells}
    for line in lines:
        table.add_row(Text(line), *(text.get((line, column), "") for column in columns))
    return table


def _about(row: Row) -> str:
    """The method, and what it is compared with, what saw it or how it was read."""
    return " ".join(str(row[key]) for key in ("method", "against", "by", "readout") if key in row)


def _target(row: Row) -> str:
    return f"t={row['step']}" if "step" in row else str(row["target"])


def _cell(row: Row) -> str:
    return f"{100 * row['value']:.0f} ± {50 * (row['high'] - row['low']):.0f}"
