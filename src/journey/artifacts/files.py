"""Files that a crash, a full disk or another process never leaves half written, and that know when they are damaged."""

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib.format import open_memmap


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
    temporary = beside(path, f".{os.getpid()}.tmp")  # two processes may write the same
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


def beside(path: Path, suffix: str) -> Path:
    """The path of a file or directory of the same name with a suffix."""
    return path.with_name(path.name + suffix)


def reason(error: Exception) -> str:
    """An error without the path, which our messages begin with."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
