"""Evaluate scores of any program on a benchmark bundle, and write them as a submission.

A bundle and scores come from others: their files are read in memory, and nothing is unpacked.

S steps;  Q queries;  N training images;  M subsets;  R training seeds
"""

import hashlib
import io
import itertools
import json
import tarfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import yaml

from journey.attribution.external import External
from journey.engine.checks import ConfigError, require, require_name, require_types
from journey.engine.files import checksum, error_text, write_json
from journey.engine.provenance import git_state, package_versions
from journey.engine.text import printable
from journey.evaluation import lds
from journey.evaluation.lds import datamodeling
from journey.evaluation.lds.datamodeling import PRIMARY
from journey.evaluation.rows import format_interval, select
from journey.pipeline.interfaces import Row
from journey.report.export import BENCHMARK

MOST_BYTES = 2**31  # of what an archive contains
MOST_CARD = 100_000  # bytes of a card
MOST_TEXT = 1000  # characters of a text in a card
PUBLIC, HELD_OUT = "public", "held_out"


@dataclass
class Card:
    """What a submission says about its scores."""

    method: str = ""
    paper: str = ""  # a title or an address
    who: str = ""  # computed the scores
    settings: dict[str, str] = field(default_factory=dict)
    # Whether scores predict changes of the loss; a cosine, for instance, does not.
    in_units_of_output: bool = True


@dataclass(frozen=True)
class Benchmark:
    """The protocol of a bundle, and what it has been measured on.

    Attributes:
        name: Name of the experiment.
        axes: Names along the axes of scores.
        paired_steps: The steps over which methods are compared.
        seed: Seed of the halves of queries and subsets.
        weights: Weights of the steps in the trajectory. [S, Q]
        masks: Whether a training subset holds an image, by the name of outputs. [N]
        outputs: The names of the outputs, by part. [M][R]
        arrays: Outputs of the steps and the final sample, by their names. [2, S + 1, Q]
    """

    name: str
    axes: dict[str, list]
    paired_steps: list[int]
    seed: int
    weights: np.ndarray
    masks: dict[str, np.ndarray]
    outputs: dict[str, list[list[str]]]
    arrays: dict[str, np.ndarray]

    def rows(self, scores: np.ndarray, card: Card, part: str) -> list[Row]:
        """Return the LDS of scores [S or 1, Q, N] on one part of the subsets, and its ceilings."""
        names, steps = self.outputs[part], self.axes["steps"]
        masks = np.stack([self.masks[by_seed[0]] for by_seed in names])
        outputs = np.stack([np.stack([self.arrays[name] for name in row]) for row in names])
        measured = lds.measurements(masks, outputs, self.weights, 1, self.seed)
        weights = self.weights if card.in_units_of_output else np.ones_like(self.weights)
        predictions = datamodeling.linear(datamodeling.predict(scores[None], masks, weights))
        half, rows = measured.resampled.query_half, []
        for quantity, predicted in (
            ("query_centred", datamodeling.query_centred(predictions, half)),
            ("lds", predictions),
        ):
            rows += lds.ceiling_rows(measured.outputs[quantity], quantity, steps, self.paired_steps)
            truth = np.moveaxis(measured.outputs[quantity].mean((1, 2)), 0, -1)  # [T, Q, M]
            interval_of = datamodeling.lds(predicted, truth, measured.resampled).interval
            conditions = {"quantity": quantity, "method": card.method, "score_transform": "linear"}
            rows += lds.target_rows(interval_of, steps, self.paired_steps, conditions)
        return rows


def submission(
    bundle: Path, scores: Path, card: Path, held_out: Path | None = None
) -> dict[str, object]:
    """Return the evaluation of a file of scores, as JSON.

    Args:
        bundle: A benchmark bundle, as `task=export` writes it.
        scores: The scores, as `method=external` reads them.
        card: A YAML file of the settings of `Card`.
        held_out: The outputs that are not in the bundle, to evaluate on them too.

    Raises:
        ConfigError: A file is not what it must be.
    """
    described, external = read_card(card), External(str(scores))
    external.check("scores")
    benchmark = read_benchmark(bundle, held_out)
    ordered = external.ordered_scores(f"scores={scores}", benchmark.axes).astype(np.float32)
    rows = {part: benchmark.rows(ordered, described, part) for part in benchmark.outputs}
    return {
        "benchmark": benchmark.name,
        "bundle_sha256": checksum(bundle),
        "held_out_sha256": None if held_out is None else checksum(held_out),
        # Of the array, in the order of the bundle's axes.
        "scores_sha256": hashlib.sha256(ordered.astype("<f4").tobytes()).hexdigest(),
        "card": asdict(described),
        "num_subsets": {part: len(names) for part, names in benchmark.outputs.items()},
        "paired_steps": benchmark.paired_steps,
        "rows": rows,
        "commit": git_state(),
        "versions": package_versions(),
    }


def submit(words: list[str]) -> None:
    """Run `journey submit`: evaluate scores, print their LDS, and write the submission.

    Raises:
        ConfigError: A file is not what it must be.
    """
    usage = "bundle.tar.gz scores.npz card.yaml [held-out.tar.gz]"
    require(len(words) in (3, 4), "journey submit", " ".join(words), usage)
    for word in words:
        require(Path(word).is_file(), "journey submit", word, "a file")
    result = submission(*map(Path, words))
    path = Path(f"{result['benchmark']}-{result['card']['method']}.json")  # type: ignore[index]
    require(
        not path.exists(), "journey submit", path, "moved away: the submission is written there"
    )
    write_json(path, result)
    for part, rows in result["rows"].items():  # type: ignore[attr-defined]
        (row,) = select(rows, **PRIMARY, target=lds.PAIRED_STEPS)
        number = format_interval(row, 0, times=100)
        print(f"{part}: query-centred LDS × 100 at t = {result['paired_steps']}: {number}")
    print(f"{path}: the submission")


def read_card(path: Path) -> Card:
    """Return a card.

    Raises:
        ConfigError: The file has something else than the settings of a card.
    """
    where = f"card={path}"
    require(path.stat().st_size <= MOST_CARD, where, "too long", f"at most {MOST_CARD} bytes")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{where}: not YAML ({printable(str(error))})") from None
    names = [f.name for f in fields(Card)]
    is_map = isinstance(values, dict) and set(values) <= set(names)
    require(is_map, where, printable(str(values), 100), f"a map of {', '.join(names)}")
    settings = values.get("settings", {})
    flat = isinstance(settings, dict) and len(settings) <= 100
    if flat:
        flat = all(isinstance(value, str | int | float) for value in settings.values())
    require(flat, f"{where}: settings", printable(str(settings), 100), "a map of texts and numbers")
    card = Card(**values | {"settings": {str(k): str(v) for k, v in settings.items()}})
    require_types(card, f"{where}: ")
    require_name(f"{where}: method", card.method)
    for name in ("paper", "who"):
        text = getattr(card, name)
        shown = text.isprintable() and 0 < len(text) <= MOST_TEXT
        require(shown, f"{where}: {name}", printable(text, 100), "a line of text")
    return card


def read_benchmark(bundle: Path, held_out: Path | None = None) -> Benchmark:
    """Return the benchmark of a bundle, with what is held out if its file is given.

    Raises:
        ConfigError: A file is damaged, or not of this bundle.
    """
    try:
        return _benchmark(_members(bundle), held_out, str(bundle))
    except ConfigError:
        raise
    except Exception as error:  # damaged files fail in many ways
        text = printable(f"{type(error).__name__}: {error_text(error)}")
        raise ConfigError(f"bundle={bundle}: not a benchmark bundle ({text})") from None


def _benchmark(members: dict[str, bytes], held_out: Path | None, where: str) -> Benchmark:
    require(BENCHMARK in members, "bundle", where, f"an archive with {BENCHMARK}, of task=export")
    protocol, axes = json.loads(members[BENCHMARK]), json.loads(members["axes.json"])
    outputs = {PUBLIC: protocol["outputs"]}
    if held_out is not None:
        expected = protocol.get("held_out", {}).get("sha256")
        actual = checksum(held_out)
        allowed = f"the file of SHA-256 {expected}, as the bundle says"
        require(actual == expected, f"held_out={held_out}", actual, allowed)
        outputs[HELD_OUT] = protocol["held_out"]["outputs"]
        members |= _members(held_out)
    require_name(f"bundle={where}: name", protocol["name"])
    paired = protocol["paired_steps"]
    among = len(paired) > 0 and set(paired) <= set(axes["steps"])
    require(among, f"bundle={where}: paired_steps", paired, f"among {axes['steps']}")
    num_steps, num_queries, num_train = (len(axes[axis]) for axis in ("steps", "queries", "train"))
    weights = np.array(protocol["weights"], np.float64)
    _require_array(f"bundle={where}: weights", weights, (num_steps, num_queries), np.float64)
    masks, arrays = {}, {}
    with np.load(io.BytesIO(members["masks.npz"])) as file:
        for name in itertools.chain(*itertools.chain(*outputs.values())):
            masks[name] = file[name]
            _require_array(f"bundle={where}: mask {name}", masks[name], (num_train,), np.bool_)
            arrays[name] = np.load(io.BytesIO(members[f"outputs/{name}/outputs.npy"]))
            shape = (2, num_steps + 1, num_queries)
            _require_array(f"bundle={where}: {name}", arrays[name], shape, np.float64)
    rest = protocol["seed"], weights, masks, outputs, arrays
    return Benchmark(protocol["name"], axes, paired, *rest)


def _require_array(where: str, array: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
    fits = array.shape == shape and array.dtype == dtype and bool(np.isfinite(array).all())
    value = f"{array.dtype} {array.shape}"
    require(fits, where, value, f"{np.dtype(dtype)} {shape}, all finite")


def _members(path: Path) -> dict[str, bytes]:
    """Return the files of an archive that an evaluation reads, by their paths in its folder."""
    members, total = {}, 0
    with tarfile.open(path, "r:gz") as archive:
        for entry in archive:
            total += entry.size
            require(total <= MOST_BYTES, str(path), f"{total} bytes", f"at most {MOST_BYTES}")
            name = entry.name.partition("/")[2]
            is_output = name.startswith("outputs/") and name.endswith("/outputs.npy")
            wanted = is_output or name in (BENCHMARK, "axes.json", "masks.npz")
            if wanted and entry.isfile() and (file := archive.extractfile(entry)):
                members[name] = file.read()
    return members
