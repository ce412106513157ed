"""Which training images guided each step of a diffusion model's sampling, proven by retraining.

For reading results: `open`, which takes the words of the command. For a user's own kinds: a contract to write one under, and
`main`, which is the command `journey` with them as choices.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from journey.engine.spec import Component
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Dataset, Evaluation, Method, Model

if TYPE_CHECKING:
    from journey.run import Run


__all__ = ["Dataset", "Evaluation", "ImageSet", "Component", "Method", "Model", "main", "open"]


def main(kinds: Sequence[type[Component]] = ()) -> None:
    """The command `journey`, with further kinds, each a choice of its group by its name."""
    from journey.__main__ import main as command

    command(kinds)


def open(*overrides: str, kinds: Sequence[type[Component]] = ()) -> "Run":
    """What the command makes of the same words, for reading: frames and figures. It computes nothing; what is missing is named,
    with the command that makes it.

    Raises: ConfigError, or Hydra's own error, naming the setting.
    """
    from journey.run import load_run

    return load_run(overrides, kinds)
