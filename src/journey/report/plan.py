"""What a run would do: what is cached, what is missing, and what that will cost if it is like what was made before."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from journey.artifacts.graph import address, ancestors, missing
from journey.artifacts.specs import Spec
from journey.artifacts.store import MANIFEST, Store

ALIKE = 10.0  # how many times the work of another an artifact may be for an estimate to be more than a guess


@dataclass(frozen=True)
class Made:
    """What artifacts of one stage and one amount of work took, in the median."""

    work: float
    seconds: float
    size: float


def show(targets: list[Spec], store: Store) -> None:
    """Print the plan. Costs are those of the stage's artifacts in this store, scaled by the work there is to do (for
    training: steps × images × multiply-adds of the network); unknown where there are none.
    """
    everything = {address(s): s for target in targets for s in [target, *ancestors(target)]}
    to_make = missing(targets, lambda spec: store.find(spec) is not None)
    known = made_before(store)
    table = Table("stage", "artifacts", "cached", "to make", "worker-seconds", "MiB", caption_justify="left")
    table.caption = f"costs: of what {store.root}/ holds, scaled by work; ≈ scaled more than {ALIKE:.0f}-fold"
    for stage in dict.fromkeys(spec.stage for spec in reversed(everything.values())):
        count = sum(spec.stage == stage for spec in everything.values())
        wanted = [spec for spec in to_make.values() if spec.stage == stage]
        cells = estimates([spec.work for spec in wanted], known[stage.rpartition(".")[2]]) if wanted else ("0", "0.0")
        table.add_row(stage.rpartition(".")[2], str(count), str(count - len(wanted)), str(len(wanted)), *cells)
    Console().print(table)


def made_before(store: Store) -> dict[str, list[Made]]:
    """By stage, what the artifacts in a store took; those whose manifest cannot be read are passed over."""
    found: dict[str, dict[float, list[tuple[float, int]]]] = defaultdict(lambda: defaultdict(list))
    for path in store.root.glob(f"*/*/{MANIFEST}"):
        try:
            manifest = json.loads(path.read_text())
            stage, work = manifest["contents"]["stage"], float(manifest["work"])
            took = float(manifest["seconds"]), int(manifest["bytes"])
            found[stage][work].append(took)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    made = defaultdict(list)
    for stage, by_work in found.items():
        for work, of in by_work.items():
            seconds, size = zip(*of, strict=True)
            made[stage].append(Made(max(work, 1.0), median(seconds), median(size)))
    return made


def estimates(works: list[float], known: list[Made]) -> tuple[str, str]:
    """Seconds and MiB of artifacts of some amounts of work, each from the known one that is nearest.

    >>> estimates([2e6, 4e6], [Made(work=1e6, seconds=3.0, size=2**20), Made(work=1e3, seconds=1.0, size=0)])
    ('18', '6.0')
    >>> estimates([2e6], [])
    ('unknown', 'unknown')
    """
    if not known:
        return "unknown", "unknown"
    seconds = size = 0.0
    furthest = 1.0
    for work in works:
        nearest = min(known, key=lambda made: abs(math.log(made.work / work)))
        scale = work / nearest.work
        seconds += scale * nearest.seconds
        size += scale * nearest.size
        furthest = max(furthest, scale, 1 / scale)
    if furthest > ALIKE:  # how large artifacts are does not follow from their work
        return f"≈ {seconds:.0f}", "unknown"
    return f"{seconds:.0f}", f"{size / 2**20:.1f}"
