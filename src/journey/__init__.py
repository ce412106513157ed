"""Which training images guided each step of a diffusion model's sampling, proven by retraining.

For a user's own kinds: a contract to write one under, and `main`, which is the command `journey` with them as choices.
"""

from collections.abc import Sequence

from journey.config.contracts import Dataset, Evaluation, Kind, Method, Model
from journey.data import ImageSet

__all__ = ["Dataset", "Evaluation", "ImageSet", "Kind", "Method", "Model", "main"]


def main(kinds: Sequence[type[Kind]] = ()) -> None:
    """The command `journey`, with further kinds, each a choice of its group by its name."""
    from journey.__main__ import main as command

    command(kinds)
