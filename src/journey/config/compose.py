"""The schemas that Hydra composes, and the composed configuration as plain dataclasses."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from journey.config.run import GROUPS, RunConfig
from journey.engine.checks import ConfigError, require
from journey.engine.spec import Component
from journey.pipeline.interfaces import Method
from journey.pipeline.settings import GradientSettings

_PACKAGE = Path(__file__).parents[1]
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if path.is_dir())
"""The choices of every group: inside the installed package, or at the top of a checkout."""


def choices(group: str) -> list[str]:
    """Return the choices of a group that have a file in `conf/`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def register_schemas(
    components: Sequence[type[Component]], own: Sequence[type[Component]] = ()
) -> None:
    """Register the types of all settings, so that Hydra refuses unknown keys, choices and types.

    Args:
        components: The components of `journey`. Files in `conf/` make choices of them.
        own: Components of a user. Each is a choice of its group by its name, without YAML.

    Raises:
        ConfigError: A user's component has the name of another choice, or is of no group.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig, provider="journey")
    for component in components:
        group = f"schema/{group_of(component)}"
        store.store(group=group, name=component.name, node=_schema(component), provider="journey")
    for component in own:
        group, name = group_of(component), component.name
        taken = choices(group)
        allowed = f"a name other than {', '.join(taken)}"
        require(name not in taken, f"{group}={name}", component.__name__, allowed)
        package = f"method.{name}" if group == "method" else group
        store.store(name, _schema(component), group, package, component.__module__)


def _schema(component: type[Component]) -> DictConfig:
    """Return the settings of a component. A method takes those it shares from `attribution`.

    It shares a setting of `GradientSettings` if it has a field of that name with the same default.
    """
    schema = OmegaConf.structured(component)
    _open_maps(schema)
    if issubclass(component, Method):
        shared = {f.name: f for f in fields(GradientSettings)}
        for f in fields(component):
            if f.name in shared and _default(f) == _default(shared[f.name]):
                schema[f.name] = f"${{attribution.{f.name}}}"
    return schema


def _open_maps(schema: DictConfig) -> None:
    """Let settings by name take new names, such as `compute.sbatch={constraint: a100}`."""
    for key in schema:
        node = None if OmegaConf.is_missing(schema, key) else schema[key]
        if isinstance(node, DictConfig):
            if OmegaConf.get_type(node) is dict:
                OmegaConf.set_struct(node, False)
            else:
                _open_maps(node)


def _default(f: Field) -> object:
    return f.default if f.default_factory is MISSING else f.default_factory()


def group_of(component: type[Component]) -> str:
    """Return the config group of a component.

    Raises:
        ConfigError: It implements no interface of a group, or has no proper name.
    """
    name = getattr(component, "name", None)
    proper = isinstance(name, str) and re.fullmatch(r"[a-z]\w*", name) and is_dataclass(component)
    allowed = "a lower-case name, of a dataclass"
    require(bool(proper), f"{component.__name__}.name", name, allowed)
    groups: dict[str, type[Component]] = {**GROUPS, "method": Method}
    for group, interface in groups.items():
        if issubclass(component, interface):
            return group
    raise ConfigError(
        f"{component.__name__}: it implements no interface; inherit from that of a group: "
        f"{', '.join(groups)}"
    )


def compose_words(words: Sequence[str]) -> DictConfig:
    """Return what Hydra composes from overrides, with its own settings as `hydra`.

    Raises:
        ConfigError: Files cannot be composed.
        HydraException: An override names nothing, or a value has another type.
        OmegaConfBaseException: A value cannot be converted.
    """
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # files that are not YAML make Hydra fail in many ways
        problem = f"cannot be composed: {type(error).__name__}: {error}"
        raise ConfigError(f"{shlex.join(words)}: {problem}") from None


def parse(composed: DictConfig) -> RunConfig:
    """Return the composed configuration as plain dataclasses.

    Raises:
        ConfigError: A value is out of range, or a key was added that no code reads. The message
            names the setting.
    """
    config = cast(RunConfig, OmegaConf.to_object(composed))
    _refuse_extra_keys(config, "")
    return config


def _refuse_extra_keys(node: object, path: str) -> None:
    """Refuse attributes that are no fields: +method.journey.typo=1 gets past the schema."""
    items = node if isinstance(node, dict) else vars(node) if is_dataclass(node) else {}
    names = [f.name for f in fields(node)] if is_dataclass(node) else list(items)
    for key, value in items.items():
        if key not in names:
            allowed = ", ".join(names)
            raise ConfigError(f"{path}{key}={value}: no such key; allowed here: {allowed}")
        _refuse_extra_keys(value, f"{path}{key}.")
