"""The graph of artifacts: what a spec is computed from, and the order of computing."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass

from journey.engine.spec import Component, Spec, cache_key


def parents(spec: Spec) -> list[Spec]:
    """Return the specs that a spec is directly computed from."""
    return [parent for f in fields(spec) for parent in specs_in(getattr(spec, f.name))]


def specs_in(value: object) -> Iterator[Spec]:
    """Yield the specs in a value: itself, or in tuples, dictionaries, and dataclasses of inputs."""
    if isinstance(value, Spec):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from specs_in(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from specs_in(item)
    elif is_dataclass(value) and not isinstance(value, Component):
        for f in fields(value):
            yield from specs_in(getattr(value, f.name))


def ancestors(spec: Spec) -> list[Spec]:
    """Return all specs that a spec is directly or indirectly computed from, each once."""
    by_key: dict[str, Spec] = {}
    pending = parents(spec)
    while pending:
        ancestor = pending.pop()
        if (key := cache_key(ancestor)) not in by_key:
            by_key[key] = ancestor
            pending.extend(parents(ancestor))
    return list(by_key.values())


def missing(targets: list[Spec], exists: Callable[[Spec], bool]) -> dict[str, Spec]:
    """Return the specs that must be computed for the targets to exist, by cache key.

    Parents come before children, and everything the first target needs before what only a later
    target needs. The ancestors of an existing artifact are not visited.
    """
    order: dict[str, Spec] = {}
    visited: set[str] = set()

    def visit(spec: Spec) -> None:
        key = cache_key(spec)
        if key in visited:
            return
        visited.add(key)
        if not exists(spec):
            for parent in parents(spec):
                visit(parent)
            order[key] = spec

    for target in targets:
        visit(target)
    return order
