"""The tables of linear datamodeling scores, for the terminal and as Markdown."""

from collections.abc import Callable
from statistics import fmean

from rich.table import Table

from journey.attribution.targets import DESTINATION, PAIRED, STEP, TRAJECTORY
from journey.evaluation.rows import Row, names, select, spelled

KERNEL = ("condition_number", "effective_parameters")  # what a method says of every kernel it solved, [checkpoint][damping]
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
    for noise, title in ceilings(result).items():
        table.add_row(title, *_cells(result, _short, quantity="ceiling", method=noise))
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
    """Everything with its interval, and, of the best read-out, its share of the ceiling; what was chosen for the steps; cost."""
    headings = ["method", "read-out", *_headings(result), "chosen for the steps", "seconds", "gradients", "MB"]
    lines = [_row(headings), _row(["---"] * len(headings))]
    for name in names(result["rows"], "lds"):
        cost = result["cost"][name]
        costs = [f"{cost['seconds']:.0f}", f"{cost['gradients']:,}", f"{cost['bytes'] / 1e6:.1f}"]
        chosen = {readout: _chosen(cells, result["candidates"][name]) for readout, cells in result["chosen"][name].items()}
        best = _cells(result, _of_ceiling(result, "ceiling"), quantity="lds", method=name, readout="best")
        linear = _cells(result, _long, quantity="lds", method=name, readout="linear")
        specific = _cells(result, _of_ceiling(result, "specific_ceiling"), quantity="specific", method=name)
        lines.append(_row([name, "best", *best, chosen["best"], *costs]))
        lines.append(_row(["", "linear", *linear, chosen["linear"], "", "", ""]))
        lines.append(_row(["", "query-specific", *specific, "", "", "", ""]))
    for quantity, readout in (("ceiling", ""), ("specific_ceiling", "query-specific")):
        for noise, title in ceilings(result).items():
            lines.append(_row([title, readout, *_cells(result, _long, quantity=quantity, method=noise), "", "", "", ""]))
    return "\n".join([*lines, "", NOTES, "", *_kernels(result)]) + "\n"


NOTES = """LDS × 100 [95%], and LDS / ceiling, by the ceiling of these models. Ceilings: what the best predictor's rank
correlation is expected to be, where only the draws are noise, and where other trainings are asked. Query-specific: without what
all queries have in common. A choice at an end of its grid is marked ⊣."""


def ceilings(result: dict) -> dict[str, str]:
    """What ceilings there are, with their titles."""
    titles = {"draws": "ceiling, these models", "seeds": "ceiling, over seeds"}
    return {noise: titles[noise] for noise in names(result["rows"], "ceiling")}


def _kernels(result: dict) -> list[str]:
    """A row for every kernel that was solved: what its λ leaves. Means over checkpoints."""
    lines = []
    for name, how in result["how"].items():
        solved = zip(result["candidates"][name], *(zip(*how.get(of, []), strict=True) for of in KERNEL), strict=False)
        for candidate, conditions, parameters in solved:
            numbers = f"{candidate['damping']:g}", f"{fmean(parameters):.0f}", f"{fmean(conditions):.2g}"
            lines.append(_row([name, *numbers]))
    headings = ["kernel of", "λ, relative", "effective parameters", "condition number"]
    return [_row(headings), _row(["---"] * len(headings)), *lines] if lines else []


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
    return spelled(row, 0, times=100)


def _of_ceiling(result: dict, quantity: str) -> Callable[[Row], str]:
    """With the share of the ceiling of these models at the same target."""
    limits = {(row["target"], row.get("step")): row["value"] for row in select(result["rows"], quantity=quantity, method="draws")}

    def write(row: Row) -> str:
        limit = limits[row["target"], row.get("step")]
        return f"{_long(row)} {row['value'] / limit:.2f}" if limit > 0 else f"{_long(row)} –"

    return write


def _difference(row: Row) -> str:
    return spelled(row, 1, times=100, sign="+")


def _chosen(of_targets: dict, candidates: list[dict[str, float]]) -> str:
    """Of the four cells, each choice once."""
    choices = [" ".join(_value(key, value, candidates) for key, value in cell.items()) for cell in of_targets[STEP]]
    return ", ".join(dict.fromkeys(choices))


def _value(key: str, value: float | str, candidates: list[dict[str, float]]) -> str:
    """A chosen value, marked where it is the first or last of several: others beyond it may be better."""
    if isinstance(value, str):
        return value
    grid = sorted({candidate[key] for candidate in candidates})
    return f"{value:g}⊣" if len(grid) > 1 and value in (grid[0], grid[-1]) else f"{value:g}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
