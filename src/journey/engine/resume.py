"""What an interrupted run of a stage continues from, inside its partial directory.

A stage that keeps a state of JSON alone (how many rows of an array are filled) calls `keep(partial, {"rows": 40})`. One that also
keeps files writes each under a name of its own progress, whole, and then says so:

    save(network, partial / "resume.100.safetensors")
    keep(partial, {"step": 100}, ["resume.100.safetensors"])

and begins with `state = resumed(partial)`, which is None where there is nothing to continue from. The rename of `resume.json` is
the moment at which one state follows the other. Killed before it, a run leaves the old state and its files, whose names differ;
killed after it, the new one. `keep` then deletes the files of the old. Nothing called `resume.*` is part of an artifact.

A payload file that the state speaks of (an array, filled up to some row) is flushed by the stage before it calls `keep`.

A stage keeps its state when that is `due`: every so many seconds, and at once when the process was asked to stop (`ask_to_stop`,
such as on the signal before a time limit). Then `keep` raises StoppedError, and the artifact is gone on with elsewhere.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from journey.engine.files import checksum, fsync, read_checksummed, write_checksummed

STATE = "resume.json"


_stop_requested = False  # whether this process was asked to; no threading.Event, in whose lock one signal's handler would wait for another


class StoppedError(Exception):
    """A stage was stopped because it was asked to; what it has done is kept."""


def request_stop() -> None:
    """Let the stage that runs in this process stop as soon as it has kept what it did. May be called by a signal's handler."""
    global _stop_requested
    _stop_requested = True


def stop_requested() -> bool:
    """Whether `ask_to_stop` was called."""
    return _stop_requested


def is_due(kept_at: float, seconds: float) -> bool:
    """Whether a state should be kept now. kept_at: when it last was, by `time.monotonic`; seconds: from one time to the next"""
    return stop_requested() or time.monotonic() - kept_at >= seconds


def save_state(partial: Path, state: dict, files: Sequence[str] = ()) -> None:
    """Make a state, and files already written, what a run continues from, and delete what it continued from before.

    files: names in the partial directory that begin with `resume.`, each new or of unchanged contents.
    Raises: ValueError if a name is another, or a file that the state before relies on has been overwritten; StoppedError, all
    being kept, if the process was asked to stop.
    """
    for name in files:
        if not name.startswith("resume.") or name == STATE or "/" in name:
            raise ValueError(f"{name}: a file to resume from is called resume.<progress>.<suffix>")
        fsync(partial / name)
    checksums = {name: checksum(partial / name) for name in files}
    _refuse_overwriting(partial, checksums)
    write_checksummed(partial / STATE, {"state": state, "files": checksums})
    for path in partial.glob("resume.*"):
        if path.name != STATE and path.name not in checksums:
            path.unlink(missing_ok=True)
    if stop_requested():
        raise StoppedError(f"{partial.name}: stopped when asked to, and kept")


def load_state(partial: Path) -> dict | None:
    """The state to continue from, as JSON gives it back, its files being sound; None if there is none.

    Where it is damaged, it is deleted with its files, and said so in a line.
    """
    if not (partial / STATE).exists():
        return None
    try:
        return _sound(partial)
    except (OSError, ValueError, KeyError):
        print(
            f"{partial}: what an interrupted run left is damaged; starting this artifact anew",
            file=sys.stderr,
            flush=True,
        )
    for path in partial.glob("resume.*"):
        path.unlink(missing_ok=True)
    return None


def _sound(partial: Path) -> dict:
    """The state that was kept. Raises: OSError, ValueError or KeyError if it is damaged."""
    kept = read_checksummed(partial / STATE)
    for name, expected in kept["files"].items():
        if checksum(partial / name) != expected:
            raise ValueError(name)
    return kept["state"]


def _refuse_overwriting(partial: Path, checksums: dict[str, str]) -> None:
    """A kill between overwriting a file and keeping it would have cost the whole run. Raises: ValueError."""
    try:
        before = read_checksummed(partial / STATE)["files"]
    except (OSError, ValueError, KeyError):  # nothing that could be resumed
        return
    for name, found in checksums.items():
        if before.get(name, found) != found:
            raise ValueError(
                f"{partial / name}: overwritten while it was what a run resumes from; name files by their progress"
            )


def state_hash(partial: Path) -> str:
    """A hash that differs once an interrupted run has got further; none where it left nothing to continue from."""
    try:
        return checksum(partial / STATE)
    except OSError:
        return ""


class Clock:
    """When to save the state of a stage: every so many seconds, and at once when the process was asked to stop."""

    def __init__(self, partial: Path, seconds: float) -> None:
        self._partial, self._seconds = partial, seconds
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Return whether a state should be saved now. Flush arrays, then call `save`."""
        return is_due(self._saved_at, self._seconds)

    def save(self, state: dict, files: Sequence[str] = ()) -> None:
        """Save a state as `save_state` does, and start waiting anew."""
        save_state(self._partial, state, files)
        self._saved_at = time.monotonic()
