"""Artifacts: directories addressed by what made them, written atomically, refused when damaged.

<root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b/           payload, manifest.json, and which machines have hashed the payload
<root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b.partial/   being made, or interrupted and waiting to be resumed
<root>/models/digits-ddpm_tiny-s0-3f9a1c2e0d4b.lock       held by the process that is making it, whose number it contains
<root>/logs/                                              why artifacts could not be made
<root>/jobs/                                              what was submitted to a cluster, and the logs of its jobs
<root>/costs.json                                         what artifacts cost that an exported pack left out
<root>/rates.json                                         how fast stages are, as benchmarks/rates.py measured, for plans

Finding an artifact reads its manifest and looks at the sizes of its files. Their contents are hashed when they are written, once
on every machine that reads them, and by `Store.verify`. The rename of the partial directory makes an artifact exist; locks only
save work. Where a file system has none, every writer has a partial directory of its own, which no later run resumes.
"""

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from journey.engine.files import (
    acquire_lock,
    error_text,
    fsync,
    is_locked,
    sibling,
    write_checksummed,
)
from journey.engine.manifest import (
    COST_FIELDS,
    MANIFEST,
    StoreError,
    check_artifact,
    has_fields,
    load_manifest,
    new_manifest,
    payload_checksums,
    record_verification,
    verify_once,
)
from journey.engine.provenance import machine_id
from journey.engine.spec import Spec, cache_key

COSTS = "costs.json"


NO_ARTIFACTS = ("logs", "jobs")  # folders of a store


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. Reading its payload verifies it, unless this machine has done so before."""

    directory: Path
    manifest: dict

    @functools.cached_property
    def path(self) -> Path:
        """The directory, its payload verified. Raises: StoreError naming the damaged file."""
        verify_once(self.directory, self.manifest["checksums"])
        return self.directory

    def array(self, name: str) -> np.ndarray:
        """One array of the payload, mapped from disk, not read. Raises: StoreError naming the damaged file."""
        return np.load(self.path / name, mmap_mode="r")


class Store:
    """A directory of artifacts, shared safely by any number of processes."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._found: dict[str, Artifact] = {}

    def __reduce__(self) -> tuple:
        return Store, (self.root,)  # a worker looks for itself

    def writable(self) -> None:
        """Raises: StoreError if nothing can be written here."""
        trial = self.root / f".writable-{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            trial.write_text("x")
            trial.unlink()
        except (OSError, ValueError) as error:  # ValueError: no path at all
            raise StoreError(
                f"{self.root}: artifacts cannot be written here ({error_text(error)})"
            ) from None

    def find(self, spec: Spec) -> Artifact | None:
        """The artifact of a spec, or None if it has not been made. Costs a manifest and a look at every file's size.

        Raises: StoreError if its manifest is damaged or of other settings, or a file is missing or of another size.
        """
        name = cache_key(spec)
        if name not in self._found:
            directory = self.root / name
            if not directory.exists():
                return None
            self._found[name] = Artifact(directory, load_manifest(directory, spec))
        return self._found[name]

    def cost(self, spec: Spec) -> dict | None:
        """The seconds, bytes, work and facts of an artifact that is here, or that a pack left out; None if unknown.

        Raises: StoreError as `find` does, or if the list of costs is damaged.
        """
        made = self.find(spec)
        known = self._costs.get(cache_key(spec)) if made is None else made.manifest
        return known and {key: known[key] for key in COST_FIELDS}

    @functools.cached_property
    def _costs(self) -> dict[str, dict]:
        path = self.root / COSTS
        try:
            costs = json.loads(path.read_bytes())
            if not isinstance(costs, dict) or not all(
                has_fields(cost, COST_FIELDS) for cost in costs.values()
            ):
                raise ValueError("not a cost for each address")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path}: unreadable ({error_text(error)}); delete {path} to estimate without it"
            ) from None
        return costs

    def verify(self) -> Iterator[str]:
        """Hash every payload of every artifact; yields a line for each damaged one, saying what to delete."""
        for directory in sorted(self.root.glob("[!.]*/[!.]*")):
            if (
                directory.is_dir()
                and directory.suffix != ".partial"
                and directory.parent.name not in NO_ARTIFACTS
            ):
                try:
                    check_artifact(directory)
                except StoreError as error:
                    yield str(error)

    def held(self) -> list[str]:
        """The addresses of what is being made, as far as locks tell."""
        found = self.root.glob("[!.]*/[!.]*.lock")
        return [f"{path.parent.name}/{path.stem}" for path in found if is_locked(path)]

    @contextlib.contextmanager
    def writing(self, spec: Spec) -> Iterator[Path]:
        """Hold the right to make an artifact, and the directory to make it in, which may hold an interrupted run's work.

        Waits while another process holds it: look again with `find` before working.
        """
        final = self.root / cache_key(spec)
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(
            sibling(final, ".lock"), "a+"
        ) as lock:  # released by the kernel, however this process ends
            alone = acquire_lock(lock, cache_key(spec))
            partial = sibling(
                final, ".partial" if alone else f".{machine_id()}.{os.getpid()}.partial"
            )
            partial.mkdir(exist_ok=True)
            yield partial
        if final.exists():
            sibling(final, ".lock").unlink(missing_ok=True)

    def commit(self, spec: Spec, partial: Path, seconds: float, facts: dict) -> Artifact:
        """Turn a partial directory into the artifact: checksums, manifest, fsync, then the rename that makes it exist.

        seconds: what the run that finished it took; an interrupted run before it is not counted.
        facts: what the stage found worth keeping about how it was made, as JSON.
        """
        checksums = payload_checksums(partial)
        for name in checksums:
            fsync(partial / name)
        record_verification(partial, checksums)
        write_checksummed(partial / MANIFEST, new_manifest(spec, checksums, seconds, facts))
        for directory in (partial, *(p for p in partial.rglob("*") if p.is_dir())):
            fsync(directory)
        final = self.root / cache_key(spec)
        _rename(partial, final)
        _drop_scaffolding(final)
        artifact = self.find(spec)
        assert artifact is not None
        return artifact


def _rename(partial: Path, final: Path) -> None:
    """The commit. Where another writer was first, who made the same, ours is dropped."""
    try:
        os.rename(partial, final)
    except OSError:
        if not final.exists():
            raise
        shutil.rmtree(partial)
    fsync(final.parent)


def _drop_scaffolding(directory: Path) -> None:
    """Only after the commit: a run killed before it still resumes."""
    for path in list(directory.rglob("*")):
        if path.name.startswith("resume.") or path.suffix == ".tmp":
            path.unlink(missing_ok=True)
