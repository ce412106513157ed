"""Files that a crash, a full disk or another process never leaves half written, and that know when they are damaged.

Locks on files: they save work. Nothing relies on them, since some network file systems have none."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib.format import open_memmap


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum_line(head: bytes) -> bytes:
    """The end of a sealed file: a last key, and the checksum of every byte before it."""
    return b',\n "sha256": "' + hashlib.sha256(head).hexdigest().encode() + b'"\n}\n'


def write_checksummed(path: Path, value: dict) -> None:
    """Write a dictionary that is not empty as JSON, atomically, with its own checksum. Refuses NaN and infinity."""
    head = json.dumps(value, indent=1, allow_nan=False).removesuffix("\n}")
    replace_text(path, head + _checksum_line(head.encode()).decode())


def read_checksummed(path: Path) -> dict:
    """What `write_sealed` wrote, and its "sha256". Raises: OSError; ValueError if a single bit of the file has changed."""
    raw = path.read_bytes()
    length = len(_checksum_line(b""))
    head, seal = raw[:-length], raw[-length:]
    if seal != _checksum_line(head):
        raise ValueError("damaged: it does not have its own checksum")
    return json.loads(raw)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically. Refuses NaN and infinity."""
    replace_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, at any moment and after any crash, sees the old text or the new one."""
    temporary = sibling(path, f".{os.getpid()}.tmp")  # two processes may write the same
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


def sibling(path: Path, suffix: str) -> Path:
    """The path of a file or directory of the same name with a suffix."""
    return path.with_name(path.name + suffix)


def error_text(error: Exception) -> str:
    """An error without the path, which our messages begin with."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def acquire_lock(file: IO[str], name: str) -> bool:
    """Take the lock of a file opened "a+", after whoever holds it, and write our number into it; closing the file releases it.

    False where the file system has no locks.
    """
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for {name}: {_holder(file)} is making it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return True


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock of a file; False where there are no locks, or no file."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released at once
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        return f"process {int(file.read())}"
    except (OSError, ValueError):  # not written yet, or by something else
        return "another process"
