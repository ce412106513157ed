"""Images of a Python program: arrays and tensors."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, InThisProcess, refused

import journey
from journey.data.arrays import Arrays
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.experiment import dataset_images
from journey.launch.local import Local
from journey.pipeline.images import ImageSet, read_images

GUIDE = (Path(__file__).parents[2] / "docs/your-own.md").read_text()
PIXELS = np.random.default_rng(0).integers(256, size=(12, 3, 8, 8), dtype=np.uint8)
LABELS = [0, 1] * 6


def stored(tmp_path, *arguments, **named) -> tuple[ImageSet, ImageSet, str]:
    """Return the training and held-out images that are stored, and their content."""
    words = journey.add_images(*arguments, artifacts=str(tmp_path), **named)
    store = Store(tmp_path)
    spec = dataset_images(Arrays(content=words[1].partition("=")[2]), store)
    path = store.find(spec).path
    return read_images(path / "train"), read_images(path / "held_out"), words[1]


def test_arrays_and_tensors_of_the_same_pixels_are_the_same_dataset(tmp_path):
    train, held_out, content = stored(tmp_path, PIXELS, LABELS, num_held_out=4)
    np.testing.assert_array_equal(train.images, PIXELS[:8])
    np.testing.assert_array_equal(held_out.images, PIXELS[8:])
    assert (train.labels.tolist(), train.class_names) == (LABELS[:8], ("0", "1"))
    assert (train.captions, train.ids[:2], held_out.ids[0]) == (
        None,
        ("000000", "000001"),
        "000008",
    )
    tensor, unit = torch.from_numpy(PIXELS), torch.from_numpy(PIXELS).double() / 255
    labels, range01, range11 = torch.tensor(LABELS), (0, 1), (-1, 1)
    same = [
        stored(tmp_path, tensor, labels, num_held_out=4),
        stored(tmp_path, unit, labels, num_held_out=4, value_range=range01),
        stored(tmp_path, (2 * unit - 1).float(), np.array(LABELS), None, None, None, 4, range11),
    ]
    assert {content} == {other for *_, other in same}
    assert stored(tmp_path, PIXELS, num_held_out=4)[2] != content
    assert stored(tmp_path, 255 - PIXELS, LABELS, num_held_out=4)[2] != content


def test_labels_captions_and_names(tmp_path):
    names = {"ids": list("abcdefghijkl"), "captions": [f"picture {i}" for i in range(12)]}
    train, held_out, _ = stored(tmp_path, PIXELS, ["cat", "ant"] * 6, **names)
    assert (train.class_names, train.labels[:2].tolist()) == (("ant", "cat"), [1, 0])
    assert (train.ids[3], train.captions[3], len(held_out)) == ("d", ("picture 3",), 0)
    two = [["a", "b"]] * 12
    train, *_ = stored(tmp_path, PIXELS, LABELS, two, class_names=["x", "y", "z"])
    assert (train.captions[0], train.class_names) == (("a", "b"), ("x", "y", "z"))


FLOATS = PIXELS / np.float32(255)
NAN = FLOATS.copy()
NAN[3, 1, 2, 5] = np.nan
REFUSED = {
    "three axes": (PIXELS[0], {}, r"images\.shape=\(3, 8, 8\): must be \[N, C, H, W\], with 2"),
    "channels last": (PIXELS.transpose(0, 2, 3, 1), {}, r"images\.shape=\(12, 8, 8, 3\): must be"),
    "one image": (PIXELS[:1], {}, r"images\.shape=\(1, 3, 8, 8\): must be"),
    "no pixels": (PIXELS[..., :0], {}, r"images\.shape=\(12, 3, 8, 0\): must be"),
    "integers": (PIXELS.astype(int), {}, r"images\.dtype=int64: must be uint8, or floating point"),
    "objects": (PIXELS.astype(object), {}, r"images\.dtype=object: must be uint8"),
    "unknown range": (FLOATS, {}, r"value_range=None: must be the values of black and white"),
    "a range of uint8": (PIXELS, {"value_range": (0, 1)}, r"value_range=\(0, 1\): must be left ou"),
    "falling": (FLOATS, {"value_range": (1, 0)}, r"value_range=\(1, 0\): must be the values"),
    "a small range": (2 * FLOATS, {"value_range": (0, 1)}, r"images\[0\]=0…\d\.\d+: must be"),
    "NaN": (NAN, {"value_range": (0, 1)}, r"images\[3\]=nan…nan: must be in value_range=\(0, 1\),"),
    "few labels": (PIXELS, {"labels": [0, 1]}, r"labels\.shape=\(2,\): must be \(12,\): one for"),
    "one-hot labels": (PIXELS, {"labels": np.eye(12)}, r"labels\.shape=\(12, 12\): must be \(12,"),
    "real labels": (PIXELS, {"labels": np.ones(12)}, r"labels\.dtype=float64: must be one for eac"),
    "booleans": (PIXELS, {"labels": np.ones(12) > 0}, r"labels\.dtype=bool: must be one for each"),
    "ragged": (PIXELS, {"labels": [[1], [1, 2]]}, "labels: must be an array, with rows of equal"),
    "few names": (PIXELS, {"labels": LABELS, "class_names": ["a"]}, r"labels=0…1: must be in 0…0"),
    "a name twice": (
        PIXELS, {"labels": LABELS, "class_names": ["a", "a"]}, "every label must have a name, of i",
    ),
    "names alone": (PIXELS, {"class_names": ["a"]}, r"class_names=\['a'\]: must be left out witho"),
    "few captions": (PIXELS, {"captions": ["a"]}, "add_images: there must be captions of all 12"),
    "captions": (PIXELS, {"captions": [["a"]] * 11 + [["a", "b"]]}, "as many captions of each"),
    "numbers": (PIXELS, {"captions": [[1]] * 12}, "captions, ids and class names must be texts"),
    "ids twice": (PIXELS, {"ids": ["a"] * 12}, "there must be 12 ids, each once"),
    "few ids": (PIXELS, {"ids": ["a"]}, "there must be 12 ids, each once"),
    "too many held out": (PIXELS, {"num_held_out": 11}, r"num_held_out=11: must be in 0…10"),
    "an untrained class": (
        PIXELS, {"labels": [0] * 11 + [1], "num_held_out": 1}, "no training image has the held-out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_images_that_do_not_fit_are_refused_in_one_line(case, tmp_path):
    images, named, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        journey.add_images(images, artifacts=str(tmp_path / "artifacts"), **named)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "artifacts").exists()


def test_the_code_of_the_guide_runs_an_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Local, "make", InThisProcess.make)
    code, _ = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    small = [*TINY[2:], "model=ddpm_smoke", "evaluation=lds_smoke", "method=[pixel,random]"]
    small += ["retraining.num_subsets=8", "task=evaluate"]
    words = ", ".join(map(repr, small))
    assert code.count('"model=ddpm_tiny", "training.num_steps=300"') == 1
    scope = {"__name__": "__main__"}
    exec(code.replace('"model=ddpm_tiny", "training.num_steps=300"', words), scope)
    run = scope["run"]
    assert run.run.dataset.name == "arrays"
    assert len(run.images) == 200
    assert run.images.class_names == ("0", "1")
    expected = torch.round(255 * scope["images"][:200].double()).numpy()
    np.testing.assert_array_equal(run.images.images, expected)
    assert {"pixel", "random"} < set(run.lds()["method"])
    assert "pixel" in capsys.readouterr().out


def test_images_that_are_in_no_store_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*TINY[2:], "model=ddpm_smoke", "dataset=arrays"]
    assert "dataset.content='': must be that of images which journey" in refused(
        monkeypatch, *words
    )
    text = refused(monkeypatch, *words, "dataset.content=sha-0123456789abcdef")
    assert "dataset.content=sha-0123456789abcdef: must be that of images which journey.add" in text
