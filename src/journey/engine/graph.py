"""Addresses, and who is made from whom.

An address is a folder, a readable label and 48 bits of a hash of the contents: the format version of the stage, every field of
the spec, and the digests of the artifacts it is made from. A kind is described by its name, its fields and its fingerprint.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass

from journey.engine.spec import Component, Spec, cache_key


def parents(spec: Spec) -> list[Spec]:
    """The specs a spec is directly made from."""
    return [found for f in fields(spec) for found in specs_in(getattr(spec, f.name))]


def specs_in(value: object) -> Iterator[Spec]:
    """Every spec in a value: itself, or in tuples, dictionaries and dataclasses that are no settings."""
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
    """Everything an artifact is made from, each once."""
    found: dict[str, Spec] = {}
    waiting = parents(spec)
    while waiting:
        ancestor = waiting.pop()
        if (key := cache_key(ancestor)) not in found:
            found[key] = ancestor
            waiting.extend(parents(ancestor))
    return list(found.values())


def missing(targets: list[Spec], exists: Callable[[Spec], bool]) -> dict[str, Spec]:
    """What must be made for the targets to exist, each once, by address: parents before children, and whatever the first
    target needs before whatever only a later one needs.
    """
    order: dict[str, Spec] = {}
    seen: set[str] = set()

    def visit(spec: Spec) -> None:
        key = cache_key(spec)
        if key in seen:
            return
        seen.add(key)
        if not exists(spec):
            for parent in parents(spec):
                visit(parent)
            order[key] = spec

    for target in targets:
        visit(target)
    return order
