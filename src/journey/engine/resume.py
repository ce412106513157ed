"""The state that an interrupted stage resumes from, inside the partial directory of its artifact.

    state = load_state(partial)  # None: nothing to resume from
    clock = Clock(partial, workspace.compute.checkpoint_seconds)
    for step in …:
        …
        if clock.due():
            save_weights(partial / f"resume.{step}.safetensors")
            clock.save({"step": step}, [f"resume.{step}.safetensors"])

A state is JSON, and files if it needs them, whose names differ from those of the previous state.
Arrays of the payload that are filled row by row are flushed before `save`, which is told how many
rows are final: `clock.save({"rows": 40}, filled={"features.npy": 40})`. The rename of `resume.json`
replaces one state by the next: a run killed before it resumes from the old state, a run killed
after it from the new one. No file called `resume.*` becomes part of an artifact.

Everything that a resumed run does not compute again has a checksum: the state, its files, the rows
and the metrics that were added since the previous state. `load_state` verifies all of them, and
returns the last state before any damage.

A process that was asked to stop (`request_stop`, as on the signal before a time limit) stops with
StoppedError as soon as its stage has saved a state.
"""

import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from journey.engine.files import checksum, fsync, read_checksummed, write_checksummed

STATE = "resume.json"
METRICS = "metrics.jsonl"
READ_BYTES = 2**20  # at once
NO_ROWS: Mapping[str, int] = MappingProxyType({})

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

    def save(
        self,
        state: dict,
        files: Sequence[str] = (),
        filled: Mapping[str, int] = NO_ROWS,
        axis: int = 0,
        metrics_bytes: int | None = None,
    ) -> None:
        """Save a state, as `save_state` does, and restart the clock."""
        save_state(self._partial, state, files, filled, axis, metrics_bytes)
        self._saved_at = time.monotonic()


@dataclass(frozen=True)
class _Saved:
    """A state as `resume.json` lists it, after the earlier ones."""

    state: dict
    files: dict[str, str]  # checksums of its own files
    filled: dict[str, int]  # final rows of arrays
    sizes: dict[str, int]  # of these arrays' files
    added: list[tuple[str, int, int]]  # bytes [start, stop) of files since the previous state
    sha256: str  # of these bytes


def save_state(
    partial: Path,
    state: dict,
    files: Sequence[str] = (),
    filled: Mapping[str, int] = NO_ROWS,
    axis: int = 0,
    metrics_bytes: int | None = None,
) -> None:
    """Save a state in place of the previous one, with files that are already written.

    Args:
        partial: The directory in which the artifact is computed.
        state: The state, as JSON.
        files: Names of its files in the directory, each `resume.<progress>.<suffix>`.
        filled: How many rows of arrays of the payload are final, by the names of their files. These
            rows have been flushed.
        axis: The axis of the rows.
        metrics_bytes: How long the metrics were at this state; by default, they are as long now.

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
        earlier = _read_states(partial)
    except (OSError, ValueError, KeyError, TypeError):  # there is no state, or it is damaged
        earlier = []
    previous = earlier[-1] if earlier else _Saved({}, {}, {}, {}, [], "")
    for name, value in checksums.items():
        if previous.files.get(name, value) != value:
            problem = "overwritten while the saved state needs it"
            raise ValueError(f"{partial / name}: {problem}; name files by their progress")

    # What the stage has added since then: rows of arrays, and lines of metrics.
    added: list[tuple[str, int, int]] = []
    for name, end in filled.items():
        added += _row_bytes(partial, name, previous.filled.get(name, 0), end, axis)
    if (partial / METRICS).exists():
        if metrics_bytes is None:
            metrics_bytes = (partial / METRICS).stat().st_size
        added.append((METRICS, _metrics_bytes(earlier), metrics_bytes))
    for name in dict.fromkeys(name for name, _, _ in added):
        fsync(partial / name)
    sizes = {name: (partial / name).stat().st_size for name in filled}
    sha256 = _hash_bytes(partial, added)

    saved = _Saved(state, checksums, dict(filled), sizes, added, sha256)
    _write_states(partial, [*earlier, saved])
    for path in partial.glob("resume.*"):
        if path.name != STATE and path.name not in checksums:
            path.unlink(missing_ok=True)
    if stop_requested():
        raise StoppedError(f"{partial.name}: stopped on request; its state is saved")


def load_state(partial: Path) -> dict | None:
    """Return the last saved state before any damage, or None, and cut the metrics to that state.

    A printed line says what is damaged. Damaged states are deleted; arrays get the size that they
    had, and rows that are not final are left as they are.
    """
    if not (partial / STATE).exists():
        (partial / METRICS).unlink(missing_ok=True)
        return None
    try:
        saved = _read_states(partial)
        damaged = _restore_sizes(partial, saved[-1].sizes)
    except (OSError, ValueError):
        saved, damaged = [], STATE
    except (KeyError, TypeError, IndexError):
        saved, damaged = [], f"{STATE}, which has no checksums of rows,"

    # Verify the states in their order, up to the first damage.
    sound = []
    for entry in saved:
        if name := _damaged_bytes(partial, entry):
            damaged = name
            break
        sound.append(entry)
    while sound and (name := _damaged_file(partial, sound[-1].files)):
        # The files of earlier states are gone.
        damaged = damaged or name
        sound.pop()

    if damaged:
        problem = "the state of an interrupted run is damaged"
        advice = f"continuing from {sound[-1].state}" if sound else "computing the artifact anew"
        print(f"{partial}: {problem} ({damaged}); {advice}", file=sys.stderr, flush=True)
    if not sound:
        for path in (*partial.glob("resume.*"), partial / METRICS):
            path.unlink(missing_ok=True)
        return None
    if damaged:
        _write_states(partial, sound)
    if (partial / METRICS).exists():
        os.truncate(partial / METRICS, _metrics_bytes(sound))
    return sound[-1].state


def _read_states(partial: Path) -> list[_Saved]:
    states = []
    for entry in read_checksummed(partial / STATE)["states"]:
        states.append(_Saved(**entry | {"added": [tuple(added) for added in entry["added"]]}))
    return states


def _write_states(partial: Path, states: list[_Saved]) -> None:
    write_checksummed(partial / STATE, {"states": [asdict(entry) for entry in states]})


def _metrics_bytes(states: list[_Saved]) -> int:
    """Return how long the metrics were at the last state."""
    return max((stop for s in states for name, _, stop in s.added if name == METRICS), default=0)


def _row_bytes(
    partial: Path, name: str, first: int, end: int, axis: int
) -> list[tuple[str, int, int]]:
    """Return the bytes of rows first … end − 1 of a .npy file; with its header, if first is 0."""
    array = np.load(partial / name, mmap_mode="r")
    row = array.itemsize * int(np.prod(array.shape[axis + 1 :]))
    added = [(name, 0, array.offset)] if first == 0 else []
    for block in range(int(np.prod(array.shape[:axis]))):
        start = array.offset + block * array.shape[axis] * row
        added.append((name, start + first * row, start + end * row))
    return added


def _hash_bytes(partial: Path, added: list[tuple[str, int, int]]) -> str:
    """Return the SHA-256 of parts of files. A file that is too short has another one."""
    digest = hashlib.sha256()
    for name, start, stop in added:
        with open(partial / name, "rb") as file:
            file.seek(start)
            while block := file.read(min(READ_BYTES, max(0, stop - file.tell()))):
                digest.update(block)
    return digest.hexdigest()


def _restore_sizes(partial: Path, sizes: dict[str, int]) -> str:
    """Give arrays the sizes that they had.

    Returns:
        The name of one that had another size, or "".
    """
    damaged = ""
    for name, size in sizes.items():
        path = partial / name
        if path.exists() and path.stat().st_size != size:
            os.truncate(path, size)
            damaged = name
    return damaged


def _damaged_bytes(partial: Path, entry: _Saved) -> str:
    """Return which file has other bytes than a state says, or "" if all are sound."""
    names = dict.fromkeys(name for name, _, _ in entry.added)
    try:
        sound = _hash_bytes(partial, entry.added) == entry.sha256
    except OSError as error:
        return str(Path(error.filename).relative_to(partial))
    return "" if sound else " or ".join(names)


def _damaged_file(partial: Path, checksums: dict[str, str]) -> str:
    """Return which file of a state has another checksum or is missing, or "" if all are sound."""
    for name, value in checksums.items():
        try:
            if checksum(partial / name) != value:
                return name
        except OSError:
            return name
    return ""


def state_hash(partial: Path) -> str:
    """Return a hash that changes with every saved state; "" if there is no state."""
    try:
        return checksum(partial / STATE)
    except OSError:
        return ""
