"""The tables of what changes along a journey, for the terminal."""

from itertools import pairwise
from statistics import fmean

from rich.table import Table

from journey.evaluation.rows import Row, names, select, spelled


def tables(result: dict) -> list[Table]:
    """What attributions at one step are to those at another; and how far x̂0_t is from E[x_0 | x_t]."""
    return [along(result), distances(result)]


def along(result: dict) -> Table:
    """A row for each method that scores steps."""
    steps, k = result["steps"], result["top_k"]
    first, last = steps[0], steps[-1]
    columns = (
        "ρ of neighbours",
        f"ρ of t={first} and {last}",
        f"top {k} kept",
        f"class share t={first}",
        f"class share t={last}",
    )
    title = f"{result['experiment']}: attributions along the journey, {result['num_queries']} queries"
    table = Table("method", *columns, title=title, title_justify="left")
    for name in names(result["rows"], "rank_correlation"):
        rhos = select(result["rows"], quantity="rank_correlation", method=name)
        neighbours = [select(rhos, step=t, other_step=u)[0]["value"] for t, u in pairwise(steps)]
        kept = [row["value"] for row in select(result["rows"], quantity="kept", method=name)]
        shares = [select(result["rows"], quantity="class_share", method=name, step=t)[0] for t in (first, last)]
        ends = select(rhos, step=first, other_step=last)[0]
        table.add_row(name, f"{fmean(neighbours):.2f}", _of(ends), f"{fmean(kept):.2f}", *map(_of, shares))
    (base,) = select(result["rows"], quantity="base_rate")
    table.add_row("base rate", "", "", f"{k / result['num_train']:.2f}", _of(base), _of(base))
    return table


def distances(result: dict) -> Table:
    """Mean squared distances, a row for each step."""
    found = select(result["rows"], quantity="distance")
    columns = list(dict.fromkeys(row["method"] for row in found))
    table = Table("t", *columns, title="squared distances for each element, means over queries", title_justify="left")
    for t in result["steps"]:
        table.add_row(f"{t}", *(f"{select(found, method=name, step=t)[0]['value']:.4f}" for name in columns))
    return table


def _of(row: Row) -> str:
    return spelled(row, 2)
