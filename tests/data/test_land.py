"""Photographs: their licences, crops, captions and split, and that the wheel has them."""

import csv
import importlib.util
import json
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import python
from PIL import Image

from journey.data import embedded
from journey.data.embedded import LAND, Land, land_crops
from journey.engine.checks import ConfigError
from journey.pipeline.images import as_pixels, check_images, content_hash

ROOT = Path(__file__).parents[2]
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: A
License: GPL-3+

Files: images/land/*
Copyright: Various
License: public-domain
 Donated to an archive. (Exceptions noted below.)

Files: images/land/*-sfiera*
Copyright: Chris
License: CC-BY-SA-4.0

# a comment
Files:
 images/land/mountain1*
 images/land/sea?.jpg
Copyright: Various,
 and others
License: public-domain
 Donated to
 another archive.

Files: images/land/lava* images/land/snow0.jpg
Copyright: M
License: public-domain or GPL-3+

License: GPL-3+
 A free licence.
"""


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("land", ROOT / "experiments/land/build.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def land():
    return Land().load()


def read_table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "photographs.csv", newline="") as file:
        return list(csv.DictReader(file))


def photographs_of(images) -> set[str]:
    return {name.rpartition("/")[0] for name in images.ids}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("city0.jpg", "Donated to an archive. (Exceptions noted below.)"),
        ("mountain1.jpg", "Donated to another archive."),
        ("sea3.jpg", "Donated to another archive."),  # the last that matches
        ("sea33.jpg", "Donated to an archive. (Exceptions noted below.)"),
        ("mountain10-sfiera.jpg", None),  # though the last that matches is public domain
        ("sea1-sfiera.jpg", None),
        ("lava0.jpg", None),  # a choice of licences
        ("snow0.jpg", None),
    ],
)
def test_a_photograph_with_another_licence_is_left_out(build, path, source):
    paragraph = build.public_domain(f"images/land/{path}", build.read_copyright(COPYRIGHT))
    assert (paragraph and paragraph.statement) == source


def test_paragraphs_of_a_copyright_file_have_their_fields(build):
    paragraphs = build.read_copyright(COPYRIGHT)
    assert [paragraph.author for paragraph in paragraphs] == [
        "A", "Various", "Chris", "Various, and others", "M",
    ]  # fmt: skip
    assert paragraphs[3].patterns == ["images/land/mountain1*", "images/land/sea?.jpg"]
    assert paragraphs[4].licence == "public-domain or GPL-3+"
    assert build.public_domain("images/sky/sky0.jpg", paragraphs) is None


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a*", "a/b.c", True),
        ("a?c", "a/c", True),
        ("a?", "abc", False),
        ("a.c", "abc", False),
        ("a[b]", "ab", False),
        (r"a\*", "a*", True),
        (r"a\*", "ab", False),
        ("b", "ab", False),
    ],
)
def test_patterns_match_whole_paths(build, pattern, path, expected):
    assert build.matches(pattern, path) is expected


def test_no_photograph_is_on_both_sides_of_the_split(land):
    train, held_out = land
    for part in land:
        check_images(part, "land")
    assert train.images.shape == (3000, 3, 32, 32)
    pixels = as_pixels(train.images)
    assert -1 <= pixels.min() < -0.99 < 0.99 < pixels.max() <= 1
    assert not photographs_of(train) & photographs_of(held_out)
    assert len(photographs_of(held_out)) == 15
    assert set(held_out.labels) == set(train.labels) == set(range(10))
    held_out_crops = [name for name in land_crops(32, False)[0].ids if name in set(held_out.ids)]
    assert held_out_crops == list(held_out.ids), "all crops of a held-out photograph are held out"


def test_the_split_follows_the_seed_alone(land):
    again, other = Land().load(), Land(seed=1).load()
    assert content_hash(*again) == content_hash(*land) != content_hash(*other)
    assert photographs_of(other[1]) != photographs_of(land[1])
    assert not photographs_of(other[0]) & photographs_of(other[1])
    few, held_out = Land(num_train=100).load()
    assert set(few.ids) < set(land[0].ids)
    assert held_out.ids == land[1].ids
    with pytest.raises(ConfigError, match=r"dataset\.num_train=5000: must be in 1…3\d\d\d"):
        Land(num_train=5000).load()


def test_labels_and_captions_are_those_of_the_photograph(land):
    train = land[0]
    index = next(i for i, name in enumerate(train.ids) if name.startswith("land/dune5/"))
    assert train.class_names[train.labels[index]] == "desert"
    assert train.captions[index][0].startswith("dunes, ")
    assert len({caption for (caption,) in train.captions}) > 100
    with_space, _ = Land(spaceflight=True).load()
    assert (len(train.class_names), with_space.class_names[-1]) == (10, "spaceflight")
    assert any(name.startswith("land/nasa") for name in with_space.ids)


def test_a_crop_is_a_part_of_its_photograph():
    crops, photographs = land_crops(32, spaceflight=True)
    with Image.open(LAND / "photographs32.webp") as image:
        mosaic = np.asarray(image.convert("RGB"))
    index = crops.ids.index("land/city0/2-7")  # the last row and column
    top, left = np.array(divmod(photographs[index], mosaic.shape[1] // 144)) * (72, 144)
    expected = mosaic[top + 40 : top + 72, left + 112 : left + 144]
    np.testing.assert_array_equal(crops.images[index].transpose(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("colour", "description"),
    [
        ((10, 20, 90), "dark blue"),
        ((150, 190, 250), "bright blue"),
        ((128, 128, 128), "grey"),
        ((240, 240, 240), "bright grey"),
        ((200, 120, 40), "brown"),
        ((250, 180, 110), "bright orange"),
        ((200, 20, 20), "dark red"),
        ((60, 160, 60), "green"),
        ((230, 220, 40), "bright yellow"),
        ((160, 60, 160), "violet"),
        ((40, 160, 160), "cyan"),
    ],
)
def test_a_colour_has_its_name(colour, description):
    crop = np.empty((1, 3, 32, 32), np.uint8)
    crop[:] = np.array(colour)[:, None, None]
    assert embedded._describe_colours(crop) == [description]


def test_structure_is_the_deviation_from_a_plane():
    rows, columns = np.mgrid[:32, :32]
    plane = np.broadcast_to(40 + 2 * rows + 3 * columns, (1, 3, 32, 32)).astype(np.uint8)
    halves = np.where(rows % 2, 100, 120) * np.ones((1, 3, 1, 1), np.uint8)
    noise = np.random.default_rng(0).integers(256, size=(1, 3, 32, 32), dtype=np.uint8)
    luma = np.einsum("c,chw->hw", [0.299, 0.587, 0.114], noise[0]).ravel()
    basis = np.stack([np.ones(1024), rows.ravel(), columns.ravel()], 1)
    residual = luma - basis @ np.linalg.lstsq(basis, luma, rcond=None)[0]
    structures = embedded._structure(np.concatenate([plane, halves.astype(np.uint8), noise]))
    np.testing.assert_allclose(structures[0], 0, atol=1e-3)
    np.testing.assert_allclose(structures[1], 10, rtol=1e-2)
    np.testing.assert_allclose(structures[2], residual.std(), rtol=1e-9)


def test_another_size_has_the_same_crops(land):
    small, _ = Land(size=16).load()
    assert (small.ids, small.captions) == (land[0].ids, land[0].captions)
    assert small.images.shape[1:] == (3, 16, 16)
    blocks = land[0].images.reshape(-1, 3, 16, 2, 16, 2).mean((3, 5))
    assert abs(small.images.mean() - blocks.mean()) < 0.5


def write_package(root: Path, build) -> None:
    """Write a small package as dpkg unpacks it."""
    random = np.random.default_rng(0)
    (root / build.IMAGES).mkdir(parents=True)
    (root / build.COPYRIGHT).parent.mkdir(parents=True)
    (root / build.COPYRIGHT).write_text(COPYRIGHT)
    for name in ("mountain1", "mountain10-sfiera", "sea1", "sea2", "lava0", "nasa0"):
        blocks = random.integers(256, size=(9, 18, 3), dtype=np.uint8)
        pixels = blocks.repeat(40, 0).repeat(40, 1)
        Image.fromarray(pixels).save(root / build.IMAGES / f"{name}.jpg", quality=95)
    return pixels


def test_the_files_are_built_from_an_unpacked_package(build, tmp_path, monkeypatch):
    write_package(tmp_path / "package", build)
    for module in (build, embedded):
        monkeypatch.setattr(module, "LAND", tmp_path / "land")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "COLUMNS", 2)
    with pytest.raises(ConfigError, match=r"^dataset\.size=33: must be at most 32; for more, run"):
        Land(size=33).check("dataset")
    build.build(tmp_path / "package", 32)
    build.build(tmp_path / "package", 64)
    Land(size=64).check("dataset")

    table = read_table(tmp_path / "land")
    assert [row["photograph"] for row in table] == ["mountain1", "nasa0", "sea1", "sea2"]
    assert table[0]["author"] == "Various, and others"
    assert table[1]["source"] == "Donated to an archive."
    notice = (tmp_path / "land/COPYRIGHT").read_text()
    assert notice.count("public-domain") == 2
    assert "GPL" not in notice
    assert "CC-BY" not in notice

    crops, photographs = land_crops(64, spaceflight=False)
    assert crops.images.shape == (72, 3, 64, 64)
    assert photographs.tolist() == [0] * 24 + [2] * 24 + [3] * 24
    small, _ = land_crops(32, spaceflight=False)
    assert (small.ids, small.captions) == (crops.ids, crops.captions)
    halved = crops.images.reshape(-1, 3, 32, 2, 32, 2).mean((3, 5))
    assert abs(halved - small.images).mean() < 12


def test_the_package_ships_photographs_their_table_and_their_copyright(build):
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "src/journey" in wheel["targets"]["wheel"]["only-include"]
    assert ROOT / "src/journey" in LAND.parents
    names = {"photographs32.webp", "photographs.csv", "COPYRIGHT"}
    assert names <= {path.name for path in LAND.iterdir()}
    ignored = (ROOT / ".gitignore").read_text()
    assert not any(name in ignored for name in names), "hatchling leaves out what git ignores"
    assert (LAND / "photographs32.webp").stat().st_size < 6e6
    table = read_table(LAND)
    assert len(table) == 181
    assert {row["licence"] for row in table} == {"public-domain"}
    assert not any("-" in row["photograph"] for row in table), "those are by named authors"
    paragraphs = build.read_copyright((LAND / "COPYRIGHT").read_text())
    for row in table:
        paragraph = build.public_domain(f"images/land/{row['photograph']}.jpg", paragraphs)
        assert paragraph is not None
        assert paragraph.statement.startswith(row["source"])
        assert paragraph.author == row["author"]


def test_photographs_are_read_without_torch(tmp_path):
    code = "import sys\nfrom journey.data.embedded import Land\nLand().load()\n"
    assert python(tmp_path, "-c", code + "print('torch' in sys.modules)").stdout == "False\n"


def test_the_measured_facts_are_those_of_the_shipped_files():
    facts = json.loads((ROOT / "experiments/land/data.json").read_text())
    crops, photographs = land_crops(32, spaceflight=False)
    scenes = [crops.class_names[label] for label in crops.labels]
    landscapes = facts["landscapes"]
    assert facts["bytes"] == (LAND / "photographs32.webp").stat().st_size
    assert landscapes["photographs"] == len(set(photographs.tolist()))
    assert landscapes["crops"] == len(crops)
    assert landscapes["scenes"] == Counter(scenes)
    assert facts["crops"] == len(land_crops(32, spaceflight=True)[0])
