"""MS COCO in its own formats: what is read and refused, and when images are decoded."""

import json
import os
import shutil
from pathlib import Path

import miniatures
import numpy as np
import pytest
from miniatures import coco_name as name
from miniatures import photograph, write_captions
from PIL import Image

from journey.data import coco
from journey.data.coco import COCO
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key, digest
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import dataset_images, record_images
from journey.pipeline import images as images_module
from journey.pipeline.images import ImageFiles, check_images, read_images

SIZE = 16
TRAIN = {  # by id: mode and size
    9: ("RGB", (40, 24)),
    25: ("RGB", (24, 41)),
    30: ("L", (32, 32)),
    34: ("CMYK", (30, 20)),
    36: ("RGB", (16, 16)),
}
VAL = {139: ("RGB", (64, 48)), 285: ("L", (20, 20))}


@pytest.fixture
def root(tmp_path):
    miniatures.coco(tmp_path / "coco", TRAIN, VAL)
    return tmp_path / "coco"


@pytest.fixture
def dataset(root):
    return COCO(root=str(root), size=SIZE)


def captions(root: Path, part: str = "train2017") -> Path:
    return root / f"annotations/captions_{part}.json"


def edit(path: Path, change) -> None:
    """Change a JSON file in place."""
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


@pytest.fixture
def decoded(monkeypatch):
    """The files that have been decoded, in any order."""
    files, read = [], coco.read_image
    monkeypatch.setattr(coco, "read_image", lambda f, size: files.append(f) or read(f, size))
    return files


def test_images_are_in_order_with_five_captions_and_not_decoded(dataset, decoded, capsys):
    train, held_out = dataset.load()
    for part in (train, held_out):
        check_images(part, "coco")
    assert train.ids == tuple(f"train2017/{name(i)}" for i in TRAIN)
    assert held_out.ids == tuple(f"val2017/{name(i)}" for i in VAL)
    assert train.captions == tuple(tuple(f"Caption {k} of {i}." for k in range(5)) for i in TRAIN)
    assert (train.images.shape, held_out.images.shape) == ((5, 3, SIZE, SIZE), (2, 3, SIZE, SIZE))
    assert (train.labels.tolist(), train.class_names) == ([0] * 5, ("coco",))
    assert train.describe(1) == "Caption 0 of 25."
    assert decoded == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size", [SIZE, 20])
def test_an_image_is_its_central_square_in_colour(root, size):
    squares = {
        9: (8, 0, 32, 24),
        25: (0, 8.5, 24, 32.5),
        30: (0, 0, 32, 32),
        34: (5, 0, 25, 20),
        36: (0, 0, 16, 16),
    }
    images = COCO(root=str(root), size=size).load()[0].images[:]
    for image, (image_id, box) in zip(images, squares.items(), strict=True):
        file = Image.open(root / "train2017" / name(image_id)).convert("RGB")
        expected = np.asarray(file.resize((size, size), Image.Resampling.LANCZOS, box))
        np.testing.assert_array_equal(image, expected.transpose(2, 0, 1))
    assert (images[2, 0] == images[2, 2]).all(), "grey"


def test_image_files_are_indexed_as_an_array_is():
    array = np.random.default_rng(0).integers(256, size=(7, 3, 4, 4), dtype=np.uint8)
    files = ImageFiles([str(i) for i in range(7)], (3, 4, 4), lambda file: array[int(file)])
    assert (files.shape, files.ndim) == (array.shape, array.ndim)
    assert (files.dtype, len(files)) == (array.dtype, len(array))
    rows = (np.array([6, 0, 6]), np.arange(7) % 2 == 0)
    for index in (slice(2, 5), slice(None, None, -2), slice(0, 0), *rows):
        np.testing.assert_array_equal(files[index], array[index])
    with pytest.raises(TypeError):
        np.array(files)  # would be all of them at once


def remove_captions(contents):
    for annotation in contents["annotations"]:
        del annotation["caption"]


def remove_one(contents):
    contents["annotations"] = [a for a in contents["annotations"] if a["id"] != 430]


def list_twice(contents):
    contents["images"].append(contents["images"][0])


def number_captions(contents):
    contents["annotations"][0]["caption"] = 3


LAYOUT = "must be a directory with train2017/, val2017/ and "
FILE = r"captions_train2017\.json: "
OTHER = rf"{FILE}not a captions file of COCO \("
DEFECTS = [
    (lambda r: shutil.rmtree(r / "val2017"), r"^dataset\.root=.*/val2017 is missing$"),
    (lambda r: captions(r).unlink(), rf"{LAYOUT}.*/captions_train2017\.json is missing$"),
    (
        lambda r: (r / "train2017" / name(25)).unlink(),
        rf"{FILE}000000000025\.jpg is not in .*train2017 \(1 of 5 such\)$",
    ),
    (
        lambda r: shutil.copy(captions(r, "val2017"), captions(r)),
        rf"{FILE}000000000139\.jpg is not in .*train2017 \(2 of 2 such\)$",
    ),
    (lambda r: edit(captions(r), list_twice), f"{FILE}lists an image twice"),
    (lambda r: edit(captions(r), number_captions), rf"{OTHER}TypeError: .*'int'"),
    (lambda r: captions(r).write_text("[" * 100_000), rf"{OTHER}RecursionError"),
    (lambda r: edit(captions(r), remove_captions), rf"{OTHER}KeyError: 'caption'\)$"),
    (
        lambda r: edit(captions(r), remove_one),
        rf"{FILE}000000000030\.jpg has 4 captions, not 5 \(1 such\)$",
    ),
    (lambda r: captions(r).write_text("{"), f"{OTHER}JSONDecodeError"),
    (lambda r: captions(r).write_text("[]"), f"{OTHER}TypeError"),
    (lambda r: write_captions(captions(r), []), f"{FILE}lists no images$"),
    (
        lambda r: (r / "val2017" / name(285)).write_bytes(b""),
        r"val2017/000000000285\.jpg: the file is empty \(1 such\)$",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), DEFECTS)
def test_a_defect_is_refused_by_name_before_an_image_is_decoded(
    root, dataset, decoded, spoil, message
):
    spoil(root)
    with pytest.raises(ConfigError, match=message) as caught:
        dataset.load()
    assert "\n" not in str(caught.value)
    assert decoded == []


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda b: b[: len(b) // 2], "image file is truncated"),
        (lambda b: b"JPEG" + b, "cannot identify"),
    ],
)
def test_a_damaged_image_is_refused_by_name_when_it_is_decoded(
    root, dataset, workspace, spoil, reason
):
    path = root / "train2017" / name(34)
    path.write_bytes(spoil(path.read_bytes()))
    spec = dataset_images(dataset, workspace.store)
    message = rf"train2017/000000000034\.jpg: not a readable image \({reason}"
    with pytest.raises(ConfigError, match=message) as caught:
        get(spec, workspace)
    assert "\n" not in str(caught.value)
    assert workspace.store.find(spec) is None


@pytest.fixture
def two_at_once(monkeypatch):
    """Images are written two by two."""
    monkeypatch.setattr(images_module, "WRITE_BYTES", 2 * 3 * SIZE * SIZE + 1)


@pytest.mark.usefixtures("two_at_once")
def test_every_image_is_decoded_once_in_blocks_and_written(
    root, dataset, workspace, decoded, monkeypatch
):
    indices, index = [], ImageFiles.__getitem__
    monkeypatch.setattr(
        ImageFiles, "__getitem__", lambda self, rows: indices.append(rows) or index(self, rows)
    )
    spec = dataset_images(dataset, workspace.store)
    assert decoded == [], "an image set is identified without decoding"
    path = get(spec, workspace).path
    assert indices == [slice(0, 2), slice(2, 4), slice(4, 5), slice(0, 2)]
    files = [str(root / "train2017" / name(i)) for i in TRAIN]
    assert sorted(decoded) == files + [str(root / "val2017" / name(i)) for i in VAL]
    for part, expected in zip(("train", "held_out"), dataset.load(), strict=True):
        written = read_images(path / part)
        np.testing.assert_array_equal(written.images, expected.images[:])
        assert (written.ids, written.captions) == (expected.ids, expected.captions)
        assert written.class_names == expected.class_names
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["total"]) for line in lines] == [(2, 7), (4, 7), (5, 7), (7, 7)]


@pytest.mark.usefixtures("two_at_once")
@pytest.mark.parametrize(("last", "left"), [(25, 7), (34, 5), (36, 3), (139, 2), (285, 2)])
def test_interrupted_while_decoding_and_resumed_is_bit_identical(
    dataset, workspace, tmp_path, monkeypatch, last, left
):
    spec = dataset_images(dataset, workspace.store)
    read, decoded = coco.read_image, []

    def interrupted(file, size):
        if file.endswith(name(last)):
            raise KeyboardInterrupt
        return read(file, size)

    with monkeypatch.context() as patch:
        patch.setattr(coco, "read_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(spec, workspace)
    assert workspace.store.find(spec) is None
    monkeypatch.setattr(coco, "read_image", lambda f, size: decoded.append(f) or read(f, size))
    resumed = get(spec, workspace).manifest["checksums"]
    assert len(decoded) == left, "what was written is not decoded again"
    store = Store(tmp_path / "uninterrupted")
    whole = get(spec, Workspace(store, workspace.compute, workspace.tracking, "test"))
    assert resumed == whole.manifest["checksums"]


@pytest.fixture
def content(root, workspace):
    """The digest of the images, under changes of the dataset."""

    def compute(root=root, size=SIZE):
        return digest(dataset_images(COCO(root=str(root), size=size), workspace.store))

    return compute


def lengthen(root: Path) -> None:
    with open(root / "val2017" / name(139), "ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    "change",
    [
        lambda contents: contents.pop("info"),
        lambda contents: contents.pop("licenses"),
        lambda contents: contents.update(info=[], licenses=None),
        lambda contents: contents["info"].update(year="2017"),
        lambda contents: contents["info"].update(year=2014),
        lambda contents: [image.pop("license") for image in contents["images"]],
        lambda contents: contents["annotations"].append({"image_id": 5, "id": 1, "caption": "x"}),
    ],
    ids=["no info", "no licences", "other kinds", "a text", "another year", "less", "more"],
)
def test_what_is_not_used_of_a_captions_file_is_not_checked(root, content, change):
    before = content()
    for part in ("train2017", "val2017"):
        edit(captions(root, part), change)
    assert content() == before


def test_the_split_of_2014_is_read_with_its_names(root, dataset):
    for part in ("train", "val"):
        names = {}
        (root / f"{part}2017").rename(root / f"{part}2014")
        for file in sorted((root / f"{part}2014").iterdir()):
            names[file.name] = f"COCO_{part}2014_{file.name}"
            file.rename(file.with_name(names[file.name]))
        captions(root, f"{part}2017").rename(captions(root, f"{part}2014"))
        edit(
            captions(root, f"{part}2014"),
            lambda c, n=names: [i.update(file_name=n[i["file_name"]]) for i in c["images"]],
        )
    train, held_out = COCO(root=str(root), size=SIZE, year=2014).load()
    assert train.ids == tuple(f"train2014/COCO_train2014_{name(i)}" for i in TRAIN)
    assert (len(held_out), train.images[:].shape) == (2, (5, 3, SIZE, SIZE))
    with pytest.raises(
        ConfigError, match=r"train2017 is missing|captions_train2017\.json is missing"
    ):
        dataset.load()
    with pytest.raises(ConfigError, match=r"^dataset\.year=2015: must be 2014 or 2017$"):
        COCO(year=2015).check("dataset")


def change_caption(contents: dict) -> None:
    next(a for a in contents["annotations"] if a["id"] == 436)["caption"] = "Another."


@pytest.mark.parametrize(
    "change",
    [lengthen, lambda root: edit(captions(root), change_caption)],
    ids=["a file", "a caption"],
)
def test_a_longer_file_or_another_caption_is_another_content(root, content, change):
    before = content()
    change(root)
    assert content() != before


def test_another_size_or_another_decoding_is_another_content(content, monkeypatch):
    before = content()
    assert content(size=SIZE + 1) != before
    monkeypatch.setattr(coco, "DECODING", coco.DECODING + 1)
    assert content() != before


def test_the_location_and_unlisted_files_do_not_change_the_content(root, content, tmp_path):
    before, moved = content(), tmp_path / "elsewhere"
    shutil.move(root, moved)
    photograph(moved / "train2017" / name(37), "RGB", (20, 20), 0)
    edit(captions(moved), lambda contents: contents["licenses"].append({"id": 1}))
    assert content(moved) == before


def test_a_file_that_is_repaired_in_place_is_noticed_until_images_are_written(
    root, dataset, workspace
):
    path, store = root / "train2017" / name(9), workspace.store
    whole, time = path.read_bytes(), os.stat(path.parent).st_mtime_ns
    path.write_bytes(whole[:-100])
    store.check_writable()
    record_images(dataset_images(dataset, store), store)
    with pytest.raises(ConfigError, match="truncated"):
        get(dataset_images(dataset, store), workspace)
    path.write_bytes(whole)
    assert os.stat(path.parent).st_mtime_ns == time, "the directory does not tell"
    repaired = dataset_images(dataset, store)
    record_images(repaired, store)
    assert store.find(repaired) is None
    get(repaired, workspace)
    assert cache_key(dataset_images(dataset, store)) == cache_key(repaired)


def test_the_layout_of_the_authors_has_the_same_images(root, dataset):
    """images/train2017, as in the paper's code; or train2017 alone, as in COCO's archives."""
    store = Store(root / "store")
    flat = cache_key(dataset_images(dataset, store))
    (root / "images").mkdir()
    for part in ("train2017", "val2017"):
        shutil.move(root / part, root / "images" / part)
    assert cache_key(dataset_images(dataset, store)) == flat
    train, _ = dataset.load()
    assert train.ids == tuple(f"train2017/{name(i)}" for i in TRAIN)
    assert train.images[:].shape == (5, 3, SIZE, SIZE)
    assert root / "images/train2017" in dataset.sources()
    (root / "train2017").mkdir()
    with pytest.raises(ConfigError, match="with train2017/ or images/train2017/, not both"):
        dataset.load()
