"""How a setting is refused."""

import math
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

MOST = 10**6  # numbers of one kind in memory: more is a slip of the keyboard


MOST_MODELS = 10_000  # of one kind; a plan of as many takes seconds


MOST_METHODS = 1000


TYPES = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a text"),
}


LAMBDA = (1e-12, 1e12)  # outside, λ is nothing or all there is


class ConfigError(ValueError):
    """A setting that cannot be honoured. The message is one line: the field, its value and what is allowed."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name}={value}: must be {allowed}")


def require_name(name: str, value: str) -> None:
    """Names become parts of paths."""
    plain = re.fullmatch(r"\w[\w.-]*", value) is not None and len(value.encode()) <= 100
    require(
        plain,
        name,
        value,
        "at most 100 letters, digits, '.', '_' and '-' (fewer where letters take several bytes)",
    )


def require_count(name: str, value: int, least: int = 1, most: int = MOST) -> None:
    """A number of things."""
    require(least <= value <= most, name, value, f"in {least}…{most}")


def require_seed(name: str, value: int) -> None:
    """Of random numbers."""
    require(0 <= value < 2**63, name, value, "in 0…2⁶³ − 1")


def require_within(name: str, value: float, least: float, most: float) -> None:
    """A number between two; refuses NaN too."""
    require(least <= value <= most, name, value, f"in {least:g}…{most:g}")


def require_positive(name: str, value: float) -> None:
    """Refuses NaN and infinity too."""
    require(0 < value < math.inf, name, value, "positive and finite")


def require_candidates(
    name: str, values: Sequence[float], least: float = LAMBDA[0], most: float = LAMBDA[1]
) -> None:
    """Values among which an evaluation chooses, each once."""
    require(len(values) > 0, name, values, "a non-empty list")
    require(len(set(values)) == len(values), name, values, "distinct")
    for value in values:
        require_within(name, value, least, most)


def require_regions(name: str, region: Sequence[int]) -> None:
    """A box of rows and columns; or several, one after the other."""
    allowed = "[first row, first column, end row, end column], and not empty; or that of every query, one after the other"
    require(len(region) > 0 and len(region) % 4 == 0, name, list(region), allowed)
    for top, left, bottom, right in _boxes(region):
        require(0 <= top < bottom and 0 <= left < right, name, list(region), allowed)


def require_region_inside(
    name: str, region: Sequence[int], height: int, width: int, num_queries: int
) -> None:
    """A box, or one for each query, of so many rows and columns."""
    require_regions(name, region)
    allowed = (
        f"[first row, first column, end row, end column] of what the network sees, {height}×{width}"
    )
    for _, _, bottom, right in _boxes(region):
        require(bottom <= height and right <= width, name, list(region), allowed)
    fits = len(region) in (4, 4 * num_queries)
    require(
        fits,
        name,
        list(region),
        f"one box, or one for each of the {num_queries} queries, one after the other",
    )


def _boxes(region: Sequence[int]) -> list[Sequence[int]]:
    return [region[first : first + 4] for first in range(0, len(region), 4)]


def require_samples(group: str, num_samples: int, antithetic: bool) -> None:
    """Refuse no draws, and an odd number of them where they come in pairs."""
    require_count(f"{group}.num_samples", num_samples)
    require(
        not antithetic or num_samples % 2 == 0,
        f"{group}.num_samples",
        num_samples,
        "even when antithetic=true",
    )


def require_types(node: Any, where: str = "") -> None:
    """Refuse values that are not of their field's type: lists in lists and interpolations get past Hydra.

    node: a dataclass of settings; where: what the names of its fields begin with.
    """
    types = get_type_hints(type(node))
    for f in fields(node):
        _require_type(f"{where}{f.name}", getattr(node, f.name), types[f.name])


def _require_type(name: str, value: Any, wanted: Any) -> None:
    if is_dataclass(wanted):
        require(isinstance(value, wanted), name, value, f"settings ({wanted.__name__})")
        require_types(value, f"{name}.")
    elif get_origin(wanted) is list:
        require(isinstance(value, (list, tuple)), name, value, "a list")
        for item in value:
            _require_type(name, item, *get_args(wanted))
    elif get_origin(wanted) is dict:
        require(isinstance(value, dict), name, value, "settings by name")
        for key, item in value.items():
            _require_type(f"{name}.{key}", item, get_args(wanted)[1])
    elif wanted in TYPES:
        accepted, said = TYPES[wanted]
        require(
            isinstance(value, accepted) and isinstance(value, bool) == (wanted is bool),
            name,
            value,
            said,
        )
    elif isinstance(wanted, type) and issubclass(wanted, Enum):
        require(
            isinstance(value, wanted),
            name,
            value,
            f"one of {', '.join(member.name for member in wanted)}",
        )
