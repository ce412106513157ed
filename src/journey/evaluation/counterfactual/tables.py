"""The tables of counterfactual evaluations."""

from collections.abc import Callable, Iterable

from rich.table import Table
from rich.text import Text

from journey.evaluation.counterfactual.removal import FLOORS, OPPONENTS, PROPONENTS
from journey.evaluation.rows import Row, select, spelled

COLUMNS = {
    "rise": ("rise of f_t, %", 100, 1),
    "own rise": ("less other queries', %", 100, 1),
    "destination rise": ("of the destination, %", 100, 1),
    "l2": ("L2", 1, 2),
    "ssim": ("SSIM", 1, 3),
    "cosine": ("cosine", 1, 3),
    "frechet": ("Fréchet", 1, 2),
    "class": ("class share, points", 100, 1),
}
"""What each quantity is called, by what it is multiplied, and its digits."""

NOTES = """Means over queries [95%]. Rises: of the query's output, by the retrained model. L2, SSIM, cosine: of the images that
the same noise leads to, before and after, in pixels and in an encoder's features. Fréchet: of continuations of one x_t, in
{dimensions} principal axes of the features (no FID). Class share: of continuations that show the class which most of them showed
before. By {num_random} random removals and {num_seeds} other seeds that all queries share, intervals are over models and
queries."""


def tables(result: dict) -> list[Table]:
    """For the terminal: of every step, side and count, the whole rest of the journey."""
    shown = []
    for title, headings, lines in _all(result):
        table = Table(*headings, title=Text(f"{result['experiment']}: {title}"), title_justify="left")
        for line in lines:
            table.add_row(*map(Text, line))
        shown.append(table)
    return shown


def markdown(result: dict) -> str:
    """Every number with its interval, and what is different from the first method and from random removal."""
    lines = [f"# {result['experiment']}: counterfactuals", "", NOTES.format(**result), ""]
    for title, headings, cells in [*_all(result), *_differences(result), _windows(result), *_taus(result)]:
        lines += [f"## {title}", "", _line(headings), _line(["---"] * len(headings)), *map(_line, cells), ""]
    return "\n".join(lines)


Titled = tuple[str, list[str], list[list[str]]]
"""title, headings, lines of cells"""


def _all(result: dict) -> Iterable[Titled]:
    for step, side, count in _removals(result):
        whole = select(result["rows"], step=step, window=step)
        found = [row for row in whole if "against" not in row and row["quantity"] in COLUMNS]
        found = [row for row in found if (row["side"] == side and row["count"] == count) or _is_floor_of(row, count)]
        yield f"t = {step}, {count} {side} left out", *_pivot(found, _cell)


def _differences(result: dict) -> Iterable[Titled]:
    first = next(iter(result["candidates"]))
    for step, side, count in _removals(result):
        whole = select(result["rows"], step=step, window=step, side=side, count=count)
        paired = [row for row in whole if "against" in row]
        for title, of in (
            (f"{first} − another", [{**row, "method": row["against"]} for row in paired if row["against"] not in FLOORS]),
            ("less random removal", [row for row in paired if row["against"] in FLOORS]),
        ):
            yield f"t = {step}, {count} {side}: {title} (Wilcoxon's p)", *_pivot(of, lambda row: f"{_cell(row)} {row['p']:.3f}")


def _windows(result: dict) -> Titled:
    lines = []
    for step, side, count in _removals(result):
        for window in result["windows"][str(step)]:
            found = select(result["rows"], step=step, side=side, count=count, window=window)
            for row in found:
                if row["quantity"] in ("l2", "frechet") and "against" not in row:
                    lines.append(
                        [str(step), f"{count} {side}", str(window), str(row["method"]), str(row["quantity"]), _cell(row)]
                    )
    return "By window Δ", ["t", "left out", "Δ", "method", "quantity", "value"], lines


def _taus(result: dict) -> Iterable[Titled]:
    taus = select(result["rows"], quantity="tau")
    lines = [[str(r["step"]), str(r["count"]), str(r["method"]), spelled(r, 2, sign="+")] for r in taus]
    if lines:
        yield "LDS against removal: Kendall's τ over methods", ["t", "left out", "effect", "τ"], lines


def _removals(result: dict) -> list[tuple[int, str, int]]:
    sides = [(PROPONENTS, k) for k in result["counts"]] + [(OPPONENTS, k) for k in result["opponents"]]
    return [(step, side, count) for step in result["steps"] for side, count in sides]


def _is_floor_of(row: Row, count: int) -> bool:
    return row["method"] in FLOORS and row["count"] in (0, count)


def _pivot(found: list[Row], write: Callable[[Row], str]) -> tuple[list[str], list[list[str]]]:
    """A line for each method, a column for each quantity."""
    methods, quantities = (list(dict.fromkeys(str(row[key]) for row in found)) for key in ("method", "quantity"))
    cells = {(row["method"], row["quantity"]): write(row) for row in found}
    headings = ["", *(COLUMNS[quantity][0] for quantity in quantities)]
    return headings, [[name, *(cells.get((name, quantity), "") for quantity in quantities)] for name in methods]


def _cell(row: Row) -> str:
    _, times, digits = COLUMNS[str(row["quantity"])]
    return spelled(row, digits, times)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
