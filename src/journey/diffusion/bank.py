"""A bank: retrained models that were trained elsewhere, listed in a CSV or JSON file.

A row names one model: `path`, its weights; `subset`, a file with the training images that it was
trained on; `seed`; and, where several state dicts of a file fit, `key`, the one to take. Paths are
relative to the folder of the list. A file of a subset is one of

    .npy          a mask, bool [N], or numbers of training images
    .json, .pkl   a list of numbers; .json: or of ids of training images

Nothing in a pickle is imported or run.
"""

import csv
import hashlib
import io
import itertools
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from journey.data.metadata import read_utf8
from journey.diffusion import weights
from journey.engine.checks import MOST_MODELS, ConfigError, require, require_count, require_seed
from journey.engine.store import Store
from journey.pipeline.interfaces import Bank, BankModel, Experiment, ListedSubset
from journey.pipeline.settings import Retraining

COLUMNS = {"path": str, "subset": str, "seed": int, "key": str}
REQUIRED = ("path", "subset", "seed")
FEWEST_SUBSETS = 8  # as of our own: half of them choose a hyper-parameter for the others
Cells = dict[str, str | int]


def read_bank(settings: Retraining, ids: Sequence[str]) -> Bank:
    """Return the models of `retraining.bank`, [subset][seed]: subsets as listed, seeds ascending.

    Args:
        settings: With the path of the list, and of the numbers of the training images.
        ids: The ids of the training images, in their order.

    Raises:
        ConfigError: A row or a file is not understood, or subsets have different numbers of models.
    """
    # 1. Read all rows, and each file of a subset once.
    numbers, subsets = _image_numbers(settings, len(ids)), {}
    rows = {number: row for row, number in enumerate(numbers)}
    names = {name: row for row, name in enumerate(ids)}
    by_subset: dict[ListedSubset, dict[int, BankModel]] = {}
    folder = Path(settings.bank).parent
    for where, cells in _read_rows(Path(settings.bank)):
        path, subset_path = folder / str(cells["path"]), folder / str(cells["subset"])
        require(path.exists(), f"{where}: path", path, "a file of weights, or a folder with them")
        if subset_path not in subsets:
            subsets[subset_path] = _read_subset(f"{where}: subset", subset_path, rows, names)
        subset, seed = subsets[subset_path], int(cells["seed"])
        require_seed(f"{where}: seed", seed)
        model = BankModel(path, str(cells.get("key", "")), subset, seed, where)

        # 2. Group the models by what they were trained on.
        models = by_subset.setdefault(subset, {})
        if seed in models:
            problem = f"seed={seed}: the same subset and seed as {models[seed].where}"
            raise ConfigError(f"{where}: {problem}")
        models[seed] = model

    # 3. Check the numbers of subsets and seeds.
    value, num_subsets = settings.bank, len(by_subset)
    allowed = f"a list with {FEWEST_SUBSETS} different subsets or more; it has {num_subsets}"
    require(num_subsets >= FEWEST_SUBSETS, "retraining.bank", value, allowed)
    bank = []
    for models in by_subset.values():
        bank.append(tuple(models[seed] for seed in sorted(models)))
    few, many = min(bank, key=len), max(bank, key=len)
    if len(few) < len(many):
        problem = f"its subset has {len(few)} models, that of {many[0].where} has {len(many)}"
        raise ConfigError(f"{few[0].where}: {problem}; every subset must have equally many")
    num_models = num_subsets * len(many)
    require_count("number of models in retraining.bank", num_models, most=MOST_MODELS)
    return tuple(bank)


def check_bank(experiment: Experiment, store: Store) -> dict[str, str]:
    """Check the weights of every model of a bank that the store lacks.

    Args:
        experiment: An experiment, which may have a bank.
        store: Its store. Stored weights are not checked again.

    Returns:
        What cannot be checked of weights, with the first row of which it is true.

    Raises:
        ConfigError: A network or a noise schedule is not that of the model.
    """
    shape = experiment.model.example_shape(experiment.images.shape)
    notes: dict[str, str] = {}
    checked: set[str] = set()
    for entry in itertools.chain.from_iterable(experiment.bank):
        trained = experiment.bank_model(entry)
        if trained.released in checked:
            continue
        checked.add(trained.released)
        if note := weights.unchecked(trained.model, entry.path):
            notes.setdefault(note, entry.where)
        if store.find(trained) is None:
            setting = f"{entry.where}: path"
            trained.model.check_released(setting, [str(entry.path)])
            weights.check_weights(setting, trained.model, entry.path, shape)
    return notes


def _read_rows(path: Path) -> list[tuple[str, Cells]]:
    """Return the rows of a list of models, each with its place."""
    if path.suffix == ".csv":
        rows = _csv_rows(path)
    elif path.suffix == ".json":
        rows = _json_rows(path)
    else:
        raise ConfigError(f"retraining.bank={path}: must be a .csv or a .json file")
    for where, cells in rows:
        for column in REQUIRED:
            if column not in cells:
                raise ConfigError(f"{where}: has no {column}")
        for column, value in cells.items():
            require(column in COLUMNS, f"{where}: column", column, f"one of {', '.join(COLUMNS)}")
            expected = COLUMNS[column]
            described = "a whole number" if expected is int else "a text"
            right = type(value) is expected and (value != "" or column == "key")
            require(right, f"{where}: {column}", value, described)
    if not rows:
        raise ConfigError(f"{path}: lists no models")
    return rows


def _csv_rows(path: Path) -> list[tuple[str, Cells]]:
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), strict=True)
    rows: list[tuple[str, Cells]] = []
    columns: list[str] = []
    try:
        for values in reader:
            where = f"{path}:{reader.line_num}"
            if not values:
                continue
            if not columns:
                columns = values
                require(len(set(values)) == len(values), where, values, "distinct columns")
                continue
            if len(values) != len(columns):
                raise ConfigError(f"{where}: has {len(values)} values, not {len(columns)}")
            cells: Cells = dict(zip(columns, values, strict=True))
            seed = str(cells.get("seed", ""))
            if seed.isdecimal() and seed.isascii():
                cells["seed"] = int(seed)
            rows.append((where, cells))
    except csv.Error as error:
        raise ConfigError(f"{path}:{reader.line_num}: not CSV ({error})") from None
    return rows


def _json_rows(path: Path) -> list[tuple[str, Cells]]:
    try:
        items = json.loads(read_utf8(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not JSON ({error})") from None
    require(isinstance(items, list), str(path), type(items).__name__, "a list of models")
    rows = []
    for number, item in enumerate(items, 1):
        where = f"{path}: item {number}"
        require(isinstance(item, dict), where, type(item).__name__, "an object")
        rows.append((where, item))
    return rows


def _image_numbers(settings: Retraining, num_images: int) -> Sequence[int]:
    """Return the number by which files of subsets name each training image."""
    if not settings.bank_numbers:
        return range(num_images)
    setting, path = "retraining.bank_numbers", Path(settings.bank_numbers)
    numbers = _read_list(setting, path)
    allowed = f"{num_images} distinct numbers, one for each training image"
    described = f"{path} with {len(numbers)} of type {numbers.dtype}"
    valid = numbers.dtype.kind in "iu" and len(set(numbers.tolist())) == len(numbers) == num_images
    require(valid, setting, described, allowed)
    return numbers.tolist()


def _read_subset(
    setting: str, path: Path, rows: dict[int, int], names: dict[str, int]
) -> ListedSubset:
    """Return a subset of the training images.

    Args:
        setting: The name of the file's setting in messages.
        path: The file: a mask, or a list of numbers or ids.
        rows: The row of each training image by its number.
        names: The same by its id.

    Raises:
        ConfigError: It is not a subset of the training images.
    """
    listed, name = _read_list(setting, path), f"{setting}={path}"
    num_images = len(rows)
    if listed.dtype.kind == "b":
        allowed = f"a mask of the {num_images} training images"
        require(len(listed) == num_images, name, f"a mask of {len(listed)}", allowed)
        mask = listed
    else:
        row_of: dict = names if listed.dtype.kind == "U" else rows
        values = listed.tolist()
        unknown = [value for value in values if value not in row_of]
        if unknown:
            unit = "numbers" if row_of is rows else "ids"
            advice = "; retraining.bank_numbers names the training images" * (row_of is rows)
            problem = f"{len(unknown)} {unit} of no training image, such as {unknown[0]}"
            raise ConfigError(f"{name}: has {problem}{advice}")
        mask = np.zeros(num_images, bool)
        mask[[row_of[value] for value in values]] = True
        if mask.sum() < len(values):
            raise ConfigError(f"{name}: names an image twice")
    count, most = int(mask.sum()), num_images - 1
    require(0 < count <= most, name, f"{count} images", f"1…{most} of the {num_images} images")
    packed = np.packbits(mask).tobytes()
    return ListedSubset(hashlib.sha256(packed).hexdigest()[:16], packed)


def _read_list(setting: str, path: Path) -> np.ndarray:
    """Return the one-dimensional array in a file: of booleans, whole numbers or texts."""
    readable = path.suffix in (".npy", ".json", ".pkl") and path.is_file()
    require(readable, setting, str(path), "a file .npy, .json or .pkl")
    try:
        match path.suffix:
            case ".npy":
                values = np.load(path, "r", allow_pickle=False)
            case ".json":
                values = _as_array(json.loads(path.read_bytes()))
            case _:
                with open(path, "rb") as file:
                    values = _as_array(_PlainUnpickler(file).load())
    except Exception as error:  # a damaged file fails in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{setting}={path}: cannot be read ({reason})") from None
    listed = values.ndim == 1 and values.dtype.kind in "biuU"
    allowed = "a list of whole numbers or ids, or a mask"
    described = f"{path} of shape {values.shape} and type {values.dtype}"
    require(listed, setting, described, allowed)
    return values


def _as_array(values: object) -> np.ndarray:
    """Return a list of whole numbers, or of texts, as an array; refuse anything else."""
    if not isinstance(values, list | tuple) or len(set(map(type, values))) != 1:
        raise ValueError("it is not a list of whole numbers, or of texts")
    if type(values[0]) not in (int, str):
        raise ValueError(f"it is a list of {type(values[0]).__name__}")
    return np.array(values)


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts and lists of them."""

    def find_class(self, module: str, name: str) -> type:
        """Refuse every object.

        Raises:
            UnpicklingError: Always.
        """
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is not run")
