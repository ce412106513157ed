"""Folders of images: the same as `datasets`' imagefolder reads, or refused with the reason.

`imagefolder` is run on a copy of a folder in which links are replaced by what they lead to, since
it passes over linked folders in silence.
"""

import gc
import json
import os
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, command, small_run, succeeds
from PIL import Image

from journey.data.folder import Folder, HeldOut
from journey.data.images import describe_images
from journey.diffusion.latent import LatentDiffusion
from journey.engine.checks import ConfigError
from journey.experiment import check_data, prepare_experiment
from journey.pipeline.images import check_images, content_hash
from journey.pipeline.settings import Sampler, Sampling, Training

# datasets leaves files open.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

SIDE = 8
Rows = set[tuple[str, str, str | None, tuple[str, ...]]]  # split, file, class, captions


def grey(path: Path, level: int) -> None:
    """Write an image of one colour, in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), (level, level, level)).save(path)


def write(root: Path, *names: str) -> None:
    """Write images below a folder, each of another grey; or the text after '='."""
    for level, name in enumerate(names):
        path, _, text = name.partition("=")
        if text or name.endswith("="):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(text.encode("utf-8", "surrogateescape"))
        else:
            grey(root / path, 10 * level)


def rows(*values: dict) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def described(*names: str, **more: str) -> str:
    """The lines of a metadata.jsonl with a caption for each name."""
    return rows(*({"file_name": name, "text": f"a {name}", **more} for name in names))


def load(root: Path, **settings: object):
    """Return both parts of a folder, checked, and their images compared with their files."""
    dataset = Folder(root=str(root), size=SIDE, **settings)
    parts = dataset.load()
    for part in parts:
        check_images(part, "folder")
        for pixels, name in zip(part.images, part.ids, strict=True):
            with Image.open(root / name) as image:
                expected = np.asarray(image.convert("RGB"))
            np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), atol=2)
    assert dataset.notes()
    assert len(dataset.sources()) >= sum(map(len, parts))
    return parts


def read(root: Path, **settings: object) -> Rows:
    """Return what is read of a folder."""
    parts = dict(zip(("train", "held out"), load(root, **settings), strict=True))
    found: Rows = set()
    for split, part in parts.items():
        for i, name in enumerate(part.ids):
            captions = () if part.captions is None else part.captions[i]
            found.add((split, name, part.class_names[part.labels[i]], captions))
    return found


def without_split(found: Rows) -> Rows:
    return {("", *row[1:]) for row in found}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Hugging Face's package, without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        import datasets

        datasets.disable_progress_bars()
        yield datasets
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def imagefolder(datasets, root: Path, copy: Path) -> Rows:
    """Return what `datasets` reads of a folder; a class is None where it gives none."""
    shutil.copytree(root, copy, ignore=lambda folder, names: [n for n in names if n[0] == "."])
    captions: dict[tuple[str, str], tuple[str, ...]] = {}
    classes: dict[tuple[str, str], str | None] = {}
    parts = datasets.load_dataset("imagefolder", data_dir=str(copy), streaming=True)
    for split, part in parts.items():
        part = part.cast_column("image", datasets.Image(decode=False))
        names = getattr(part.features.get("label"), "names", None)
        for row in part:
            key = (split, os.path.relpath(row["image"]["path"], copy))
            assert Path(copy, key[1]).is_file()
            text = next((row[c] for c in ("text", "caption", "prompt") if c in row), None)
            texts = () if text is None else tuple(text) if isinstance(text, list) else (text,)
            captions[key] = captions.get(key, ()) + texts
            label = row.get("label")
            if names and label is not None:
                label = names[label]
            classes[key] = label if label is None else f"{label}"
    return {(*key, classes[key], captions[key]) for key in captions}


def require_same(ours: Rows, theirs: Rows) -> None:
    """Check that the two agree. Without classes of theirs, there must be one class of ours."""
    splits = sorted({row[0] for row in theirs})
    if splits == ["train"]:  # ours holds some of them out
        ours, theirs = without_split(ours), without_split(theirs)
    else:
        assert len(splits) == 2
        theirs = {(row[0] if row[0] == "train" else "held out", *row[1:]) for row in theirs}
    given = {row[2] for row in theirs}
    if None in given or (len(splits) == 2 and given == set(splits)):
        assert len({row[2] for row in ours}) == 1
        ours, theirs = ({(*row[:2], None, row[3]) for row in part} for part in (ours, theirs))
    assert ours == theirs


def refused(root: Path, message: str, **settings: object) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Folder(root=str(root), size=SIDE, **settings).load()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


CAPTIONED = described("a.png", "b.png", "c.png")
CLASSES = ("cats/a.png", "cats/b.png", "dogs/c.png", "dogs/d.png")
SAME = {  # trees which are read as imagefolder reads them
    "flat": ("a.png", "b.png", "c.png"),
    "classes": CLASSES,
    "one class folder": ("cats/a.png", "cats/b.png"),
    "a class of one image": (*CLASSES, "ants/e.png"),
    "numbered classes": tuple(f"{i}/a.png" for i in range(12)),
    "classes that differ in case": ("Cats/a.png", "cats/b.png", "cats/c.png"),
    "spaces and signs": ("a cat/ü (1) #%20$.png", "b+/x y.png", "b+/猫.png"),
    "suffixes": ("a.PNG", "b.JPG", "c.jpeg", "d.webp", "e.bmp", "f.tif", "g.gif", "h.jfif"),
    "hidden": (*CLASSES, ".ipynb_checkpoints/a.png", ".thumbnails/b.png", "cats/._a.png"),
    "mac and windows": (*CLASSES, "__MACOSX/cats/._a.png", "__MACOSX/x.png", "cats/Thumbs.db=x"),
    "other files": (*CLASSES, "README.md=x", "notes.txt=x", "cats/movie.mp4=x", "empty/x.log="),
    "a file that begins with __": ("cats/__a.png", "cats/b.png"),
    "splits": ("train/cats/a.png", "train/dogs/b.png", "test/cats/c.png", "test/dogs/d.png"),
    "flat splits": ("train/a.png", "train/b.png", "val/c.png"),
    "other words": ("training/x/a.png", "training/y/b.png", "eval/x/c.png"),
    "words with more": ("my-train_1/x/a.png", "my-train_2/y/b.png", "x.dev.3/x/c.png"),
    "no words": ("trains/a.png", "testers/b.png", "contest/c.png"),
    "train alone": ("train/cats/a.png", "train/cats/b.png", "train/dogs/c.png"),
    "splits below a folder": ("data/train/x/a.png", "data/train/y/b.png", "data/valid/y/c.png"),
    "splits by file names": ("train_1.png", "train_2.png", "test_1.png"),
    "captions": ("a.png", "b.png", "c.png", f"metadata.jsonl={CAPTIONED}"),
    "labels": (
        "a.png",
        "b.png",
        'metadata.jsonl={"file_name":"a.png","label":"x"}\n{"file_name":"b.png","label":"y"}',
    ),
    "numbers as labels": (
        "a.png",
        "b.png",
        'metadata.jsonl={"file_name":"a.png","label":10}\n{"file_name":"b.png","label":9}',
    ),
    "csv": (
        "a.png",
        "b.png",
        'metadata.csv=file_name,text\r\na.png,x\r\n\r\nb.png,"y, ""z""\nw"\r\n',
    ),
    "csv with labels": ("a.png", "b.png", "metadata.csv=file_name,label\na.png,1\nb.png,-2\n"),
    "csv with mixed labels": ("a.png", "b.png", "metadata.csv=file_name,label\na.png,1.0\nb.png,x"),
    "lists of captions": (
        "a.png",
        "b.png",
        'metadata.jsonl={"file_name":"a.png","text":["x","y"]}\n'
        '{"file_name":"b.png","text":["z","w"]}',
    ),
    "rows of captions": (
        "a.png",
        "b.png",
        "metadata.csv=file_name,caption\na.png,x\nb.png,y\nb.png,z\na.png,w\n",
    ),
    "metadata of splits": (
        "train/a.png",
        "train/b.png",
        "test/c.png",
        f"train/metadata.jsonl={described('a.png', 'b.png')}",
        f"test/metadata.jsonl={described('c.png')}",
    ),
    "metadata of class folders": (
        "cats/a.png",
        "dogs/b.png",
        f"cats/metadata.jsonl={described('a.png', label='cat')}",
        f"dogs/metadata.jsonl={described('b.png', label='dog')}",
    ),
    "paths in metadata": (
        "x/a.png",
        "x/y/b.png",
        "c.png",
        f"metadata.jsonl={described('./x/a.png', 'x//y/b.png', 'c.png')}",
    ),
    "paths of windows": (
        "x/a.png",
        "b.png",
        'metadata.jsonl={"file_name":"x\\\\a.png"}\n{"file_name":"b.png"}',
    ),
    "line separators in captions": (
        "a.png",
        "b.png",
        "metadata.jsonl="
        + rows(
            {"file_name": "a.png", "text": "x\u2028y\x85z"}, {"file_name": "b.png", "text": "\x0b"}
        ),
    ),
    "an empty caption": (
        "a.png",
        "b.png",
        'metadata.jsonl={"file_name":"a.png","text":""}\n{"file_name":"b.png","text":" x "}',
    ),
}


@pytest.mark.parametrize("tree", SAME.values(), ids=SAME)
def test_a_folder_is_read_as_imagefolder_reads_it(datasets, tmp_path, tree):
    write(tmp_path / "root", *tree)
    require_same(
        read(tmp_path / "root"), imagefolder(datasets, tmp_path / "root", tmp_path / "copy")
    )


@pytest.mark.parametrize("label", [["x", "y", "x"], [3, 20, 3], pd.Categorical(["x", "y", "x"])])
def test_parquet_is_read_as_imagefolder_reads_it(datasets, tmp_path, label):
    names = ["a.png", "b.png", "c.png"]
    write(tmp_path / "root", *names)
    frame = pd.DataFrame({"file_name": names, "prompt": ["x", "", "ü"], "label": label})
    frame.to_parquet(tmp_path / "root/metadata.parquet")
    ours = read(tmp_path / "root")
    require_same(ours, imagefolder(datasets, tmp_path / "root", tmp_path / "copy"))
    assert len({row[2] for row in ours}) == 2


def jsonl(*lines: str) -> tuple[str, ...]:
    """Two images and the lines of their metadata."""
    return ("a.png", "b.png", "metadata.jsonl=" + "\n".join(lines))


def sheet(*lines: str) -> tuple[str, ...]:
    return ("a.png", "b.png", "metadata.csv=" + "\n".join(lines))


A, B = '{"file_name": "a.png"', '{"file_name": "b.png"'
HEADER = "file_name,label,text"
REFUSED = {  # tree, message
    "no images": (("a.txt=x",), r"dataset\.root=.*: must be a directory with two images or more"),
    "one image": (("cats/a.png",), "must be a directory with two images or more"),
    "images beside class folders": ((*CLASSES, "x.png"), r"x\.png and cats/a\.png are not"),
    "nested class folders": (("x/a/1.png", "x/b/2.png"), "are not both in a class folder"),
    "classes of two depths": (("a/1.png", "b/c/2.png"), "are not both in a class folder"),
    "splits inside of classes": (("x/train/1.png", "y/train/2.png"), "splits inside of different"),
    "two folders of one split": (
        ("train/a.png", "train-2/b.png", "test/c.png"),
        "train and train-2 are both named after the split train",
    ),
    "three splits": (
        ("train/a.png", "val/b.png", "test/c.png"),
        r"dataset\.held_out=auto: must be test or validation, or random",
    ),
    "no training split": (("test/a.png", "test/b.png"), r"split test and no split train.*random"),
    "an image in no split": (("train/a.png", "train/b.png", "c.png"), r"c\.png is in no split"),
    "an image in two splits": (
        ("train/a.png", "train/test/b.png"),
        r"in two splits \(train, test\)",
    ),
    "a class that is called dev": (
        (*CLASSES, "dev/e.png"),
        r"cats/a\.png is in no split, but dev/",
    ),
    "a file that is called test": (("a.png", "b.png", "my test.png"), r"a\.png is in no split"),
    "splits in capitals": (("Train/a.png", "Test/b.png"), "Test is that of a split, but not in l"),
    "a class without training images": (
        ("train/x/a.png", "train/y/b.png", "test/z/c.png"),
        "no training image has the held-out class z",
    ),
    "classes that look the same": (
        ("\u00e9/a.png", "e\u0301/b.png"),
        "differ in spaces or Unicode forms",
    ),
    "photographs of phones": ((*CLASSES, "cats/x.HEIC=x"), r"x\.HEIC: \.heic is not read; convert"),
    "archives": ((*CLASSES, "more.zip=x"), r"more\.zip: \.zip is not read; unpack it"),
    "other metadata": ((*CLASSES, "metadata.json=[]"), r"metadata\.json: metadata must be named"),
    "metadata in capitals": (
        (*CLASSES, "Metadata.csv=x"),
        r"Metadata\.csv: metadata must be named",
    ),
    "two formats": ((*jsonl(A + "}"), "metadata.csv=x"), r"in several formats \(metadata\.csv, me"),
    "metadata above splits": (
        ("train/a.png", "test/b.png", f"metadata.jsonl={described('train/a.png', 'test/b.png')}"),
        r"metadata\.jsonl is in no split",
    ),
    "metadata of one split": (
        ("train/a.png", "test/b.png", f"train/metadata.jsonl={described('a.png')}"),
        r"test/b\.png is not described in .*train/metadata\.jsonl",
    ),
    "an undescribed image": (
        jsonl(A + "}"),
        r"b\.png is not described in .*metadata\.jsonl \(1 such",
    ),
    "no rows": (jsonl(""), r"a\.png is not described .* \(2 such\)"),
    "null": (
        jsonl(A + ', "label": null}', B + "}"),
        r"jsonl:1: label=null: must be a text or a whole",
    ),
    "NaN": (jsonl(A + ', "label": NaN}', B + "}"), r"jsonl:1: label=NaN: must be"),
    "a label of another type": (
        jsonl(A + ', "label": 1}', B + ', "label": "1"}'),
        r'jsonl:2: label="1": texts and numbers are mixed \(see .*jsonl:1\)',
    ),
    "a fraction": (
        jsonl(A + ', "label": 1}', B + ', "label": 1.0}'),
        r"jsonl:2: label=1\.0: must be",
    ),
    "a boolean": (jsonl(A + ', "label": true}', B + "}"), r"jsonl:1: label=true: must be"),
    "a list of labels": (
        jsonl(A + ', "label": ["x"]}', B + "}"),
        r'jsonl:1: label=\["x"\]: must be',
    ),
    "an empty label": (jsonl(A + ', "label": ""}', B + "}"), r'jsonl:1: label="": must be'),
    "one label missing": (jsonl(A + ', "label": "x"}', B + "}"), "jsonl:2: label=null: must be"),
    "a number as caption": (
        jsonl(A + ', "text": 3}', B + "}"),
        "jsonl:1: text=3: must be a text, or",
    ),
    "NaN as caption": (jsonl(A + ', "text": NaN}', B + "}"), "jsonl:1: text=NaN: must be a text"),
    "null as caption": (
        jsonl(A + ', "text": null}', B + "}"),
        "jsonl:1: text=null: must be a text",
    ),
    "a dictionary": (
        jsonl(A + ', "text": {"en": "x"}}', B + "}"),
        'jsonl:1: text={"en": "x"}: must',
    ),
    "no captions": (jsonl(A + ', "text": []}', B + "}"), r"jsonl:1: text=\[\]: must be a text"),
    "a number in a list": (
        jsonl(A + ', "text": ["x", 2]}', B + "}"),
        r'jsonl:1: text=\["x", 2\]: must',
    ),
    "one caption missing": (jsonl(A + ', "text": "x"}', B + "}"), "jsonl:2: text=null: must be"),
    "half a character": (jsonl(A + r', "text": "\ud800"}', B + "}"), "jsonl:1: text has half of"),
    "two columns of captions": (
        jsonl(A + ', "text": "x", "prompt": "y"}', B + "}"),
        r"several columns \(text, prompt\); set dataset\.caption_column",
    ),
    "more captions of one image": (
        jsonl(A + ', "text": "x"}', A + ', "text": "y"}', B + ', "text": "z"}'),
        r"jsonl:3: b\.png has 1 captions, others have 2",
    ),
    "a row twice": (
        jsonl(A + ', "text": "x"}', A + ', "text": "x"}', B + ', "text": "z"}'),
        r"jsonl:2: repeats .*jsonl:1 \(a\.png\)",
    ),
    "an image twice": (jsonl(A + "}", A + "}", B + "}"), r"jsonl:2: repeats .*jsonl:1"),
    "two labels": (
        jsonl(A + ', "label": "x"}', A + ', "label": "y"}', B + "}"),
        r"jsonl:2: a\.png has the label x in another row",
    ),
    "a key twice": (jsonl('{"file_name": "a.png", "file_name": "b.png"}'), r"'file_name' twice"),
    "a file that is not there": (
        jsonl(A + "}", B + "}", '{"file_name": "c.png"}'),
        r"jsonl:3: describes c\.png, which does not exist \(1 such\)",
    ),
    "another case": (
        jsonl('{"file_name": "A.png"}', B + "}"),
        r"A\.png, which .*, but a\.png does",
    ),
    "escapes": (jsonl('{"file_name": "%61.png"}', B + "}"), r"%61\.png, which .*, but a\.png does"),
    "Unicode forms": (
        ("a.png", "\u00e9.png", "metadata.jsonl=" + described("a.png", "e\u0301.png")),
        "does: names must be the same in case, Unicode form",
    ),
    "an absolute path": (
        jsonl('{"file_name": "/a.png"}'),
        "jsonl:1: file_name must be a path inside",
    ),
    "a path outside": (
        jsonl('{"file_name": "../a.png"}'),
        "jsonl:1: file_name must be a path inside",
    ),
    "an address": (
        jsonl('{"file_name": "file://a.png"}'),
        "jsonl:1: file_name must be a path inside",
    ),
    "a file name that is none": (jsonl('{"file_name": 3}'), "jsonl:1: file_name=3: must be a text"),
    "no file name": (jsonl('{"name": "a.png"}'), "jsonl:1: must be a JSON object with a file_name"),
    "a JSON array": (
        jsonl("[", A + "},", B + "}]"),
        "jsonl:1: must be a JSON object with a file_nam",
    ),
    "not JSON": (jsonl(A + "}", "file_name: b.png"), "jsonl:2: must be a JSON object"),
    "deep nesting": (jsonl(A + ', "x": ' + "[" * 100_000), "jsonl:1: is nested too deeply"),
    "an integer of 5,000 digits": (jsonl(A + ', "label": ' + "1" * 5000 + "}"), "jsonl:1: must be"),
    "cp1252": (
        jsonl(A + "}", B + ', "text": "caf\udce9"}'),
        r"jsonl:2: is not UTF-8 \(byte 0xe9\)",
    ),
    "cp1252 in csv": (
        sheet(HEADER, "a.png,x,caf\udce9"),
        r"csv:2: is not UTF-8 \(byte 0xe9\); save",
    ),
    "UTF-16": (sheet("\udcff\udcfef"), r"csv:1: is UTF-16; save the file as UTF-8"),
    "an empty csv": (("a.png", "b.png", "metadata.csv="), "csv:1: must name distinct columns"),
    "semicolons": (
        sheet("file_name;text", "a.png;x"),
        "csv:1: must name distinct columns, one of th",
    ),
    "a column twice": (
        sheet("file_name,text,text", "a.png,x,y"),
        "csv:1: must name distinct columns",
    ),
    "a value too many": (sheet(HEADER, "a.png,x,y,z"), "csv:2: has 4 values, not 3"),
    "a value too few": (sheet(HEADER, "a.png,x,y", "b.png,x"), "csv:3: has 2 values, not 3"),
    "an open quote": (sheet(HEADER, 'a.png,x,"y'), r"csv:2: not CSV \("),
    "a missing value": (sheet(HEADER, "a.png,x,y", "b.png,,z"), "csv:3: label=null: must be"),
    "NA": (sheet(HEADER, "a.png,x,None", "b.png,x,NA"), "csv:2: text=null: must be"),
    "numbers alone as captions": (
        sheet(HEADER, "a.png,x,1", "b.png,x,2"),
        "csv:2: text=1: must be",
    ),
    "1 and 1.0": (sheet(HEADER, "a.png,1,x", "b.png,1.0,y"), r"csv:2: label=1\.0: must be"),
    "01": (sheet(HEADER, "a.png,01,x", "b.png,02,y"), r"csv:2: label=1\.0: must be a text or a w"),
    "true": (sheet(HEADER, "a.png,True,x", "b.png,False,y"), "csv:2: label=true: must be"),
    "damaged parquet": (("a.png", "b.png", "metadata.parquet=x"), "not a readable Parquet file"),
    "a text of two lines": (
        ("a.png", "b.png", "a.txt=x\n\ny", "b.txt=z"),
        r"a\.txt:3: must be one l",
    ),
    "an empty text": (("a.png", "b.png", "a.txt=x", "b.txt=\n"), r"b\.txt:1: must be one line"),
    "a text of numbers": (("a.png", "b.png", "a.txt=0 .5 .5 .2 .2"), "not numbers alone"),
    "a text of cp1252": (("a.png", "b.png", "a.txt=caf\udce9"), r"a\.txt:1: is not UTF-8"),
    "one text missing": (("a.png", "b.png", "a.txt=x"), r"b\.png is not captioned by a text file"),
    "a text with both suffixes": (("a.png", "b.png", "a.png.txt=x"), r"must be named a\.txt"),
    "two texts": (("a.png", "b.png", "a.txt=x", "a.caption=y"), r"a\.png also has a\.caption"),
    "texts and metadata": (
        ("a.png", "b.png", "a.txt=x", f"metadata.jsonl={described('a.png', 'b.png')}"),
        r"captions in metadata\.jsonl and in a\.txt",
    ),
}


@pytest.mark.parametrize(("tree", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused_with_file_and_line(tmp_path, tree, message):
    write(tmp_path, *tree)
    refused(tmp_path, message)


@pytest.mark.parametrize("linked", ["a class folder", "files", "the root"])
def test_links_are_followed(datasets, tmp_path, linked):
    root, store = tmp_path / "root", tmp_path / "elsewhere"
    write(store, *CLASSES, "birds/e.png")
    if linked == "the root":
        root.symlink_to(store)
    elif linked == "a class folder":
        write(root, *CLASSES)
        (root / "birds").symlink_to(store / "birds")
    else:
        for name in (*CLASSES, "birds/e.png"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(store / name)
    ours = read(root)
    assert {row[2] for row in ours} == {"cats", "dogs", "birds"}
    assert len(ours) == 5
    require_same(ours, imagefolder(datasets, root, tmp_path / "copy"))


LINKS = {  # target, link, message
    "to its own parent": (
        "..",
        "cats/loop",
        r"cats/loop: is the same folder as .*; remove the link",
    ),
    "to another class": (
        "cats",
        "kittens",
        "is the same folder as .*/(cats|kittens), and its images",
    ),
    "to itself": ("x.png", "x.png", r"x\.png: is not a file, or a link to none"),
    "to nothing": ("nothing", "cats/x.png", r"cats/x\.png: is not a file, or a link to none"),
}


@pytest.mark.parametrize(("target", "link", "message"), LINKS.values(), ids=LINKS)
def test_a_link_in_a_circle_or_to_nothing_is_refused(tmp_path, target, link, message):
    write(tmp_path, *CLASSES)
    (tmp_path / link).symlink_to(target)
    refused(tmp_path, message)


def test_a_name_that_is_not_unicode_is_refused(tmp_path):
    write(tmp_path, *CLASSES)
    Path(os.fsdecode(bytes(tmp_path) + b"/cats/caf\xe9.png")).write_bytes(b"")
    refused(tmp_path, "the name of a file must be UTF-8")


def test_a_folder_that_may_not_be_listed_is_refused(tmp_path, monkeypatch):
    write(tmp_path, *CLASSES)
    scandir = os.scandir

    def denied(path):
        if Path(path).name == "dogs":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    refused(tmp_path, r"dogs: cannot be listed \(Permission denied\)$")


def test_texts_beside_images_are_their_captions(tmp_path):
    texts = (
        "cats/a.txt=\ufeffa cat, 2 years\r\n",
        "cats/b.txt=\n b \n",
        "dogs/c.caption=c",
        "dogs/d.txt=é",
    )
    write(tmp_path, *CLASSES, *texts, "README.txt=x\ny")
    captions = {row[1]: (row[2], row[3]) for row in read(tmp_path)}
    assert captions == {
        "cats/a.png": ("cats", ("a cat, 2 years",)),
        "cats/b.png": ("cats", ("b",)),
        "dogs/c.png": ("dogs", ("c",)),
        "dogs/d.png": ("dogs", ("é",)),
    }


def test_a_byte_order_mark_is_no_text(tmp_path):
    write(tmp_path, *jsonl("\ufeff" + A + ', "text": "x"}', B + ', "text": "y"}'))
    assert {row[3] for row in read(tmp_path)} == {("x",), ("y",)}


def test_captions_and_labels_come_from_the_chosen_columns(tmp_path):
    write(
        tmp_path,
        *jsonl(
            A + ', "text": "x", "alt": "y", "kind": "k"}',
            B + ', "text": "z", "alt": "w", "kind": "l"}',
        ),
    )
    chosen = read(tmp_path, caption_column="alt", label_column="kind")
    assert {row[2:] for row in chosen} == {("k", ("y",)), ("l", ("w",))}
    refused(
        tmp_path,
        r"dataset\.caption_column=x: must be one of the columns of .*: file_name, text",
        caption_column="x",
    )
    (tmp_path / "metadata.jsonl").unlink()
    refused(
        tmp_path,
        r"dataset\.label_column=kind: must be empty: .* has no metadata",
        label_column="kind",
    )


SPLITS = (
    "train/x/1.png",
    "train/x/2.png",
    "train/y/3.png",
    "train/y/4.png",
    "val/x/5.png",
    "test/y/6.png",
)


def test_the_held_out_split_is_the_one_that_is_chosen(tmp_path):
    write(tmp_path, *SPLITS)
    for chosen in (HeldOut.validation, HeldOut.test):
        train, held_out = load(tmp_path, held_out=chosen)
        assert (train.ids, len(held_out)) == (SPLITS[:4], 1)
        assert held_out.ids[0].startswith("val" if chosen is HeldOut.validation else "test")
        (other,) = (
            line for line in Folder(str(tmp_path), held_out=chosen).notes() if "split," in line
        )
        assert "passed over 1 images of the" in other
    train, _ = load(tmp_path, held_out=HeldOut.test, num_train=2)
    assert [train.class_names[label] for label in train.labels] == ["x", "y"]
    refused(
        tmp_path,
        r"dataset\.num_train=5: must be 0 \(all\) or at most the 4",
        held_out=HeldOut.test,
        num_train=5,
    )
    shutil.rmtree(tmp_path / "test")
    assert load(tmp_path)[1].ids == ("val/x/5.png",)
    refused(
        tmp_path,
        r"held_out=test: must be a split .* \(there are: train, validation\)",
        held_out=HeldOut.test,
    )


def test_names_of_splits_are_those_of_classes_with_held_out_random(tmp_path):
    write(tmp_path, "train/a.png", "train/b.png", "bus/test.png", "bus/d.png", "Dev/e.png")
    found = read(tmp_path, held_out=HeldOut.random)
    assert {row[2] for row in found} == {"train", "bus", "Dev"}
    assert len(found) == 5


def test_notes_say_what_was_found_and_passed_over(tmp_path):
    extra = ("cats/.x.png", "__MACOSX/x.png", "a.mp4=x", ".git/x=y", "b.log=x", "empty/x=y")
    more = rows(*({"file_name": name, "text": "x", "url": "y"} for name in CLASSES))
    write(tmp_path, *CLASSES, *extra, "metadata.jsonl=" + more)
    assert [line.removeprefix(f"{tmp_path}: ") for line in Folder(str(tmp_path)).notes()] == [
        "4 images found",
        "passed over 2 hidden files and folders, such as .git",
        "passed over 1 folders that begin with __, such as __MACOSX",
        "passed over 3 files of other types, such as a.mp4",
        "passed over 1 folders without images, such as empty",
        "passed over 1 columns of metadata, such as url",
        "passed over 2 folders as classes, since metadata has no labels, such as cats",
    ]
    assert Folder(str(tmp_path / "nothing")).notes() == []
    train, _ = load(tmp_path)
    assert describe_images(Folder(str(tmp_path)), train)[0] == (
        "training: 3 images of 1 class, 1 caption each"
    )
    (tmp_path / "metadata.jsonl").write_text("x")  # after the images were recorded
    (line,) = describe_images(Folder(str(tmp_path)), train)[1:]
    assert line.startswith(f"not as it was read: {tmp_path}/metadata.jsonl:1: must be a JSON")


def test_the_content_of_a_folder_is_what_it_was(tmp_path):
    """Cache keys of folders that were read right before stay: ids, classes, order and pixels."""
    write(tmp_path, "b-1/x.png", "b/z.png", "b/a.png", "b/10.png", "b/9.png")
    train, held_out = load(tmp_path)
    assert train.ids + held_out.ids == ("b/10.png", "b/9.png", "b/z.png", "b-1/x.png", "b/a.png")
    assert (
        content_hash(train, held_out)
        == "f4d55cf412b8b65b805ae8e7f3a207a22c3f38171ccfb1e5efdfefdf725bf379"
    )


def test_a_plan_says_what_there_is_to_train_on(tmp_path):
    words = [word for word in TINY if not word.startswith("dataset.")]
    write(tmp_path / "root", *(f"{kind}/{i}.png" for kind in "xyz" for i in range(8)), ".z/a.png")
    folder = ("dataset=folder", "dataset.root=root", "dataset.num_train=18", "task=plan")
    plan = succeeds(command(tmp_path, *words, *folder))
    assert plan.startswith(
        "training: 18 images of 3 classes, without captions\n"
        "root: 24 images found\n"
        "root: passed over 1 hidden files and folders, such as .z\n"
    )


def test_a_caption_that_would_be_cut_is_refused_as_a_prompt_is(tmp_path, workspace):
    captioned = [{"file_name": name, "text": f"{name} and so on"} for name in CLASSES]
    write(tmp_path / "root", *CLASSES, "metadata.jsonl=" + rows(*captioned))
    dataset = Folder(root=str(tmp_path / "root"), size=SIDE, num_train=3)
    training = Training(num_steps=4, batch_size=2, warmup_steps=1)
    model = LatentDiffusion(text_length=8)
    sampling = Sampling(Sampler.ddim, 50, num_queries=4, steps=[600, 300], prompts=["x"])
    settings = {"dataset": dataset, "model": model, "training": training, "sampling": sampling}
    run = small_run(**settings)
    experiment, train = prepare_experiment(run, workspace.store)
    with pytest.raises(ConfigError, match=r"^caption of cats/a\.png='.*': .* would be cut$"):
        check_data(run, experiment, train, workspace.store)


WORDS = [
    "train",
    "test",
    "val",
    "dev",
    "training",
    "my-train_1",
    "x.eval",
    "Test",
    "trains",
    "data",
]
CLASS_NAMES = ["cats", "dogs", "1", "2", "10", "a cat", "ü", "Cats"]


def rare(draw: random.Random, probability: float = 0.04) -> bool:
    return draw.random() < probability


def generated_tree(seed: int) -> tuple[str, ...]:
    """Return a tree such as people have, with a fault or an oddity now and then."""
    draw = random.Random(seed)
    folders = [[]]
    if draw.random() < 0.5:
        splits = draw.choice([["train", "test"], ["train", "val"], ["train"], ["training", "dev"]])
        if rare(draw, 0.2):
            splits = draw.choice([["test"], ["train", "test", "val"], draw.sample(WORDS, 2)])
        above = ["data"] * rare(draw)
        folders = [[*above, split] for split in splits]
    kind = "nested" if rare(draw) else draw.choice(["flat", "classes"])
    classes = draw.sample(CLASS_NAMES, draw.randint(1, 3))
    images = []
    for folder in folders:
        leaves = [[]] if kind == "flat" else [[name] for name in classes]
        if kind == "nested":
            leaves = [["deep", *leaf] if draw.random() < 0.5 else leaf for leaf in leaves]
        for leaf in leaves:
            for i in range(draw.randint(1, 3)):
                suffix = draw.choice(["png", "png", "PNG", "bmp", "gif"])
                stem = draw.choice(WORDS) if rare(draw, 0.01) else f"{len(images):02d}x{i}"
                images.append("/".join([*folder, *leaf, f"{stem}.{suffix}"]))
    tree = list(dict.fromkeys(images))
    for odd in (
        "x.png",
        "dogs/y.png",
        ".ipynb_checkpoints/a.png",
        "__MACOSX/._a.png",
        "cats/._b.png",
        "notes.txt=x",
        "Thumbs.db=x",
        "test/log.csv=x",
        "empty/.keep=",
    ):
        if rare(draw, 0.02 if odd in ("x.png", "dogs/y.png", "test/log.csv=x") else 0.2):
            tree.append(odd)
    if draw.random() < 0.6:
        tree += generated_metadata(draw, tree, folders)
    return tuple(dict.fromkeys(tree))


def generated_metadata(draw: random.Random, tree: list[str], folders: list[list[str]]) -> list[str]:
    """Return metadata files for the images of a tree."""
    files, kind, twice = [], draw.choice(["jsonl", "csv"]), rare(draw, 0.2)
    column = draw.choice(["text", "caption", "prompt", "text", "other"])
    labels = draw.choice([None, None, ["x", "y"], [1, 2, 30], ["1", "2"]])
    places = [[]] if rare(draw) else folders
    for place in places:
        if rare(draw):
            continue
        prefix = "".join(f"{part}/" for part in place)
        table = []
        for name in (name for name in tree if name.startswith(prefix) and "=" not in name):
            if rare(draw, 0.01):
                continue
            shown = name.removeprefix(prefix)
            if rare(draw, 0.2):
                shown = draw.choice([f"./{shown}", shown.replace("/", "\\")])
            if rare(draw, 0.01):
                shown = draw.choice([shown.upper(), f"../{shown}"])
            for caption in range(2 if twice or rare(draw, 0.01) else 1):
                row = {"file_name": shown, column: f"a {caption} {name}"}
                if labels:
                    row["label"] = labels[len(shown) % len(labels)]
                if rare(draw, 0.01) and column != "other":  # imagefolder checks it, too
                    row[draw.choice(list(row))] = draw.choice([None, 1, 1.5, True, "", "NA"])
                table.append(row)
        if kind == "jsonl":
            files.append(f"{prefix}metadata.jsonl=" + rows(*table))
        else:
            text = pd.DataFrame(table).to_csv(index=False)
            files.append(
                f"{prefix}metadata.csv=" + (text.replace("\n", "\r\n") if rare(draw) else text)
            )
    return files


NUM_TREES = 300


def test_generated_folders_are_read_as_imagefolder_reads_them_or_refused(datasets, tmp_path):
    accepted, reasons = 0, []
    for seed in range(NUM_TREES):
        root = tmp_path / str(seed)
        write(root, *generated_tree(seed))
        try:
            ours = read(root)
        except ConfigError as error:
            reasons.append(str(error).replace(str(root), ""))
            continue
        theirs = imagefolder(datasets, root, tmp_path / f"{seed} copy")
        if not theirs:  # a split that has files of other types alone hides all images from it
            assert (root / "test/log.csv").exists()
            continue
        require_same(ours, theirs)
        accepted += 1
    assert accepted > NUM_TREES / 3
    assert not any("\n" in reason for reason in reasons)
    assert len({reason[-30:] for reason in reasons}) > 20
