"""The tables of when things are decided, for the terminal."""

from rich.table import Table

from journey.evaluation.rows import Row, names, select, spelled


def tables(result: dict) -> list[Table]:
    """When each thing is decided; and whether the attributions of each method know of it."""
    return [decided(result), predicted(result)]


def decided(result: dict) -> Table:
    """A row for each classifier and number: where its mean curve rises, and how long that takes."""
    sizes = f"{result['num_queries']} queries × {result['num_continuations']} continuations"
    columns = ("steepest", "halfway", "width, 25–75%", "width of one query")
    title = f"{result['experiment']}: when it is decided, t with 95% intervals over queries ({sizes})"
    table = Table("", *columns, title=title, title_justify="left")
    found = result["rows"]
    for name in [*names(found, "probability"), *names(found, "decided")]:
        of_curve = select(found, method=name, target="mean_curve")
        cells = [_of(select(of_curve, quantity=quantity)) for quantity in ("steepest", "halfway", "width")]
        table.add_row(name, *cells, _of(select(found, quantity="width", method=name, target="query")))
    return table


def predicted(result: dict) -> Table:
    """A row for each method and classifier: ρ of the step of emergence with that of the attributions, and of shuffled queries."""
    title = f"{result['experiment']}: Spearman's ρ over queries of where a class emerges and where its attributions are strongest"
    table = Table("", "ρ", "shuffled queries", "queries", title=title, title_justify="left")
    for row in [*select(result["rows"], quantity="predicts"), *select(result["rows"], quantity="reliability")]:
        about = " ".join(str(row[key]) for key in ("quantity", "method", "by", "target") if key in row)
        null = f"[{row['null_low']:.2f}, {row['null_high']:.2f}]"
        table.add_row(about, spelled(row, 2), null, str(row["num_queries"]))
    return table


def _of(found: list[Row]) -> str:
    return spelled(found[0], 0) if found else "–"
