"""What benchmarks/rates.py measured, for plans: rates.json beside the artifacts, an entry for each way to compute."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from journey.artifacts.files import write_json
from journey.artifacts.manifest import StoreError
from journey.artifacts.specs import Featurize, Spec
from journey.config.contracts import Compute, Model

FILE = "rates.json"


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


def name(spec: Spec) -> str:
    """What goes at one rate: a stage, but for gradients that are normalised one draw at a time, or whitened."""
    stage = spec.stage_name
    if not isinstance(spec, Featurize):
        return stage
    return stage + " normalized" * spec.normalize + " whitened" * (spec.curvature is not None)


def read(root: Path, model: Model, compute: Compute) -> Rates:
    """Those of a way to compute; none where it was not measured.

    Raises: StoreError if the file is damaged.
    """
    path = root / FILE
    try:
        found = _ways(path).get(_way(model, compute), {"how": "", "of": {}})
        return Rates(found["how"], {of: Rate(**rate) for of, rate in found["of"].items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from None


def write(root: Path, model: Model, compute: Compute, rates: Rates) -> None:
    """Beside those of other ways, in the place of what was measured before. Raises: StoreError if the file is damaged."""
    path = root / FILE
    ways = _ways(path) | {_way(model, compute): asdict(rates)}
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
        raise _damaged(path, error) from None
    return found


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(f"{path}: unreadable ({error}); delete {path} to plan without it")


def _way(model: Model, compute: Compute) -> str:
    """What rates depend on beside the machine: a network, a kind of device and a precision."""
    return f"{model.label} {compute.device.partition(':')[0]} {compute.precision.value}"
