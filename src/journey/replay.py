"""Make a result again from the settings in its `result.json`.

The file is somebody else's: its settings choose among our components and give them values. Where
and on what is computed, and every file that is read, is said on the command line alone.
"""

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from journey.cli import compose_config
from journey.components import COMPONENTS
from journey.config import compose
from journey.config.run import RunConfig, Task
from journey.config.words import parse_words
from journey.engine.checks import ConfigError, require
from journey.engine.provenance import git_state, package_versions
from journey.engine.spec import Component, describe
from journey.engine.store import changed_values
from journey.engine.text import printable
from journey.pipeline.settings import Retraining, Sampling, Training

MOST_BYTES = 2**28  # of a result
OURS = ("compute", "tracking", "task", "artifacts", "reports", "name")  # said by words alone
CHOICES = ("dataset", "model", "method")  # whose files words may name


def read_result(path: Path) -> dict[str, Any]:
    """Return a result that `journey` wrote.

    Raises:
        ConfigError: It is none.
    """
    where = f"result={path}"
    require(path.is_file() and path.stat().st_size <= MOST_BYTES, "replay", path, "a result.json")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({printable(str(error))})") from None
    complete = isinstance(result, dict) and isinstance(result.get("settings"), dict)
    complete = complete and isinstance(result.get("rows"), list)
    require(complete, where, "no result", "a result.json with settings and rows")
    return result


def replayed_run(result: dict[str, Any], words: Sequence[str]) -> RunConfig:
    """Return the run with the settings of a result, and the words for what it does not record.

    Args:
        result: The result.
        words: Overrides of where to compute, and of the files that settings name.

    Raises:
        ConfigError: A setting is not allowed. The message names it.
    """
    keys = [override.key_or_group for override in parse_words(words)]
    for key in keys:
        allowed = f"{', '.join(OURS)}, or a file that a setting names: the rest is in the result"
        group, _, leaf = key.rpartition(".")
        local = key.partition(".")[0] in OURS or key in CHOICES
        local = local or (group != "" and leaf in _file_settings())
        require(local, "journey replay", key, allowed)
    given = compose.parse(compose_config(list(words)))
    require(given.task is not Task.export, "task", "export", "a task other than export")
    settings, values = result["settings"], {}
    types = get_type_hints(RunConfig)
    for f in fields(RunConfig):
        own = getattr(given, f.name)
        if f.name in OURS or f.name not in settings:
            values[f.name] = own
        else:
            values[f.name] = _value(f.name, settings[f.name], types[f.name], own, keys)
    if "name" not in keys:
        values["name"] = f"{settings.get('name', 'adhoc')}-replay"
    return RunConfig(**values)


def provenance_changes(result: dict[str, Any]) -> list[str]:
    """Return in what the commit and the versions differ from those of a result, a line for each."""
    then = {"commit": result.get("commit"), "versions": result.get("versions")}
    now = {"commit": git_state(), "versions": package_versions()}
    lines = []
    for name, old, new in changed_values(then, now):
        lines.append(printable(f"{name}: {old} → {new}"))
    return lines


def setting_changes(result: dict[str, Any], run: RunConfig) -> list[str]:
    """Return in what the settings of a run differ from those of a result, a line for each."""
    settings = {f.name: describe(getattr(run, f.name)) for f in fields(run)}
    recorded = {name: settings.get(name) for name in settings} | result["settings"]
    lines = []
    for name, old, new in changed_values(recorded, settings):
        if name not in ("name", "task", "artifacts", "reports"):
            lines.append(printable(f"{name}: {old} → {new}"))
    return lines


def compare_rows(result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Return a line that compares the values of a result with those of its replay.

    >>> row = {"quantity": "lds", "method": "journey", "target": "step", "step": 600, "value": 0.5}
    >>> compare_rows({"rows": [row]}, [{**row, "value": 0.25}])
    '0 of 1 numbers are equal; the largest difference is 0.25 (lds journey step 600: 0.5 → 0.25)'
    """
    now = {_conditions(row): row["value"] for row in rows}
    equal, largest, where = 0, 0.0, ""
    missing = 0
    for row in result["rows"]:
        key, value = _conditions(row), row.get("value")
        if key not in now or not isinstance(value, int | float):
            missing += 1
            continue
        difference = abs(now[key] - value)
        equal += difference == 0
        if difference > largest:
            largest = difference
            where = f" ({' '.join(key)}: {value:.6g} → {now[key]:.6g})"
    text = f"{equal} of {len(result['rows'])} numbers are equal"
    if where:
        text += f"; the largest difference is {largest:.3g}{where}"
    return text + (f"; {missing} are not in the replay" if missing else "")


def _conditions(row: dict[str, Any]) -> tuple[str, ...]:
    ends = ("value", "low", "high", "low_90", "high_90")
    return tuple(str(value) for name, value in row.items() if name not in ends)


def _file_settings() -> set[str]:
    """Return the names of the settings that are paths of files."""
    names = set()
    for owner in (*COMPONENTS, Training, Sampling, Retraining):
        names |= {f.name for f in fields(owner) if f.metadata.get("path")}
    return names


def _value(where: str, value: Any, kind: Any, given: Any, keys: Sequence[str]) -> Any:
    """Return a setting that `describe` made JSON of.

    Args:
        where: Its name.
        value: The JSON.
        kind: Its type.
        given: What the words compose it to, which has the paths.
        keys: The settings that the words set.

    Raises:
        ConfigError: It is not allowed.
    """
    if get_origin(kind) is dict and isinstance(value, dict):
        item = get_args(kind)[1]
        given = given if isinstance(given, dict) else {}
        values = {}
        for key, each in value.items():
            values[key] = _value(f"{where}.{key}", each, item, given.get(key), keys)
        return values
    if get_origin(kind) is list and isinstance(value, list):
        return [_value(where, item, get_args(kind)[0], None, keys) for item in value]
    if isinstance(kind, type) and issubclass(kind, Enum):
        options = [member.value for member in kind]
        require(value in options, where, value, f"one of {', '.join(map(str, options))}")
        return kind(value)
    if not (isinstance(kind, type) and (issubclass(kind, Component) or is_dataclass(kind))):
        return value  # a run checks types and ranges
    require(isinstance(value, dict), where, value, "settings by name")
    record = dict(value)
    if issubclass(kind, Component):
        choices = {c.name: c for c in COMPONENTS if issubclass(c, kind)}
        name = str(record.pop("name", None))
        allowed = f"one of {', '.join(choices)}; components of others cannot be replayed"
        require(name in choices, where, name, allowed)
        kind = choices[name]
        record.pop("content_hash", None)
    else:
        record.pop("type", None)
    same, types, values = type(given) is kind, get_type_hints(kind), {}
    for f in fields(kind):
        name, own = f"{where}.{f.name}", getattr(given, f.name, None) if same else None
        if f.metadata.get("path") or "not_in_key" in f.metadata:
            recorded = record.pop(f.name, None)
            if same:
                values[f.name] = own
            chosen = name in keys or recorded in (None, "", getattr(kind, f.name, None))
            allowed = f"given by words, {name}=…: a result chooses no files"
            require(chosen, name, recorded, allowed)
        elif f.name in record:
            values[f.name] = _value(name, record.pop(f.name), types[f.name], own, keys)
    for left in record:
        raise ConfigError(f"{where}.{left}={record[left]}: no such setting in this version")
    return kind(**values)
