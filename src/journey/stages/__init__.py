"""Pull: asking for an artifact makes it, and whatever it is made from, unless the store has it."""

import contextlib
import importlib
import time
from dataclasses import dataclass

from journey import config
from journey.specs import Spec
from journey.store import Artifact, Store


@dataclass
class Workspace:
    """Where and how to compute; nothing here changes a number beyond rounding."""

    store: Store
    compute: config.Compute
    tracking: config.Tracking
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
        stage = importlib.import_module(f"journey.stages.{spec.stage}")  # here, so that cached results import no torch
        stage.run(spec, partial, workspace)
        return store.commit(spec, partial, time.perf_counter() - started)
