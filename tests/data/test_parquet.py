"""Parquet files as the library `datasets` writes them; it is the oracle."""

import builtins
import io
import json
import zlib
from dataclasses import replace

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from journey.data.archive import Archive, TorchvisionArchive
from journey.data.folder import Folder, HeldOut
from journey.engine.checks import ConfigError
from journey.pipeline.images import check_images

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIZES = {"train": 20, "test": 10}


def write(folder, split, num_files=1, seed=0, column="img", captions=False, size=(32, 32)) -> None:
    """Write a split as the hub has it, in some files."""
    folder.mkdir(parents=True, exist_ok=True)
    random, count = np.random.default_rng(seed), SIZES[split]
    pixels = random.integers(256, size=(count, *size[::-1], 3), dtype=np.uint8)
    table = {column: [Image.fromarray(p) for p in pixels]}
    table["label"] = [i % len(CLASSES) for i in range(count)]
    features = {column: datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    if captions:
        table["text"] = [f"a {CLASSES[i]}, {split} {row}" for row, i in enumerate(table["label"])]
        features["text"] = datasets.Value("string")
    data = datasets.Dataset.from_dict(table, datasets.Features(features))
    for index in range(num_files):
        part = data.shard(num_files, index, contiguous=True)
        part.to_parquet(folder / f"{split}-{index:05d}-of-{num_files:05d}.parquet")


@pytest.fixture
def hub(tmp_path):
    """Return a copy of the hub's repository of CIFAR-10, with few images."""
    write(tmp_path / "plain_text", "train", num_files=3)
    write(tmp_path / "plain_text", "test", seed=1)
    return tmp_path


def oracle(folder, split, tmp_path) -> datasets.Dataset:
    files = sorted(str(path) for path in folder.glob(f"{split}-*.parquet"))
    return datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))


def test_cifar10_of_the_hub_is_read_as_datasets_reads_it(hub, tmp_path):
    dataset = TorchvisionArchive(root=str(hub))
    for part, split in zip(dataset.load(), ("train", "test"), strict=True):
        check_images(part, split)
        expected = oracle(hub / "plain_text", split, tmp_path)
        pixels = np.stack([np.asarray(row["img"]).transpose(2, 0, 1) for row in expected])
        np.testing.assert_array_equal(part.images, pixels)
        assert part.labels.tolist() == expected["label"]
        assert list(part.class_names) == expected.features["label"].names
        assert part.ids[3] == f"cifar10/hub-{split}/000003"
    assert len(dataset.sources()) == 4
    two = replace(dataset, classes=["automobile", "horse"], num_train=2).load()
    assert [part.labels.tolist() for part in two] == [[0, 1], [0, 1]]
    assert two[1].ids == ("cifar10/hub-test/000001", "cifar10/hub-test/000007")


def test_grey_images_and_other_sizes(tmp_path):
    write(tmp_path, "train", size=(40, 32))
    write(tmp_path, "test")
    with pytest.raises(ConfigError, match=r"train-.*: row 1: img: has 40×32 pixels, not 32×32"):
        TorchvisionArchive(root=str(tmp_path)).load()
    with pytest.raises(ConfigError, match="has 40×32 pixels, not 28×28"):
        TorchvisionArchive(Archive.mnist, root=str(tmp_path)).load()


def test_a_folder_of_parquet_files(tmp_path):
    root = tmp_path / "hub"
    write(root / "data", "train", 2, column="image", captions=True, size=(24, 16))
    dataset = Folder(root=str(root), size=8, held_out=HeldOut.auto)
    train, held_out = dataset.load()
    assert (len(train), len(held_out), train.images.shape[1:]) == (18, 2, (3, 8, 8))
    write(root / "data", "test", 1, 1, "image", True, (24, 16))
    train, held_out = dataset.load()
    for part, split in ((train, "train"), (held_out, "test")):
        check_images(part, split)
        expected = oracle(root / "data", split, tmp_path)
        assert part.captions == tuple((text,) for text in expected["text"])
        assert [part.class_names[i] for i in part.labels] == [CLASSES[i] for i in expected["label"]]
        # The same files, saved as pictures beside each other, give the same pixels.
        pictures = tmp_path / f"pictures-{split}"
        pictures.mkdir()
        for row, example in enumerate(expected):
            example["image"].save(pictures / f"{row:03d}.png")
        again = Folder(root=str(pictures), size=8).load()
        found = {name: image for p in again for name, image in zip(p.ids, p.images, strict=True)}
        assert all((found[f"{row:03d}.png"] == x).all() for row, x in enumerate(part.images))
    assert dataset.notes() == [f"{root}: Parquet, 2 files of train, 1 files of test"]
    everything = replace(dataset, held_out=HeldOut.random, num_train=25).load()
    assert [len(part) for part in everything] == [25, 5]
    assert {name.partition("/")[0] for name in everything[0].ids} == {"train", "test"}
    grey = replace(dataset, channels=1, label_column="label", caption_column="text").load()[0]
    assert grey.images.shape == (20, 1, 8, 8)


IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def png(size=(8, 8), **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG", **options)
    return file.getvalue()


def bomb() -> bytes:
    """Return a PNG that says that it has 10¹⁰ pixels."""
    content = bytearray(png())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def table(images=None, **columns) -> pyarrow.Table:
    rows = [{"bytes": png(), "path": None}] * 3 if images is None else images
    return pyarrow.table({"image": pyarrow.array(rows, IMAGE), **columns})


def labelled(labels, names) -> pyarrow.Table:
    """Return three images with labels whose ClassLabel has some names."""
    features = {"label": {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return table(label=labels).replace_schema_metadata(metadata)


def images(*contents) -> list[dict]:
    good = {"bytes": png(), "path": "a.png"}
    return [good, *({"bytes": content, "path": "b.png"} for content in contents)]


REFUSED = {
    "no images": (pyarrow.table({"label": [1, 2]}), r"one column of images, .*it has none \(colum"),
    "two columns": (
        table(image2=pyarrow.array(images(png(), png()), IMAGE)), "it has image, image2 ",
    ),
    "a path alone": (table(images(None)), r"row 2: image: has no bytes of an image; files that"),
    "no image": (table([{"bytes": png(), "path": ""}, None]), r"row 2: image: has no bytes"),
    "empty": (table(images(b"")), r"row 2: image: has no bytes"),
    "cut": (table(images(png((64, 64))[:90])), r"row 2: image: not a readable image \("),
    "a text": (table(images(b"<svg></svg>")), r"row 2: image: not a readable image \("),
    "a bomb": (table(images(bomb())), r"row 2: image: not a readable image \(.*bomb"),
    "frames": (
        table(images(png(save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")]))),
        r"row 2: image: not a readable image \(it has 2 frames",
    ),
    "real labels": (table(label=[1.0, 2.0, 3.0]), r"row 1: label=1\.0: must be a text or a whole"),
    "no label": (table(label=[1, None, 2]), r"row 2: label=None: must be a text or a whole number"),
    "booleans": (table(label=[True, False, True]), r"row 1: label=True: must be a text or"),
    "large label": (labelled([0, 1, 2], ["a", "b"]), r"row 3: label=2: must be in 0…1, a ClassLab"),
    "negative label": (labelled([-1, 0, 1], ["a", "b"]), r"row 1: label=-1: must be in 0…1"),
    "text for a ClassLabel": (labelled(["a"] * 3, ["a"]), r"row 1: label=a: must be in 0…0"),
    "no names": (labelled([0, 0, 0], None), "names of its ClassLabel must be distinct texts"),
    "names twice": (labelled([0, 0, 0], ["a", "a"]), "names of its ClassLabel must be distinct"),
    "captions": (table(text=["a", None, "b"]), r"row 2: text=null: must be a text, or a list of"),
    "two of captions": (table(text=["a"] * 3, caption=["a"] * 3), r"captions in several columns"),
    "uneven captions": (table(text=[["a"], ["a", "b"], ["c"]]), "as many captions of each"),
    "metadata": (
        table().replace_schema_metadata({"huggingface": "[1"}), "its metadata of datasets cannot b",
    ),
    "no rows": (table([]), r"parquet: has no rows"),
}  # fmt: skip


def read(folder) -> None:
    for part in Folder(root=str(folder), size=8).load():
        check_images(part, "dataset")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_with_file_row_and_column(case, tmp_path):
    content, message = REFUSED[case]
    pyarrow.parquet.write_table(content, tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def damaged(change):
    """Return a function that writes a Parquet file, some of whose bytes are changed."""

    def save(folder):
        file = io.BytesIO()
        pyarrow.parquet.write_table(table(label=["a", "b", "c"]), file)
        (folder / "train-00000-of-00001.parquet").write_bytes(change(file.getvalue()))

    return save


def copies(*names):
    def save(folder):
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            pyarrow.parquet.write_table(table(), folder / name)

    return save


ONE = "train-00000-of-00001.parquet"
UNREADABLE = {
    "empty": (damaged(lambda _: b""), "not a readable Parquet file"),
    "cut": (damaged(lambda content: content[:-20]), "not a readable Parquet file"),
    "a text": (damaged(lambda _: b"image,label\n"), "not a readable Parquet file"),
    "zeros inside": (
        damaged(lambda content: content[:40] + bytes(200) + content[240:]),
        "not a readable (Parquet file|image)",
    ),
    "a missing file": (copies("train-00001-of-00003.parquet"), "train-00000-of-00003.parquet is m"),
    "two folders": (copies(f"a/{ONE}", f"b/{ONE}"), "file of train has the same number|folders a,"),
    "two counts": (copies(ONE, "train-00001-of-00002.parquet"), "same number, or other counts"),
    "another split": (copies(ONE, "extra-00000-of-00001.parquet"), "the split extra of extra-0000"),
    "no training": (copies("test-00000-of-00001.parquet"), "has the split test and no split train"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_files_that_cannot_be_read_are_refused_in_one_line(case, tmp_path):
    save, message = UNREADABLE[case]
    save(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        Folder(root=str(tmp_path), size=8).load()
    assert "\n" not in str(caught.value)


def test_pictures_beside_parquet_files_are_refused(tmp_path):
    copies(ONE)(tmp_path)
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(ConfigError, match=r"has Parquet files and a\.png; move one of them away"):
        Folder(root=str(tmp_path), size=8).load()


def test_without_pyarrow_one_line_says_to_install_it(hub, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs pyarrow: pip install 'journey\[data\]'$"):
        TorchvisionArchive(root=str(hub)).load()
