"""Addresses, and who is made from whom.

An address is a folder, a readable label and 48 bits of a hash of the contents: the format version of the stage, every field of
the spec, and the digests of the artifacts it is made from. A kind is described by its name, its fields and its fingerprint.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum

from journey.artifacts.specs import Spec
from journey.config.contracts import Kind, fingerprint


def describe(value: object) -> object:
    """A spec or setting as JSON; an artifact it is made from is named by its digest."""
    if isinstance(value, Spec):
        return f"{value.folder}:{digest(value)}"
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, Kind):
        source = fingerprint(value)
        return {"kind": value.kind, **_described_fields(value), **({"fingerprint": source} if source else {})}
    if is_dataclass(value):
        return {"of": type(value).__name__, **_described_fields(value)}
    return value


def _described_fields(value: object) -> dict[str, object]:
    """Every field that is addressed and does not have its neutral value."""
    described = {}
    for f in fields(value):
        found = getattr(value, f.name)
        if "unaddressed" in f.metadata or ("neutral" in f.metadata and found == f.metadata["neutral"]):
            continue
        described[f.name] = describe(found)
    return described


def contents(spec: Spec) -> dict:
    """What an address is the hash of."""
    return {"stage": spec.stage_name, "version": spec.version, **_described_fields(spec)}


def digest(spec: Spec) -> str:
    """48 bits of a hash of the contents, remembered in the spec: a graph asks for it again and again."""
    known = vars(spec).get("_digest")
    if known is None:
        text = json.dumps(contents(spec), sort_keys=True)
        known = hashlib.sha256(text.encode()).hexdigest()[:12]
        object.__setattr__(spec, "_digest", known)
    return known


def address(spec: Spec) -> str:
    """Where in a store the artifact of a spec lives: folder/label-digest."""
    return f"{spec.folder}/{spec.label}-{digest(spec)}"


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
    elif is_dataclass(value) and not isinstance(value, Kind):
        for f in fields(value):
            yield from specs_in(getattr(value, f.name))


def ancestors(spec: Spec) -> list[Spec]:
    """Everything an artifact is made from, each once."""
    found: dict[str, Spec] = {}
    waiting = parents(spec)
    while waiting:
        ancestor = waiting.pop()
        if (key := address(ancestor)) not in found:
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
        key = address(spec)
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
