"""Scores, or features of images, that another program computed.

Scores are an `.npz` file with an array and the names along its axes:

    np.savez("mine.npz", scores=tau, steps=[…], queries=[…], train=[…])

scores: [step, query, train], positive = proponent; or, without `steps`, [query, train], for all
steps. The names are those of `axes.json`, which `task=export` writes, in any order.

Features are two files, of the training images and of the queries; each is an `.npy` file in the
order of `axes.json`, or an `.npz` file with `features` and the names along its axes:

    train      [train, E]
    queries    [step, query, E], of x̂0_t; or [query, E], such as of final samples, for all steps
"""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.attribution.baselines import cosine_scores
from journey.data.images import train_images
from journey.engine.checks import ConfigError, require
from journey.engine.files import checksum, file_state
from journey.engine.spec import digest
from journey.engine.text import printable
from journey.engine.workspace import Workspace
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Method, Sample, Score

STEP_AXES = ["steps", "queries"]


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
        arrays = _readable(name, path)
        axes = ["steps", "queries", "train"] if "steps" in arrays else ["queries", "train"]
        value = f"{path} with {', '.join(sorted(arrays))}"
        complete = set(arrays) == {"scores", *axes}
        require(complete, name, value, f"a file with scores, {', '.join(axes)}")
        for axis in axes:
            require(arrays[axis].ndim == 1, name, path, f"a file with one-dimensional {axis}")
        scores, shape = arrays["scores"], tuple(len(arrays[axis]) for axis in axes)
        value = f"{path} with scores {scores.shape}"
        require(scores.shape == shape, name, value, f"of the shape of its axes, {shape}")
        require(_finite(scores), name, path, "finite numbers throughout, as float32")

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        self.ordered_scores(f"{where}.path={self.path}", score_axes(trajectories, images))

    def num_scores(self, num_steps: int) -> int:
        return num_steps if "steps" in _read_arrays(self.path) else 1

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        axes = score_axes(spec.trajectories, train_images(spec.images, workspace))
        out[0] = self.ordered_scores(self.path, axes)
        return {}

    def ordered_scores(self, where: str, axes: dict[str, list]) -> np.ndarray:
        """Return the scores [S or 1, Q, N] in the order of the names along the axes.

        Args:
            where: The name of the file in messages.
            axes: The names, as `score_axes` returns them.
        """
        arrays = _read_arrays(self.path)
        scores = arrays["scores"]
        if "steps" not in arrays:
            scores = scores[None]
        for i, (axis, expected) in enumerate(axes.items()):
            if axis in arrays:
                order = _positions(f"{where}: {axis}", arrays[axis].tolist(), expected)
                scores = scores.take(order, i)
        return scores


@dataclass
class Features(Method):
    """Cosine similarity of features that are read from files."""

    name: ClassVar[str] = "features"
    in_units_of_output: ClassVar[bool] = False
    # The file with the features of the training images. Its content, not its place, is in the key.
    train: str = field(default="train.npy", metadata={"not_in_key": True, "path": True})
    # The file with those of the queries; likewise.
    queries: str = field(default="queries.npy", metadata={"not_in_key": True, "path": True})

    @property
    def label(self) -> str:
        return f"features-{printable(Path(self.train).stem)[:40]}"

    def content_hash(self) -> str:
        return ":".join(checksum(Path(path))[:16] for path in (self.train, self.queries))

    def check(self, where: str) -> None:
        for setting, axes in (("train", [["train"]]), ("queries", [["queries"], STEP_AXES])):
            name, path = f"{where}.{setting}", getattr(self, setting)
            require(os.path.isfile(path), name, path, "a file of features, .npy or .npz")
            arrays = dict(_readable(name, path))
            features = arrays.pop("features", np.zeros(0))
            allowed = " or ".join(f"[{', '.join([*names, 'E'])}]" for names in axes)
            fits = features.ndim - 1 in map(len, axes) and features.size > 0
            require(fits, name, f"{path} with features {features.shape}", allowed)
            names = axes[-1] if features.ndim == 3 else axes[0]
            value = f"{path} with {', '.join(sorted(arrays))}"
            allowed = f"a file with features{''.join(f', {axis}' for axis in names)}"
            require(not arrays or set(arrays) == set(names), name, value, allowed)
            for axis, length in zip(names, features.shape, strict=False):
                if arrays:
                    shape, expected = arrays[axis].shape, (length,)
                    require(shape == expected, f"{name}: {axis}", shape, f"{expected}, as features")
            require(_finite(features), name, path, "finite numbers throughout, as float32")
            zeros = np.argwhere(~features.any(-1))
            first = zeros[0].tolist() if len(zeros) else []
            allowed = "features that are not all zeros: these have no direction"
            require(len(zeros) == 0, f"{name}={path}: row", first, allowed)
        widths = [self._features(path).shape[-1] for path in (self.train, self.queries)]
        value, allowed = f"{self.queries} of width {widths[1]}", f"of width {widths[0]}, as train"
        require(widths[0] == widths[1], f"{where}.queries", value, allowed)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        for setting in ("train", "queries"):
            name = f"{where}.{setting}={getattr(self, setting)}"
            self._ordered(name, setting, score_axes(trajectories, images))

    def num_scores(self, num_steps: int) -> int:
        return num_steps if self._features(self.queries).ndim == 3 else 1

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        axes = score_axes(spec.trajectories, train_images(spec.images, workspace))
        train, queries = (self._ordered(name, name, axes) for name in ("train", "queries"))
        if queries.ndim == 2:
            queries = queries[None]
        out[:] = cosine_scores(train, queries)
        return {}

    @staticmethod
    def _features(path: str) -> np.ndarray:
        return _read_arrays(path)["features"]

    def _ordered(self, where: str, setting: str, expected: dict[str, list]) -> np.ndarray:
        """Return the features of a file in the order of the expected names; refuse other names."""
        arrays = _read_arrays(getattr(self, setting))
        features = arrays["features"].astype(np.float32)
        axes = STEP_AXES if features.ndim == 3 else [setting]
        for i, axis in enumerate(axes):
            if axis in arrays:
                order = _positions(f"{where}: {axis}", arrays[axis].tolist(), expected[axis])
                features = features.take(order, i)
                continue
            given, length = features.shape[i], len(expected[axis])
            require(given == length, f"{where}: {axis}", given, f"{length}, as many as there are")
        return features


def score_axes(trajectories: Sample, images: ImageSet) -> dict[str, list]:
    """Return the names along the axes of scores.

    Returns:
        steps: timesteps; queries: names that no other trajectories have; train: ids of images.
    """
    queries = [f"{digest(trajectories)}/{query:04d}" for query in range(trajectories.num_queries)]
    return {"steps": list(trajectories.steps), "queries": queries, "train": list(images.ids)}


def _finite(array: np.ndarray) -> bool:
    """Return whether an array has real numbers, all of which are finite as float32."""
    real = array.dtype.kind in "fiu"
    return real and bool((np.abs(array) <= np.finfo(np.float32).max).all())


def _readable(name: str, path: str) -> dict[str, np.ndarray]:
    """Return the arrays of the file of a setting; refuse a damaged file, or one of objects."""
    try:
        return _read_arrays(path)
    except Exception as error:  # a damaged file of zipped arrays fails in many ways
        raise ConfigError(
            f"{name}={path}: not an .npz file of numbers and texts ({error})"
        ) from None


def _read_arrays(path: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file, which is read again only when its time or size changes.

    The array of an `.npy` file has the name `features`.
    """
    return _load(*file_state(Path(path)))


@functools.lru_cache(maxsize=4)
def _load(path: Path, *_: int) -> dict[str, np.ndarray]:
    file = np.load(path)  # no pickles
    if isinstance(file, np.ndarray):
        return {"features": file}
    with file:
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
