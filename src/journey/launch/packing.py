"""Many short artifacts to an array task, many tasks to an array, and no array larger than the cluster takes."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pack:
    """What one array task makes. full: whether it is worth a task by itself, so that it need not wait for more."""

    keys: tuple[str, ...]
    full: bool


def packed(seconds: dict[str, float], enough: float) -> list[Pack]:
    """Artifacts in the order they come in, together until their expected seconds are enough; a long one by itself.

    seconds: of each artifact, by its address

    >>> packed({"a": 4.0, "b": 4.0, "c": 20.0, "d": 4.0}, enough=8.0)
    [Pack(keys=('a', 'b'), full=True), Pack(keys=('c',), full=True), Pack(keys=('d',), full=False)]
    """
    packs: list[Pack] = []
    short: list[str] = []
    total = 0.0
    for key, expected in seconds.items():
        if expected >= enough:
            packs.append(Pack((key,), full=True))
            continue
        short.append(key)
        total += expected
        if total >= enough:
            packs.append(Pack(tuple(short), full=True))
            short, total = [], 0.0
    return [*packs, Pack(tuple(short), full=False)] if short else packs


def arrays(tasks: Sequence[Pack], most: int) -> list[list[Pack]]:
    """Tasks in arrays of at most so many.

    >>> [len(array) for array in arrays([Pack(("a",), True)] * 5, most=2)]
    [2, 2, 1]
    """
    return [list(tasks[first : first + most]) for first in range(0, len(tasks), most)]
