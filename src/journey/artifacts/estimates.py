"""What artifacts will cost: as those of the same stage that were made before did, or at the rates that were measured."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from journey.artifacts.manifest import MANIFEST
from journey.artifacts.rates import Rate
from journey.artifacts.specs import Spec
from journey.artifacts.store import Store

ALIKE = 10.0  # how many times the work of another an artifact may be for an estimate to be more than a guess


@dataclass(frozen=True)
class Made:
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


def cost(spec: Spec, known: list[Made], rate: Rate | None) -> Cost:
    """As the artifact of the most similar work took, if that is alike; else at the rate; else, roughly, as that artifact took."""
    nearest = min(known, key=lambda made: abs(math.log(made.work / spec.work)), default=None)
    scale = math.inf if nearest is None else spec.work / nearest.work
    alike = 1 / ALIKE <= scale <= ALIKE
    size = spec.size or (rate and rate.size) or (scale * nearest.size if alike else None)
    if rate is not None and not alike:
        return Cost(spec.work / rate.work * rate.seconds, size, measured=True)
    if nearest is None:
        return Cost(None, size)
    return Cost(scale * nearest.seconds, size, rough=not alike)
