"""Files that a crash, a full disk or another process cannot leave half written, and locks.

Locks only save work: nothing relies on them, since some network file systems have none.
"""

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
from filelock import lock_descriptor
from numpy.lib.format import open_memmap

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: Path) -> tuple[Path, int, int]:
    """Return a file with its time and size, which change when it is written."""
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


def write_checksummed(path: Path, value: dict) -> None:
    """Write a non-empty dictionary as JSON with a checksum, atomically; refuse NaN and infinity."""
    content = json.dumps(value, indent=1, allow_nan=False).removesuffix("\n}")
    replace_text(path, content + _checksum_line(content.encode()).decode())


def read_checksummed(path: Path) -> dict:
    """Return a dictionary that `write_checksummed` wrote, with the additional key "sha256".

    Raises:
        OSError: The file cannot be read.
        ValueError: A bit of the file has changed.
    """
    raw = path.read_bytes()
    length = len(_checksum_line(b""))
    if raw[-length:] != _checksum_line(raw[:-length]):
        raise ValueError("damaged: its checksum differs")
    return json.loads(raw)


def _checksum_line(content: bytes) -> bytes:
    """Return the end of a checksummed file: its last key, the checksum of all bytes before it."""
    return b',\n "sha256": "' + hashlib.sha256(content).hexdigest().encode() + b'"\n}\n'


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; refuse NaN and infinity."""
    replace_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file; readers see the old or the new text, at any moment and after any crash."""
    temporary = sibling(path, f".{os.getpid()}.tmp")  # two processes may write the same file
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # it exists only if something failed
            temporary.unlink()


def new_array(path: Path, shape: tuple[int, ...], dtype: type = np.float32) -> np.memmap:
    """Return a new `.npy` file, mapped to memory, with its space reserved.

    A full disk is an error here, instead of a crash while the array is filled. Some file systems,
    such as NFS, reserve nothing.

    Raises:
        OSError: The disk has no room.
    """
    array = open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
    return array


def fsync(path: Path) -> None:
    """Force a file or a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sibling(path: Path, suffix: str) -> Path:
    """Return the path with a suffix added to its name."""
    return path.with_name(path.name + suffix)


def error_text(error: Exception) -> str:
    """Return the message of an error without the path of its file."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def acquire_lock(file: IO[str], name: str) -> bool:
    """Lock a file opened with mode "a+", and write the number of this process into it.

    Closing the file releases the lock, also when the process is killed. If another process holds
    the lock of `name`, this one prints a line and waits.

    Returns:
        Whether the lock is held; false if the file system has no locks.

    Raises:
        OSError: Locking failed for another reason.
    """
    try:
        if not lock_descriptor(file.fileno(), blocking=False):
            file.seek(0)
            try:
                holder = f"process {int(file.read())}"
            except (OSError, ValueError):  # not written yet, or not by this program
                holder = "another process"
            print(f"waiting for {name}: {holder} has its lock", file=sys.stderr, flush=True)
            lock_descriptor(file.fileno())
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return True


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file; false without locks or a file."""
    try:
        with open(path) as file:  # a shared lock needs no permission to write
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
