"""How far a run is: what is done, what is made now or queued, what failed and why. Nothing is touched."""

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from journey.artifacts.graph import address, ancestors
from journey.artifacts.specs import Evaluate, Spec
from journey.artifacts.store import Store
from journey.config.contracts import Compute
from journey.launch.jobs import log_of

STANDINGS = ("done", "running", "queued", "failed", "not begun")


def show(target: Evaluate, store: Store, compute: Compute) -> None:
    """Print how many artifacts of each stage stand where, then each one that runs or failed."""
    standing = standings([target, *ancestors(target)], store, compute.at_work(store))
    by_stage = {stage: Counter() for stage in dict.fromkeys(spec.stage_name for spec, _ in reversed(standing.values()))}
    for spec, where in standing.values():
        by_stage[spec.stage_name][where] += 1
    table = Table("stage", *STANDINGS)
    for stage, counts in by_stage.items():
        table.add_row(stage, *(str(counts[where]) for where in STANDINGS))
    table.add_section()
    table.add_row("total", *(str(sum(counts[where] for counts in by_stage.values())) for where in STANDINGS))
    Console().print(table)
    for key, (_, where) in standing.items():
        if where == "running":
            print(f"running: {key}")
        if where == "failed":
            print(f"failed: {key}: {last_line(log_of(store.root, key))} (log: {log_of(store.root, key)})")


def standings(specs: list[Spec], store: Store, at_work: dict[str, str]) -> dict[str, tuple[Spec, str]]:
    """Where each artifact stands, by its address. at_work: as a launcher says

    What failed has a log, and nobody who tries it again.
    """
    found = {}
    for spec in specs:
        key = address(spec)
        if store.find(spec) is not None:
            where = "done"
        elif key in at_work:
            where = at_work[key]
        else:
            where = "failed" if log_of(store.root, key).exists() else "not begun"
        found[key] = spec, where
    return found


def last_line(log: Path) -> str:
    """Of what was written."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was written"
