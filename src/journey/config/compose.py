"""Hydra's side: the schemas it composes, and the composed configuration as plain dataclasses."""

import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from journey.config.run import GROUPS, RunConfig
from journey.engine.checks import ConfigError, require
from journey.engine.spec import Component
from journey.pipeline.interfaces import Method

_PACKAGE = Path(__file__).parents[1]


CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if path.is_dir())
"""The choices of every group: beside the package where it is installed, at the top of a checkout."""


def register_schemas(kinds: Iterable[type[Component]], own: Iterable[type[Component]] = ()) -> None:
    """Give Hydra the types, so that an unknown key, option or type is refused when the config is composed.

    kinds: ours, which the files in `conf/` make choices of; own: a user's, each a choice of its group by its name, without YAML.

    Raises: ConfigError if a user's kind has the name of a choice that exists, or is of no group.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig, provider="journey")
    for kind in kinds:
        store.store(group=f"schema/{group_of(kind)}", name=kind.name, node=kind, provider="journey")
    for kind in own:
        group = group_of(kind)
        taken = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        require(
            kind.name not in taken,
            f"{group}={kind.name}",
            kind.__name__,
            f"named otherwise than {', '.join(taken)}",
        )
        package = f"method.{kind.name}" if group == "method" else group
        store.store(
            group=group, name=kind.name, node=kind, package=package, provider=kind.__module__
        )


def group_of(kind: type[Component]) -> str:
    """The group whose contract a kind is under.

    Raises: ConfigError if there is none, or its name is none.
    """
    name = getattr(kind, "name", None)
    named = isinstance(name, str) and re.fullmatch(r"[a-z]\w*", name) is not None
    require(
        named and is_dataclass(kind),
        f"{kind.__name__}.name",
        name,
        "a lower-case name, of a dataclass",
    )
    for group, contract in {**GROUPS, "method": Method}.items():
        if issubclass(kind, contract):
            return group
    raise ConfigError(
        f"{kind.__name__}: must be under a contract: {', '.join([*GROUPS, 'method'])}"
    )


def parse(composed: DictConfig) -> RunConfig:
    """The composed configuration as plain dataclasses.

    Raises: ConfigError naming the setting, if a value is out of range or a key was added that no code reads.
    """
    config = OmegaConf.to_object(composed)
    _refuse_extra_keys(config, "")
    return config


def _refuse_extra_keys(node: object, path: str) -> None:
    if is_dataclass(node):
        names = [f.name for f in fields(node)]
        for key, value in vars(node).items():
            if key not in names:
                raise ConfigError(
                    f"{path}{key}={value}: no such key; allowed here: {', '.join(names)}"
                )
            _refuse_extra_keys(value, f"{path}{key}.")
    elif isinstance(node, dict):
        for key, value in node.items():
            _refuse_extra_keys(value, f"{path}{key}.")
