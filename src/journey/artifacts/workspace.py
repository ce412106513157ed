"""Pull: asking for an artifact makes it, and whatever it is made from, unless the store has it."""

import contextlib
import importlib
import time
from dataclasses import dataclass

from journey.artifacts.specs import Spec
from journey.artifacts.store import Artifact, Store
from journey.config.contracts import Compute, Tracking


@dataclass(frozen=True)
class Workspace:
    """Where and how to compute; nothing here changes a number beyond rounding."""

    store: Store
    compute: Compute
    tracking: Tracking
    group: str  # the experiment's name


def get(spec: Spec, workspace: Workspace) -> Artifact:
    """The artifact of a spec."""
    store = workspace.store
    if (found := store.find(spec)) is not None:
        return found
    with store.writing(spec) as partial:
        if (found := store.find(spec)) is not None:  # made by another process while this one waited
            with contextlib.suppress(OSError):  # gone already, or taken by a third process
                partial.rmdir()
            return found
        started = time.perf_counter()
        stage = importlib.import_module(spec.stage)  # here, so that cached results import no torch
        facts = stage.make(spec, partial, workspace)
        return store.commit(spec, partial, time.perf_counter() - started, facts or {})
