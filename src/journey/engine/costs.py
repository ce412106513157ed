"""Estimates of what artifacts will cost, from the artifacts of a store and from measured rates.

`benchmarks/rates.py` writes `rates.json`: rates of a network, kind of device and precision.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from journey.engine.files import write_json
from journey.engine.spec import Shapes, Spec
from journey.engine.store import MANIFEST, Store, StoreError
from journey.engine.workspace import Compute

RATES = "rates.json"
SIMILAR = 10.0  # the largest ratio of work at which one artifact's cost estimates another's


@dataclass(frozen=True)
class StageCost:
    """The median seconds of the artifacts of one stage that took the same work."""

    work: float
    seconds: float


@dataclass(frozen=True)
class Rate:
    """The seconds that some work of a stage takes.

    Attributes:
        work: The work.
        seconds: Its seconds.
        size: Bytes of an artifact, if always equal.
        fixed_seconds: Further seconds that every artifact takes, whatever its work.
    """

    work: float
    seconds: float
    size: int | None = None
    fixed_seconds: float = 0.0


@dataclass(frozen=True)
class Rates:
    """Measured rates, by `Spec.rate_name`."""

    source: str  # how and on which machine they were measured
    by_name: dict[str, Rate]


@dataclass(frozen=True)
class Cost:
    """An estimated cost; None where it is unknown."""

    seconds: float | None
    size: int | None  # bytes of the arrays
    measured: bool = False  # whether the seconds follow from a measured rate


def recorded_costs(store: Store) -> dict[str, list[StageCost]]:
    """Return the costs of the artifacts in a store, by stage. Unreadable manifests are ignored."""
    records = defaultdict(list)  # seconds, by stage and work
    for path in store.root.glob(f"*/*/{MANIFEST}"):
        try:
            manifest = json.loads(path.read_text())
            stage, work = manifest["key_fields"]["stage"], float(manifest["work"])
            records[stage, work].append(float(manifest["seconds"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    costs = defaultdict(list)
    for (stage, work), seconds in records.items():
        costs[stage].append(StageCost(max(work, 1.0), median(seconds)))
    return costs


def estimate_cost(
    spec: Spec, costs: list[StageCost], rate: Rate | None, parameters: Shapes | None = None
) -> Cost:
    """Return the estimated cost of an artifact.

    The time of the artifact of the most similar work is scaled if the works differ by less than a
    factor of SIMILAR. Part of it is fixed, such as imports and the start of a loop: as much as a
    line through the recorded costs says. Otherwise the rate is used, and without one the time is
    unknown: a small run, most of whose time is fixed, says nothing of a large one. Bytes are not
    scaled: they follow from shapes, or are unknown.

    Args:
        spec: The artifact.
        costs: Recorded costs of its stage.
        rate: The measured rate of its stage, if any.
        parameters: The shapes of the model's parameters by name, if they are known.
    """
    size = spec.size if parameters is None else spec.size_given(parameters)
    if size is None and rate is not None:
        size = rate.size
    nearest = min(costs, key=lambda cost: abs(math.log(cost.work / spec.work)), default=None)
    if nearest is not None and 1 / SIMILAR <= spec.work / nearest.work <= SIMILAR:
        further = _seconds_per_work(costs, nearest) * (spec.work - nearest.work)
        return Cost(max(0.0, nearest.seconds + further), size)
    if rate is None:
        return Cost(None, size)
    seconds = rate.fixed_seconds + spec.work / rate.work * rate.seconds
    return Cost(seconds, size, measured=True)


def _seconds_per_work(costs: list[StageCost], nearest: StageCost) -> float:
    """Return the slope of the line, with no negative part, that fits costs best in proportion.

    It goes through the origin if all costs are of similar work.

    >>> _seconds_per_work([StageCost(10, 7.0), StageCost(30, 11.0)], StageCost(10, 7.0))
    0.2
    """
    works = [cost.work for cost in costs]
    proportional = nearest.seconds / nearest.work
    if max(works) < 2 * min(works):
        return proportional
    # Least squares of (fixed + slope × work) / seconds = 1.
    a = b = c = d = e = 0.0
    for cost in costs:
        x, y = 1 / max(cost.seconds, 1e-3), cost.work / max(cost.seconds, 1e-3)
        a, b, c, d, e = a + x * x, b + x * y, c + y * y, d + x, e + y
    fixed = (d * c - e * b) / (a * c - b * b)
    if fixed <= 0:
        return proportional
    return round(max(0.0, (a * e - b * d) / (a * c - b * b)), 12)


def read_rates(root: Path, label: str, compute: Compute) -> Rates:
    """Return the rates of a network, by its label, on a kind of device; none if not measured."""
    return _read_all_rates(root / RATES).get(_entry_name(label, compute), Rates("", {}))


def write_rates(root: Path, label: str, compute: Compute, rates: Rates) -> None:
    """Write the rates of a network on a kind of device in place of earlier ones."""
    entries = _read_all_rates(root / RATES) | {_entry_name(label, compute): rates}
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / RATES, {name: asdict(entry) for name, entry in entries.items()})


def _read_all_rates(path: Path) -> dict[str, Rates]:
    entries = {}
    try:
        for name, entry in json.loads(path.read_bytes()).items():
            by_name = {key: Rate(**rate) for key, rate in entry["by_name"].items()}
            entries[name] = Rates(entry["source"], by_name)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path}: unreadable ({error}); delete {path} to plan without it"
        ) from None
    return entries


def _entry_name(label: str, compute: Compute) -> str:
    return f"{label} {compute.device.partition(':')[0]} {compute.precision.value}"
