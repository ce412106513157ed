"""The tables of linear datamodeling scores, for the terminal and as Markdown."""

from collections.abc import Callable

from rich.table import Table

from journey.evaluation.rows import Row, names, select
from journey.evaluation.targets import DESTINATION, PAIRED, STEP, TRAJECTORY

COLUMNS = (PAIRED, TRAJECTORY, DESTINATION)


def lds_table(result: dict) -> Table:
    """LDS × 100 with half the width of its 95% interval: a row for every method, a column for every target."""
    sizes = f"M={result['num_subsets']} subsets × R={result['num_seeds']}, {result['num_queries']} queries"
    table = Table(title=f"{result['experiment']}: LDS × 100 ± half of the 95% interval ({sizes})", title_justify="left")
    for heading in ("method", *_headings(result)):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for name in names(result["rows"], "lds"):
        table.add_row(name, *_cells(result, _short, quantity="lds", method=name, readout="best"))
    table.add_section()
    table.add_row("ceiling", *_cells(result, _short, quantity="ceiling"))
    return table


def paired_table(result: dict) -> Table | None:
    """The first method minus each other; None where there is no other."""
    others = list(dict.fromkeys((row["method"], row["against"]) for row in select(result["rows"], quantity="difference")))
    if not others:
        return None
    steps = ", ".join(map(str, result["paired_steps"]))
    title = f"paired differences of LDS × 100; steps: mean of t={steps}"
    table = Table("a − b", "steps", "trajectory", "destination", title=title, title_justify="left")
    for a, b in others:
        found = {row["target"]: row for row in select(result["rows"], quantity="difference", method=a, against=b)}
        table.add_row(f"{a} − {b}", *(_difference(found[target]) for target in COLUMNS))
    return table


def markdown(result: dict) -> str:
    """Everything with its interval: best and linear read-out, what was chosen for the steps, cost."""
    headings = ["method", "read-out", *_headings(result), "chosen for the steps", "seconds", "gradients", "MB"]
    lines = [_row(headings), _row(["---"] * len(headings))]
    for name in names(result["rows"], "lds"):
        cost = result["cost"][name]
        costs = [f"{cost['seconds']:.0f}", f"{cost['gradients']:,}", f"{cost['bytes'] / 1e6:.1f}"]
        for readout, of in (("best", costs), ("linear", ["", "", ""])):
            cells = _cells(result, _long, quantity="lds", method=name, readout=readout)
            shown = name if readout == "best" else ""
            lines.append(_row([shown, readout, *cells, _chosen(result["chosen"][name][readout]), *of]))
    cells = _cells(result, _long, quantity="ceiling")
    lines.append(_row([f"ceiling ({result['ceiling']})", "", *cells, "", "", "", ""]))
    return "\n".join(lines) + "\n"


def _headings(result: dict) -> list[str]:
    steps = result["paired_steps"]
    return [*(f"t={t}" for t in result["steps"]), f"mean of {len(steps)} steps", "trajectory", "destination"]


def _cells(result: dict, write: Callable[[Row], str], **what: str) -> list[str]:
    """The steps in their order, then the other targets."""
    found = select(result["rows"], **what)
    steps = [row for t in result["steps"] for row in select(found, step=t)]
    return [write(row) for row in steps + [row for target in COLUMNS for row in select(found, target=target)]]


def _short(row: Row) -> str:
    return f"{100 * row['value']:.0f} ± {50 * (row['high'] - row['low']):.0f}"


def _long(row: Row) -> str:
    return f"{_integer(row['value'])} [{_integer(row['low'])}, {_integer(row['high'])}]"


def _integer(value: float) -> str:
    return f"{round(100 * value)}".replace("-", "−")


def _difference(row: Row) -> str:
    return f"{100 * row['value']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def _chosen(of_targets: dict) -> str:
    """Of the four cells, each choice once."""
    choices = [" ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in c.values()) for c in of_targets[STEP]]
    return ", ".join(dict.fromkeys(choices))


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
