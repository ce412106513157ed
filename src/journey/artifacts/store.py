"""Artifacts: directories addressed by what made them, written atomically, refused when damaged.

<root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b/           payload, manifest.json, and which machines have hashed the payload
<root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b.partial/   being made, or interrupted and waiting to be resumed
<root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b.lock       held by the process that is making it, whose number it contains
<root>/costs.json                                         what artifacts cost that an exported pack left out
<root>/rates.json                                         how fast stages are, as benchmarks/rates.py measured, for plans

Finding an artifact reads its manifest and looks at the sizes of its files. Their contents are hashed when they are written, once
on every machine that reads them, and by `Store.verify`. The rename of the partial directory makes an artifact exist; locks only
save work. Where a file system has none, every writer has a partial directory of its own, which no later run resumes.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib.format import open_memmap

from journey.artifacts.graph import address, contents, parents
from journey.artifacts.specs import Spec

MANIFEST = "manifest.json"
COSTS = "costs.json"
COST = {"seconds": (int, float), "bytes": int, "work": (int, float), "facts": dict}
FIELDS = {"address": str, "contents": dict, "parents": list, "checksums": dict, "versions": dict, **COST}
PACKAGES = ("journey", "torch", "diffusers", "numpy", "scipy", "scikit-learn", "safetensors")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class StoreError(RuntimeError):
    """An artifact that cannot be trusted. The message is one line: which, how it differs, and what to delete."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. Reading its payload verifies it, unless this machine has done so before."""

    directory: Path
    manifest: dict

    @functools.cached_property
    def path(self) -> Path:
        """The directory, its payload verified. Raises: StoreError naming the damaged file."""
        _verify_once(self.directory, self.manifest["checksums"])
        return self.directory

    def array(self, name: str) -> np.ndarray:
        """One array of the payload, mapped from disk, not read. Raises: StoreError naming the damaged file."""
        return np.load(self.path / name, mmap_mode="r")


# ------------------------------------------------------------------------------------------------------ store


class Store:
    """A directory of artifacts, shared safely by any number of processes."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._found: dict[str, Artifact] = {}

    def __reduce__(self) -> tuple:
        return Store, (self.root,)  # a worker looks for itself

    def writable(self) -> None:
        """Raises: StoreError if nothing can be written here."""
        trial = self.root / f".writable-{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            trial.write_text("x")
            trial.unlink()
        except (OSError, ValueError) as error:  # ValueError: no path at all
            raise StoreError(f"{self.root}: artifacts cannot be written here ({_reason(error)})") from None

    def find(self, spec: Spec) -> Artifact | None:
        """The artifact of a spec, or None if it has not been made. Costs a manifest and a look at every file's size.

        Raises: StoreError if its manifest is damaged or of other settings, or a file is missing or of another size.
        """
        name = address(spec)
        if name not in self._found:
            directory = self.root / name
            if not directory.exists():
                return None
            self._found[name] = _checked(directory, spec)
        return self._found[name]

    def cost(self, spec: Spec) -> dict | None:
        """The seconds, bytes, work and facts of an artifact that is here, or that a pack left out; None if unknown.

        Raises: StoreError as `find` does, or if the list of costs is damaged.
        """
        made = self.find(spec)
        known = self._costs.get(address(spec)) if made is None else made.manifest
        return known and {key: known[key] for key in COST}

    @functools.cached_property
    def _costs(self) -> dict[str, dict]:
        path = self.root / COSTS
        try:
            costs = json.loads(path.read_bytes())
            if not isinstance(costs, dict) or not all(_has(cost, COST) for cost in costs.values()):
                raise ValueError("not a cost for each address")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: unreadable ({_reason(error)}); delete {path} to estimate without it") from None
        return costs

    def verify(self) -> Iterator[str]:
        """Hash every payload of every artifact; yields a line for each damaged one, saying what to delete."""
        for directory in sorted(self.root.glob("[!.]*/[!.]*")):
            if directory.is_dir() and directory.suffix != ".partial" and directory.parent.name != "logs":
                try:
                    _refuse_damage(directory)
                except StoreError as error:
                    yield str(error)

    @contextlib.contextmanager
    def writing(self, spec: Spec) -> Iterator[Path]:
        """Hold the right to make an artifact, and the directory to make it in, which may hold an interrupted run's work.

        Waits while another process holds it: look again with `find` before working.
        """
        final = self.root / address(spec)
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(_beside(final, ".lock"), "a+") as lock:  # released by the kernel, however this process ends
            alone = _lock(lock, address(spec))
            partial = _beside(final, ".partial" if alone else f".{machine()}.{os.getpid()}.partial")
            partial.mkdir(exist_ok=True)
            yield partial
        if final.exists():
            _beside(final, ".lock").unlink(missing_ok=True)

    def commit(self, spec: Spec, partial: Path, seconds: float, facts: dict) -> Artifact:
        """Turn a partial directory into the artifact: checksums, manifest, fsync, then the rename that makes it exist.

        seconds: what the run that finished it took; an interrupted run before it is not counted.
        facts: what the stage found worth keeping about how it was made, as JSON.
        """
        checksums = _checksums(partial)
        for name in checksums:
            fsync(partial / name)
        _remember(partial, checksums)
        write_sealed(partial / MANIFEST, _manifest_of(spec, checksums, seconds, facts))
        for directory in (partial, *(p for p in partial.rglob("*") if p.is_dir())):
            fsync(directory)
        final = self.root / address(spec)
        _rename(partial, final)
        _drop_scaffolding(final)
        artifact = self.find(spec)
        assert artifact is not None
        return artifact


def _lock(lock: IO[str], name: str) -> bool:
    """Take a lock, after whoever holds it, and write our number into it. False where the file system has no locks."""
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for {name}: {_holder(lock)} is making it", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return True


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    try:
        return f"process {int(lock.read())}"
    except (OSError, ValueError):  # not written yet, or by something else
        return "another process"


def _manifest_of(spec: Spec, checksums: dict[str, dict], seconds: float, facts: dict) -> dict:
    return {
        "address": address(spec),
        "contents": contents(spec),
        "parents": [address(parent) for parent in parents(spec)],
        "work": spec.work,
        "facts": facts,
        "checksums": checksums,
        "bytes": sum(c["bytes"] for c in checksums.values()),
        "seconds": round(seconds, 3),
        "git": git_state(),
        "versions": versions(),
    }


def _rename(partial: Path, final: Path) -> None:
    """The commit. Where another writer was first, who made the same, ours is dropped."""
    try:
        os.rename(partial, final)
    except OSError:
        if not final.exists():
            raise
        shutil.rmtree(partial)
    fsync(final.parent)


def _drop_scaffolding(directory: Path) -> None:
    """Only after the commit: a run killed before it still resumes."""
    for path in list(directory.rglob("*")):
        if path.name.startswith("resume.") or path.suffix == ".tmp":
            path.unlink(missing_ok=True)


def _is_scaffolding(path: Path) -> bool:
    """Files that are no payload: the manifest, who verified, what a run resumes from, what a crash left half written."""
    verified = path.name.startswith("verified-") and path.suffix == ".json"
    return path.name == MANIFEST or verified or path.name.startswith("resume.") or path.suffix == ".tmp"


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# ------------------------------------------------------------------------------------------------ what is refused


def _checked(directory: Path, spec: Spec) -> Artifact:
    """The artifact in a directory, without hashing its payload. Raises: StoreError."""
    manifest = _manifest(directory)
    different = differences(manifest["contents"], contents(spec))
    if different:
        raise _damaged(directory, directory, f"made from other settings: {'; '.join(different)}")
    for name, expected in manifest["checksums"].items():
        _status(directory, name, expected["bytes"])
    return Artifact(directory, manifest)


def _refuse_damage(directory: Path) -> None:
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
        manifest = read_sealed(path)
        if not _has(manifest, FIELDS) or not all(_has(c, {"sha256": str, "bytes": int}) for c in manifest["checksums"].values()):
            raise ValueError("a field is missing or of another type")
    except (OSError, ValueError) as error:
        raise _damaged(path, directory, f"unreadable manifest ({_reason(error)})") from None
    return manifest


def _has(value: object, fields: dict) -> bool:
    """Whether a value is a dictionary that has every field, each of its type."""
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in fields.items())


def _status(directory: Path, name: str, size: int) -> os.stat_result:
    """What the file system knows of a payload file. Raises: StoreError if it is missing or of another size."""
    path = directory / name
    try:
        status = os.stat(path)
    except OSError as error:
        raise _damaged(path, directory, f"missing ({_reason(error)})") from None
    if status.st_size != size:
        raise _damaged(path, directory, f"corrupted ({status.st_size} bytes, manifest says {size})")
    return status


def _refuse_corruption(directory: Path, name: str, expected: str) -> None:
    """Raises: StoreError if a payload file does not have the checksum that is expected, or cannot be read."""
    path = directory / name
    try:
        found = checksum(path)
    except OSError as error:
        raise _damaged(path, directory, f"unreadable ({_reason(error)})") from None
    if found != expected:
        raise _damaged(path, directory, f"corrupted (sha256 {found[:12]}…, manifest says {expected[:12]}…)")


def _damaged(what: Path, directory: Path, how: str) -> StoreError:
    return StoreError(f"{what}: {how}; delete {directory} to make it anew".replace("\n", " "))


def _reason(error: Exception) -> str:
    """An error without the path, which our messages begin with."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def differences(stored: object, wanted: object, path: str = "") -> list[str]:
    """The leaves in which two descriptions differ, as "a.b: stored 1, wanted 2"."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = sorted(set(stored) | set(wanted))
        missing = "(nothing)"
        pairs = [(stored.get(k, missing), wanted.get(k, missing), f"{path}.{k}" if path else k) for k in keys]
        return [line for pair in pairs for line in differences(*pair)]
    return [] if stored == wanted else [f"{path}: stored {stored}, wanted {wanted}"]


# ------------------------------------------------------------------------- payload, verified once on every machine


def _checksums(partial: Path) -> dict[str, dict]:
    """The sha256 and bytes of every payload file, by its name in the directory."""
    files = sorted(p for p in partial.rglob("*") if p.is_file() and not _is_scaffolding(p))
    return {str(p.relative_to(partial)): {"sha256": checksum(p), "bytes": p.stat().st_size} for p in files}


def _verify_once(directory: Path, checksums: dict[str, dict]) -> None:
    """Hash the payload, except files that are known to have been hashed on this machine. Raises: StoreError."""
    known = _known(directory)
    current = _identities(directory, checksums)
    for name, expected in checksums.items():
        if known.get(name) != current[name]:
            _refuse_corruption(directory, name, expected["sha256"])
    if known != current:
        with contextlib.suppress(OSError):  # a disk that only reads: hashed again by the next process
            write_sealed(_memory(directory), {"files": current})


def _remember(directory: Path, checksums: dict[str, dict]) -> None:
    """Note that the payload has been hashed on this machine."""
    write_sealed(_memory(directory), {"files": _identities(directory, checksums)})


def _known(directory: Path) -> dict[str, list]:
    """What `_identities` gave when the payload was last hashed on this machine; nothing where no sound memory is left."""
    try:
        files = read_sealed(_memory(directory))["files"]
    except (OSError, ValueError, KeyError):
        return {}
    return files if isinstance(files, dict) else {}


def _memory(directory: Path) -> Path:
    return directory / f"verified-{machine()}.json"


def _identities(directory: Path, checksums: dict[str, dict]) -> dict[str, list]:
    """What changes when a payload file is written or replaced, and what it was compared with. Raises: StoreError."""
    identities = {}
    for name, expected in checksums.items():
        status = _status(directory, name, expected["bytes"])
        identities[name] = [status.st_size, status.st_mtime_ns, status.st_ino, expected["sha256"]]
    return identities


@functools.cache
def machine() -> str:
    """A name of this machine that stays. Hosts and containers that share a disk image differ by their host names."""
    try:
        identity = Path("/etc/machine-id").read_text()
    except OSError:
        identity = ""
    return hashlib.sha256(f"{identity}{socket.gethostname()}".encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------------ files


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(head: bytes) -> bytes:
    """The end of a sealed file: a last key, and the checksum of every byte before it."""
    return b',\n "sha256": "' + hashlib.sha256(head).hexdigest().encode() + b'"\n}\n'


def write_sealed(path: Path, value: dict) -> None:
    """Write a dictionary that is not empty as JSON, atomically, with its own checksum. Refuses NaN and infinity."""
    head = json.dumps(value, indent=1, allow_nan=False).removesuffix("\n}")
    replace_text(path, head + _seal(head.encode()).decode())


def read_sealed(path: Path) -> dict:
    """What `write_sealed` wrote, and its "sha256". Raises: OSError; ValueError if a single bit of the file has changed."""
    raw = path.read_bytes()
    length = len(_seal(b""))
    head, seal = raw[:-length], raw[-length:]
    if seal != _seal(head):
        raise ValueError("damaged: it does not have its own checksum")
    return json.loads(raw)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically. Refuses NaN and infinity."""
    replace_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, at any moment and after any crash, sees the old text or the new one."""
    temporary = _beside(path, f".{os.getpid()}.tmp")  # two processes may write the same
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def new_array(path: Path, shape: tuple[int, ...], dtype: type = np.float32) -> np.memmap:
    """A `.npy` file to be filled through memory, its space reserved: a full disk is an error here, not a crash later.

    A file system that reserves nothing, as NFS, still crashes later.
    """
    array = open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            _reserve(file)
    return array


def _reserve(file: IO[bytes]) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def fsync(path: Path) -> None:
    """Force a file or a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------- provenance


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes the numbers, of packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


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
