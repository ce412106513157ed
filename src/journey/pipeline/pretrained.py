"""Where models and data that others released are on this machine. Nothing is downloaded."""

import functools
import hashlib
import importlib.util
from pathlib import Path

from journey.engine.checks import ConfigError
from journey.engine.files import checksum

# Of files that determine outputs.
SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".txt"}


def package_directory(package: str) -> Path:
    """Return the directory of an installed package without importing it, which can take seconds.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the package {package} is not installed", name=package)
    return Path(spec.origin).parent


def locate(setting: str, name: str, description: str) -> Path:
    """Return the path of a model: a file, a directory, or a snapshot in the Hugging Face cache.

    Args:
        setting: The setting that names the model, for the error message.
        name: A path, or a repository of the Hugging Face hub.
        description: What the model must be, for the error message.

    Raises:
        ConfigError: It is not on this machine.
    """
    if (path := Path(name).expanduser()).exists():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise ConfigError(
            f"{setting}={name}: must be {description}, on this machine or in the hub's cache"
        ) from None


def locate_checkpoint(name: str, setting: str = "model.checkpoints") -> Path:
    """Return the path of a checkpoint that was trained elsewhere, which a setting names."""
    return locate(setting, name, "a network or a state dict")


def locate_pipeline(name: str) -> Path:
    """Return the path of a pipeline with the encoders of latents and texts."""
    return locate("model.pretrained", name, "a pipeline as diffusers saves it")


def files_hash(*paths: Path) -> str:
    """Return a hash of the files, and their relative names, that determine what models compute."""
    digest = hashlib.sha256()
    for path in paths:
        files = [path]
        if not path.is_file():
            files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        for file in files:
            stat = file.stat()
            name = "" if file == path else file.relative_to(path)
            digest.update(f"{name}:{_file_hash(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _file_hash(path: Path, size: int, modified: int) -> str:
    """Return the SHA-256 of a file; the Hugging Face cache names large files by it."""
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and len(blob.name) == 64 else checksum(path)
