"""A Markdown table of the methods in `conf/method`, with their settings. docs/methods.md holds it.

python benchmarks/methods_table.py
"""

from dataclasses import MISSING, fields
from enum import Enum
from typing import cast

from omegaconf import OmegaConf

from journey.components import COMPONENTS, METHODS
from journey.config import compose
from journey.evaluation.rows import markdown_text
from journey.pipeline.interfaces import Method

FIELDS = ("target", "output", "normalize", "kernel", "scale", "score_transform", "ensemble")
HEADINGS = ("method", "component", *FIELDS, "other settings", "what it is")


def table() -> str:
    """Return a row for each method: its component, the settings that differ, and what it is.

    Methods of one component stand together, those with the fewest differences first.
    """
    order = [component.name for component in METHODS]
    placed = []
    for name, method in composed_methods().items():
        changed = differences(method)
        place = order.index(method.name), len(changed), name
        settings = [changed.pop(field, "") for field in FIELDS]
        other = ", ".join(map("=".join, changed.items()))
        cells = [name, method.name, *settings, other, summary(name)]
        placed.append((place, list(map(markdown_text, cells))))
    rows = [list(HEADINGS), *(cells for _, cells in sorted(placed))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, list(map("-".__mul__, widths)))
    lines = []
    for row in rows:
        lines.append(f"| {' | '.join(map(str.ljust, row, widths))} |\n")
    return "".join(lines)


def composed_methods() -> dict[str, Method]:
    """Return every method of `conf/method` as it is composed, by its name."""
    names = compose.choices("method")
    compose.register_schemas(COMPONENTS)
    run = compose.compose_words([f"method=[{','.join(names)}]"])
    # Not parsed as a run, which would refuse `external` without its file.
    return cast(dict[str, Method], OmegaConf.to_object(run.method))


def differences(method: Method) -> dict[str, str]:
    """Return the settings that differ from the component's defaults, as written in YAML."""
    changed = {}
    for f in fields(method):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        value = getattr(method, f.name)
        if value != default:
            changed[f.name] = _yaml(value)
    return changed


def _yaml(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def summary(name: str) -> str:
    """Return the first comment of a method's file.

    Raises:
        ValueError: It has none.
    """
    path = compose.CONF / "method" / f"{name}.yaml"
    for line in path.read_text().splitlines():
        if line.startswith("# ") and not line.startswith("# @package"):
            return line.removeprefix("# ")
    raise ValueError(f"{path}: no comment says what the method is")


if __name__ == "__main__":
    print(table(), end="")
