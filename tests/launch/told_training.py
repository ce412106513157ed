"""A training that tells of every step, for whoever counts what is done again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from counting_stages import say, wait

from journey.engine.workspace import Workspace
from journey.pipeline.interfaces import Train


@dataclass(frozen=True)
class Told(Train):
    stage: ClassVar[str] = "told_training"
    maker: ClassVar[str] = "told_training:make"
    said: str = field(
        default="", compare=False, metadata={"not_in_key": True}
    )  # the file where it tells
    waits_for: str = field(
        default="", compare=False, metadata={"not_in_key": True}
    )  # … without which its second half is not begun


def make(spec: Told, partial: Path, workspace: Workspace) -> None:
    """The stage itself, of whose steps one learns on the way."""
    from journey.diffusion import train, training

    steps = training.train

    def told(state, course, until):
        for step in steps(state, course, until):
            if state.step == spec.training.num_steps // 2 and spec.waits_for:
                wait(Path(spec.waits_for))
            say(spec, str(state.step))
            yield step

    training.train = told
    try:
        train.make_model(spec, partial, workspace)
    finally:
        training.train = steps
    say(spec, "made")
