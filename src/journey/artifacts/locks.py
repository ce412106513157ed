"""Locks on files: they save work. Nothing relies on them, since some network file systems have none."""

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import IO

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def lock(file: IO[str], name: str) -> bool:
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


def is_held(path: Path) -> bool:
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
