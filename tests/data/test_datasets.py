"""Archives, folders and embedded datasets: what is read from their formats, and their errors."""

import importlib.util
import json
import struct
from pathlib import Path

import miniatures
import numpy as np
import pytest
from conftest import TINY, command, succeeds
from PIL import Image

from journey.data.archive import Archive, TorchvisionArchive
from journey.data.embedded import MNIST5k, Twemoji
from journey.data.folder import Folder
from journey.engine.checks import ConfigError
from journey.pipeline.images import check_images, resize


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def cifar(tmp_path, random, monkeypatch):
    return tmp_path, miniatures.cifar10(tmp_path, random, monkeypatch)


def test_cifar10_is_read_as_it_was_written(cifar):
    root, pixels = cifar
    train, test = TorchvisionArchive(root=str(root)).load()
    for part in (train, test):
        check_images(part, "cifar10")
    assert (len(train), len(test), train.class_names) == (50, 10, tuple(miniatures.CLASSES))
    np.testing.assert_array_equal(train.images[13], pixels["data_batch_2"][3].reshape(3, 32, 32))
    assert (train.ids[13], test.ids[3]) == ("cifar10/train/00013", "cifar10/test/00003")
    assert train.describe(17) == "horse"


def test_real_images_keep_their_pixels_in_an_archive(tmp_path, monkeypatch):
    """The twenty images of CIFAR-10 that foolbox contains, written into batches."""
    folder = Path(importlib.util.find_spec("foolbox").origin).parent / "data"
    files = sorted(folder.glob("cifar10_*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])  # [20, 32, 32, 3]
    labels = [int(file.stem.rpartition("_")[2]) for file in files]
    assert pixels.shape == (20, 32, 32, 3)
    flat = pixels.transpose(0, 3, 1, 2).reshape(20, -1)  # the red plane first
    batches = {name: (flat[i::6], labels[i::6]) for i, name in enumerate(miniatures.BATCHES)}
    miniatures.write_batches(tmp_path, monkeypatch, batches)
    train, test = TorchvisionArchive(root=str(tmp_path)).load()
    images = np.concatenate([train.images, test.images]).transpose(0, 2, 3, 1)
    order = np.concatenate([np.arange(i, 20, 6) for i in range(6)])
    np.testing.assert_array_equal(images, pixels[order])
    assert [*train.labels, *test.labels] == [labels[j] for j in order]


def test_chosen_classes_are_labelled_in_their_order_and_balanced(cifar):
    root = str(cifar[0])
    archive = TorchvisionArchive(root=root, classes=["horse", "automobile"], num_train=6)
    train, test = archive.load()
    assert (archive.label, len(test)) == ("cifar10-horse-automobile-6", 2)
    assert train.class_names == ("horse", "automobile")
    assert [train.ids[i][-1] for i in np.flatnonzero(train.labels == 0)] == ["7"] * 3
    with pytest.raises(ConfigError, match=r"^dataset\.classes=\['zebra'\]: must be among airplane"):
        TorchvisionArchive(root=root, classes=["horse", "zebra"]).load()
    message = r"^dataset\.num_train=51: must be 0 \(all\) or at most the 50 there are"
    with pytest.raises(ConfigError, match=message):
        TorchvisionArchive(root=root, num_train=51).load()


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_a_missing_or_damaged_file_is_an_error_that_names_both_remedies(cifar, name):
    path = cifar[0] / "cifar-10-batches-py" / name
    path.write_bytes(path.read_bytes()[:-1])
    for problem in ("cifar10 is damaged", f"{name} is missing"):
        with pytest.raises(ConfigError) as caught:
            TorchvisionArchive(root=str(cifar[0])).load()
        message = str(caught.value)
        assert message.startswith(f"dataset.root={cifar[0]}: ")
        assert problem in message
        assert "set dataset.download=true, or put the files of the archive into" in message
        assert "\n" not in message
        path.unlink(missing_ok=True)


def test_an_experiment_runs_on_an_archive_and_is_refused_without_it(tmp_path, random):
    words = (*TINY, "dataset=fashion_mnist", "dataset.root=files", "method=[pixel,trak]")
    process = command(tmp_path, *words)
    missing = "files/FashionMNIST/raw/train-images-idx3-ubyte is missing"
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: dataset.root=files: {missing}")
    assert process.stderr.count("\n") == 1
    miniatures.idx(tmp_path / "files/FashionMNIST/raw", random, 80)
    succeeds(command(tmp_path, *words))
    result = json.loads((tmp_path / "reports/smoke/result.json").read_text())
    assert (result["dataset"], result["num_train"]) == ("fashion_mnist-60", 60)
    assert result["data"] == ["training: 60 images of 10 classes, without captions"]
    assert result["data"][0] in (tmp_path / "reports/smoke/index.html").read_text()
    assert (tmp_path / "reports/smoke/trajectories.png").exists()


@pytest.mark.parametrize("archive", [Archive.mnist, Archive.fashion_mnist])
def test_idx_files_are_read_and_get_a_border(tmp_path, random, archive):
    folder = tmp_path / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[archive.value] / "raw"
    pixels = miniatures.idx(folder, random)
    train, test = TorchvisionArchive(archive=archive, root=str(tmp_path)).load()
    assert train.images.shape == test.images.shape == (20, 1, 32, 32)
    np.testing.assert_array_equal(train.images[:, 0, 2:-2, 2:-2], pixels["train"])
    assert train.images[:, :, :2].max() == 0
    short = struct.pack(">4i", 2051, 20, 28, 28) + b"short"
    (folder / "train-images-idx3-ubyte").write_bytes(short)
    with pytest.raises(ConfigError, match=f"{archive.value} is damaged"):
        TorchvisionArchive(archive=archive, root=str(tmp_path)).load()


def idx_file(magic: int, *shape: int, value: int = 1) -> bytes:
    header = struct.pack(f">{1 + len(shape)}i", magic, *shape)
    return header + bytes([value]) * int(np.prod(shape))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-labels-idx1-ubyte", idx_file(2049, 15)),
        ("train-labels-idx1-ubyte", idx_file(2049, 25)),
        ("train-labels-idx1-ubyte", idx_file(2049, 20, value=10)),
        ("train-labels-idx1-ubyte", idx_file(2051, 20, 28, 28)),
        ("train-labels-idx1-ubyte", b""),
        ("train-images-idx3-ubyte", idx_file(2051, 20, 28, 14)),
        ("train-images-idx3-ubyte", idx_file(2051, 20, 28, 28)[:-1]),
        ("train-images-idx3-ubyte", idx_file(2051, 20, 28, 28) + b"x"),
        ("train-images-idx3-ubyte", idx_file(0x0D03, 20, 28, 28)),
        ("train-images-idx3-ubyte", b"\x1f\x8b\x08" + bytes(100)),  # still compressed
        ("t10k-images-idx3-ubyte", idx_file(2051, 0, 28, 28)),
    ],
)
def test_damaged_idx_files_are_refused_in_one_line(tmp_path, random, name, content):
    miniatures.idx(tmp_path / "MNIST/raw", random)
    (tmp_path / "MNIST/raw" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"^dataset\.root=.*: mnist is damaged \(.+\)") as caught:
        TorchvisionArchive(archive=Archive.mnist, root=str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def write_image(path, colour, size=(40, 24), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, of several sizes, formats and modes."""
    write_image(tmp_path / "cats/a.png", (255, 0, 0))
    write_image(tmp_path / "cats/b.jpg", (255, 0, 0), (100, 80))
    write_image(tmp_path / "cats/c.png", 200, mode="L")
    write_image(tmp_path / "dogs/a.png", (0, 0, 255, 0), mode="RGBA")
    write_image(tmp_path / "dogs/b.jpeg", (0, 0, 0, 255), mode="CMYK")
    return tmp_path


NAMES = ["cats/a.png", "cats/b.jpg", "cats/c.png", "dogs/a.png", "dogs/b.jpeg"]


def test_a_folder_of_classes_is_read(folder):
    train, held_out = Folder(root=str(folder), size=16).load()
    assert (len(train), len(held_out), train.images.shape[1:]) == (4, 1, (3, 16, 16))
    images = dict(zip((*train.ids, *held_out.ids), (*train.images, *held_out.images), strict=True))
    assert sorted(images) == NAMES
    assert train.class_names == ("cats", "dogs")
    np.testing.assert_array_equal(images["cats/a.png"][:, 3, 5], [255, 0, 0])
    np.testing.assert_array_equal(images["cats/c.png"][:, 3, 5], [200] * 3)
    np.testing.assert_array_equal(images["dogs/a.png"][:, 3, 5], [255] * 3)  # transparent: white
    assert images["dogs/b.jpeg"].max() < 30
    grey, _ = Folder(root=str(folder), size=16, channels=1).load()
    assert grey.images.shape[1] == 1


def test_a_folder_with_metadata_has_captions_and_labels(folder):
    rows = [{"file_name": name, "label": name[-3:], "text": f"a {name}"} for name in NAMES]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, held_out = Folder(root=str(folder)).load()
    assert {*train.captions, *held_out.captions} == {(f"a {name}",) for name in NAMES}
    assert train.class_names == ("jpg", "peg", "png")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cats/a.png", None, r"cats/a\.png: not a readable image"),
        ("metadata.jsonl", '{"file_name": "x.png"}', r"describes x\.png, which does not exist"),
        ("metadata.jsonl", "{}", r"metadata\.jsonl:1: must be a JSON object with a file_name"),
        ("metadata.jsonl", "3", r"metadata\.jsonl:1: must be a JSON object"),
        (
            "metadata.jsonl",
            '{"file_name": "cats/a.png", "text": "a cat"}',
            r"^cats/b\.jpg is not described in .*metadata\.jsonl \(4 such\)",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_by_file_name(folder, name, content, message):
    if content is None:
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    else:
        (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Folder(root=str(folder)).load()
    assert "\n" not in str(caught.value)


def test_a_folder_without_images_is_refused(tmp_path):
    message = r"^dataset\.root=.*: must be a directory with two images or more"
    with pytest.raises(ConfigError, match=message):
        Folder(root=str(tmp_path / "nothing")).load()


def test_mnist5k_is_balanced_and_averaged():
    train, held_out = MNIST5k(num_train=1000).load()
    for part in (train, held_out):
        check_images(part, "mnist5k")
    assert train.images.shape == (1000, 1, 16, 16)
    assert np.bincount(train.labels).tolist() == [100] * 10
    original, _ = MNIST5k(num_train=1000, size=28).load()
    assert original.ids == train.ids
    assert abs(original.images.mean() - train.images.mean()) < 1


def test_averaging_keeps_the_mean_and_the_same_size_keeps_the_pixels(random):
    images = random.integers(256, size=(3, 2, 28, 28), dtype=np.uint8)
    assert abs(resize(images, 14).astype(float).mean() - images.mean()) < 1
    np.testing.assert_array_equal(resize(images, 28), images)


@pytest.fixture(scope="module")
def emoji():
    return Twemoji().load()


def test_every_emoji_has_its_name_and_group_and_flags_of_regions_are_left_out(emoji):
    train, held_out = emoji
    texts = {}
    for part in emoji:
        check_images(part, "twemoji")
        groups = [part.class_names[label] for label in part.labels]
        names = [name for (name,) in part.captions]
        texts |= dict(zip(part.ids, zip(names, groups, strict=True), strict=True))
    assert (len(train), len(held_out), len(texts)) == (1600, 59, 1659)
    assert texts["twemoji/1f34e"] == ("red apple", "Food & Drink")
    assert texts["twemoji/1f469-200d-1f52c"] == ("woman scientist", "People & Body")
    assert texts["twemoji/2764"] == ("red heart", "Smileys & Emotion")
    codes = set("-".join(name[8:] for name in texts).split("-"))
    assert not any("1f1e6" <= code <= "1f1ff" or "1f3fb" <= code <= "1f3ff" for code in codes)


def test_an_emoji_is_on_white_and_averaged(emoji):
    train = emoji[0]
    apple = train.images[train.ids.index("twemoji/1f34e")]
    assert apple.shape == (3, 32, 32)
    assert (apple[:, 0, 0] == 255).all()
    red, green, blue = apple[:, 20, 16].astype(int)
    assert red > 180 > 100 > max(green, blue)


def test_a_group_is_held_out_in_proportion(emoji):
    train, held_out = (np.bincount(part.labels, minlength=10) for part in emoji)
    fraction = held_out / (train + held_out)
    assert (abs(fraction - 59 / 1659) * (train + held_out) < 1).all()


def test_skin_tones_are_the_same_drawings_in_other_colours():
    train, held_out = Twemoji(num_train=3000, skin_tones=True).load()
    captions = {caption for (caption,) in (*train.captions, *held_out.captions)}
    assert len(train) + len(held_out) == 3694
    assert {"waving hand", "waving hand dark skin tone"} <= captions
    with pytest.raises(ConfigError, match=r"dataset\.num_train=1700: must be in 1…1659"):
        Twemoji(num_train=1700).load()
