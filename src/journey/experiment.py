"""From the settings of a run to the artifacts they ask for.

Checks that need the data or this machine, made before the first job, so that not every one of them fails."""

import hashlib
import json
import os
from pathlib import Path

from journey.config.run import RunConfig
from journey.data.duplicates import HELD_OUT, INJECTED, TRAIN, split_parts
from journey.diffusion import weights
from journey.engine.checks import require, require_count
from journey.engine.files import write_json
from journey.engine.spec import describe
from journey.engine.store import Store
from journey.pipeline import subsets
from journey.pipeline.images import ImageSet, check_images, content_hash, read_images
from journey.pipeline.interfaces import Dataset, Experiment, Images
from journey.pipeline.pretrained import locate_checkpoint

SAID = {TRAIN: "training", HELD_OUT: "held-out", INJECTED: "planted"}


def load_experiment(run: RunConfig, store: Store) -> Experiment:
    """What artifacts of this run are made from."""
    return prepare_experiment(run, store)[0]


def prepare_experiment(run: RunConfig, store: Store) -> tuple[Experiment, ImageSet]:
    """What artifacts of this run are made from, and the training images, for which the dataset is asked once at most."""
    images, train = look_up_images(run.dataset, store)
    experiment = Experiment(
        images,
        run.model,
        run.training,
        run.sampling,
        run.retraining,
        run.compute.precision,
        run.seed,
    )
    return experiment, train


def dataset_images(dataset: Dataset, store: Store) -> Images:
    """The images of a dataset, by their content."""
    return look_up_images(dataset, store)[0]


def look_up_images(dataset: Dataset, store: Store) -> tuple[Images, ImageSet]:
    """The images of a dataset, by their content, and those for training: as they are kept, while the settings, source and files
    of the dataset are as remembered, or as it gives them.

    Raises: ConfigError if the dataset gives no proper images.
    """
    if (known := _remembered(dataset, store)) is not None and (
        kept := store.find(known)
    ) is not None:
        return known, read_images(kept.path / "train")
    parts = split_parts(dataset)
    for name, part in parts.items():
        check_images(part, f"dataset={dataset.name}, {SAID[name]} images")
    train = parts[TRAIN]
    return Images(content_hash(*parts.values()), dataset, len(train), train.images.shape[1:]), train


def record_images(images: Images, store: Store) -> None:
    """So that the dataset need not be loaded to know them."""
    if _remembered(images.dataset, store) != images:
        memory = images_record_path(images.dataset, store.root)
        memory.parent.mkdir(exist_ok=True)
        write_json(memory, images_record(images, _files(images.dataset)))


def images_record_path(dataset: Dataset, root: Path) -> Path:
    """Where a store remembers which images a dataset of these settings and this source has."""
    source = json.dumps(describe(dataset), sort_keys=True)
    return root / "images" / f".{hashlib.sha256(source.encode()).hexdigest()[:16]}.json"


def images_record(images: Images, files: list[list] | None) -> dict:
    """What is remembered. files: path, size and time of each that was read; None: whatever there is (in a pack)."""
    return {
        "files": files,
        "content": images.content,
        "num_train": images.num_train,
        "shape": list(images.shape),
    }


def _files(dataset: Dataset) -> list[list]:
    return [
        [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for path in dataset.sources()
        if path.exists()
    ]


def _remembered(dataset: Dataset, store: Store) -> Images | None:
    try:
        known = json.loads(images_record_path(dataset, store.root).read_text())
        if known["files"] not in (_files(dataset), None):
            return None
        content, num_train, shape = known["content"], known["num_train"], known["shape"]
        sound = [type(part) for part in (content, num_train, *shape)] == [str, int, int, int, int]
        return Images(content, dataset, num_train, tuple(shape)) if sound else None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):  # nothing that can be read: it is looked up again
        return None


def check_data(run: RunConfig, experiment: Experiment, train: ImageSet) -> None:
    """Raises: ConfigError naming the setting that these data cannot honour."""
    run.model.fits(experiment.images.shape)
    captioned = train.captions is not None or not run.model.reads_text
    require(
        captioned,
        "dataset",
        run.dataset.label,
        f"one with captions: model={run.model.name} reads them",
    )
    run.model.check_prompts("sampling.prompts", run.sampling.prompts)
    shape = run.model.example_shape(experiment.images.shape)
    for checkpoint in run.model.checkpoints:
        weights.check_weights("model.checkpoints", run.model, locate_checkpoint(checkpoint), shape)
    require_count("training.batch_size", run.training.batch_size, most=len(train))
    subsets.subset_mask(train.labels, experiment.random_subset(0))
    for name, method in run.all_methods.items():
        method.check_data(f"method.{name}", experiment.trajectories, train)
    run.evaluation.check_data("evaluation", experiment.trajectories, train)


def check_machine(run: RunConfig) -> None:
    """Raises: ConfigError if this machine cannot do what is asked of it."""
    for name, path in (("artifacts", run.artifacts), ("reports", run.reports)):
        require(
            os.path.isdir(path) or not os.path.lexists(path),
            name,
            path,
            "a directory, or nothing yet",
        )
    run.compute.ready()
    run.tracking.ready()
