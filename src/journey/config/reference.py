"""The reference of all settings, docs/settings.md, from the dataclasses that define them.

A setting is documented where it is defined: by the sentence of `setting`, by the comment beside or
above its field, or in the `Attributes` of its class.

python -m journey.config.reference > docs/settings.md
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import get_type_hints

from journey.components import COMPONENTS
from journey.config.compose import choices, group_of
from journey.config.run import RunConfig
from journey.diffusion.unet import UNetSettings
from journey.pipeline.schedule import NoiseSchedule
from journey.pipeline.settings import (
    Autoencoding,
    FeatureSettings,
    GradientSettings,
    LoRA,
    Optimization,
    Retraining,
    Sampling,
    Training,
)

HEAD = """# Settings

Generated from the dataclasses by `python -m journey.config.reference > docs/settings.md`. A setting
is given as `group.setting=value`; `journey experiment=digits --cfg job` prints those of a run. What
is in brackets are the values of a choice. Settings of several components are in the first table of
their group; a method has those of `attribution` that apply to it, as `method.<name>.<setting>`.
"""
GROUPS = ("dataset", "model", "method", "evaluation", "compute", "tracking")


def reference() -> str:
    """Return the reference as Markdown."""
    lines = [HEAD, *_table("A run", RunConfig, "")]
    lines += _table("training", Training, "training.", Optimization)
    lines += _table("training.lora", LoRA, "training.lora.")
    for name, settings in (("sampling", Sampling), ("retraining", Retraining)):
        lines += _table(name, settings, f"{name}.")
    lines += _table("attribution", GradientSettings, "attribution.", FeatureSettings)
    for group in GROUPS:
        described: set[type] = {GradientSettings, FeatureSettings}
        for component in COMPONENTS:
            if group_of(component) != group:
                continue
            bases = [base for base in reversed(component.__mro__[1:]) if is_dataclass(base)]
            for base in bases:
                if base not in described:
                    lines += _table(f"{group}, all", base, f"{group}.")
                    described.add(base)
            prefix = f"method.<{component.name}>." if group == "method" else f"{group}."
            lines += _table(f"{group}: {component.name}", component, prefix)
        lines += [f"`{group}=` is one of {', '.join(choices(group))}.", ""]
    lines += _table("model.noise_schedule", NoiseSchedule, "model.noise_schedule.")
    lines += _table("model.autoencoder", Autoencoding, "model.autoencoder.", Optimization)
    return "\n".join(lines)


def _table(title: str, settings: type, prefix: str, *bases: type) -> list[str]:
    """Return the lines of a table of the settings that classes themselves define."""
    rows = []
    shared = _documentation(UNetSettings)
    for f in (*fields(FeatureSettings), *fields(GradientSettings)):
        shared[f.name] = f.metadata["help"]
    for owner in (*bases, settings):
        documentation, types = _documentation(owner), get_type_hints(owner)
        for f in fields(owner):
            nested = is_dataclass(types[f.name]) or f.name == "method"
            overridden = owner is not settings and f.name in settings.__annotations__
            if f.name not in owner.__annotations__ or overridden or nested:
                continue
            text = f.metadata.get("help") or documentation.get(f.name) or shared.get(f.name, "")
            if isinstance(types[f.name], type) and issubclass(types[f.name], Enum):
                text += f" [{', '.join(member.value for member in types[f.name])}]"
            shown = (text[:1].upper() + text[1:]).strip().replace("|", r"\|")
            rows.append(f"| `{prefix}{f.name}` | {_default(f)} | {shown} |")
    if not rows:
        return []
    return [f"## {title}", "", "| setting | default | |", "| --- | --- | --- |", *rows, ""]


def _default(f: Field) -> str:
    value = f.default if f.default_factory is MISSING else f.default_factory()
    if value is MISSING or value in ("", "???"):
        return ""
    if isinstance(value, Enum):
        value = value.value
    words = {None: "null", True: "true", False: "false"}
    is_word = value is None or isinstance(value, bool)
    return f"`{words[value] if is_word else value}`"


def _documentation(owner: type) -> dict[str, str]:
    """Return what comments and the docstring of a class say of its fields."""
    documented = dict(_attributes(inspect.getdoc(owner) or ""))
    lines = textwrap.dedent(inspect.getsource(owner)).splitlines()
    (tree,) = ast.parse("\n".join(lines)).body
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        beside = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :]
        comment = re.sub(r"^type: ignore.*", "", beside.partition("#")[2].strip())
        above = node.lineno - 2
        while not comment and lines[above].strip().startswith("#"):
            above -= 1
        if not comment:
            block = lines[above + 1 : node.lineno - 1]
            comment = " ".join(line.strip().lstrip("# ") for line in block)
        if comment:
            documented[node.target.id] = comment
    return documented


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield the attributes that a docstring describes, and their descriptions."""
    _, _, section = docstring.partition("\nAttributes:\n")
    for block in re.split(r"\n(?=    \w)", section):
        name, colon, text = block.strip().partition(":")
        if colon and name.isidentifier():
            yield name, " ".join(text.split())


def undocumented() -> list[str]:
    """Return the settings of components about which the code says nothing."""
    names = []
    for line in reference().splitlines():
        if line.startswith("| `") and line.endswith("|  |"):
            names.append(line.split("`")[1])
    return names


if __name__ == "__main__":
    print(reference(), end="")
