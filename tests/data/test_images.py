"""Images are addressed by what they are, wherever they come from."""

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
    """What a user has: a file of images."""

    name: ClassVar[str] = "files"
    path: str
    comment: str = ""

    def sources(self) -> list[Path]:
        return [Path(self.path)]

    def load(self) -> tuple[ImageSet, ImageSet]:
        with np.load(self.path) as file:
            images, labels = file["images"], file["labels"]
        ids = tuple(f"file/{i}" for i in range(len(images)))
        everything = ImageSet(
            images, labels, tuple((f"image {i}",) for i in range(len(images))), ids, ("even", "odd")
        )
        return everything.take(np.arange(40)), everything.take(np.arange(40, len(images)))


@pytest.fixture
def file(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    np.savez(
        path,
        images=random.integers(256, size=(50, 1, 8, 8), dtype=np.uint8),
        labels=np.arange(50) % 2,
    )
    return path


def change(path: Path, **by) -> None:
    """Write a file anew, with some arrays changed."""
    arrays = dict(np.load(path))
    np.savez(
        path, **{name: by[name](array) if name in by else array for name, array in arrays.items()}
    )


def one_pixel(images: np.ndarray) -> np.ndarray:
    images = images.copy()
    images[7, 0, 3, 3] ^= 1
    return images


def addresses(file: Path, store) -> set[str]:
    """Of all that a run on these images needs."""
    run = small_run(dataset=Files(str(file)))
    of = load_experiment(run, store)
    target = of.evaluation(run.evaluation, run.all_methods)
    return {cache_key(spec) for spec in [target, *ancestors(target)]}


@pytest.mark.parametrize("remembered", [False, True])
def test_one_pixel_changes_every_address(file, workspace, remembered):
    before = addresses(file, workspace.store)
    if remembered:
        workspace.store.writable()
        record_images(dataset_images(Files(str(file)), workspace.store), workspace.store)
    assert addresses(file, workspace.store) == before
    change(file, images=one_pixel)
    assert not addresses(file, workspace.store) & before


@pytest.mark.parametrize("name", ["labels", "held out"])
def test_labels_and_held_out_images_are_content_too(file, workspace, name):
    before = dataset_images(Files(str(file)), workspace.store)
    if name == "labels":
        change(file, labels=lambda labels: labels[::-1])
    else:
        change(file, images=lambda images: np.concatenate([images[:-1], 255 - images[-1:]]))
    assert digest(dataset_images(Files(str(file)), workspace.store)) != digest(before)


def test_ids_captions_and_class_names_are_content_too(digits):
    known = dataclasses.replace(digits, captions=tuple((f"a {label}",) for label in digits.labels))
    changes = (
        {"captions": None},
        {"captions": (("b",), *known.captions[1:])},
        {"ids": ("x", *known.ids[1:])},
    )
    others = [
        dataclasses.replace(known, **c)
        for c in (*changes, {"class_names": (*known.class_names[:-1], "nine")})
    ]
    hashes = {content_hash(of, digits) for of in (known, *others)}
    assert len(hashes) == 5
    assert content_hash(digits, known) not in hashes, "which part is for training"


def test_the_same_images_under_other_settings_are_the_same(file, workspace, tmp_path):
    copy = tmp_path / "elsewhere.npz"
    copy.write_bytes(file.read_bytes())
    datasets = (Files(str(file)), Files(str(copy)), Files(str(file), comment="the same"))
    assert len({digest(dataset_images(dataset, workspace.store)) for dataset in datasets}) == 1


def test_what_is_kept_is_what_the_dataset_gave(file, workspace):
    dataset = Files(str(file))
    spec = dataset_images(dataset, workspace.store)
    kept = get(spec, workspace).path
    for part, given in zip(("train", "held_out"), dataset.load(), strict=True):
        same(read_images(kept / part), given)
    same(train_images(spec, workspace), dataset.load()[0])
    assert (spec.num_train, spec.shape) == (40, (1, 8, 8))


def same(a: ImageSet, b: ImageSet) -> None:
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert (a.images.dtype, a.labels.dtype) == (b.images.dtype, b.labels.dtype)
    assert (a.captions, a.ids, a.class_names) == (b.captions, b.ids, b.class_names)


@pytest.mark.parametrize(
    "captions",
    [None, (("",), ("x̂ “quoted”\nand more",), ("猫",)), (("a", "b"), ("c", ""), ("d", "e"))],
)
def test_images_labels_and_texts_survive_writing_and_reading(tmp_path, captions):
    images = np.arange(3 * 2 * 4 * 5, dtype=np.uint8).reshape(3, 2, 4, 5)
    given = ImageSet(images, np.array([1, 0, 1]), captions, ("a/1", "b", "ç"), ("zero", "one"))
    assert list(write_images(given, tmp_path / "images")) == [3]
    found = read_images(tmp_path / "images")
    same(found, given)
    assert isinstance(found.images, np.memmap), "nothing is read before it is asked for"
    assert content_hash(found) == content_hash(given)
    same(found.take(np.array([2, 0])), given.take(np.array([2, 0])))
    assert found.describe(1) == ("zero" if captions is None else captions[1][0][:24])


def test_images_that_changed_under_their_address_are_not_kept(file, workspace):
    spec = dataset_images(Files(str(file)), workspace.store)
    change(file, images=one_pixel)
    with pytest.raises(
        ValueError,
        match=r"the images of files have changed: sha256 [0-9a-f]{12}, expected [0-9a-f]{12}",
    ):
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
    "every label must have a name": {"labels": np.array([0, 1, 2])},
    "every label must have": {"labels": np.array([0, 1, -1])},
}


@pytest.mark.parametrize(("message", "wrong"), INCONSISTENT.items())
@pytest.mark.parametrize("part", ["training", "held-out"])
def test_an_inconsistent_image_set_is_refused_by_name(message, wrong, part, workspace, monkeypatch):
    good = ImageSet(
        np.zeros((3, 1, 8, 8), np.uint8),
        np.array([0, 1, 1]),
        None,
        ("a", "b", "c"),
        ("even", "odd"),
    )
    bad = dataclasses.replace(good, **wrong)
    monkeypatch.setattr(
        Files, "load", lambda self: (bad, good) if part == "training" else (good, bad)
    )
    monkeypatch.setattr(Files, "sources", lambda self: [])
    with pytest.raises(ConfigError, match=f"dataset=files, {part} images: {message}"):
        dataset_images(Files("nowhere"), workspace.store)


def test_a_memory_that_is_damaged_is_none(file, workspace):
    store, dataset = workspace.store, Files(str(file))
    images = dataset_images(dataset, store)
    store.writable()
    record_images(images, store)
    (memory,) = (store.root / "images").iterdir()
    assert json.loads(memory.read_text())["content"] == images.content
    for text in ("", "{", "[]", "{}", '{"files": null}'):
        memory.write_text(text)
        assert dataset_images(dataset, store) == images
