"""Tables of the rows of any result, for the terminal."""

from rich.table import Table

from journey.evaluation.rows import Row, terminal_table

INTERVAL = "(× 100 ± half of the 95% interval)"


def row_tables(rows: list[Row], title: str) -> list[Table]:
    """Return a table for each quantity: a line for each method, a column for each target."""
    by_quantity: dict[str, list[tuple[str, str, str]]] = {}
    for row in rows:
        cell = _method(row), _target(row), _value(row)
        by_quantity.setdefault(str(row["quantity"]), []).append(cell)
    tables = []
    for quantity, cells in by_quantity.items():
        tables.append(_pivot(cells, "method", f"{title}: {quantity} {INTERVAL}"))
    return tables


def sweep_table(points: dict[str, list[Row]]) -> Table:
    """Return the headlines of a sweep: a line for each point, a column for each method and target.

    Args:
        points: The rows of each point, by its overrides.
    """
    cells, quantities = [], []
    for point, rows in points.items():
        for row in rows:
            cells.append((point, f"{_method(row)}, {_target(row)}", _value(row)))
            quantities.append(str(row["quantity"]))
    return _pivot(cells, "point", f"{', '.join(dict.fromkeys(quantities))} {INTERVAL}")


def _pivot(cells: list[tuple[str, str, str]], heading: str, title: str) -> Table:
    """Return a table of (line, column, text)."""
    lines: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line, column, text in cells:
        lines.setdefault(line, {})[column] = text
        if column not in columns:
            columns.append(column)
    table = []
    for line, texts in lines.items():
        table.append([line, *(texts.get(column, "") for column in columns)])
    return terminal_table([heading, *columns], [table], title, justify="left")


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
