"""What artifacts will cost: as those of the same stage that were made before did, or at the rates that were measured.

What benchmarks/rates.py measured, for plans: rates.json beside the artifacts, an entry for each way to compute."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from journey.engine.files import write_json
from journey.engine.manifest import MANIFEST, StoreError
from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Compute

SIMILAR = 10.0  # how many times the work of another an artifact may be for an estimate to be more than a guess


@dataclass(frozen=True)
class StageCost:
    """What artifacts of one stage and one amount of work took, in the median."""

    work: float
    seconds: float
    size: float


@dataclass(frozen=True)
class Cost:
    """What an artifact will take. None: nothing tells; rough: from one of quite another size; measured: from a rate."""

    seconds: float | None
    size: float | None
    rough: bool = False
    measured: bool = False


def recorded_costs(store: Store) -> dict[str, list[StageCost]]:
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
            made[stage].append(StageCost(max(work, 1.0), median(seconds), median(size)))
    return made


def estimate_cost(spec: Spec, known: list[StageCost], rate: Rate | None) -> Cost:
    """As the artifact of the most similar work took, if that is alike; else at the rate; else, roughly, as that artifact took."""
    nearest = min(known, key=lambda made: abs(math.log(made.work / spec.work)), default=None)
    scale = math.inf if nearest is None else spec.work / nearest.work
    alike = 1 / SIMILAR <= scale <= SIMILAR
    size = spec.size or (rate and rate.size) or (scale * nearest.size if alike else None)
    if rate is not None and not alike:
        return Cost(spec.work / rate.work * rate.seconds, size, measured=True)
    if nearest is None:
        return Cost(None, size)
    return Cost(scale * nearest.seconds, size, rough=not alike)


RATES = "rates.json"


@dataclass(frozen=True)
class Rate:
    """So many seconds for so much work of a stage, and bytes of an artifact where they follow from the model alone."""

    work: float
    seconds: float
    size: int | None = None


@dataclass(frozen=True)
class Rates:
    """How: the machine, and what was left out. of: by `name`."""

    how: str
    of: dict[str, Rate]


def read_rates(root: Path, label: str, compute: Compute) -> Rates:
    """Those of a way to compute; none where it was not measured.

    Raises: StoreError if the file is damaged.
    """
    path = root / RATES
    try:
        found = _ways(path).get(_way(label, compute), {"how": "", "of": {}})
        return Rates(found["how"], {of: Rate(**rate) for of, rate in found["of"].items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged_rates(path, error) from None


def write_rates(root: Path, label: str, compute: Compute, rates: Rates) -> None:
    """Beside those of other ways, in the place of what was measured before. Raises: StoreError if the file is damaged."""
    path = root / RATES
    ways = _ways(path) | {_way(label, compute): asdict(rates)}
    root.mkdir(parents=True, exist_ok=True)
    write_json(path, ways)


def _ways(path: Path) -> dict[str, dict]:
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no entries")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged_rates(path, error) from None
    return found


def _damaged_rates(path: Path, error: Exception) -> StoreError:
    return StoreError(f"{path}: unreadable ({error}); delete {path} to plan without it")


def _way(label: str, compute: Compute) -> str:
    """What rates depend on beside the machine: a network, a kind of device and a precision."""
    return f"{label} {compute.device.partition(':')[0]} {compute.precision.value}"
