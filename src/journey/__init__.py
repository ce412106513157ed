"""Which training images guided each step of a diffusion model's sampling, proven by retraining.

For reading results: `open`, which takes the words of the command. For a user's own kinds: a contract to write one under, and
`main`, which is the command `journey` with them as choices.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from journey.config.contracts import Dataset, Evaluation, Kind, Method, Model
from journey.data import ImageSet

if TYPE_CHECKING:
    from journey.opened import Opened

__all__ = ["Dataset", "Evaluation", "ImageSet", "Kind", "Method", "Model", "main", "open"]


def main(kinds: Sequence[type[Kind]] = ()) -> None:
    """The command `journey`, with further kinds, each a choice of its group by its name."""
    from journey.__main__ import main as command

    command(kinds)


def open(*overrides: str, kinds: Sequence[type[Kind]] = ()) -> "Opened":
    """What the command makes of the same words, for reading: frames and figures. It computes nothing; what is missing is named,
    with the command that makes it.

    Raises: ConfigError, or Hydra's own error, naming the setting.
    """
    from journey.opened import opened

    return opened(overrides, kinds)
