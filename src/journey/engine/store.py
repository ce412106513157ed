"""The store of artifacts: directories named by cache keys, written atomically, checked when read.

    <root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b/          payload, manifest.json, and
                                                             verified-<machine>.json
    <root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b.partial/  being computed, or interrupted
    <root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b.lock      held by the process that computes it
    <root>/logs/         why artifacts could not be computed
    <root>/jobs/         jobs that were submitted to a cluster, and their logs
    <root>/costs.json    costs of the artifacts that an exported bundle leaves out
    <root>/rates.json    measured rates of stages, for plans

The manifest says what an artifact was computed from, and has the checksums of its payload. Finding
an artifact reads its manifest and compares file sizes. Contents are hashed when they are written,
once on every machine that reads them, and by `Store.verify`.

The rename of its partial directory makes an artifact exist. Locks only save work: where a file
system has none, each process has a partial directory of its own, which no later run resumes.
"""

import contextlib
import functools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from journey.engine.files import (
    acquire_lock,
    checksum,
    error_text,
    fsync,
    is_locked,
    read_checksummed,
    sibling,
    write_checksummed,
)
from journey.engine.graph import parents
from journey.engine.provenance import DeviceUse, git_state, machine_id, package_versions
from journey.engine.spec import Spec, cache_key, key_fields
from journey.engine.text import printable

MANIFEST = "manifest.json"
COSTS = "costs.json"
OTHER_FOLDERS = ("logs", "jobs")  # of a store, without artifacts
SHORT = 60  # characters of a value in a message

CHECKSUM_FIELDS = {"sha256": str, "bytes": int}
COST_FIELDS = {"seconds": (int, float), "bytes": int, "work": (int, float), "metadata": dict}
MANIFEST_FIELDS = {
    "cache_key": str,
    "key_fields": dict,
    "parents": list,
    "checksums": dict,
    "versions": dict,
    **COST_FIELDS,
}


class StoreError(RuntimeError):
    """An artifact that cannot be trusted. The message is one line: path, damage, what to delete."""


@dataclass(frozen=True)
class Artifact:
    """An artifact that exists. Its payload is verified before it is read, once per machine."""

    directory: Path
    manifest: dict

    @functools.cached_property
    def path(self) -> Path:
        """Return the directory of the verified payload. StoreError names a damaged file.

        A file is hashed unless this machine has recorded its hash with its size, time and inode.
        """
        checksums = self.manifest["checksums"]
        record = self.directory / f"verified-{machine_id()}.json"
        try:
            verified = read_checksummed(record)["files"]
        except (OSError, ValueError, KeyError):  # not verified on this machine, or damaged
            verified = {}
        current = _file_states(self.directory, checksums)
        for name, state in current.items():
            if verified.get(name) != state:
                _check_content(self.directory, name, checksums[name])
        if verified != current:
            with contextlib.suppress(OSError):  # a read-only disk: the next process hashes again
                write_checksummed(record, {"files": current})
        return self.directory

    def array(self, name: str) -> np.ndarray:
        """Return an array of the verified payload, mapped from disk, by the name of its file."""
        return np.load(self.path / name, mmap_mode="r")


class Store:
    """A directory of artifacts that any number of processes may share."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._artifacts: dict[str, Artifact] = {}

    def __reduce__(self) -> tuple:
        return Store, (self.root,)  # another process reads manifests itself

    def check_writable(self, create: bool = True) -> None:
        """Check that files can be written here.

        Args:
            create: Whether a missing directory is created; otherwise, whether it could be.

        Raises:
            StoreError: They cannot.
        """
        try:
            if create:
                self.root.mkdir(parents=True, exist_ok=True)
            existing = next(path for path in (self.root, *self.root.parents) if path.exists())
            with tempfile.NamedTemporaryFile(dir=existing, prefix=".writable-") as file:
                file.write(b"x")
        except (OSError, ValueError) as error:  # ValueError: not a path
            problem = f"artifacts cannot be written here ({error_text(error)})"
            raise StoreError(f"{self.root}: {problem}") from None

    def find(self, spec: Spec) -> Artifact | None:
        """Return the artifact of a spec, or None if it does not exist. Its payload is not hashed.

        StoreError says that its manifest is damaged or has other settings, or that a file is
        missing or has another size.
        """
        key = cache_key(spec)
        if key not in self._artifacts:
            directory = self.root / key
            if not directory.exists():
                return None
            manifest = _read_manifest(directory)
            if lines := differences(manifest["key_fields"], key_fields(spec)):
                _refuse(directory, directory, f"computed from other settings: {'; '.join(lines)}")
            _file_states(directory, manifest["checksums"])
            self._artifacts[key] = Artifact(directory, manifest)
        return self._artifacts[key]

    def cost(self, spec: Spec) -> dict | None:
        """Return the seconds, bytes, work and metadata of an artifact, or None if they are unknown.

        They are known if it exists, or if this store is an exported bundle that left it out.
        """
        artifact = self.find(spec)
        cost = self._costs.get(cache_key(spec)) if artifact is None else artifact.manifest
        return cost and {field: cost[field] for field in COST_FIELDS}

    @functools.cached_property
    def _costs(self) -> dict[str, dict]:
        path = self.root / COSTS
        try:
            costs = json.loads(path.read_bytes())
            for cost in costs.values():
                if not _has_fields(cost, COST_FIELDS):
                    raise ValueError("not a cost for each cache key")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            problem = f"unreadable ({error_text(error)}); delete {path} to estimate without it"
            raise StoreError(f"{path}: {problem}") from None
        return costs

    def verify(self) -> Iterator[str]:
        """Hash every payload; yield for each damaged artifact a line that says what to delete."""
        for directory in sorted(self.root.glob("[!.]*/[!.]*")):
            folder = directory.parent.name
            is_artifact = directory.is_dir() and directory.suffix != ".partial"
            if not is_artifact or folder in OTHER_FOLDERS or not _is_ours(directory):
                continue
            try:
                manifest = _read_manifest(directory)
                if manifest["cache_key"] != f"{folder}/{directory.name}":
                    _refuse(directory, directory, f"its manifest is of {manifest['cache_key']}")
                for name, expected in manifest["checksums"].items():
                    _file_states(directory, {name: expected})
                    _check_content(directory, name, expected)
            except StoreError as error:
                yield str(error)

    def is_locked(self, key: str) -> bool:
        """Return whether a process holds the lock of an artifact."""
        return is_locked(sibling(self.root / key, ".lock"))

    def locked_keys(self) -> list[str]:
        """Return the cache keys of the artifacts whose locks are held."""
        locks = self.root.glob("[!.]*/[!.]*.lock")
        return [f"{path.parent.name}/{path.stem}" for path in locks if is_locked(path)]

    @contextlib.contextmanager
    def writing(self, spec: Spec) -> Iterator[Path]:
        """Hold the lock of an artifact, after waiting for any other process that holds it.

        Yields:
            The partial directory, perhaps with the state of an interrupted run. The artifact may
            exist by now: call `find` before computing it.

        Raises:
            StoreError: The partial directory or the lock is a symbolic link.
        """
        final = self.root / cache_key(spec)
        final.parent.mkdir(parents=True, exist_ok=True)
        lock_path = sibling(final, ".lock")
        for path in (lock_path, sibling(final, ".partial")):
            if path.is_symlink():
                raise StoreError(f"{path}: a symbolic link, which is not followed; delete the link")
        with open(lock_path, "a+") as lock:  # the kernel releases it, however this process ends
            locked = acquire_lock(lock, cache_key(spec))
            suffix = ".partial" if locked else f".{machine_id()}.{os.getpid()}.partial"
            partial = sibling(final, suffix)
            partial.mkdir(exist_ok=True)
            yield partial
        if final.exists():
            lock_path.unlink(missing_ok=True)

    def commit(
        self, spec: Spec, partial: Path, seconds: float, metadata: dict, device: DeviceUse
    ) -> Artifact:
        """Turn a partial directory into the artifact of a spec.

        Args:
            spec: The artifact.
            partial: Its partial directory.
            seconds: Duration of the run that finished it, without interrupted runs.
            metadata: JSON that the stage returned.
            device: What it was computed on.

        Returns:
            The artifact; that of another process if it was first.

        Raises:
            OSError: The directory cannot be renamed.
        """
        # Hash the payload, and record that this machine has done so.
        checksums: dict[str, dict] = {}
        for path in sorted(partial.rglob("*")):
            auxiliary = _is_record(path) or _is_state(path) or path.suffix == ".tmp"
            if path.is_file() and not auxiliary:
                fsync(path)
                expected = {"sha256": checksum(path), "bytes": path.stat().st_size}
                checksums[str(path.relative_to(partial))] = expected
        record = {"files": _file_states(partial, checksums)}
        write_checksummed(partial / f"verified-{machine_id()}.json", record)

        manifest = {
            "cache_key": cache_key(spec),
            "key_fields": key_fields(spec),
            "parents": [cache_key(parent) for parent in parents(spec)],
            "work": spec.work,
            "metadata": metadata,
            "checksums": checksums,
            "bytes": sum(expected["bytes"] for expected in checksums.values()),
            "seconds": round(seconds, 3),
            "device": device,
            "git": git_state(),
            "versions": package_versions(),
        }
        write_checksummed(partial / MANIFEST, manifest)
        for path in (partial, *partial.rglob("*")):
            if path.is_dir():
                fsync(path)

        # The rename makes the artifact exist.
        final = self.root / cache_key(spec)
        try:
            os.rename(partial, final)
        except OSError:
            if not final.exists():
                raise
            # Another process computed the same artifact.
            _remove_files(partial, _read_manifest(final)["checksums"])
        fsync(final.parent)

        # Only now: a run that is killed before the rename still resumes.
        for path in list(final.rglob("*")):
            if _is_state(path):
                path.unlink(missing_ok=True)
        artifact = self.find(spec)
        assert artifact is not None
        return artifact


def differences(stored: object, expected: object) -> list[str]:
    """Return the differences of two descriptions, such as "a.b: stored 1, expected 2"."""
    changes = changed_values(stored, expected)
    return [f"{path}: stored {old}, expected {new}" for path, old, new in changes]


def changed_values(stored: object, expected: object, path: str = "") -> list[tuple[str, str, str]]:
    """Return where two descriptions differ: the path, such as "a.b", and both values in short."""
    if not (isinstance(stored, dict) and isinstance(expected, dict)):
        return [] if stored == expected else [(path, _in_short(stored), _in_short(expected))]
    changes = []
    for key in sorted({*stored, *expected}):
        pair = stored.get(key, "(nothing)"), expected.get(key, "(nothing)")
        changes += changed_values(*pair, path=f"{path}.{key}" if path else key)
    return changes


def _in_short(value: object) -> str:
    """Return a value as text of at most `SHORT` characters; settings by their component's name."""
    if isinstance(value, dict):
        return f"{value.get('name', '')}{{…}}"
    return printable(str(value), SHORT)


def _is_record(path: Path) -> bool:
    """Return whether a file is a manifest, or a record of verified files."""
    verified = path.name.startswith("verified-") and path.suffix == ".json"
    return path.name == MANIFEST or verified


def _is_state(path: Path) -> bool:
    """Return whether a file is a state to resume from, or one of ours that is half written."""
    half_written = re.search(r"\.\d+\.tmp$|^state\.tmp$", path.name) is not None
    return path.name.startswith("resume.") or half_written


def _remove_files(partial: Path, payload: Iterable[str]) -> None:
    """Remove a partial directory, its payload and its states, but no files of others."""
    emptied = {partial}
    for path in list(partial.rglob("*")):
        if str(path.relative_to(partial)) in payload or _is_record(path) or _is_state(path):
            path.unlink(missing_ok=True)
            emptied.add(path.parent)
    for directory in sorted(emptied, reverse=True):  # the inner ones first
        with contextlib.suppress(OSError):  # it has other files
            directory.rmdir()


def _is_ours(directory: Path) -> bool:
    """Return whether a directory has the name or the manifest of an artifact."""
    if re.search(r"-[0-9a-f]{12}$", directory.name):
        return True
    with contextlib.suppress(OSError, ValueError):
        return _has_fields(read_checksummed(directory / MANIFEST), MANIFEST_FIELDS)
    return False


def _read_manifest(directory: Path) -> dict:
    """Return a manifest that is whole and has all its fields with the right types."""
    path = directory / MANIFEST
    try:
        manifest = read_checksummed(path)
    except (OSError, ValueError) as error:
        _refuse(path, directory, f"unreadable manifest ({error_text(error)})")
    valid = _has_fields(manifest, MANIFEST_FIELDS) and all(
        _has_fields(expected, CHECKSUM_FIELDS) for expected in manifest["checksums"].values()
    )
    if not valid:
        _refuse(path, directory, "unreadable manifest (a field is missing or has another type)")
    return manifest


def _has_fields(value: object, types: dict) -> bool:
    """Return whether a value is a dictionary that has every field with its type."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), expected) for name, expected in types.items()
    )


def _file_states(directory: Path, checksums: dict[str, dict]) -> dict[str, list]:
    """Return values that change when a payload file is written or replaced; check the sizes."""
    states = {}
    for name, expected in checksums.items():
        path = directory / name
        try:
            status = os.stat(path)
        except OSError as error:
            _refuse(path, directory, f"missing ({error_text(error)})")
        if status.st_size != expected["bytes"]:
            problem = f"{status.st_size} bytes, manifest says {expected['bytes']}"
            _refuse(path, directory, f"corrupted ({problem})")
        states[name] = [status.st_size, status.st_mtime_ns, status.st_ino, expected["sha256"]]
    return states


def _check_content(directory: Path, name: str, expected: dict) -> None:
    """Check the hash of a payload file."""
    path = directory / name
    try:
        sha256 = checksum(path)
    except OSError as error:
        _refuse(path, directory, f"unreadable ({error_text(error)})")
    if sha256 != expected["sha256"]:
        problem = f"sha256 {sha256[:12]}…, manifest says {expected['sha256'][:12]}…"
        _refuse(path, directory, f"corrupted ({problem})")


def _refuse(path: Path, directory: Path, problem: str) -> NoReturn:
    message = f"{path}: {problem}; delete {directory} to compute it again"
    raise StoreError(printable(message)) from None
