"""Scores that another program made: an `.npz` file with an array and the names of its axes.

    np.savez("mine.npz", scores=tau, steps=[…], queries=[…], train=[…])

scores: [step, query, train], positive = proponent; or [query, train], one score for all steps, without `steps`. The names are
those of `axes.json`, which `task=export` writes; rows may come in any order.
"""

import functools
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.data.images import train_images
from journey.engine.checks import ConfigError, require
from journey.engine.spec import digest
from journey.engine.workspace import Workspace
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Method, Sample, Score


@dataclass
class External(Method):
    name: ClassVar[str] = "external"
    path: str = field(
        default="scores.npz", metadata={"not_in_key": True}
    )  # what counts is what is in it
    in_units_of_output: bool = field(
        default=True, kw_only=True
    )  # false: of no unit, such as a cosine, not changes of the loss

    @property
    def label(self) -> str:
        return f"external-{Path(self.path).stem[:40]}"

    def content_hash(self) -> str:
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()[:16]

    def check(self, where: str) -> None:
        require(
            os.path.isfile(self.path),
            f"{where}.path",
            self.path,
            "a file, .npz with scores, steps, queries and train",
        )
        try:
            found = _read_scores(self.path)
        except Exception as error:  # a damaged file of zipped arrays fails in many ways
            raise ConfigError(
                f"{where}.path={self.path}: no .npz file of numbers and texts ({error})"
            ) from None
        allowed = (
            "scores, queries, train" if "steps" not in found else "scores, steps, queries, train"
        )
        names = {"scores", "queries", "train"} | ({"steps"} & set(found))
        require(
            set(found) == names,
            f"{where}.path",
            f"{self.path} with {', '.join(sorted(found))}",
            f"a file with {allowed}",
        )
        named = [name for name in ("steps", "queries", "train") if name in found]
        lists = all(found[name].ndim == 1 for name in named)
        require(
            lists,
            f"{where}.path",
            self.path,
            f"a file in which {', '.join(named)} are one-dimensional",
        )
        shape, axes = found["scores"].shape, tuple(len(found[name]) for name in named)
        require(
            shape == axes,
            f"{where}.path",
            f"{self.path} with scores {shape}",
            f"as its axes say: {axes}",
        )
        real = found["scores"].dtype.name in "fiu"
        finite = real and bool((np.abs(found["scores"]) <= np.finfo(np.float32).max).all())
        require(finite, f"{where}.path", self.path, "finite numbers throughout, as float32")

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        found = _read_scores(self.path)
        for name, wanted in score_axes(trajectories, images).items():
            if name in found:
                _match_names(f"{where}.path={self.path}: {name}", found[name].tolist(), wanted)

    def num_scores(self, num_steps: int) -> int:
        return num_steps if "steps" in _read_scores(self.path) else 1

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        found = _read_scores(self.path)
        scores = found["scores"] if "steps" in found else found["scores"][None]  # [S or 1, Q, N]
        for axis, (name, wanted) in enumerate(
            score_axes(spec.trajectories, train_images(spec.images, workspace)).items()
        ):
            if name in found:
                scores = scores.take(_match_names(name, found[name].tolist(), wanted), axis)
        out[0] = scores
        return {}


def score_axes(trajectories: Sample, images: ImageSet) -> dict[str, list]:
    """What the axes of scores are called: timesteps, queries of these very journeys, ids of training images."""
    queries = [f"{digest(trajectories)}/{query:04d}" for query in range(trajectories.num_queries)]
    return {"steps": list(trajectories.steps), "queries": queries, "train": list(images.ids)}


def _read_scores(path: str) -> dict[str, np.ndarray]:
    stat = Path(path).stat()
    return _loaded(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _loaded(path: str, *_: int) -> dict[str, np.ndarray]:
    """Read once, while the file is the same."""
    with np.load(path) as file:  # no pickles
        found = dict(file)
    if not all(isinstance(array, np.ndarray) for array in found.values()):
        raise ValueError("not every member is an array")
    return found


def _match_names(what: str, found: list, wanted: list) -> list[int]:
    """Where each wanted name is among those found.

    Raises: ConfigError with the difference if they are not the same names.
    """
    row = {name: i for i, name in enumerate(found)}
    missing, unknown = [name for name in wanted if name not in row], sorted(set(row) - set(wanted))
    if missing or unknown or len(row) != len(found):
        sides = [f"{len(missing)} missing, such as {missing[0]}"] if missing else []
        sides += [f"{len(unknown)} unknown, such as {unknown[0]}"] if unknown else []
        sides += [f"{len(found) - len(row)} twice"] if len(row) != len(found) else []
        raise ConfigError(f"{what}: {len(wanted)} expected, {len(found)} found: {'; '.join(sides)}")
    return [row[name] for name in wanted]
