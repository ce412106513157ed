"""Features that `trak.TRAKer` left in its `save_dir`, scored with our kernel and λ.

    traker.featurize(batch, …)                     # rows: training images, as `train` of axes.json
    traker.start_scoring_checkpoint("step600", …)  # an experiment for each step, or one for all
    traker.score(batch, …)                         # rows: queries, as `queries` of axes.json

These files of traker 0.3.2 are read: metadata.json, experiments.json, id_<model>.json; and, in
<model>/, the projected gradients Φ in grads.mmap, φ_q in <experiment>_grads.mmap and Q in
out_to_loss.mmap. TRAKer's own scores are not.
"""

import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.engine.checks import ConfigError, require, require_candidates
from journey.engine.files import checksum, file_state
from journey.engine.text import printable
from journey.engine.workspace import Workspace
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Method, Sample, Score
from journey.pipeline.settings import DampingUnit, GradientSettings, Kernel, Scale


@dataclass
class TrakStore(Method):
    """Scores from the features in a store of `trak.TRAKer`."""

    name: ClassVar[str] = "trak_store"
    # The content of the store, not its place, is part of the cache key.
    path: str = field(default="trak_results", metadata={"not_in_key": True, "path": True})
    # One for each of sampling.steps, in that order; or one for all steps.
    experiments: list[str] = field(default_factory=list)
    damping: list[float] = field(default_factory=lambda: GradientSettings().damping)
    damping_unit: DampingUnit = GradientSettings.damping_unit
    # Whether scores predict changes of the loss: false if the store's output is another one.
    in_units_of_output: bool = field(default=True, kw_only=True)  # type: ignore[misc]

    @property
    def label(self) -> str:
        return f"trak-store-{printable(Path(self.path).resolve().name)[:40]}"

    def content_hash(self) -> str:
        sums = []
        for files in self._files().values():
            sums += [_checksum(*file_state(file)) for file in files]
        return hashlib.sha256("".join(sums).encode()).hexdigest()[:16]

    def check(self, where: str) -> None:
        require_candidates(f"{where}.damping", self.damping)
        store, names = _read_store(f"{where}.path", self.path), self.experiments
        available = ", ".join(store.num_targets) or "none"
        allowed = f"distinct names among those in {self.path}: {available}"
        valid = 0 < len(names) == len(set(names)) and set(names) <= set(store.num_targets)
        require(valid, f"{where}.experiments", names, allowed)
        shapes = {"grads": (store.num_train, store.dim), "out_to_loss": (store.num_train, 1)}
        for name in names:
            shapes[f"{name}_grads"] = (store.num_targets[name], store.dim)
        for array, files in self._files().items():
            for file in files:
                _check_array(f"{where}.path", file, shapes[array])

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        store, field_name = _read_store(f"{where}.path", self.path), f"{where}.experiments"
        value = f"{self.path} of {store.num_train} training images"
        fits = store.num_train == len(images)
        require(fits, f"{where}.path", value, f"of the {len(images)} of this run")
        for name in self.experiments:
            count, num_queries = store.num_targets[name], trajectories.num_queries
            allowed = f"of the {num_queries} queries of this run"
            require(count == num_queries, field_name, f"{name} of {count} targets", allowed)
        allowed = f"one, or one for each of sampling.steps={list(trajectories.steps)}"
        fits = len(self.experiments) in (1, len(trajectories.steps))
        require(fits, field_name, self.experiments, allowed)

    def candidates(self) -> list[dict[str, float]]:
        return [{"damping": value} for value in self.damping]

    def num_scores(self, num_steps: int) -> int:
        return len(self.experiments)

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        # The mean over models of φ_qᵀ K⁻¹ φ_i, times that of Q_i (Park et al. 2023, Equation 13).
        from journey.attribution.kernel import add_ensemble_scores, describe_conditioning

        files, train, queries = self._files(), [], []
        for model, file in enumerate(files["grads"]):
            train.append([np.load(file, mmap_mode="r")])
            by_step = [np.load(files[f"{name}_grads"][model]) for name in self.experiments]
            queries.append(np.concatenate(by_step))
        weights = [1 / len(train)] * len(train)
        kernel = (Kernel.gram, self.damping, self.damping_unit, Scale.none)
        conditioning = add_ensemble_scores(out, train, queries, weights, *kernel)
        out *= np.mean([np.load(file)[:, 0] for file in files["out_to_loss"]], 0)
        return describe_conditioning(conditioning)

    def _files(self) -> dict[str, list[Path]]:
        """Return the files of each array, one for each model."""
        models = _read_store("method.path", self.path).models
        files = {}
        for array in ("grads", "out_to_loss", *(f"{name}_grads" for name in self.experiments)):
            files[array] = [Path(self.path) / str(model) / f"{array}.mmap" for model in models]
        return files


@dataclass(frozen=True)
class _Store:
    """The content of the store's JSON files."""

    models: list[int]
    num_train: int
    dim: int
    num_targets: dict[str, int]  # by experiment


def _read_store(name: str, path: str) -> _Store:
    """Return the content of the JSON files; refuse what TRAKer has not written to its end."""
    root = Path(path)
    allowed = "the save_dir of a trak.TRAKer, with its metadata.json"
    require((root / "metadata.json").is_file(), name, path, allowed)
    try:
        metadata = json.loads((root / "metadata.json").read_text())
        num_train, dim = int(metadata["train set size"]), int(metadata["JL dimension"])
        num_targets, featurized = {}, {}
        for key, experiment in json.loads((root / "experiments.json").read_text()).items():
            num_targets[key] = int(experiment["num_targets"])
        for file in root.glob("id_*.json"):
            for model, state in json.loads(file.read_text()).items():
                featurized[int(model)] = state["is_featurized"] == 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{name}={path}: not a store as trak.TRAKer writes it ({error!r})"
        ) from None
    require(len(featurized) > 0, name, f"{path} without a model", "featurized")
    unfinished = sorted(model for model, done in featurized.items() if not done)
    value = f"{path}, model {unfinished[:1]} unfinished"
    require(not unfinished, name, value, "featurized to its end")
    return _Store(sorted(featurized), num_train, dim, num_targets)


def _check_array(name: str, file: Path, shape: tuple[int, int]) -> None:
    """Refuse an array that is missing, of another shape, not finite, or not filled to its end."""
    allowed = "there: finalize_features(del_grads=True) deletes gradients"
    require(file.is_file(), name, f"{file}, missing", allowed)
    try:
        actual, non_finite, zero = _inspect(*file_state(file))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{name}={file}: not an array of numbers ({error})") from None
    allowed = f"of {shape}, as its JSON files say"
    require(actual == shape, name, f"{file} of shape {actual}", allowed)
    value = f"{file} with NaN or infinity in row {non_finite}"
    require(non_finite is None, name, value, "finite throughout")
    filled = zero is None or not file.name.endswith("grads.mmap")
    require(filled, name, f"{file} with only zeros in row {zero}", "filled to its end")


@functools.lru_cache(maxsize=4096)
def _checksum(file: Path, *_: int) -> str:
    return checksum(file)


@functools.lru_cache(maxsize=4096)
def _inspect(file: Path, *_: int) -> tuple[tuple[int, ...], int | None, int | None]:
    """Return the shape of an array, its first row that is not finite, and its first zero row."""
    array = np.load(file, mmap_mode="r")  # no pickles
    rows = array.reshape(len(array), -1)
    non_finite, zeros = np.flatnonzero(~np.isfinite(rows).all(1)), np.flatnonzero(~rows.any(1))
    first = [int(indices[0]) if len(indices) else None for indices in (non_finite, zeros)]
    return array.shape, *first
