"""The table of planted images, for the terminal."""

from rich.table import Table
from rich.text import Text

from journey.attribution.targets import STEP
from journey.evaluation.rows import names, select


def table(result: dict) -> Table:
    """At every step: recall, half of its interval, and the median rank."""
    said = "copies among as many first images, % ± half of the 95% interval; median rank"
    found = Table(
        "method", *(f"t={t}" for t in result["steps"]), title_justify="left", title=Text(f"{result['experiment']}: {said}")
    )
    for method in names(result["rows"], "recall_copies"):
        recalls = select(result["rows"], quantity="recall_copies", method=method, target=STEP)
        ranks = select(result["rows"], quantity="median_rank", method=method)
        cells = []
        for recall, rank in zip(recalls, ranks, strict=True):
            cells.append(f"{100 * recall['value']:.0f} ± {50 * (recall['high'] - recall['low']):.0f}; {rank['value']:.0f}")
        found.add_row(method, *cells)
    return found
