"""Count files, lines, functions, comprehensions, import circles and upward imports.

python benchmarks/code_counts.py
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = (  # from the bottom up; a module may import from its own layer and from lower ones
    ("engine",),
    ("pipeline",),
    ("data",),
    ("diffusion",),
    ("attribution", "launch", "tracking"),
    ("evaluation",),
    ("components", "config"),
    ("experiment",),
    ("report",),
    ("cli", "run", "api", "replay"),
    ("__main__", ""),
)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Counts:
    """What was counted in a folder of Python files."""

    files: int
    lines: int
    functions: int
    longest_function: tuple[int, str]
    comprehensions: int
    nested_comprehensions: int


def count(folder: Path) -> Counts:
    """Count in all Python files of a folder."""
    files = sorted(folder.rglob("*.py"))
    lines = functions = comprehensions = nested = 0
    longest = (0, "")
    for path in files:
        text = path.read_text()
        lines += len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, COMPREHENSIONS):
                comprehensions += 1
                nested += sum(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(node)) > 1
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions += 1
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                longest = max(longest, (length, f"{path.relative_to(folder)}:{node.name}"))
    return Counts(len(files), lines, functions, longest, comprehensions, nested)


def imports(package: Path) -> dict[str, set[str]]:
    """Return the modules of the package that each of its modules imports, anywhere in its file."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        modules[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for imported, symbol in _imported(ast.parse(path.read_text()), package.name):
            module = f"{imported}.{symbol}".removeprefix(".")
            graph[name].add(module if module in modules else imported)
    return graph


def _imported(tree: ast.Module, package: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            module = ".".join((node.module or "").split(".")[1:])
            for alias in node.names:
                yield module, alias.name


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules that import themselves through others."""
    circular = []
    for start in graph:
        reached: set[str] = set()
        waiting = list(graph[start] - {start})
        while waiting:
            module = waiting.pop()
            if module not in reached:
                reached.add(module)
                waiting.extend(graph.get(module, ()))
        if start in reached:
            circular.append(start)
    return circular


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports from a higher layer, as "importer -> imported"."""
    layer_of = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = []
    for module, imported_modules in graph.items():
        for imported in imported_modules:
            own, other = (layer_of[name.split(".")[0]] for name in (module, imported))
            if other > own:
                wrong.append(f"{module or 'journey'} -> {imported}")
    return wrong


def main() -> int:
    """Print the counts of src/ and tests/, and every circle and upward import."""
    for folder in ("src", "tests"):
        counts = count(ROOT / folder)
        length, place = counts.longest_function
        print(
            f"{folder}: {counts.files} files, {counts.lines} lines, "
            f"{100 * counts.functions / counts.lines:.1f} functions and "
            f"{100 * counts.comprehensions / counts.lines:.1f} comprehensions per 100 lines "
            f"({counts.nested_comprehensions} nested), longest function {length} lines ({place})"
        )
    graph = imports(ROOT / "src/journey")
    wrong = [
        *(f"circle: {name}" for name in circles(graph)),
        *(f"upward: {name}" for name in upward(graph)),
    ]
    print(
        f"{len(wrong)} modules in import circles or imports from a higher layer", *wrong, sep="\n"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
