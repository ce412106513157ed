"""Components (choices of a config group), specs (what determines an artifact), and cache keys.

A cache key is a folder, a readable label, and 48 bits of a hash of the key fields: the stage's name
and version, every field of the spec, and the digests of the specs it is computed from. The version
stands for the code of this package; that of users is represented by a hash of its source files.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import json
import sys
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


Shapes = Mapping[str, tuple[int, ...]]


class Component(ABC):
    """A choice of a config group: a dataclass of settings, which are part of cache keys."""

    name: ClassVar[str]

    @property
    def label(self) -> str:
        """Return the component's part of an artifact's name."""
        return self.name

    def check(self, where: str) -> None:
        """Check the settings before any compute.

        Args:
            where: The name of the settings, such as `model`.

        Raises:
            ConfigError: A setting is not allowed. The message names it as `where.field`.
        """

    def content_hash(self) -> str:
        """Return a hash of what determines results beside the settings, such as an input file."""
        return ""


PACKAGE = __name__.partition(".")[0]


@functools.cache
def _source_hash(*modules: str) -> str:
    """Return a hash of the source files of those modules that are not of this package, or ""."""
    hashes = []
    for name in dict.fromkeys(modules):
        if name.partition(".")[0] == PACKAGE:
            continue
        module = sys.modules.get(name)
        if module is None:  # a maker is not imported before it is called, since it imports torch
            module_spec = importlib.util.find_spec(name)
            file = None if module_spec is None else module_spec.origin
        else:
            file = getattr(module, "__file__", None)
        if file is None:
            raise ModuleNotFoundError(f"{name}: no file has the source of this component or stage")
        hashes.append(hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16])
    return ":".join(hashes)


def omitted_default(value: Any, kw_only: bool = False) -> Any:
    """Return a dataclass field that cache keys omit while it has its default.

    A new setting therefore leaves cache keys unchanged.
    """
    metadata = {"omitted_default": value}
    if type(value).__hash__ is None:  # it is mutable
        return field(default_factory=lambda: copy.copy(value), metadata=metadata, kw_only=kw_only)
    return field(default=value, metadata=metadata, kw_only=kw_only)


def not_in_key() -> Any:
    """Return a dataclass field that describes an artifact without determining it."""
    return field(compare=False, metadata={"not_in_key": True})


@dataclass(frozen=True)
class Spec:
    """What determines an artifact. Subclasses are frozen dataclasses.

    Attributes:
        stage: Name of the stage in cache keys, manifests and tables.
        maker: `module:function` that computes the artifact. It is called with the spec, a partial
            directory and the workspace, and may return metadata, as JSON.
        folder: Folder of the store that has the artifacts of this stage.
        version: Increased when the same fields give other numbers.
        has_curves: Whether a tracker follows the stage while it runs.
        on_cpu: Whether the stage leaves accelerators alone: its jobs run beside those that use one.
        label: Readable part of the cache key.
        group_maker: `module:function` that computes several artifacts whose `group` is the same. It
            is called with pairs of a spec and its partial directory, and with the workspace.
        work: Cost in multiply-adds or the like, compared within a stage only.
    """

    stage: ClassVar[str]
    maker: ClassVar[str]
    folder: ClassVar[str]
    version: ClassVar[int]
    has_curves: ClassVar[bool] = False
    on_cpu: ClassVar[bool] = False
    group_maker: ClassVar[str] = ""

    if TYPE_CHECKING:  # subclasses have them as fields or as properties

        @property
        def label(self) -> str: ...

        @property
        def work(self) -> float: ...

    @property
    def size(self) -> int | None:
        """Return the bytes of the arrays, or None if the fields do not determine their shapes."""
        return None

    def size_given(self, parameters: Shapes) -> int | None:
        """Return the bytes of the arrays, given the shapes of the model's parameters by name."""
        return self.size

    @property
    def rate_name(self) -> str:
        """Return the name of the measured rate of this work."""
        return self.stage

    @property
    def group(self) -> str:
        """Return what is the same for specs that can be computed together; "": it cannot."""
        return ""


def describe(value: object) -> object:
    """Return a spec or a setting as JSON. A spec inside another is represented by its digest."""
    if isinstance(value, Spec):
        return f"{value.folder}:{digest(value)}"
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return value
    described = _described_fields(value)
    if not isinstance(value, Component):
        return {"type": type(value).__name__, **described}
    # The cache key of a component that a user wrote contains the hash of its source.
    hashes = [value.content_hash(), _source_hash(type(value).__module__)]
    content = ":".join(filter(None, hashes))
    return {"name": value.name, **described, **({"content_hash": content} if content else {})}


def _described_fields(value: DataclassInstance) -> dict[str, object]:
    """Return every field that is part of the key and does not have its omitted default."""
    described = {}
    for f in fields(value):
        current = getattr(value, f.name)
        omitted = "omitted_default" in f.metadata and current == f.metadata["omitted_default"]
        if not (omitted or "not_in_key" in f.metadata):
            described[f.name] = describe(current)
    return described


def key_fields(spec: Spec) -> dict[str, object]:
    """Return the content that the digest of a spec is the hash of."""
    described = {"stage": spec.stage, "version": spec.version, **_described_fields(spec)}
    source = _source_hash(spec.maker.partition(":")[0], type(spec).__module__)
    return described | ({"source": source} if source else {})


def digest(spec: Spec) -> str:
    """Return 48 bits of a hash of the key fields. The spec keeps it, since it is needed often."""
    cached = vars(spec).get("_digest")
    if cached is None:
        text = json.dumps(key_fields(spec), sort_keys=True)
        cached = hashlib.sha256(text.encode()).hexdigest()[:12]
        object.__setattr__(spec, "_digest", cached)
    return cached


def cache_key(spec: Spec) -> str:
    """Return the path of a spec's artifact in a store: folder/label-digest."""
    return f"{spec.folder}/{spec.label}-{digest(spec)}"
