"""The table of an experiment, for the terminal."""

from rich.table import Table


def lds_table(result: dict) -> Table:
    """LDS × 100 with half the width of its 95% interval, by method and target."""
    sizes = f"M={result['num_subsets']} subsets × R={result['num_seeds']}, {result['num_queries']} queries"
    table = Table(title=f"{result['experiment']}: LDS × 100 ± half of the 95% interval ({sizes})", title_justify="left")
    table.add_column("judged at")
    names = [*result["lds"], "ceiling"]
    for name in names:
        table.add_column(name, justify="right")
    columns = [*result["lds"].values(), result["ceiling"]]
    for i, t in enumerate(result["steps"]):
        table.add_row(f"t={t}", *(_cell(c["step"]["mean"][i], c["step"]["ci95"][i]) for c in columns))
    table.add_section()
    for target in ("trajectory", "destination"):
        table.add_row(target, *(_cell(c[target]["mean"], c[target]["ci95"]) for c in columns))
    return table


def paired_table(result: dict) -> Table:
    """Differences between methods at the paired steps."""
    pairs = [pair for pair in result["paired"] if pair["target"] == "step"]
    steps = ", ".join(map(str, pairs[0]["steps"]))
    table = Table("a − b", "LDS × 100", "95% interval", title=f"paired differences, mean of t={steps}", title_justify="left")
    for pair in pairs:
        low, high = pair["ci95"]
        row = f"{100 * pair['mean']:+.1f}", f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        table.add_row(f"{pair['a']} − {pair['b']}", *row)
    return table


def _cell(mean: float, ci95: list[float]) -> str:
    return f"{100 * mean:.1f} ± {50 * (ci95[1] - ci95[0]):.1f}"
