"""What a run would do: what is cached, what is missing, and what that will cost if it is like what was made before."""

import json

from rich.console import Console
from rich.table import Table

from journey.launch import missing
from journey.specs import Spec, address, ancestors
from journey.store import MANIFEST, Store


def show(targets: list[Spec], store: Store) -> None:
    """Print the plan. Costs are means over the stage's artifacts in this store; unknown where there are none."""
    everything = {address(s): s for target in targets for s in [target, *ancestors(target)]}
    to_make = {address(spec) for wave in missing(targets, store) for spec in wave}
    table = Table("stage", "artifacts", "cached", "to make", "worker-seconds", "MiB")
    for stage, folder in {s.stage: s.folder for s in reversed(everything.values())}.items():
        keys = [key for key, spec in everything.items() if spec.stage == stage]
        count = sum(key in to_make for key in keys)
        seconds, size = (_estimate(store, folder, field, count) for field in ("seconds", "bytes"))
        size = size if size == "unknown" else f"{float(size) / 2**20:.1f}"
        table.add_row(stage, str(len(keys)), str(len(keys) - count), str(count), seconds, size)
    Console().print(table)


def _estimate(store: Store, folder: str, field: str, count: int) -> str:
    known = [json.loads(path.read_text())[field] for path in (store.root / folder).glob(f"*/{MANIFEST}")]
    if count == 0:
        return "0"
    return f"{count * sum(known) / len(known):.0f}" if known else "unknown"
