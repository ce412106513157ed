"""Datasets on miniatures in their own formats, and their errors."""

import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
from conftest import TINY, command, succeeds
from PIL import Image
from torchvision import datasets

from journey.config.checks import ConfigError
from journey.data import check
from journey.data.archive import Archive, TorchvisionArchive
from journey.data.folder import Folder
from journey.data.mnist5k import MNIST5k
from journey.data.resizing import resized

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def random():
    return np.random.default_rng(0)


# -------------------------------------------------------------------------------------------------- archives


@pytest.fixture
def cifar(tmp_path, random, monkeypatch):
    """Ten images a batch, pickled as the archive's are, with their own checksums."""
    folder, sums, pixels = tmp_path / "cifar-10-batches-py", {}, {}
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        pixels[name] = random.integers(256, size=(10, 3072), dtype=np.uint8)
        batch = {"data": pixels[name], "labels": list(range(10))} if "meta" not in name else {"label_names": CLASSES}
        (folder / name).write_bytes(pickle.dumps(batch))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    train = [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]})
    return tmp_path, pixels


def test_cifar10_is_read_as_it_is_written(cifar):
    root, pixels = cifar
    train, test = TorchvisionArchive(root=str(root)).load()
    for part in (train, test):
        check(part, "cifar10")
    assert (len(train), len(test), train.class_names) == (50, 10, tuple(CLASSES))
    np.testing.assert_array_equal(train.images[13], pixels["data_batch_2"][3].reshape(3, 32, 32))
    assert (train.ids[13], test.ids[3]) == ("cifar10/train/00013", "cifar10/test/00003")
    assert train.describe(17) == "horse"


def test_some_classes_are_labelled_in_their_order_and_balanced(cifar):
    train, test = TorchvisionArchive(root=str(cifar[0]), classes=["horse", "automobile"], num_train=6).load()
    assert train.class_names == ("horse", "automobile")
    assert [train.ids[i][-1] for i in np.flatnonzero(train.labels == 0)] == ["7"] * 3
    assert len(test) == 2
    with pytest.raises(ConfigError, match=r"^dataset\.classes=\['zebra'\]: must be among airplane, "):
        TorchvisionArchive(root=str(cifar[0]), classes=["horse", "zebra"]).load()
    with pytest.raises(ConfigError, match=r"^dataset\.num_train=51: must be 0 \(all\) or at most the 50 there are"):
        TorchvisionArchive(root=str(cifar[0]), num_train=51).load()


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_a_missing_or_damaged_file_of_an_archive_is_one_line_with_both_ways_to_get_it(cifar, name):
    path = cifar[0] / "cifar-10-batches-py" / name
    path.write_bytes(path.read_bytes()[:-1])
    for said in ("cifar10 is damaged", f"{name} is missing"):
        with pytest.raises(ConfigError) as caught:
            TorchvisionArchive(root=str(cifar[0])).load()
        message = str(caught.value)
        assert message.startswith(f"dataset.root={cifar[0]}: ")
        assert said in message
        assert "dataset.download=true gets it, or put the files of the archive into" in message
        assert "\n" not in message
        path.unlink(missing_ok=True)


def idx(folder, random, count=20):
    """Images and labels as MNIST has them; returns the pixels of both parts."""
    folder.mkdir(parents=True)
    pixels = {part: random.integers(256, size=(count, 28, 28), dtype=np.uint8) for part in ("train", "t10k")}
    for part, images in pixels.items():
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return pixels


def test_an_archive_goes_the_whole_road_and_is_refused_before_it_where_it_is_not(tmp_path, random):
    words = (*TINY, "dataset=fashion_mnist", "dataset.root=files", "method=[pixel,trak]")
    done = command(tmp_path, *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: dataset.root=files: files/FashionMNIST/raw/train-images-idx3-ubyte is missing")
    assert done.stderr.count("\n") == 1
    idx(tmp_path / "files/FashionMNIST/raw", random, 80)
    succeeds(tmp_path, *words)
    result = json.loads((tmp_path / "reports/smoke/result.json").read_text())
    assert (result["dataset"], result["num_train"]) == ("fashion_mnist-60", 60)
    assert (tmp_path / "reports/smoke/journeys.png").exists()


@pytest.mark.parametrize("archive", [Archive.mnist, Archive.fashion_mnist])
def test_idx_files_are_read_and_bordered(tmp_path, random, archive):
    folder = tmp_path / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[archive.value] / "raw"
    pixels = idx(folder, random)
    train, test = TorchvisionArchive(archive=archive, root=str(tmp_path)).load()
    assert train.images.shape == test.images.shape == (20, 1, 32, 32)
    np.testing.assert_array_equal(train.images[:, 0, 2:-2, 2:-2], pixels["train"])
    assert train.images[:, :, :2].max() == 0
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 20, 28, 28) + b"short")
    with pytest.raises(ConfigError, match=f"{archive.value} is damaged"):
        TorchvisionArchive(archive=archive, root=str(tmp_path)).load()


# --------------------------------------------------------------------------------------- what a package carries


def test_mnist5k_is_balanced_and_averaged():
    train, held_out = MNIST5k(num_train=1000).load()
    for part in (train, held_out):
        check(part, "mnist5k")
    assert train.images.shape == (1000, 1, 16, 16)
    assert np.bincount(train.labels).tolist() == [100] * 10
    whole, _ = MNIST5k(num_train=1000, size=28).load()
    assert whole.ids == train.ids
    assert abs(whole.images.mean() - train.images.mean()) < 1


def test_an_image_that_is_averaged_keeps_its_mean_and_one_that_fits_its_pixels(random):
    images = random.integers(256, size=(3, 2, 28, 28), dtype=np.uint8)
    assert abs(resized(images, 14).astype(float).mean() - images.mean()) < 1
    np.testing.assert_array_equal(resized(images, 28), images)


# ----------------------------------------------------------------------------------------------------- folders


def image(path, colour, size=(40, 24), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, of several sizes, formats and modes."""
    image(tmp_path / "cats/a.png", (255, 0, 0))
    image(tmp_path / "cats/b.jpg", (255, 0, 0), (100, 80))
    image(tmp_path / "cats/c.png", 200, mode="L")
    image(tmp_path / "dogs/a.png", (0, 0, 255, 0), mode="RGBA")
    image(tmp_path / "dogs/b.jpeg", (0, 0, 0, 255), mode="CMYK")
    return tmp_path


def test_a_folder_of_classes(folder):
    train, held_out = Folder(root=str(folder), size=16).load()
    assert (len(train), len(held_out), train.images.shape[1:]) == (4, 1, (3, 16, 16))
    both = {name: part.images[i] for part in (train, held_out) for i, name in enumerate(part.ids)}
    assert set(both) == {"cats/a.png", "cats/b.jpg", "cats/c.png", "dogs/a.png", "dogs/b.jpeg"}
    assert train.class_names == ("cats", "dogs")
    np.testing.assert_array_equal(both["cats/a.png"][:, 3, 5], [255, 0, 0])
    np.testing.assert_array_equal(both["cats/c.png"][:, 3, 5], [200] * 3)
    np.testing.assert_array_equal(both["dogs/a.png"][:, 3, 5], [255] * 3)  # transparent: white
    assert both["dogs/b.jpeg"].max() < 30
    grey, _ = Folder(root=str(folder), size=16, channels=1).load()
    assert grey.images.shape[1] == 1


def test_a_folder_with_metadata_has_captions_and_labels(folder):
    names = ["cats/a.png", "cats/b.jpg", "cats/c.png", "dogs/a.png", "dogs/b.jpeg"]
    rows = [{"file_name": name, "label": name[-3:], "text": f"a {name}"} for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, held_out = Folder(root=str(folder)).load()
    assert {*train.captions, *held_out.captions} == {(f"a {name}",) for name in names}
    assert train.class_names == ("jpg", "peg", "png")


def uncaptioned(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "cats/a.png", "text": "a cat"}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "cats/a.png").write_bytes((f / "cats/a.png").read_bytes()[:60]), r"cats/a\.png: no readable image"),
        (lambda f: (f / "metadata.jsonl").write_text('{"file_name": "x.png"}'), r"x\.png is described and not there"),
        (lambda f: (f / "metadata.jsonl").write_text("{}"), r"metadata\.jsonl:1: no JSON object with a file_name"),
        (lambda f: (f / "metadata.jsonl").write_text("3"), r"metadata\.jsonl:1: no JSON object"),
        (uncaptioned, r"must be captioned throughout: \['cats/b\.jpg'\] has no text"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_by_the_name_of_its_file(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        Folder(root=str(folder)).load()
    assert "\n" not in str(caught.value)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^dataset\.root=.*: must be a directory with two images or more"):
        Folder(root=str(tmp_path / "nothing")).load()
