"""Artifacts: directories addressed by what made them, written atomically, checked whenever they are read.

<root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b/           payload and manifest.json
<root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b.partial/   being made, or interrupted and waiting to be resumed
<root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b.lock       held by the process that is making it

In a partial directory, `resume.*` is what an interrupted run continues from; it is no part of the artifact.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from journey.specs import Spec, address, contents, parents

MANIFEST = "manifest.json"
PACKAGES = ("journey", "torch", "diffusers", "numpy", "scipy", "scikit-learn", "safetensors")


class StoreError(RuntimeError):
    """An artifact that cannot be trusted. The message is one line: which, and how it differs."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact whose manifest and checksums have been compared."""

    path: Path
    manifest: dict

    def array(self, name: str) -> np.ndarray:
        """One array of the payload, mapped from disk, not read."""
        return np.load(self.path / name, mmap_mode="r")


# ------------------------------------------------------------------------------------------------------ store


class Store:
    """A directory of artifacts, shared safely by any number of processes."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._verified: dict[str, Artifact] = {}

    def __reduce__(self) -> tuple:
        return Store, (self.root,)  # a worker looks for itself

    def find(self, spec: Spec) -> Artifact | None:
        """The artifact of a spec, or None if it has not been made.

        Raises: StoreError if its manifest or a checksum differs.
        """
        name = address(spec)
        if name not in self._verified and (self.root / name).exists():
            self._verified[name] = self._verify(spec, self.root / name)
        return self._verified.get(name)

    def _verify(self, spec: Spec, path: Path) -> Artifact:
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            stored, checksums = manifest["contents"], manifest["checksums"]
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"{path}: unreadable manifest ({error!r}); delete the directory to make it anew") from None
        different = differences(stored, contents(spec))
        if different:
            raise StoreError(f"{path}: made from other settings: {'; '.join(different)}")
        for file, expected in checksums.items():
            found = checksum(path / file) if (path / file).is_file() else "missing"
            if found != expected["sha256"]:
                what = "missing" if found == "missing" else f"sha256 {found[:12]}, manifest says {expected['sha256'][:12]}"
                raise StoreError(f"{path / file}: corrupted ({what}); delete {path.name} to make it anew")
        return Artifact(path, manifest)

    @contextlib.contextmanager
    def writing(self, spec: Spec) -> Iterator[Path]:
        """Hold the right to make an artifact, and the directory to make it in, which may hold an interrupted run's work.

        Waits while another process holds it: look again with `find` before working.
        """
        final = self.root / address(spec)
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(_beside(final, ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel, however this process ends
            partial = _beside(final, ".partial")
            partial.mkdir(exist_ok=True)
            yield partial
        if final.exists():
            _beside(final, ".lock").unlink(missing_ok=True)

    def commit(self, spec: Spec, partial: Path, seconds: float) -> Artifact:
        """Turn a partial directory into the artifact: checksums, manifest, fsync, then the rename that makes it exist.

        seconds: what the run that finished it took; an interrupted run before it is not counted.
        """
        files = sorted(p for p in partial.rglob("*") if p.is_file() and not _is_scaffolding(p))
        checksums = {str(p.relative_to(partial)): {"sha256": checksum(p), "bytes": p.stat().st_size} for p in files}
        manifest = {
            "address": address(spec),
            "contents": contents(spec),
            "parents": [address(parent) for parent in parents(spec)],
            "checksums": checksums,
            "bytes": sum(c["bytes"] for c in checksums.values()),
            "seconds": round(seconds, 3),
            "git": git_state(),
            "versions": versions(),
        }
        write_json(partial / MANIFEST, manifest)
        for path in (*files, partial):
            _fsync(path)
        final = self.root / address(spec)
        try:
            os.rename(partial, final)
        except OSError:
            if not final.exists():
                raise
            shutil.rmtree(partial)  # another writer was first, and made the same
        _fsync(final.parent)
        for path in final.rglob("*"):
            if _is_scaffolding(path) and path.name != MANIFEST:
                path.unlink(missing_ok=True)
        artifact = self.find(spec)
        assert artifact is not None
        return artifact


def _is_scaffolding(path: Path) -> bool:
    """Files that are no payload: the manifest, what a run resumes from, what a crash left half written."""
    return path.name == MANIFEST or path.name.startswith("resume.") or path.suffix == ".tmp"


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def differences(stored: object, wanted: object, path: str = "") -> list[str]:
    """The leaves in which two descriptions differ, as "a.b: stored 1, wanted 2"."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = sorted(set(stored) | set(wanted))
        missing = "(nothing)"
        pairs = [(stored.get(k, missing), wanted.get(k, missing), f"{path}.{k}" if path else k) for k in keys]
        return [line for pair in pairs for line in differences(*pair)]
    return [] if stored == wanted else [f"{path}: stored {stored}, wanted {wanted}"]


# ------------------------------------------------------------------------------------- files, and provenance


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically. Refuses NaN and infinity."""
    replace_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, at any moment and after any crash, sees the old text or the new one."""
    temporary = _beside(path, ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def new_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A float32 `.npy` file to be filled through memory, its space reserved: a full disk is an error here, not a crash later."""
    array = open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def git_state() -> dict | None:
    """Commit of the checkout this code runs from, and whether tracked files differ from it; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)

    try:
        tracked = git("ls-files", "--error-unmatch", Path(__file__).name).returncode == 0
    except FileNotFoundError:
        return None
    if not tracked:
        return None
    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.stdout.strip(), "dirty": changed.stdout.strip() != ""}
