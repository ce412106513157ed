"""Latents and text states that were computed elsewhere: a folder of arrays.

    mean.npy        latents, as a network gets them (scaled) [n, c, h, w]
    deviation.npy   their standard deviations, if they are to be sampled [n, c, h, w]
    condition.npy   states of the captions [n, captions, L, E]; without it, captions are encoded
    ids.json        n distinct ids of images, a list of texts; or ids.txt, one a line

Images that are not trained on may be among them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from journey.data.metadata import read_utf8
from journey.engine.checks import ConfigError, require
from journey.pipeline.pretrained import files_hash

ARRAYS = {"mean": 4, "deviation": 4, "condition": 4}  # axes
MOST_BYTES = 2**32  # of an array, which is in memory when it is used
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Encoded:
    """Arrays of a folder, mapped from disk, and the row of each training image.

    Attributes:
        folder: The folder, for messages.
        arrays: `mean`, and `deviation` and `condition` if they are there, by name.
        rows: The row of each training image. [N]
    """

    folder: Path
    arrays: dict[str, np.ndarray]
    rows: np.ndarray

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield blocks of an array in the order of the training images, and where they begin.

        Raises:
            ConfigError: A number is not finite as float32, or a deviation is negative.
        """
        for first in range(0, len(self.rows), ROWS_AT_ONCE):
            rows = self.rows[first : first + ROWS_AT_ONCE]
            block = self.arrays[name][rows]
            valid = np.abs(block) <= np.finfo(np.float32).max
            if name == "deviation":
                valid &= block >= 0
            if not valid.all():
                row = rows[np.argwhere(~valid)[0][0]]
                allowed = "finite and not negative" if name == "deviation" else "finite"
                raise ConfigError(f"{self.folder / name}.npy: row {row} must be {allowed}")
            yield first, block.astype(np.float32)


def encoded_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are read."""
    names = [*(f"{name}.npy" for name in ARRAYS), "ids.json", "ids.txt"]
    return [folder / name for name in names if (folder / name).is_file()]


def encoded_hash(folder: Path) -> str:
    """Return a hash of the names and the content of the files that are read."""
    return ",".join(f"{path.name}:{files_hash(path)}" for path in encoded_files(folder))


def read_encoded(setting: str, folder: Path, ids: Sequence[str]) -> Encoded:
    """Return the arrays of a folder, and the rows of the training images.

    Args:
        setting: The setting that names the folder.
        folder: The folder.
        ids: The ids of the training images.

    Raises:
        ConfigError: An array cannot be read or has other axes, or an image is missing.
    """
    # 1. Map the arrays.
    allowed = "a folder with mean.npy, and ids.json or ids.txt"
    require((folder / "mean.npy").is_file(), setting, str(folder), allowed)
    arrays: dict[str, np.ndarray] = {}
    for name, num_axes in ARRAYS.items():
        path = folder / f"{name}.npy"
        if not path.is_file():
            continue
        try:
            array = np.load(path, "r", allow_pickle=False)
        except Exception as error:  # a damaged file fails in many ways
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(f"{setting}={path}: cannot be read ({reason})") from None
        described = f"{path} of shape {array.shape} and type {array.dtype}"
        fits = array.ndim == num_axes and array.dtype.kind == "f" and array.size > 0
        require(fits, setting, described, f"floating point with {num_axes} axes")
        size = 4 * len(ids) * array[0].size
        allowed = f"at most {MOST_BYTES} bytes as float32; without it, captions are encoded"
        require(size <= MOST_BYTES or name != "condition", f"{setting}={path}", size, allowed)
        arrays[name] = array

    # 2. Compare their lengths with the ids, and find the training images.
    names = _read_ids(setting, folder)
    for name, array in arrays.items():
        value = f"{name}.npy of {len(array)} rows"
        require(len(array) == len(names), f"{setting}={folder}", value, f"of {len(names)}, as ids")
    mean = arrays["mean"]
    if "deviation" in arrays:
        shape, value = mean.shape, f"deviation.npy of shape {arrays['deviation'].shape}"
        same = arrays["deviation"].shape == shape
        require(same, f"{setting}={folder}", value, f"of shape {shape}, as mean.npy")
    row_of = {name: row for row, name in enumerate(names)}
    if len(row_of) < len(names):
        raise ConfigError(f"{setting}={folder}: an id is there twice")
    missing = [name for name in ids if name not in row_of]
    if missing:
        problem = f"{len(missing)} of {len(ids)} training images are missing, such as {missing[0]}"
        raise ConfigError(f"{setting}={folder}: {problem}; it has ids such as {names[0]}")
    return Encoded(folder, arrays, np.array([row_of[name] for name in ids]))


def _read_ids(setting: str, folder: Path) -> list[str]:
    """Return the ids in a folder; refuse two files of them, and other values than texts."""
    there = [path for path in (folder / "ids.json", folder / "ids.txt") if path.is_file()]
    require(len(there) == 1, setting, str(folder), "a folder with ids.json or ids.txt, one of them")
    if there[0].suffix == ".txt":
        return read_utf8(there[0]).removesuffix("\n").split("\n")
    try:
        names = json.loads(there[0].read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{setting}={there[0]}: not JSON ({error})") from None
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    require(listed, setting, str(there[0]), "a list of texts, the ids of images")
    return names
