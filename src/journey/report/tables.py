"""The tables of an experiment, for the terminal and as Markdown."""

from collections.abc import Callable

from rich.table import Table

COLUMNS = ("paired_steps", "trajectory", "destination")


def lds_table(result: dict) -> Table:
    """LDS × 100 with half the width of its 95% interval: a row for every method, a column for every target."""
    sizes = f"M={result['num_subsets']} subsets × R={result['num_seeds']}, {result['num_queries']} queries"
    table = Table(title=f"{result['experiment']}: LDS × 100 ± half of the 95% interval ({sizes})", title_justify="left")
    for heading in ("method", *_headings(result)):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for name, lds in result["lds"].items():
        table.add_row(name, *_cells(lds, _short))
    table.add_section()
    table.add_row("ceiling", *_cells(result["ceiling"], _short))
    return table


def paired_table(result: dict) -> Table:
    """The first method minus each other."""
    steps = ", ".join(map(str, result["paired_steps"]))
    title = f"paired differences of LDS × 100; steps: mean of t={steps}"
    table = Table("a − b", "steps", "trajectory", "destination", title=title, title_justify="left")
    for pair in result["paired"]:
        table.add_row(f"{pair['a']} − {pair['b']}", *(_difference(pair[target]) for target in COLUMNS))
    return table


def markdown(result: dict) -> str:
    """Everything with its interval: best and linear read-out, what was chosen for the steps, cost."""
    headings = ["method", "read-out", *_headings(result), "chosen for the steps", "seconds", "gradients", "MB"]
    lines = [_row(headings), _row(["---"] * len(headings))]
    for name, lds in result["lds"].items():
        cost = lds["cost"]
        costs = [f"{cost['seconds']:.0f}", f"{cost['gradients']:,}", f"{cost['bytes'] / 1e6:.1f}"]
        lines.append(_row([name, "best", *_cells(lds, _long), _chosen(lds), *costs]))
        lines.append(_row(["", "linear", *_cells(lds["linear"], _long), _chosen(lds["linear"]), "", "", ""]))
    lines.append(_row([f"ceiling ({result['ceiling']['kind']})", "", *_cells(result["ceiling"], _long), "", "", "", ""]))
    return "\n".join(lines) + "\n"


def _headings(result: dict) -> list[str]:
    steps = result["paired_steps"]
    return [*(f"t={t}" for t in result["steps"]), f"mean of {len(steps)} steps", "trajectory", "destination"]


def _cells(lds: dict, write: Callable[[float, list[float]], str]) -> list[str]:
    steps = [write(m, ci) for m, ci in zip(lds["step"]["mean"], lds["step"]["ci95"], strict=True)]
    return steps + [write(lds[target]["mean"], lds[target]["ci95"]) for target in COLUMNS]


def _short(mean: float, ci95: list[float]) -> str:
    return f"{100 * mean:.0f} ± {50 * (ci95[1] - ci95[0]):.0f}"


def _long(mean: float, ci95: list[float]) -> str:
    return f"{_integer(mean)} [{_integer(ci95[0])}, {_integer(ci95[1])}]"


def _integer(value: float) -> str:
    return f"{round(100 * value)}".replace("-", "−")


def _difference(pair: dict) -> str:
    low, high = pair["ci95"]
    return f"{100 * pair['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _chosen(lds: dict) -> str:
    """Of the four cells, each choice once."""
    choices = [" ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in c.values()) for c in lds["chosen"]["step"]]
    return ", ".join(dict.fromkeys(choices))


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
