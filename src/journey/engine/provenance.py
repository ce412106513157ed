"""What made a number: the commit, the versions of packages, the machine."""

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


@functools.cache
def machine_id() -> str:
    """A name of this machine that stays. Hosts and containers that share a disk image differ by their host names."""
    try:
        identity = Path("/etc/machine-id").read_text()
    except OSError:
        identity = ""
    return hashlib.sha256(f"{identity}{socket.gethostname()}".encode()).hexdigest()[:12]
