"""What configuration files that others wrote may set: they run no code and replace no file of ours.

These files are in the directories of `--config-dir` and `hydra.searchpath`.
"""

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from journey.config.compose import CONF, compose_words
from journey.config.words import SEARCHPATH
from journey.engine.checks import leaves, require

ALLOWED = "left out of configuration files: only the command line may set it"


def refuse_shadowed(directory: Path) -> None:
    """Refuse a user's file with the name of one of ours: one of the two would never be read."""
    if directory.resolve() == CONF.resolve():
        return
    ours = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
    for name in (Path("schema"), Path("schema.yaml"), *ours):
        path = directory / name
        allowed = f"renamed: journey has its own {name}"
        require(not path.exists(), str(path), name.stem, allowed)
    for path in (directory / "hydra", directory / "hydra.yaml"):
        allowed = "left out: only the command line may set Hydra's settings"
        require(not os.path.lexists(path), str(path), "hydra", allowed)


def refuse_from_files(composed: DictConfig, words: Sequence[str]) -> None:
    """Refuse what only the command line may set.

    These are Hydra's own settings, such as callbacks, the shell's lines of `compute.setup` and
    `compute.sbatch`, and values of functions, such as ${oc.env:…}, which would be published with
    the results. ConfigError names what a file sets.

    Args:
        composed: What Hydra composes, with its own settings.
        words: The overrides.
    """
    if not any(word.startswith(SEARCHPATH) or ".." in word for word in words):
        return  # all files are ours
    settings: Any = OmegaConf.to_container(composed, resolve=False)
    hydra = settings.pop("hydra")
    for name, value in leaves(settings):
        if not isinstance(value, str):
            continue
        text = re.sub(r"\$\{[\w.\[\]]+\}", "", value)  # without values of other settings
        given = any(value in word for word in words)
        require("${" not in text or given, name, value, ALLOWED)

    # The lines of the shell are those of a choice on the command line.
    searchpath = [word for word in words if word.startswith(SEARCHPATH)]
    chosen = [word for word in words if word.lstrip("+").startswith("compute")]
    if not any(word.startswith("compute=") for word in chosen):
        chosen.insert(0, f"compute={getattr(OmegaConf.get_type(composed.compute), 'name', None)}")
    shell = {name: settings["compute"].get(name) for name in ("setup", "sbatch")}
    if any(shell.values()):
        reference = compose_words([*searchpath, *chosen]).compute
        for name, value in shell.items():
            require(not value or value == reference[name], f"compute.{name}", value, ALLOWED)

    for_hydra = [word for word in words if word.lstrip("+").startswith("hydra")]
    expected = _hydra_settings(*(word for word in for_hydra if word not in searchpath))
    _require_same("hydra", _without_records(hydra), expected)


@functools.cache  # the points of a sweep have the same
def _hydra_settings(*words: str) -> dict[str, Any]:
    """Return Hydra's own settings without files of others."""
    settings: Any = OmegaConf.to_container(compose_words(words).hydra, resolve=False)
    return _without_records(settings)


def _without_records(hydra: dict[str, Any]) -> dict[str, Any]:
    """Return Hydra's own settings without what Hydra writes there in every composition."""
    settings = {k: v for k, v in hydra.items() if k not in ("overrides", "runtime", "searchpath")}
    written = ("override_dirname", "config_name")
    settings["job"] = {k: v for k, v in hydra["job"].items() if k not in written}
    return settings


def _require_same(name: str, value: object, expected: object) -> None:
    """Check that nested settings are as expected; the message names the innermost that is not."""
    if isinstance(value, dict) and isinstance(expected, dict):
        for key in {**expected, **value}:
            _require_same(f"{name}.{key}", value.get(key), expected.get(key))
    else:
        require(value == expected, name, value, ALLOWED)
