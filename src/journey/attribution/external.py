"""Scores that another program computed: an `.npz` file with an array and the names along its axes.

    np.savez("mine.npz", scores=tau, steps=[…], queries=[…], train=[…])

scores: [step, query, train], positive = proponent; or, without `steps`, [query, train], for all
steps. The names are those of `axes.json`, which `task=export` writes, in any order.
"""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.data.images import train_images
from journey.engine.checks import ConfigError, require
from journey.engine.files import checksum, file_state
from journey.engine.spec import digest
from journey.engine.text import printable
from journey.engine.workspace import Workspace
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Method, Sample, Score


@dataclass
class External(Method):
    """Scores that are read from a file."""

    name: ClassVar[str] = "external"
    # The content of the file, not its place, is part of the cache key.
    path: str = field(default="scores.npz", metadata={"not_in_key": True, "path": True})
    # Whether scores predict changes of the loss; a cosine, for instance, does not.
    in_units_of_output: bool = field(default=True, kw_only=True)  # type: ignore[misc]

    @property
    def label(self) -> str:
        return f"external-{printable(Path(self.path).stem)[:40]}"

    def content_hash(self) -> str:
        return checksum(Path(self.path))[:16]

    def check(self, where: str) -> None:
        name, path = f"{where}.path", self.path
        allowed = "a file, .npz with scores, steps, queries and train"
        require(os.path.isfile(path), name, path, allowed)
        try:
            arrays = _read_scores(path)
        except Exception as error:  # a damaged file of zipped arrays fails in many ways
            raise ConfigError(
                f"{name}={path}: not an .npz file of numbers and texts ({error})"
            ) from None
        axes = ["steps", "queries", "train"] if "steps" in arrays else ["queries", "train"]
        value = f"{path} with {', '.join(sorted(arrays))}"
        complete = set(arrays) == {"scores", *axes}
        require(complete, name, value, f"a file with scores, {', '.join(axes)}")
        for axis in axes:
            require(arrays[axis].ndim == 1, name, path, f"a file with one-dimensional {axis}")
        scores, shape = arrays["scores"], tuple(len(arrays[axis]) for axis in axes)
        value = f"{path} with scores {scores.shape}"
        require(scores.shape == shape, name, value, f"of the shape of its axes, {shape}")
        real = scores.dtype.kind in "fiu"
        finite = real and bool((np.abs(scores) <= np.finfo(np.float32).max).all())
        require(finite, name, path, "finite numbers throughout, as float32")

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        arrays = _read_scores(self.path)
        for axis, expected in score_axes(trajectories, images).items():
            if axis in arrays:
                _positions(f"{where}.path={self.path}: {axis}", arrays[axis].tolist(), expected)

    def num_scores(self, num_steps: int) -> int:
        return num_steps if "steps" in _read_scores(self.path) else 1

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        arrays = _read_scores(self.path)
        scores = arrays["scores"]
        if "steps" not in arrays:
            scores = scores[None]
        axes = score_axes(spec.trajectories, train_images(spec.images, workspace))
        for i, (axis, expected) in enumerate(axes.items()):
            if axis in arrays:
                scores = scores.take(_positions(axis, arrays[axis].tolist(), expected), i)
        out[0] = scores
        return {}


def score_axes(trajectories: Sample, images: ImageSet) -> dict[str, list]:
    """Return the names along the axes of scores.

    Returns:
        steps: timesteps; queries: names that no other trajectories have; train: ids of images.
    """
    queries = [f"{digest(trajectories)}/{query:04d}" for query in range(trajectories.num_queries)]
    return {"steps": list(trajectories.steps), "queries": queries, "train": list(images.ids)}


def _read_scores(path: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file, which is read again only when its time or size changes."""
    return _load(*file_state(Path(path)))


@functools.lru_cache(maxsize=4)
def _load(path: Path, *_: int) -> dict[str, np.ndarray]:
    with np.load(path) as file:  # no pickles
        arrays = dict(file)
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("a member is not an array")
    return arrays


def _positions(where: str, names: Sequence[object], expected: Sequence[object]) -> list[int]:
    """Return the position of each expected name; refuse other names and repeated ones."""
    position, allowed = {name: i for i, name in enumerate(names)}, set(expected)
    missing = [name for name in expected if name not in position]
    unknown = [name for name in position if name not in allowed]
    problems = []
    for problem, wrong in (("missing", missing), ("unknown", unknown)):
        if wrong:
            problems.append(f"{len(wrong)} {problem}, such as {wrong[0]}")
    if len(names) > len(position):
        problems.append(f"{len(names) - len(position)} repeated")
    if problems:
        counts = f"{len(expected)} expected, {len(names)} found"
        raise ConfigError(f"{where}: {counts}: {'; '.join(problems)}")
    return [position[name] for name in expected]
