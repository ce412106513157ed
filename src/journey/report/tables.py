"""Tables of the rows of any result, for the terminal, and the files of a sweep's table."""

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from journey.engine.owned import OwnedFiles
from journey.evaluation.rows import Row, markdown_table, pivot, select, terminal_table
from journey.report.directory import LIST, PAGE, SWEEP, sweep_directory

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
    return _table(_sweep_frame(points), _quantities(points))


def _sweep_frame(points: dict[str, list[Row]]) -> "DataFrame":
    rows: list[Row] = []
    for point, headline in points.items():
        rows += [row | {"point": point} for row in headline]
    return pivot(rows, "point", lambda row: f"{_method(row)}, {_target(row)}", _value)


def _quantities(points: dict[str, list[Row]]) -> str:
    return ", ".join(
        dict.fromkeys(str(row["quantity"]) for rows in points.values() for row in rows)
    )


SWEEP_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>body {{ font: 1rem/1.5 system-ui; margin: 2rem }} th, td {{ text-align: left; padding: .2rem 1rem .2rem 0 }}</style>
<h1>{title}</h1>
<p>{caption}</p>
<table>
{lines}
</table>
</html>
"""  # noqa: E501


def write_sweep(points: dict[str, list[Row]], reports: list[Path], swept: Sequence[str]) -> Path:
    """Return the page of a sweep's table, after writing it, table.md and sweep.json.

    They are in the directory of the sweep, or, where points are of several experiments, beside
    their directories.

    Args:
        points: The headline of each point, by its overrides.
        reports: The directory of the report of each.
        swept: The settings that were swept.
    """
    directory = Path(os.path.commonpath([path.parent for path in reports]))
    if not directory.name.startswith(SWEEP):
        directory /= sweep_directory(swept)
    frame, caption = _sweep_frame(points), f"{_quantities(points)} {INTERVAL}"
    pages = [os.path.relpath(path / PAGE, directory) for path in reports]
    headings = "".join(f"<th>{html.escape(str(name))}</th>" for name in frame.columns)
    lines = [f"<tr>{headings}</tr>"]
    for page, (point, *values) in zip(pages, frame.itertuples(index=False), strict=True):
        link = f'<td><a href="{html.escape(page)}">{html.escape(str(point))}</a></td>'
        cells = "".join(f"<td>{html.escape(str(value))}</td>" for value in values)
        lines.append(f"<tr>{link}{cells}</tr>")
    title = html.escape(f"Sweep over {', '.join(swept)}")
    results = []
    for page, (point, rows) in zip(pages, points.items(), strict=True):
        results.append({"point": point, "report": page, "rows": rows})
    texts = {
        PAGE: SWEEP_PAGE.format(title=title, caption=html.escape(caption), lines="\n".join(lines)),
        "table.md": f"{markdown_table(frame)}\n\n{caption}\n",
        "sweep.json": json.dumps(results, indent=1) + "\n",
    }
    with OwnedFiles(directory, LIST, f"reports={directory}").replaced() as new_file:
        for name, text in texts.items():
            new_file(name).write_text(text, encoding="utf-8")
    return directory / PAGE


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
