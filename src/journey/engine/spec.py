"""Components (the choices of a config group), specs (what determines an artifact), and their cache keys.

A cache key is a folder, a readable label, and 48 bits of a hash of the key fields: the stage's name and version, every
field of the spec, and the digests of the specs it is computed from.
"""

import functools
import hashlib
import inspect
import json
from abc import ABC
from dataclasses import field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar


class Component(ABC):
    """One choice of a config group: a dataclass of its settings, which are part of the cache key of what it computes."""

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
        """Return a hash of what determines results beside the settings, such as a file that is read."""
        return ""


def component_hash(component: Component) -> str:
    """Return what a cache key holds of a component beside its settings: its content and, if it is a user's own, its source."""
    own = not type(component).__module__.startswith("journey.")
    parts = [component.content_hash(), _source_hash(type(component)) if own else ""]
    return ":".join(part for part in parts if part)


@functools.cache
def _source_hash(component_type: type) -> str:
    return hashlib.sha256(Path(inspect.getfile(component_type)).read_bytes()).hexdigest()[:16]


def omitted_default(value: Any, kw_only: bool = False) -> Any:
    """Return a dataclass field that cache keys omit while it has its default, so that a new setting leaves keys alone."""
    default = (
        {"default_factory": value.copy} if isinstance(value, list | dict) else {"default": value}
    )
    return field(**default, metadata={"omitted_default": value}, kw_only=kw_only)


def not_in_key() -> Any:
    """Return a dataclass field that describes an artifact and determines nothing of it."""
    return field(compare=False, metadata={"not_in_key": True})


class Spec:
    """What determines an artifact. Subclasses are frozen dataclasses.

    Attributes:
        stage: Name of the stage in cache keys, manifests and tables.
        maker: `module:function` that computes the artifact, called as function(spec, partial directory, workspace). It may
            return metadata for the manifest, as JSON.
        folder: Where in the store artifacts of this kind are.
        version: Increased when the same fields give other numbers.
        has_curves: Whether a tracker follows the stage while it runs.
        label: Readable part of the cache key.
        work: Cost in multiply-adds or the like. It scales cost estimates, and is compared within a stage only.
    """

    stage: ClassVar[str]
    maker: ClassVar[str]
    folder: ClassVar[str]
    version: ClassVar[int]
    has_curves: ClassVar[bool] = False

    if TYPE_CHECKING:  # subclasses have them as fields or as properties

        @property
        def label(self) -> str: ...

        @property
        def work(self) -> float: ...

    @property
    def size(self) -> int | None:
        """Return the bytes of the artifact's arrays, or None if the fields do not determine them."""
        return None

    @property
    def rate_name(self) -> str:
        """Return the name of the speed at which this artifact is computed; stages with several speeds override it."""
        return self.stage


def describe(value: object) -> object:
    """Return a spec or a setting as JSON. A spec inside another is named by its digest."""
    if isinstance(value, Spec):
        return f"{value.folder}:{digest(value)}"
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, Component):
        source = component_hash(value)
        return {
            "name": value.name,
            **_described_fields(value),
            **({"content_hash": source} if source else {}),
        }
    if is_dataclass(value):
        return {"type": type(value).__name__, **_described_fields(value)}
    return value


def _described_fields(value: Any) -> dict[str, object]:
    """Return every field that is part of the key and does not have its omitted default."""
    described = {}
    for f in fields(value):
        current = getattr(value, f.name)
        omitted = "omitted_default" in f.metadata and current == f.metadata["omitted_default"]
        if not (omitted or "not_in_key" in f.metadata):
            described[f.name] = describe(current)
    return described


def key_fields(spec: Spec) -> dict[str, object]:
    """Return what the digest of a spec is the hash of."""
    return {"stage": spec.stage, "version": spec.version, **_described_fields(spec)}


def digest(spec: Spec) -> str:
    """Return 48 bits of a hash of the key fields. It is cached in the spec, since a graph needs it again and again."""
    cached = vars(spec).get("_digest")
    if cached is None:
        text = json.dumps(key_fields(spec), sort_keys=True)
        cached = hashlib.sha256(text.encode()).hexdigest()[:12]
        object.__setattr__(spec, "_digest", cached)
    return cached


def cache_key(spec: Spec) -> str:
    """Return where in a store the artifact of a spec is: folder/label-digest."""
    return f"{spec.folder}/{spec.label}-{digest(spec)}"
