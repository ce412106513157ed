"""The methods as points of one space: a Markdown table of `conf/method`, as it composes. docs/methods.md holds it.

python -m journey.report.methods
"""

from dataclasses import MISSING, fields
from enum import Enum

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from journey.components import COMPONENTS, METHODS
from journey.config import compose
from journey.pipeline.interfaces import Method

FIELDS = (
    "at",
    "output",
    "normalize",
    "kernel",
    "scale",
    "readout",
    "ensemble",
)  # those that make a gradient method


HEADINGS = ("method", "kind", *FIELDS, "other settings", "what it is")


def table() -> str:
    """A row for every method: its name and kind, which settings differ from the kind's defaults, and the head of its file.

    Methods of a kind stand together, the fewest differences first.
    """
    methods = composed()
    order = [kind.name for kind in METHODS]
    names = sorted(
        methods,
        key=lambda name: (order.index(methods[name].name), len(differences(methods[name])), name),
    )
    return _aligned([HEADINGS, *(_cells(name, methods[name]) for name in names)])


def composed() -> dict[str, Method]:
    """Every method of `conf/method`, by its name."""
    names = sorted(path.stem for path in (compose.CONF / "method").glob("*.yaml"))
    compose.register_schemas(COMPONENTS)
    with initialize_config_dir(str(compose.CONF), version_base="1.3"):
        run = hydra_compose("config", [f"method=[{','.join(names)}]"])
    return OmegaConf.to_object(run.method)  # alone: a run would refuse `external` without its file


def differences(method: Method) -> dict[str, str]:
    """The settings that are not their kind's defaults, as one writes them in YAML."""
    found = {}
    for f in fields(method):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if (value := getattr(method, f.name)) != default:
            found[f.name] = _written(value)
    return found


def summary(name: str) -> str:
    """The comment in the head of a method's file.

    Raises: ValueError if it has none.
    """
    path = compose.CONF / "method" / f"{name}.yaml"
    for line in path.read_text().splitlines():
        if line.startswith("# ") and not line.startswith("# @package"):
            return line.removeprefix("# ")
    raise ValueError(f"{path}: no comment says what the method is")


def _cells(name: str, method: Method) -> tuple[str, ...]:
    different = differences(method)
    other = ", ".join(
        f"{field}={value}" for field, value in different.items() if field not in FIELDS
    )
    return (
        name,
        method.name,
        *(different.get(field, "") for field in FIELDS),
        other,
        summary(name),
    )


def _written(value: object) -> str:
    match value:
        case Enum():
            return str(value.value)
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list():
            return f"[{', '.join(_written(item) for item in value)}]"
    return str(value)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells, the first of them headings, in columns as wide as their widest cell."""
    rows = [tuple(cell.replace("|", r"\|") for cell in row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


if __name__ == "__main__":
    print(table(), end="")
