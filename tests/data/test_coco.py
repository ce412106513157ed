"""MS COCO on a miniature in its own formats: what is read, what is refused, and that nothing is decoded too early or at once."""

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
from journey.pipeline.images import Decoded, check_images, read_images

SIZE = 16
TRAIN = {  # by id: the mode and size of an image
    9: ("RGB", (40, 24)),
    25: ("RGB", (24, 41)),
    30: ("L", (32, 32)),
    34: ("CMYK", (30, 20)),
    36: ("RGB", (16, 16)),
}
VAL = {139: ("RGB", (64, 48)), 285: ("L", (20, 20))}


def captions(root: Path, part: str = "train2017") -> Path:
    return root / f"annotations/captions_{part}.json"


@pytest.fixture
def root(tmp_path):
    miniatures.coco(tmp_path / "coco", TRAIN, VAL)
    return tmp_path / "coco"


def edit(path: Path, change) -> None:
    """Change a JSON file in place."""
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded, in no certain order."""
    files, decode = [], coco._decode
    monkeypatch.setattr(
        coco, "_decode", lambda file, size: files.append(file) or decode(file, size)
    )
    return files


# ------------------------------------------------------------------------------------------------ what is read


def test_images_are_in_order_with_five_captions_and_not_decoded(root, decoded, capsys):
    train, held_out = COCO(root=str(root), size=SIZE).load()
    for part in (train, held_out):
        check_images(part, "coco")
    assert train.ids == tuple(f"train2017/{name(i)}" for i in TRAIN)
    assert held_out.ids == tuple(f"val2017/{name(i)}" for i in VAL)
    assert train.captions == tuple(tuple(f"Caption {k} of {i}." for k in range(5)) for i in TRAIN)
    assert (train.images.shape, held_out.images.shape) == ((5, 3, SIZE, SIZE), (2, 3, SIZE, SIZE))
    assert (train.labels.tolist(), train.class_names, train.describe(1)) == (
        [0] * 5,
        ("coco",),
        "Caption 0 of 25.",
    )
    assert decoded == []
    assert capsys.readouterr().out == "", "its reader is silent"


@pytest.mark.parametrize("size", [SIZE, 20])
def test_an_image_is_its_middle_square_in_colour(root, size):
    train, _ = COCO(root=str(root), size=size).load()
    squares = {
        9: (8, 0, 32, 24),
        25: (0, 8.5, 24, 32.5),
        30: (0, 0, 32, 32),
        34: (5, 0, 25, 20),
        36: (0, 0, 16, 16),
    }
    images = train.images[:]
    for image, (image_id, box) in zip(images, squares.items(), strict=True):
        file = Image.open(root / "train2017" / name(image_id)).convert("RGB")
        expected = np.asarray(file.resize((size, size), Image.Resampling.LANCZOS, box))
        np.testing.assert_array_equal(image, expected.transpose(2, 0, 1))
    assert (images[2, 0] == images[2, 2]).all(), "grey"


def test_what_is_indexed_is_what_an_array_would_give():
    whole = np.random.default_rng(0).integers(256, size=(7, 3, 4, 4), dtype=np.uint8)
    images = Decoded([str(i) for i in range(7)], (3, 4, 4), lambda file: whole[int(file)])
    assert (images.shape, images.ndim, images.dtype, len(images)) == (
        whole.shape,
        whole.ndim,
        whole.dtype,
        len(whole),
    )
    for index in (
        slice(2, 5),
        slice(None, None, -2),
        np.array([6, 0, 6]),
        np.arange(7) % 2 == 0,
        slice(0, 0),
    ):
        np.testing.assert_array_equal(images[index], whole[index])
    with pytest.raises(TypeError):
        np.array(images)  # would be all of them at once


# ---------------------------------------------------------------------------------------------- what is refused


def without_captions(contents):
    for annotation in contents["annotations"]:
        del annotation["caption"]


def of_four(contents):
    contents["annotations"] = [
        a for a in contents["annotations"] if (a["image_id"], a["id"]) != (30, 430)
    ]


LISTED = {
    "a directory is missing": (
        lambda root: shutil.rmtree(root / "val2017"),
        r"^dataset\.root=.*/val2017 is missing$",
    ),
    "captions are missing": (
        lambda root: captions(root).unlink(),
        r"^dataset\.root=.*: must be a directory with train2017/, val2017/ and .*/captions_train2017\.json is missing$",
    ),
    "an image is missing": (
        lambda root: (root / "train2017" / name(25)).unlink(),
        r"captions_train2017\.json: 000000000025\.jpg is not in .*train2017 \(1 of 5 such\)$",
    ),
    "captions of other images": (
        lambda root: shutil.copy(captions(root, "val2017"), captions(root)),
        r"captions_train2017\.json: 000000000139\.jpg is not in .*train2017 \(2 of 2 such\)$",
    ),
    "captions of another year": (
        lambda root: write_captions(captions(root), list(TRAIN), 2014),
        r"captions_train2017\.json: info\.year=2014: must be 2017$",
    ),
    "other annotations": (
        lambda root: edit(captions(root), without_captions),
        r"captions_train2017\.json: no captions of COCO \(KeyError: 'caption'\)$",
    ),
    "too few captions": (
        lambda root: edit(captions(root), of_four),
        r"captions_train2017\.json: 000000000030\.jpg has 4 captions, not 5 \(1 such\)$",
    ),
    "no JSON": (
        lambda root: captions(root).write_text("{"),
        r"captions_train2017\.json: no captions of COCO \(JSONDecodeError",
    ),
    "no object": (
        lambda root: captions(root).write_text("[]"),
        r"captions_train2017\.json: no captions of COCO \(AssertionErr",
    ),
    "no images": (
        lambda root: write_captions(captions(root), []),
        r"captions_train2017\.json: lists no image$",
    ),
    "an empty file": (
        lambda root: (root / "val2017" / name(285)).write_bytes(b""),
        r"val2017/000000000285\.jpg: an empty file \(1 such\)$",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), LISTED.values(), ids=LISTED)
def test_what_a_look_can_show_is_refused_by_name_before_anything_is_decoded(
    root, decoded, spoil, message
):
    spoil(root)
    with pytest.raises(ConfigError, match=message) as caught:
        COCO(root=str(root)).load()
    assert "\n" not in str(caught.value)
    assert decoded == []


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda b: b[: len(b) // 2], "image file is truncated"),
        (lambda b: b"JPEG" + b, "cannot identify"),
    ],
)
def test_a_damaged_image_is_refused_by_name_when_it_is_decoded(root, workspace, spoil, reason):
    path = root / "train2017" / name(34)
    path.write_bytes(spoil(path.read_bytes()))
    spec = dataset_images(COCO(root=str(root), size=SIZE), workspace.store)
    with pytest.raises(
        ConfigError, match=rf"train2017/000000000034\.jpg: no readable image \({reason}"
    ) as caught:
        get(spec, workspace)
    assert "\n" not in str(caught.value)
    assert workspace.store.find(spec) is None


# ------------------------------------------------------------------------------------------------ what is kept


@pytest.fixture
def two_at_once(monkeypatch):
    """Images are written two by two."""
    monkeypatch.setattr(images_module, "BLOCK", 2 * 3 * SIZE * SIZE + 1)


@pytest.mark.usefixtures("two_at_once")
def test_every_image_is_decoded_once_a_block_at_a_time_and_kept(
    root, workspace, decoded, monkeypatch
):
    asked, index = [], Decoded.__getitem__
    monkeypatch.setattr(
        Decoded, "__getitem__", lambda self, rows: asked.append(rows) or index(self, rows)
    )
    dataset = COCO(root=str(root), size=SIZE)
    spec = dataset_images(dataset, workspace.store)
    assert decoded == [], "to know them takes a look"
    path = get(spec, workspace).path
    assert asked == [slice(0, 2), slice(2, 4), slice(4, 5), slice(0, 2)]
    assert sorted(decoded) == [str(root / "train2017" / name(i)) for i in TRAIN] + [
        str(root / "val2017" / name(i)) for i in VAL
    ]
    for part, given in zip(("train", "held_out"), dataset.load(), strict=True):
        kept = read_images(path / part)
        np.testing.assert_array_equal(kept.images, given.images[:])
        assert (kept.ids, kept.captions, kept.class_names) == (
            given.ids,
            given.captions,
            given.class_names,
        )
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["of"]) for line in lines] == [(2, 7), (4, 7), (5, 7), (7, 7)]


@pytest.mark.usefixtures("two_at_once")
@pytest.mark.parametrize(("last", "left"), [(25, 7), (34, 5), (36, 3), (139, 2), (285, 2)])
def test_interrupted_while_decoding_and_resumed_is_bit_identical(
    root, workspace, tmp_path, monkeypatch, last, left
):
    spec = dataset_images(COCO(root=str(root), size=SIZE), workspace.store)
    decode, decoded = coco._decode, []

    def interrupted(file, size):
        if file.endswith(name(last)):
            raise KeyboardInterrupt
        return decode(file, size)

    with monkeypatch.context() as patch:
        patch.setattr(coco, "_decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(spec, workspace)
    assert workspace.store.find(spec) is None
    monkeypatch.setattr(
        coco, "_decode", lambda file, size: decoded.append(file) or decode(file, size)
    )
    resumed = get(spec, workspace).manifest["checksums"]
    assert len(decoded) == left, "what was written is not decoded again"
    alone = get(
        spec, Workspace(Store(tmp_path / "alone"), workspace.compute, workspace.tracking, "test")
    )
    assert resumed == alone.manifest["checksums"]


# ------------------------------------------------------------------------------------------- what identifies it


def digest_of(root: Path, workspace: Workspace, size: int = SIZE) -> str:
    return digest(dataset_images(COCO(root=str(root), size=size), workspace.store))


def longer(root: Path) -> None:
    with open(root / "val2017" / name(139), "ab") as file:
        file.write(b"\0")


def another_caption(contents: dict) -> None:
    next(a for a in contents["annotations"] if a["id"] == 436)["caption"] = "Another."


@pytest.mark.parametrize(
    "change",
    [longer, lambda root: edit(captions(root), another_caption)],
    ids=["a file", "a caption"],
)
def test_a_file_of_another_length_or_another_caption_is_another_content(root, workspace, change):
    before = digest_of(root, workspace)
    change(root)
    assert digest_of(root, workspace) != before


def test_another_size_or_another_decoding_is_another_content(root, workspace, monkeypatch):
    before = digest_of(root, workspace)
    assert digest_of(root, workspace, size=SIZE + 1) != before
    monkeypatch.setattr(coco, "DECODING", coco.DECODING + 1)
    assert digest_of(root, workspace) != before


def test_where_it_lies_and_what_is_not_listed_are_no_part_of_it(root, workspace, tmp_path):
    before = digest_of(root, workspace)
    shutil.move(root, tmp_path / "elsewhere")
    photograph(tmp_path / "elsewhere/train2017" / name(37), "RGB", (20, 20), 0)
    edit(captions(tmp_path / "elsewhere"), lambda contents: contents["licenses"].append({"id": 1}))
    assert digest_of(tmp_path / "elsewhere", workspace) == before


def test_a_file_that_is_mended_in_its_place_is_seen_while_images_are_not_kept(root, workspace):
    """Its directory has the time it had."""
    dataset, path, store = (
        COCO(root=str(root), size=SIZE),
        root / "train2017" / name(9),
        workspace.store,
    )
    whole, time = path.read_bytes(), os.stat(path.parent).st_mtime_ns
    path.write_bytes(whole[:-100])
    store.writable()
    record_images(dataset_images(dataset, store), store)
    with pytest.raises(ConfigError, match="truncated"):
        get(dataset_images(dataset, store), workspace)
    path.write_bytes(whole)
    assert os.stat(path.parent).st_mtime_ns == time
    mended = dataset_images(dataset, store)
    record_images(mended, store)
    assert store.find(mended) is None
    get(mended, workspace)
    assert cache_key(dataset_images(dataset, store)) == cache_key(mended)
