"""Datasets: a file for each kind. Every one becomes the same `ImageSet`, and nothing downstream knows which it was."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
