"""Images are identified by their content, and survive writing and reading."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import small_run

from journey.data.images import train_images
from journey.engine.checks import ConfigError
from journey.engine.graph import ancestors
from journey.engine.spec import cache_key, digest
from journey.engine.workspace import get
from journey.experiment import dataset_images, load_experiment, record_images
from journey.pipeline.images import ImageSet, content_hash, read_images, write_images
from journey.pipeline.interfaces import Dataset


@dataclass
class Files(Dataset):
    """A user's own dataset: a file of images."""

    name: ClassVar[str] = "files"
    path: str
    comment: str = ""

    def sources(self) -> list[Path]:
        return [Path(self.path)]

    def load(self) -> tuple[ImageSet, ImageSet]:
        with np.load(self.path) as file:
            images, labels = file["images"], file["labels"]
        ids = tuple(f"file/{i}" for i in range(len(images)))
        captions = tuple((f"image {i}",) for i in range(len(images)))
        everything = ImageSet(images, labels, captions, ids, ("even", "odd"))
        return everything.take(np.arange(40)), everything.take(np.arange(40, len(images)))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(256, size=(50, 1, 8, 8), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(50) % 2)
    return path


def change(path: Path, name: str, function) -> None:
    """Write a file anew, with one array changed."""
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, name: function(arrays[name])})


def change_pixel(images: np.ndarray) -> np.ndarray:
    images = images.copy()
    images[7, 0, 3, 3] ^= 1
    return images


def all_cache_keys(file: Path, store) -> set[str]:
    """The cache keys of all artifacts of a run on these images."""
    run = small_run(dataset=Files(str(file)))
    target = load_experiment(run, store).evaluation(run.evaluation, run.all_methods)
    return {cache_key(spec) for spec in [target, *ancestors(target)]}


@pytest.mark.parametrize("recorded", [False, True])
def test_one_pixel_changes_every_cache_key(file, workspace, recorded):
    before = all_cache_keys(file, workspace.store)
    if recorded:
        workspace.store.check_writable()
        record_images(dataset_images(Files(str(file)), workspace.store), workspace.store)
    assert all_cache_keys(file, workspace.store) == before
    change(file, "images", change_pixel)
    assert not all_cache_keys(file, workspace.store) & before


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("labels", lambda labels: labels[::-1]),
        ("images", lambda images: np.concatenate([images[:-1], 255 - images[-1:]])),  # held out
    ],
)
def test_labels_and_held_out_images_are_content_too(file, workspace, name, function):
    before = dataset_images(Files(str(file)), workspace.store)
    change(file, name, function)
    assert digest(dataset_images(Files(str(file)), workspace.store)) != digest(before)


def test_ids_captions_and_class_names_are_content_too(digits):
    captions = tuple((f"a {label}",) for label in digits.labels)
    captioned = dataclasses.replace(digits, captions=captions)
    changes = (
        {"captions": None},
        {"captions": (("b",), *captions[1:])},
        {"ids": ("x", *digits.ids[1:])},
        {"class_names": (*digits.class_names[:-1], "nine")},
    )
    changed = [dataclasses.replace(captioned, **change) for change in changes]
    hashes = {content_hash(images, digits) for images in (captioned, *changed)}
    assert len(hashes) == 5
    assert content_hash(digits, captioned) not in hashes, "which part is for training"


def test_the_same_images_under_other_settings_are_the_same(file, workspace, tmp_path):
    copy = tmp_path / "elsewhere.npz"
    copy.write_bytes(file.read_bytes())
    datasets = (Files(str(file)), Files(str(copy)), Files(str(file), comment="the same"))
    assert len({digest(dataset_images(dataset, workspace.store)) for dataset in datasets}) == 1


def require_equal(a: ImageSet, b: ImageSet) -> None:
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert (a.images.dtype, a.labels.dtype) == (b.images.dtype, b.labels.dtype)
    assert (a.captions, a.ids, a.class_names) == (b.captions, b.ids, b.class_names)


def test_the_artifact_has_what_the_dataset_loads(file, workspace):
    dataset = Files(str(file))
    spec = dataset_images(dataset, workspace.store)
    path = get(spec, workspace).path
    for part, expected in zip(("train", "held_out"), dataset.load(), strict=True):
        require_equal(read_images(path / part), expected)
    require_equal(train_images(spec, workspace), dataset.load()[0])
    assert (spec.num_train, spec.shape) == (40, (1, 8, 8))


@pytest.mark.parametrize(
    "captions",
    [None, (("",), ("x̂ “quoted”\nand more",), ("猫",)), (("a", "b"), ("c", ""), ("d", "e"))],
)
def test_images_labels_and_texts_survive_writing_and_reading(tmp_path, captions):
    images = np.arange(3 * 2 * 4 * 5, dtype=np.uint8).reshape(3, 2, 4, 5)
    before = ImageSet(images, np.array([1, 0, 1]), captions, ("a/1", "b", "ç"), ("zero", "one"))
    assert list(write_images(before, tmp_path / "images")) == [3]
    after = read_images(tmp_path / "images")
    require_equal(after, before)
    assert isinstance(after.images, np.memmap), "read when indexed"
    assert content_hash(after) == content_hash(before)
    require_equal(after.take(np.array([2, 0])), before.take(np.array([2, 0])))
    assert after.describe(1) == ("zero" if captions is None else captions[1][0][:24])


def test_images_that_differ_from_their_cache_key_are_not_written(file, workspace):
    spec = dataset_images(Files(str(file)), workspace.store)
    change(file, "images", change_pixel)
    message = r"images of files have changed: sha256 [0-9a-f]{12}, expected [0-9a-f]{12}"
    with pytest.raises(ValueError, match=message):
        get(spec, workspace)
    assert workspace.store.find(spec) is None


INCONSISTENT = {
    "images must be uint8": {"images": np.zeros((3, 1, 8, 8), np.float32)},
    r"images must be uint8 \[N, C, H, W\]": {"images": np.zeros((3, 8, 8), np.uint8)},
    "there must be 3 labels": {"labels": np.array([0, 1])},
    "there must be 3 ids, each once": {"ids": ("a", "b", "a")},
    "there must be 3 ids": {"ids": ("a", "b")},
    "there must be captions of all 3": {"captions": (("a",), ("b",))},
    "there must be as many captions of each": {"captions": (("a",), ("b",), ("c", "d"))},
    "there must be as many captions of each, one or more": {"captions": ((), (), ())},
    "captions, ids and class names must be texts": {"captions": (("a",), (1,), ("b",))},
    "captions, ids and class": {"class_names": (0, 1)},
    "there must be 3 labels, whole numbers": {"labels": np.array([0.0, 1.0, 1.0])},
    "every label must have a name, of its own": {"class_names": ("even", "even")},
    "every label must have a name": {"labels": np.array([0, 1, 2])},
    "every label must have": {"labels": np.array([0, 1, -1])},
}


@pytest.mark.parametrize(("message", "changes"), INCONSISTENT.items())
@pytest.mark.parametrize("part", ["train", "held-out"])
def test_an_inconsistent_image_set_is_refused_by_name(
    message, changes, part, workspace, monkeypatch
):
    images, ids = np.zeros((3, 1, 8, 8), np.uint8), ("a", "b", "c")
    good = ImageSet(images, np.array([0, 1, 1]), None, ids, ("even", "odd"))
    bad = dataclasses.replace(good, **changes)
    parts = (bad, good) if part == "train" else (good, bad)
    monkeypatch.setattr(Files, "load", lambda self: parts)
    monkeypatch.setattr(Files, "sources", lambda self: [])
    with pytest.raises(ConfigError, match=f"dataset=files, {part} images: {message}"):
        dataset_images(Files("nowhere"), workspace.store)


def test_a_damaged_record_of_images_is_ignored(file, workspace):
    store, dataset = workspace.store, Files(str(file))
    images = dataset_images(dataset, store)
    store.check_writable()
    record_images(images, store)
    (record,) = (store.root / "images").iterdir()
    assert json.loads(record.read_text())["content"] == images.content
    for text in ("", "{", "[]", "{}", '{"files": null}'):
        record.write_text(text)
        assert dataset_images(dataset, store) == images
