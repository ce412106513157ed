"""The experiment of a run: looks up its images, and checks settings against data and machine."""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from journey.attribution.gradient import Featurize
from journey.config.run import RunConfig, Task
from journey.data.duplicates import TRAIN, split_parts
from journey.data.folder import read_query_images
from journey.diffusion import weights
from journey.diffusion.bank import check_bank, read_bank
from journey.engine.checks import require, require_count
from journey.engine.files import write_json
from journey.engine.graph import ancestors, missing
from journey.engine.spec import describe
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.launch.local import Local
from journey.pipeline import subsets
from journey.pipeline.images import ImageSet, check_images, content_hash, read_images
from journey.pipeline.interfaces import (
    Bank,
    Dataset,
    Evaluate,
    Experiment,
    Images,
    QueryImages,
    Train,
)
from journey.pipeline.pretrained import locate_checkpoint
from journey.pipeline.settings import Start
from journey.tracking import JSONLines


def load_experiment(run: RunConfig, store: Store) -> Experiment:
    """Return the experiment of a run."""
    return prepare_experiment(run, store)[0]


def prepare_experiment(run: RunConfig, store: Store) -> tuple[Experiment, ImageSet]:
    """Return the experiment of a run and its training images, which are loaded at most once."""
    images, train = look_up_images(run.dataset, store)
    retraining = run.retraining
    bank: Bank = ()
    if retraining.bank:
        bank = read_bank(retraining, train.ids)
        retraining = replace(retraining, num_subsets=len(bank), num_seeds=len(bank[0]))
    queries = None
    if run.sampling.start is Start.images:
        given = read_query_images(run.sampling.images, images.shape)
        content = content_hash(given)
        queries = QueryImages(content, run.sampling.images, given.ids, images.shape)
    experiment = Experiment(
        images=images,
        model=run.model,
        training=run.training,
        sampling=run.sampling,
        retraining=retraining,
        precision=run.compute.precision,
        seed=run.seed,
        bank=bank,
        query_images=queries,
    )
    return experiment, train


def dataset_images(dataset: Dataset, store: Store) -> Images:
    """Return the spec of a dataset's images."""
    return look_up_images(dataset, store)[0]


def look_up_images(dataset: Dataset, store: Store) -> tuple[Images, ImageSet]:
    """Return the spec of a dataset's images, and the training images.

    They come from the store if it has them and if the settings, the source and the files of the
    dataset are as recorded; otherwise the dataset loads them.
    """
    recorded = _recorded_images(dataset, store)
    if recorded is not None and (artifact := store.find(recorded)) is not None:
        train = read_images(artifact.path / "train")  # verified, unlike the record
        return replace(recorded, num_train=len(train), shape=train.images.shape[1:]), train
    parts = split_parts(dataset)
    for name, part in parts.items():
        check_images(part, f"dataset={dataset.name}, {name.replace('_', '-')} images")
    train = parts[TRAIN]
    return Images(content_hash(*parts.values()), dataset, len(train), train.images.shape[1:]), train


def store_images(dataset: Dataset, store: Store) -> None:
    """Write the images of a dataset into a store, which then has them without their source."""
    images, _ = look_up_images(dataset, store)
    store.check_writable(True)
    get(images, Workspace(store, Local(), JSONLines(), dataset.name))
    record_images(images, store)


def record_images(images: Images, store: Store) -> None:
    """Record the images of a dataset in a store, so that they need not be loaded to be found."""
    if _recorded_images(images.dataset, store) != images:
        write_record(images, store.root, _source_files(images.dataset))


def write_record(images: Images, root: Path, files: list[list] | None) -> None:
    """Write the record of a dataset's images below the root of a store.

    Args:
        images: The images.
        root: The root.
        files: Path, size and time of each file that was read; None: any files, in a bundle.
    """
    record = {
        "files": files,
        "content": images.content,
        "num_train": images.num_train,
        "shape": list(images.shape),
    }
    path = _record_path(images.dataset, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def _record_path(dataset: Dataset, root: Path) -> Path:
    """Return the file of a store that records the images of a dataset with these settings."""
    settings = json.dumps(describe(dataset), sort_keys=True)
    return root / "images" / f".{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"


def _source_files(dataset: Dataset) -> list[list]:
    paths = [path for path in dataset.sources() if path.exists()]
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _recorded_images(dataset: Dataset, store: Store) -> Images | None:
    """Return the recorded images; None if there is no valid record, or a source file changed."""
    try:
        record = json.loads(_record_path(dataset, store.root).read_text())
        if record["files"] not in (_source_files(dataset), None):
            return None
        content, num_train, shape = record["content"], record["num_train"], record["shape"]
        types = [type(value) for value in (content, num_train, *shape)]
        valid = types == [str, int, int, int, int]
        return Images(content, dataset, num_train, tuple(shape)) if valid else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def check_data(run: RunConfig, experiment: Experiment, train: ImageSet, store: Store) -> None:
    """Check the settings of a run against its images. Stored checkpoints are not checked again.

    Raises:
        ConfigError: The data do not fit a setting, which the message names.
    """
    model, shape = run.model, experiment.images.shape
    model.fits(shape)
    captioned = train.captions is not None or not model.reads_text
    allowed = f"one with captions: model={model.name} reads them"
    require(captioned, "dataset", run.dataset.label, allowed)
    model.check_data("model", train)
    count, classes = len(train.class_names), model.num_classes
    allowed = f"0, or {count}, the classes of dataset={run.dataset.label}"
    if count == 1:
        allowed = f"0: dataset={run.dataset.label} has no classes"
    require(classes in (0, count) and classes != 1, "model.num_classes", classes, allowed)
    model.check_prompts("sampling.prompts", run.sampling.prompts, train.class_names)
    if model.reads_text and train.captions:
        for name, captions in zip(train.ids, train.captions, strict=True):
            model.check_prompts(f"caption of {name}", captions, train.class_names)
    for index, checkpoint in enumerate(model.checkpoints):
        path = locate_checkpoint(checkpoint)
        notes = (
            weights.unchecked(model, path),
            weights.other_shape(path, model.example_shape(shape)),
        )
        for note in filter(None, notes):
            print(f"note: model.checkpoints={checkpoint}: {note}", file=sys.stderr)
        if store.find(experiment.checkpoint(index)) is None:
            example, lora = model.example_shape(shape), run.training.lora
            weights.check_weights("model.checkpoints", model, path, example, lora)
    if experiment.start is not None:
        example, lora = model.example_shape(shape), run.training.lora
        if store.find(experiment.start) is None:
            path = locate_checkpoint(run.training.start, "training.start")
            weights.check_weights("training.start", model, path, example)
        if lora.rank and not model.checkpoints and store.find(experiment.checkpoint(0)) is None:
            weights.check_targets(model, example, lora)
    for note, where in check_bank(experiment, store).items():
        print(f"note: {where}: {note}", file=sys.stderr)
    if _trains(run, experiment):
        require_count("training.batch_size", run.training.batch_size, most=len(train))
    subset = experiment.random_subset(0)
    subsets.require_groups("retraining.by", subset.by, train)
    subsets.subset_mask(train.labels, subset, subsets.subset_groups(subset, train))
    for name, method in run.all_methods.items():
        method.check_data(f"method.{name}", experiment.trajectories, train)
    run.evaluation.check_data("evaluation", experiment.trajectories, train)


def _trains(run: RunConfig, experiment: Experiment) -> bool:
    """Return whether a run trains a model: with released checkpoints, it may need no other."""
    if not run.model.checkpoints:
        return True
    specs = ancestors(experiment.evaluation(run.evaluation, run.all_methods))
    return any(isinstance(spec, Train) and not spec.released for spec in specs)


def check_memory(run: RunConfig, target: Evaluate, store: Store) -> None:
    """Check that the missing gradients of a run fit into the memory that is set for them.

    By default there is nothing to check: training the same network takes more than the default.

    Raises:
        ConfigError: They do not. Training would not have noticed.
    """
    memory_gib = run.compute.gradient_memory_gib
    if run.compute.device == "cpu" or memory_gib is None:
        return
    specs = missing([target], lambda spec: store.find(spec) is not None).values()
    features = [spec for spec in specs if isinstance(spec, Featurize)]
    if features and run.model.network:
        from journey.attribution.features import require_memory  # imports torch

        require_memory(features, memory_gib)


def check_machine(run: RunConfig) -> None:
    """Check the settings of a run against this machine.

    Raises:
        ConfigError: The machine does not fit a setting, which the message names.
    """
    for name, value in (("artifacts", run.artifacts), ("reports", run.reports)):
        path = Path(value)
        existing = next(p for p in (path, *path.parents) if os.path.lexists(p))
        at = "" if existing == path else f"; {existing} is none"
        allowed = f"a directory, or a path that does not exist yet{at}"
        require(existing.is_dir(), name, value, allowed)
    run.model.ready(run.training)
    if run.task not in (Task.plan, Task.status):  # which compute nothing
        run.compute.ready()
    run.tracking.ready()
