"""The state that an interrupted stage resumes from, inside the partial directory of its artifact.

    state = load_state(partial)  # None: nothing to resume from
    clock = Clock(partial, workspace.compute.checkpoint_seconds)
    for step in …:
        …
        if clock.due():
            save_weights(partial / f"resume.{step}.safetensors")
            clock.save({"step": step}, [f"resume.{step}.safetensors"])

A state is JSON, and files if it needs them, whose names differ from those of the previous state.
Arrays of the payload that are partly filled are flushed before `save`. The rename of `resume.json`
replaces one state by the next: a run killed before it resumes from the old state, a run killed
after it from the new one. No file called `resume.*` becomes part of an artifact.

A process that was asked to stop (`request_stop`, as on the signal before a time limit) stops with
StoppedError as soon as its stage has saved a state.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from journey.engine.files import checksum, fsync, read_checksummed, write_checksummed

STATE = "resume.json"

_stop_requested = False  # no threading.Event: signal handlers would wait for each other in its lock


class StoppedError(Exception):
    """A stage stopped on request; its state is saved."""


def request_stop() -> None:
    """Stop the stage of this process once it has saved its state. Signal handlers may call this."""
    global _stop_requested
    _stop_requested = True


def stop_requested() -> bool:
    """Return whether `request_stop` was called."""
    return _stop_requested


class Clock:
    """When to save a state: every `seconds`, and when a stop is requested."""

    def __init__(self, partial: Path, seconds: float) -> None:
        self._partial, self._seconds = partial, seconds
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Return whether to save the state now: flush arrays, then call `save`."""
        return stop_requested() or time.monotonic() - self._saved_at >= self._seconds

    def save(self, state: dict, files: Sequence[str] = ()) -> None:
        """Save a state, as `save_state` does, and restart the clock."""
        save_state(self._partial, state, files)
        self._saved_at = time.monotonic()


def save_state(partial: Path, state: dict, files: Sequence[str] = ()) -> None:
    """Save a state in place of the previous one, with files that are already written.

    Args:
        partial: The directory in which the artifact is computed.
        state: The state, as JSON.
        files: Names of its files in the directory, each `resume.<progress>.<suffix>`.

    Raises:
        ValueError: A file has another name, or overwrites a file of the previous state.
        StoppedError: A stop was requested. The state is saved.
    """
    checksums = {}
    for name in files:
        if not name.startswith("resume.") or name == STATE or "/" in name:
            raise ValueError(f"{name}: a file of a state must be called resume.<progress>.<suffix>")
        fsync(partial / name)
        checksums[name] = checksum(partial / name)

    # A kill between overwriting a file and saving the state would have cost the whole run.
    try:
        previous = read_checksummed(partial / STATE)["files"]
    except (OSError, ValueError, KeyError):  # there is no state, or it is damaged
        previous = {}
    for name, value in checksums.items():
        if previous.get(name, value) != value:
            problem = "overwritten while the saved state needs it"
            raise ValueError(f"{partial / name}: {problem}; name files by their progress")

    write_checksummed(partial / STATE, {"state": state, "files": checksums})
    for path in partial.glob("resume.*"):
        if path.name != STATE and path.name not in checksums:
            path.unlink(missing_ok=True)
    if stop_requested():
        raise StoppedError(f"{partial.name}: stopped on request; its state is saved")


def load_state(partial: Path) -> dict | None:
    """Return the saved state, or None. A damaged state is deleted, and a printed line says so."""
    if not (partial / STATE).exists():
        return None
    try:
        saved = read_checksummed(partial / STATE)
        sound = all(checksum(partial / name) == value for name, value in saved["files"].items())
        if sound:
            return saved["state"]
    except (OSError, ValueError, KeyError):
        pass
    message = f"{partial}: the state of an interrupted run is damaged; computing the artifact anew"
    print(message, file=sys.stderr, flush=True)
    for path in partial.glob("resume.*"):
        path.unlink(missing_ok=True)
    return None


def state_hash(partial: Path) -> str:
    """Return a hash that changes with every saved state; "" if there is no state."""
    try:
        return checksum(partial / STATE)
    except OSError:
        return ""
