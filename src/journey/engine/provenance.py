"""Provenance of a result: the commit, the versions of packages, the machine and its device."""

import contextlib
import functools
import hashlib
import importlib.metadata
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"  # of this package, which pyproject.toml reads here

SAMPLE_SECONDS = 1.0  # between looks at how busy an accelerator is

DeviceUse = dict[str, str | int | float]
"""What an artifact was computed on; see `watch_device`."""

PACKAGES = ("journey", "torch", "diffusers", "numpy", "scipy", "scikit-learn", "safetensors")


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that compute numbers."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@functools.cache
def git_state() -> dict[str, str | bool] | None:
    """Return the commit of this checkout and whether files differ; None outside a checkout."""
    file = Path(__file__)

    def git(*words: str) -> subprocess.CompletedProcess:
        command = ["git", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True)

    try:
        if git("ls-files", "--error-unmatch", file.name).returncode != 0:
            return None
    except FileNotFoundError:  # no git
        return None
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.stdout.strip(), "dirty": changes.stdout.strip() != ""}


@functools.cache
def machine_id() -> str:
    """Return a permanent name of this machine. Containers of one image differ by host name."""
    try:
        identity = Path("/etc/machine-id").read_text()
    except OSError:
        identity = ""
    return hashlib.sha256(f"{identity}{socket.gethostname()}".encode()).hexdigest()[:12]


@contextlib.contextmanager
def watch_device(device: str) -> Iterator[DeviceUse]:
    """Record the device that a block computes on.

    Yields:
        A record that is complete at the end of the block: `device`, as in the settings, and, of an
        accelerator that was used, as far as its driver tells: its `name`; `peak_bytes` that tensors
        of this process had; whether CUDA used TF32 in products of float32 matrices (`tf32_matmul`)
        and in convolutions (`tf32_convolution`); and `busy_seconds`, in which any process computed
        on it.
    """
    use: DeviceUse = {"device": device}
    if device == "cpu":
        yield use
        return
    if (backend := _backend(device)) is not None and hasattr(backend, "reset_peak_memory_stats"):
        backend.reset_peak_memory_stats(device)
    busy, ended = [0.0], threading.Event()
    sampler = threading.Thread(target=_sample, args=(device, busy, ended), daemon=True)
    sampler.start()
    try:
        yield use
    finally:
        ended.set()
        sampler.join()
    if (backend := _backend(device)) is None:
        return
    if hasattr(backend, "get_device_name"):
        use["name"] = backend.get_device_name(device)
    if hasattr(backend, "max_memory_allocated"):
        use["peak_bytes"] = backend.max_memory_allocated(device)
    backends = sys.modules["torch"].backends
    use["tf32_matmul"] = backends.cuda.matmul.allow_tf32
    use["tf32_convolution"] = backends.cudnn.allow_tf32
    if busy[0]:
        use["busy_seconds"] = round(busy[0], 1)


def _backend(device: str) -> ModuleType | None:
    """Return torch's module of an accelerator, or None if this process has not used it."""
    torch = sys.modules.get("torch")
    backend = getattr(torch, device.partition(":")[0], None)
    used = backend is not None and getattr(backend, "is_initialized", lambda: True)()
    return backend if used else None


def _sample(device: str, busy: list[float], ended: threading.Event) -> None:
    """Add the seconds in which an accelerator is busy, until the event."""
    while not ended.wait(SAMPLE_SECONDS):
        if (backend := _backend(device)) is not None:
            with contextlib.suppress(Exception):  # no NVML, or torch is being imported
                busy[0] += SAMPLE_SECONDS * backend.utilization(device) / 100
