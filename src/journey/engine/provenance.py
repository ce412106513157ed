"""Provenance of a result: the commit, the versions of packages, and the machine."""

import contextlib
import functools
import hashlib
import importlib.metadata
import platform
import socket
import subprocess
from pathlib import Path

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
