"""From the settings of a run to the artifacts they ask for."""

import hashlib
import json
from pathlib import Path

from journey import data
from journey.artifacts.files import write_json
from journey.artifacts.graph import describe
from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Images
from journey.artifacts.store import Store
from journey.config.contracts import Dataset
from journey.config.settings import Config
from journey.data import ImageSet, planting

SAID = {planting.TRAIN: "training", planting.HELD_OUT: "held-out", planting.PLANTED: "planted"}


def recipes(run: Config, store: Store) -> Recipes:
    """What artifacts of this run are made from."""
    return prepared(run, store)[0]


def prepared(run: Config, store: Store) -> tuple[Recipes, ImageSet]:
    """What artifacts of this run are made from, and the training images, for which the dataset is asked once at most."""
    images, train = look_up(run.dataset, store)
    made_from = Recipes(images, run.model, run.training, run.sampling, run.retraining, run.compute.precision, run.seed)
    return made_from, train


def images_of(dataset: Dataset, store: Store) -> Images:
    """The images of a dataset, by their content."""
    return look_up(dataset, store)[0]


def look_up(dataset: Dataset, store: Store) -> tuple[Images, ImageSet]:
    """The images of a dataset, by their content, and those for training: as they are kept, while the settings, source and files
    of the dataset are as remembered, or as it gives them.

    Raises: ConfigError if the dataset gives no proper images.
    """
    if (known := _remembered(dataset, store)) is not None and (kept := store.find(known)) is not None:
        return known, data.read(kept.path / "train")
    parts = planting.parts(dataset)
    for name, part in parts.items():
        data.check(part, f"dataset={dataset.kind}, {SAID[name]} images")
    train = parts[planting.TRAIN]
    return Images(data.content_hash(*parts.values()), dataset, len(train), train.images.shape[1:]), train


def remember_images(images: Images, store: Store) -> None:
    """So that the dataset need not be loaded to know them."""
    if _remembered(images.dataset, store) != images:
        memory = memory_of(images.dataset, store.root)
        memory.parent.mkdir(exist_ok=True)
        write_json(memory, memory_contents(images, _files(images.dataset)))


def memory_of(dataset: Dataset, root: Path) -> Path:
    """Where a store remembers which images a dataset of these settings and this source has."""
    source = json.dumps(describe(dataset), sort_keys=True)
    return root / "images" / f".{hashlib.sha256(source.encode()).hexdigest()[:16]}.json"


def memory_contents(images: Images, files: list[list] | None) -> dict:
    """What is remembered. files: path, size and time of each that was read; None: whatever there is (in a pack)."""
    return {"files": files, "content": images.content, "num_train": images.num_train, "shape": list(images.shape)}


def _files(dataset: Dataset) -> list[list]:
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in dataset.sources() if path.exists()]


def _remembered(dataset: Dataset, store: Store) -> Images | None:
    try:
        known = json.loads(memory_of(dataset, store.root).read_text())
        if known["files"] not in (_files(dataset), None):
            return None
        content, num_train, shape = known["content"], known["num_train"], known["shape"]
        sound = [type(part) for part in (content, num_train, *shape)] == [str, int, int, int, int]
        return Images(content, dataset, num_train, tuple(shape)) if sound else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # nothing that can be read: it is looked up again
        return None
