"""Files that this program wrote into a directory which may also have files of others.

A list beside the files has their checksums. Only listed files that still have their checksum are
replaced or removed. Everything else in the directory stays, and symbolic links are not followed.

    files      checksums of the files, by name
    partial    name of the subdirectory in which new files are written, "" if there is none
    staged     checksums of the new files, by name; "" while one is being written
    removed    names of files that have no successor
    complete   whether all new files are written

Once `complete` is on disk, the new files replace the old ones, in the next run if this one is
killed. A run that is killed earlier leaves the old files, and the next one removes the new ones.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from journey.engine.checks import ConfigError
from journey.engine.files import (
    NO_LOCKS,
    checksum,
    error_text,
    fsync,
    read_checksummed,
    write_checksummed,
)


@dataclass(frozen=True)
class FileList:
    """The content of the list."""

    files: dict[str, str] = field(default_factory=dict)
    partial: str = ""
    staged: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True)
class OwnedFiles:
    """The files of a list.

    Attributes:
        directory: Their directory.
        list_name: The name of the list.
        where: The settings that determine the directory, for error messages.
    """

    directory: Path
    list_name: str
    where: str

    def is_listed(self) -> bool:
        """Return whether the directory has the list. A symbolic link is none."""
        return is_regular(self.directory / self.list_name)

    def is_empty(self) -> bool:
        """Return whether the directory is missing or has nothing but an unfinished list."""
        if not os.path.lexists(self.directory):
            return True
        return all(self._is_unfinished_list(name) for name in os.listdir(self.directory))

    def check(self, *names: str) -> None:
        """Finish what a killed run left, and check that no file of others would be replaced.

        Args:
            names: Files that will be written, as far as they are known.

        Raises:
            ConfigError: The list is damaged, a listed file was changed, or a file that will be
                written exists and is not listed.
        """
        if not self.directory.is_dir():
            return
        with self._locked():
            listed = self._mended()
            for name in {*names, *listed.files}:
                self._require_unchanged(name, listed.files.get(name))

    @contextlib.contextmanager
    def replaced(self, keep: bool = False) -> Iterator[Callable[[str], Path]]:
        """Replace the files by new ones once all of these are written.

        Args:
            keep: Whether listed files without a successor are kept.

        Yields:
            A function that returns the path at which to write the new file of a name.

        Raises:
            ConfigError: A file in the way was changed, or is not listed. Nothing is replaced.
            OSError: A file cannot be written. Nothing is replaced.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._locked():
            listed = self._mended()
            listed = replace(listed, partial=f"partial-{secrets.token_hex(6)}", staged={})
            partial = self.directory / listed.partial

            def new_file(name: str) -> Path:
                if not _is_plain(name) or name in (self.list_name, listed.partial):
                    raise ConfigError(f"{name!r}: must be the name of a file in {self.directory}")
                listed.staged[name] = ""
                self._write(listed)  # before the file exists: a list has what a killed run leaves
                return partial / name

            try:
                self._write(listed)
                partial.mkdir()
                yield new_file
                for name in listed.staged:
                    fsync(partial / name)
                    listed.staged[name] = checksum(partial / name)
                fsync(partial)
                if not keep:
                    listed.removed.extend(sorted(listed.files.keys() - listed.staged.keys()))
                for name in (*listed.staged, *listed.removed):
                    self._require_unchanged(name, listed.files.get(name))
            except BaseException:
                with contextlib.suppress(OSError):  # of a full disk; the next run tries again
                    self._discard(listed)
                raise
            try:
                self._write(replace(listed, complete=True))
            except OSError:  # it was not written; an interrupt may come after it was
                with contextlib.suppress(OSError):
                    self._discard(listed)
                raise
            self._commit(listed)

    def _commit(self, listed: FileList) -> None:
        """Replace old files by new ones, all or those that a killed run had not yet replaced."""
        partial = self.directory / listed.partial
        files = {name: value for name, value in listed.files.items() if name not in listed.removed}
        for name, new in listed.staged.items():
            target, old = self.directory / name, listed.files.get(name)
            if is_regular(partial / name) and not partial.is_symlink():
                self._require_unchanged(name, old, new)
                os.replace(partial / name, target)
                files[name] = new
            elif old is None or not _has_checksum(target, old):  # it was already replaced
                files[name] = new
        for name in listed.removed:
            self._require_unchanged(name, listed.files[name])
            (self.directory / name).unlink(missing_ok=True)
        fsync(self.directory)
        _remove_if_empty(partial)
        self._write(FileList(files))

    def _discard(self, listed: FileList) -> None:
        """Remove the new files of a run that did not write all of them."""
        partial = self.directory / listed.partial
        for name in listed.staged:
            if not partial.is_symlink() and is_regular(partial / name):
                (partial / name).unlink()
        _remove_if_empty(partial)
        if listed.files:
            self._write(FileList(listed.files))
        else:
            (self.directory / self.list_name).unlink(missing_ok=True)

    def _mended(self) -> FileList:
        """Return the list after finishing or discarding what a killed run left."""
        for name in filter(self._is_unfinished_list, os.listdir(self.directory)):
            (self.directory / name).unlink(missing_ok=True)
        listed = self._read()
        if listed.complete:
            self._commit(listed)
        elif listed.partial:
            self._discard(listed)
        return self._read()

    def _read(self) -> FileList:
        """Return the list, empty without a file. Refuse one that is damaged, or not ours."""
        path = self.directory / self.list_name
        if not os.path.lexists(path):
            return FileList()
        try:
            if not is_regular(path):
                raise ValueError("not a regular file")
            content = read_checksummed(path)
            listed = FileList(**{f.name: content[f.name] for f in fields(FileList)})
            names = [*listed.files, *listed.staged, *listed.removed]
            partial = re.fullmatch(r"partial-[0-9a-f]{12}|", listed.partial) is not None
            if not partial or not all(map(_is_plain, names)):
                raise ValueError("it lists files of other directories")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{path} is damaged ({error_text(error)}), so that our files are unknown"
            raise ConfigError(f"{self.where}: {problem}; move {path.parent} away") from None
        return listed

    def _write(self, listed: FileList) -> None:
        write_checksummed(self.directory / self.list_name, asdict(listed))

    def _is_unfinished_list(self, name: str) -> bool:
        """Return whether a file is a list that a killed run had not yet put in place."""
        return re.fullmatch(rf"{re.escape(self.list_name)}\.\d+\.tmp", name) is not None

    def _require_unchanged(self, name: str, *checksums: str | None) -> None:
        """Refuse a file that exists and has none of the checksums, or is a link or a directory."""
        path = self.directory / name
        if os.path.lexists(path) and not any(_has_checksum(path, value) for value in checksums):
            ours = any(checksums)
            problem = "was changed after this program wrote it" if ours else "is not a file of ours"
            advice = "move it to keep it, or delete it"
            raise ConfigError(f"{self.where}: {path} {problem} and would be replaced; {advice}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait while another process replaces files of this directory, where there are locks."""
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (*NO_LOCKS, errno.EBADF):  # EBADF: a directory on NFS
                    raise
            yield
        finally:
            os.close(descriptor)


def _is_plain(name: str) -> bool:
    """Return whether a name is that of a file in a directory, and no path."""
    return name not in ("", "..") and Path(name).name == name


def _remove_if_empty(directory: Path) -> None:
    """Remove a directory unless it is missing, a link, or has files of others."""
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise


def is_regular(path: Path) -> bool:
    """Return whether a path is a file, and not a symbolic link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _has_checksum(path: Path, expected: str | None) -> bool:
    return expected is not None and is_regular(path) and checksum(path) == expected
