"""What others made and released: where it is on this machine, and which it is. Nothing is downloaded."""

import functools
import hashlib
from pathlib import Path

from journey.engine.checks import ConfigError
from journey.engine.files import checksum

SUFFIXES = {
    ".safetensors",
    ".bin",
    ".pt",
    ".json",
    ".txt",
}  # of files that decide what models compute


def locate(setting: str, name: str, what: str) -> Path:
    """A file, a directory, or the snapshot of a name in the hub's cache.

    setting: what names it; what: is looked for. Raises: ConfigError if it is not on this machine.
    """
    if Path(name).exists():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise ConfigError(
            f"{setting}={name}: must be {what}, on this machine or in the hub's cache"
        ) from None


def locate_checkpoint(name: str) -> Path:
    """Where a checkpoint that others trained is. Raises: ConfigError if it is not on this machine."""
    return locate("model.checkpoints", name, "a network or a state dict")


def files_hash(*paths: Path) -> str:
    """A hash of every file that decides what models compute, by bytes and, in directories, by name."""
    digest = hashlib.sha256()
    for path in paths:
        files = (
            [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES)
        )
        for file in files:
            stat = file.stat()
            name = "" if file == path else file.relative_to(path)
            digest.update(f"{name}:{_file_hash(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _file_hash(path: Path, *_: int) -> str:
    """Once, while the file is the same; the hub's cache calls large files by it."""
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and len(blob.name) == 64 else checksum(path)
