"""Hydra's side: the schemas it composes, and the composed configuration as plain dataclasses."""

from dataclasses import fields, is_dataclass

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from journey.config import methods
from journey.config.checks import ConfigError
from journey.config.groups import DDPM, LDS, Digits, JSONLines, Wandb
from journey.config.run import Config

METHODS = {
    "gradient": methods.GradientMethod,
    "unlearning": methods.Unlearning,
    "datamodel": methods.Datamodel,
    "nonparametric": methods.NonparametricScore,
    "pixel": methods.Pixel,
    "encoder": methods.Encoder,
    "random": methods.Random,
}


def register_schemas() -> None:
    """Give Hydra the types, so that an unknown key, option or type is refused when the config is composed."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    variants = {"dataset": [Digits], "model": [DDPM], "evaluation": [LDS], "tracking": [JSONLines, Wandb]}
    for group, nodes in variants.items():
        for node in nodes:
            store.store(group=group, name=f"schema_{node.__name__.lower()}", node=node, package=group)
    for name, node in METHODS.items():
        store.store(group="method", name=f"schema_{name}", node=node)


def parse(composed: DictConfig) -> Config:
    """The composed configuration as plain dataclasses.

    Raises: ConfigError naming the setting, if a value is out of range or a key was added that no code reads.
    """
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    _refuse_extra_keys(config, "")
    return config


def _refuse_extra_keys(node: object, path: str) -> None:
    if is_dataclass(node):
        names = [f.name for f in fields(node)]
        for key, value in vars(node).items():
            if key not in names:
                raise ConfigError(f"{path}{key}={value}: no such key; allowed here: {', '.join(names)}")
            _refuse_extra_keys(value, f"{path}{key}.")
    elif isinstance(node, dict):
        for key, value in node.items():
            _refuse_extra_keys(value, f"{path}{key}.")
