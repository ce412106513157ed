"""What `trak.TRAKer` has left in its `save_dir`, scored with our kernel and λ: no gradient is taken again.

    traker.featurize(batch, …)                        # row i: training image i, in the order of `train` of axes.json
    traker.start_scoring_checkpoint("step600", …)     # an experiment for each step, or one for all of them
    traker.score(batch, …)                            # row q: query q, in the order of `queries`

Of the files of traker 0.3.2, these are read: metadata.json, experiments.json and id_<model>.json; and, in <model>/, the
projected gradients Φ in grads.mmap, φ_q in <experiment>_grads.mmap and Q in out_to_loss.mmap. What TRAKer has solved is not.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from journey.engine.checks import ConfigError, require, require_candidates
from journey.engine.files import checksum
from journey.engine.workspace import Workspace
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Method, Sample, Score
from journey.pipeline.settings import DampingUnit, GradientSettings, Kernel, Scale


@dataclass
class TrakStore(Method):
    name: ClassVar[str] = "trak_store"
    path: str = field(
        default="trak_results", metadata={"not_in_key": True}
    )  # what counts is what is in it
    experiments: list[str] = field(
        default_factory=list
    )  # one for each of sampling.steps, in that order; or one, for all
    damping: list[float] = field(default_factory=lambda: GradientSettings().damping)
    damping_unit: DampingUnit = GradientSettings.damping_unit
    in_units_of_output: bool = field(
        default=True, kw_only=True
    )  # false: its output is another than the loss

    @property
    def label(self) -> str:
        return f"trak-store-{Path(self.path).resolve().name[:40]}"

    def content_hash(self) -> str:
        """Of all that is read, whatever it is called."""
        sums = [_checksum(*_identity(file)) for files in self._files().values() for file in files]
        return hashlib.sha256("".join(sums).encode()).hexdigest()[:16]

    def check(self, where: str) -> None:
        require_candidates(f"{where}.damping", self.damping)
        store = _read_store(f"{where}.path", self.path)
        known, named = store.num_targets, self.experiments
        proper = 0 < len(named) == len(set(named)) and set(named) <= set(known)
        require(
            proper,
            f"{where}.experiments",
            named,
            f"distinct names among those in {self.path}: {', '.join(known) or 'none'}",
        )
        for file, shape in self._expected(store):
            _refuse_unsound(f"{where}.path", file, shape)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        """Raises: ConfigError unless it has as many rows as there are images and queries, and as many experiments as steps."""
        store = _read_store(f"{where}.path", self.path)
        found, wanted = store.num_train, len(images)
        require(
            found == wanted,
            f"{where}.path",
            f"{self.path} of {found} training images",
            f"of the {wanted} there are",
        )
        for name in self.experiments:
            found, wanted = store.num_targets[name], trajectories.num_queries
            require(
                found == wanted,
                f"{where}.experiments",
                f"{name} of {found} targets",
                f"of the {wanted} queries there are",
            )
        allowed = f"one, or one for each of sampling.steps={list(trajectories.steps)}"
        require(
            len(self.experiments) in (1, len(trajectories.steps)),
            f"{where}.experiments",
            self.experiments,
            allowed,
        )

    def candidates(self) -> list[dict[str, float]]:
        return [{"damping": value} for value in self.damping]

    def num_scores(self, num_steps: int) -> int:
        return len(self.experiments)

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        """The mean over models of φ_qᵀ K⁻¹ φ_i, times that of Q_i (Park et al. 2023, Equation 13)."""
        from journey.attribution.kernel import add_ensemble_scores, describe_conditioning

        files = self._files()
        train = [[np.load(file, mmap_mode="r")] for file in files["grads"]]
        of_models = zip(*(files[f"{name}_grads"] for name in self.experiments), strict=True)
        queries = [np.concatenate([np.load(file) for file in by_step]) for by_step in of_models]
        weights = [1 / len(train)] * len(train)
        solved = add_ensemble_scores(
            out, train, queries, weights, Kernel.gram, self.damping, self.damping_unit, Scale.none
        )
        out *= np.mean([np.load(file)[:, 0] for file in files["out_to_loss"]], 0)
        return describe_conditioning(solved)

    def _files(self) -> dict[str, list[Path]]:
        """[model], by the name of an array."""
        models = _read_store("method.path", self.path).models
        arrays = ("grads", "out_to_loss", *(f"{name}_grads" for name in self.experiments))
        return {
            name: [Path(self.path) / str(model) / f"{name}.mmap" for model in models]
            for name in arrays
        }

    def _expected(self, store: "_Store") -> Iterator[tuple[Path, tuple[int, int]]]:
        """Every file that is read, and what its shape must be."""
        shapes = {"grads": (store.num_train, store.dim), "out_to_loss": (store.num_train, 1)}
        shapes |= {
            f"{name}_grads": (store.num_targets[name], store.dim) for name in self.experiments
        }
        for name, files in self._files().items():
            yield from ((file, shapes[name]) for file in files)


@dataclass(frozen=True)
class _Store:
    """What its JSON files say."""

    models: list[int]
    num_train: int
    dim: int
    num_targets: dict[str, int]  # by experiment


def _read_store(where: str, path: str) -> _Store:
    """Raises: ConfigError if TRAKer has not written it, or not to its end."""
    root = Path(path)
    require(
        (root / "metadata.json").is_file(),
        where,
        path,
        "the save_dir of a trak.TRAKer, with its metadata.json",
    )
    try:
        of = json.loads((root / "metadata.json").read_text())
        num_train, dim = int(of["train set size"]), int(of["JL dimension"])
        experiments = json.loads((root / "experiments.json").read_text())
        num_targets = {name: int(of["num_targets"]) for name, of in experiments.items()}
        done: dict[int, bool] = {}
        for file in root.glob("id_*.json"):
            done |= {
                int(model): of["is_featurized"] == 1
                for model, of in json.loads(file.read_text()).items()
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where}={path}: no store as trak.TRAKer writes it ({error!r})"
        ) from None
    require(len(done) > 0, where, f"{path} without a model", "featurized")
    unfinished = sorted(model for model in done if not done[model])
    require(
        not unfinished, where, f"{path}, model {unfinished[:1]} unfinished", "featurized to its end"
    )
    return _Store(sorted(done), num_train, dim, num_targets)


def _refuse_unsound(where: str, file: Path, shape: tuple[int, int]) -> None:
    """Raises: ConfigError."""
    require(
        file.is_file(),
        where,
        f"{file}, missing",
        "there: finalize_features(del_grads=True) deletes gradients",
    )
    try:
        found, not_finite, zero = _facts(*_identity(file))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{where}={file}: no array of numbers ({error})") from None
    require(found == shape, where, f"{file} of shape {found}", f"of {shape}, as its JSON files say")
    require(
        not_finite is None,
        where,
        f"{file} with NaN or infinity in row {not_finite}",
        "finite throughout",
    )
    gradients = file.name.endswith("grads.mmap")
    require(
        zero is None or not gradients,
        where,
        f"{file} with nothing but zeros in row {zero}",
        "filled to its end",
    )


def _identity(file: Path) -> tuple[Path, int, int]:
    """What changes when a file is written anew."""
    status = file.stat()
    return file, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=4096)
def _checksum(file: Path, *_: int) -> str:
    return checksum(file)


@functools.lru_cache(maxsize=4096)
def _facts(file: Path, *_: int) -> tuple[tuple[int, ...], int | None, int | None]:
    """The shape of an array, its first row that holds NaN or infinity, and its first row of zeros."""
    array = np.load(file, mmap_mode="r")  # no pickles
    rows = array.reshape(len(array), -1)
    return array.shape, _first(~np.isfinite(rows).all(1)), _first(~rows.any(1))


def _first(where: np.ndarray) -> int | None:
    return int(where.argmax()) if where.any() else None
