"""The tables of localization, for the terminal."""

from rich.table import Table
from rich.text import Text

from journey.attribution.targets import PAIRED
from journey.evaluation.rows import Row, names, select, spelled

TITLES = {"lds": "LDS × 100", "own": "the same, less what regions share"}


def tables(result: dict) -> list[Table]:
    """How much more scores of a region predict of it, and how much more of a change lies in it."""
    paired = ", ".join(map(str, result["paired_steps"]))
    predicted = Table("scores of", *TITLES.values(), title_justify="left")
    predicted.title = Text(f"own region less others, mean of t={paired} (× 100 [95%])")
    for method in names(result["rows"], "lds_locality"):
        of = [select(result["rows"], quantity=f"{q}_locality", method=method, target=PAIRED)[0] for q in TITLES]
        predicted.add_row(method, *map(_more, of))
    removed = Table("left out", "against", "share of change inside", "rise of the output inside", title_justify="left")
    removed.title = Text(f"{result['removed']['method']}, t={result['removed']['step']} (× 100 [95%])")
    for row in select(result["rows"], quantity="share_more"):
        (rise,) = select(result["rows"], quantity="rise_more", against=row["against"], outputs=row["outputs"])
        removed.add_row(str(row["outputs"]), str(row["against"]), _more(row), _more(rise))
    return [predicted, removed]


def _more(row: Row) -> str:
    return spelled(row, 1, times=100, sign="+")
