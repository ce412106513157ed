"""The manifest of an artifact: what it was made from, and the checksums of its payload; and what is refused.

A payload is hashed when it is written, and once on every machine that reads it, which is remembered beside it.
"""

import contextlib
import os
from pathlib import Path

from journey.engine.files import checksum, error_text, read_checksummed, write_checksummed
from journey.engine.graph import parents
from journey.engine.provenance import git_state, machine_id, package_versions
from journey.engine.spec import Spec, cache_key, key_fields

MANIFEST = "manifest.json"


COST_FIELDS = {"seconds": (int, float), "bytes": int, "work": (int, float), "facts": dict}


CHECKSUM = {"sha256": str, "bytes": int}


FIELDS = {
    "address": str,
    "contents": dict,
    "parents": list,
    "checksums": dict,
    "versions": dict,
    **COST_FIELDS,
}


class StoreError(RuntimeError):
    """An artifact that cannot be trusted. The message is one line: which, how it differs, and what to delete."""


def new_manifest(spec: Spec, checksums: dict[str, dict], seconds: float, facts: dict) -> dict:
    """What is written beside a payload. facts: what the stage found worth keeping, as JSON"""
    return {
        "address": cache_key(spec),
        "contents": key_fields(spec),
        "parents": [cache_key(parent) for parent in parents(spec)],
        "work": spec.work,
        "facts": facts,
        "checksums": checksums,
        "bytes": sum(c["bytes"] for c in checksums.values()),
        "seconds": round(seconds, 3),
        "git": git_state(),
        "versions": package_versions(),
    }


def load_manifest(directory: Path, spec: Spec) -> dict:
    """The manifest of the artifact of a spec, without hashing the payload.

    Raises: StoreError if it is damaged or of other settings, or a file is missing or of another size.
    """
    manifest = _manifest(directory)
    different = differences(manifest["contents"], key_fields(spec))
    if different:
        raise _damaged(directory, directory, f"made from other settings: {'; '.join(different)}")
    for name, expected in manifest["checksums"].items():
        _status(directory, name, expected["bytes"])
    return manifest


def check_artifact(directory: Path) -> None:
    """Raises: StoreError if anything at all is wrong with an artifact, whatever it was made from."""
    manifest = _manifest(directory)
    place = f"{directory.parent.name}/{directory.name}"
    if manifest["address"] != place:
        raise _damaged(directory, directory, f"its manifest is of {manifest['address']}")
    for name, expected in manifest["checksums"].items():
        _status(directory, name, expected["bytes"])
        _refuse_corruption(directory, name, expected["sha256"])


def _manifest(directory: Path) -> dict:
    """The manifest of an artifact. Raises: StoreError unless it is whole and every field of its type."""
    path = directory / MANIFEST
    try:
        manifest = read_checksummed(path)
        if not has_fields(manifest, FIELDS) or not all(
            has_fields(c, {"sha256": str, "bytes": int}) for c in manifest["checksums"].values()
        ):
            raise ValueError("a field is missing or of another type")
    except (OSError, ValueError) as error:
        raise _damaged(path, directory, f"unreadable manifest ({error_text(error)})") from None
    return manifest


def has_fields(value: object, fields: dict) -> bool:
    """Whether a value is a dictionary that has every field, each of its type."""
    return isinstance(value, dict) and all(
        isinstance(value.get(key), kind) for key, kind in fields.items()
    )


def _status(directory: Path, name: str, size: int) -> os.stat_result:
    """What the file system knows of a payload file. Raises: StoreError if it is missing or of another size."""
    path = directory / name
    try:
        status = os.stat(path)
    except OSError as error:
        raise _damaged(path, directory, f"missing ({error_text(error)})") from None
    if status.st_size != size:
        raise _damaged(path, directory, f"corrupted ({status.st_size} bytes, manifest says {size})")
    return status


def _refuse_corruption(directory: Path, name: str, expected: str) -> None:
    """Raises: StoreError if a payload file does not have the checksum that is expected, or cannot be read."""
    path = directory / name
    try:
        found = checksum(path)
    except OSError as error:
        raise _damaged(path, directory, f"unreadable ({error_text(error)})") from None
    if found != expected:
        raise _damaged(
            path, directory, f"corrupted (sha256 {found[:12]}…, manifest says {expected[:12]}…)"
        )


def _damaged(what: Path, directory: Path, how: str) -> StoreError:
    return StoreError(f"{what}: {how}; delete {directory} to make it anew".replace("\n", " "))


def differences(stored: object, wanted: object, path: str = "") -> list[str]:
    """The leaves in which two descriptions differ, as "a.b: stored 1, wanted 2"."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = sorted(set(stored) | set(wanted))
        missing = "(nothing)"
        pairs = [
            (stored.get(k, missing), wanted.get(k, missing), f"{path}.{k}" if path else k)
            for k in keys
        ]
        return [line for pair in pairs for line in differences(*pair)]
    return [] if stored == wanted else [f"{path}: stored {stored}, wanted {wanted}"]


def payload_checksums(partial: Path) -> dict[str, dict]:
    """The sha256 and bytes of every payload file, by its name in the directory."""
    files = sorted(p for p in partial.rglob("*") if p.is_file() and not is_scaffolding(p))
    return {
        str(p.relative_to(partial)): {"sha256": checksum(p), "bytes": p.stat().st_size}
        for p in files
    }


def verify_once(directory: Path, checksums: dict[str, dict]) -> None:
    """Hash the payload, except files that are known to have been hashed on this machine. Raises: StoreError."""
    known = _known(directory)
    current = _identities(directory, checksums)
    for name, expected in checksums.items():
        if known.get(name) != current[name]:
            _refuse_corruption(directory, name, expected["sha256"])
    if known != current:
        with contextlib.suppress(
            OSError
        ):  # a disk that only reads: hashed again by the next process
            write_checksummed(_memory(directory), {"files": current})


def record_verification(directory: Path, checksums: dict[str, dict]) -> None:
    """Note that the payload has been hashed on this machine."""
    write_checksummed(_memory(directory), {"files": _identities(directory, checksums)})


def _known(directory: Path) -> dict[str, list]:
    """What `_identities` gave when the payload was last hashed on this machine; nothing where no sound memory is left."""
    try:
        files = read_checksummed(_memory(directory))["files"]
    except (OSError, ValueError, KeyError):
        return {}
    return files if isinstance(files, dict) else {}


def _memory(directory: Path) -> Path:
    return directory / f"verified-{machine_id()}.json"


def _identities(directory: Path, checksums: dict[str, dict]) -> dict[str, list]:
    """What changes when a payload file is written or replaced, and what it was compared with. Raises: StoreError."""
    identities = {}
    for name, expected in checksums.items():
        status = _status(directory, name, expected["bytes"])
        identities[name] = [status.st_size, status.st_mtime_ns, status.st_ino, expected["sha256"]]
    return identities


def is_scaffolding(path: Path) -> bool:
    """Files that are no payload: the manifest, who verified, what a run resumes from, what a crash left half written."""
    verified = path.name.startswith("verified-") and path.suffix == ".json"
    return (
        path.name == MANIFEST
        or verified
        or path.name.startswith("resume.")
        or path.suffix == ".tmp"
    )
