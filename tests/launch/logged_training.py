"""A training run that logs every step, so that repeated steps can be counted."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from counting_stages import wait, write_log

from journey.engine.workspace import Workspace
from journey.pipeline.interfaces import Train


@dataclass(frozen=True)
class LoggedTrain(Train):
    stage: ClassVar[str] = "logged_training"
    maker: ClassVar[str] = "logged_training:train_logged"
    log: str = field(default="", compare=False, metadata={"not_in_key": True})  # path
    # The second half begins once this file exists.
    waits_for: str = field(default="", compare=False, metadata={"not_in_key": True})


def train_logged(spec: LoggedTrain, partial: Path, workspace: Workspace) -> None:
    """Run the real stage, and log its steps."""
    from journey.diffusion import train, training

    steps = training.train

    def logged_steps(state, *arguments):
        for step in steps(state, *arguments):
            if state.step == spec.training.num_steps // 2 and spec.waits_for:
                wait(Path(spec.waits_for))
            write_log(spec, str(state.step))
            yield step

    training.train = logged_steps
    try:
        train.make_model(spec, partial, workspace)
    finally:
        training.train = steps
    write_log(spec, "done")
