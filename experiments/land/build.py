"""Build the files of dataset=land from the photographs of the Debian package endless-sky-data.

    apt-get download endless-sky-data  # 0.9.8-1.2 was used
    dpkg -x endless-sky-data_*.deb unpacked
    python experiments/land/build.py unpacked

Writes photographs32.webp (a lossless mosaic), photographs.csv and COPYRIGHT into
src/journey/data/land/, and contact.png and data.json beside this script. With --size 64, only
photographs64.webp, for dataset.size above 32; it is not committed.

P  photographs;  N  crops
"""

import argparse
import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from journey.data.embedded import LAND, SPACEFLIGHT, land_crops, photograph_shape
from journey.engine.checks import ConfigError
from journey.pipeline.images import ImageSet

HERE = Path(__file__).parent
COPYRIGHT = "usr/share/doc/endless-sky-data/copyright"
IMAGES = "usr/share/games/endless-sky/images/land"
COLUMNS = 13  # of the mosaic
KINDS = {  # by the beginning of a file's name: scene, subject of captions
    "badlands": ("canyon", "badlands"),
    "beach": ("sea", "a beach"),
    "canyon": ("canyon", "a canyon"),
    "city": ("city", "a city"),
    "desert": ("desert", "a desert"),
    "dune": ("desert", "dunes"),
    "earthrise": (SPACEFLIGHT, "spaceflight"),
    "fields": ("field", "fields"),
    "fog": ("sky", "fog"),
    "forest": ("field", "a forest"),
    "hills": ("valley", "hills"),
    "lava": ("mountain", "a volcano"),
    "loc": (SPACEFLIGHT, "machines"),
    "mountain": ("mountain", "mountains"),
    "nasa": (SPACEFLIGHT, "spaceflight"),
    "sea": ("sea", "the sea"),
    "sky": ("sky", "a cloudy sky"),
    "snow": ("snow", "snow"),
    "space": (SPACEFLIGHT, "spaceflight"),
    "station": (SPACEFLIGHT, "spaceflight"),
    "valley": ("valley", "a valley"),
    "water": ("water", "water"),
}


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of a copyright file that licenses files."""

    patterns: list[str]
    author: str
    licence: str  # short name
    statement: str  # the text below the short name
    text: str  # the whole paragraph


def read_copyright(text: str) -> list[Paragraph]:
    """Return the Files paragraphs of a machine-readable copyright file, in their order.

    https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
    """
    paragraphs = []
    for part in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
        fields: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in part.splitlines():
            if line.startswith("#"):
                continue
            if line[0] not in " \t":
                name, _, line = line.partition(":")
                lines = fields.setdefault(name.lower(), [])
            lines.append(line.strip())
        if "files" in fields:
            licence, *statement = fields["license"]
            paragraphs.append(
                Paragraph(
                    patterns=" ".join(fields["files"]).split(),
                    author=" ".join(fields["copyright"]).strip(),
                    licence=licence,
                    statement=" ".join(statement),
                    text=part,
                )
            )
    return paragraphs


def matches(pattern: str, path: str) -> bool:
    r"""Return whether a pattern matches a path: * any text, ? one character, \ before literals."""
    expression = ""
    for token in re.findall(r"\\?.", pattern):
        wildcards = {"*": ".*", "?": "."}
        expression += wildcards.get(token, re.escape(token[-1]))
    return re.fullmatch(expression, path) is not None


def public_domain(path: str, paragraphs: list[Paragraph]) -> Paragraph | None:
    """Return the paragraph that puts a file into the public domain, or None.

    The last paragraph that matches counts, as the format says. That alone is too little here:
    `mountain1*`, of the last paragraphs, is meant for mountain1.jpg and also matches
    mountain10-sfiera.jpg, which an earlier paragraph licenses. So every pattern that names less
    than a folder must say the same.
    """
    last, licences = None, set()
    for paragraph in paragraphs:
        for pattern in paragraph.patterns:
            if matches(pattern, path):
                last = paragraph
                if not (pattern == "*" or pattern.endswith("/*")):
                    licences.add(paragraph.licence)
    if last is None or licences | {last.licence} != {"public-domain"}:
        return None
    return last


def read_photographs(paths: list[Path], size: int) -> np.ndarray:
    """Return photographs reduced so that a crop is size × size. uint8 [P, height, width, 3]

    None has a colour profile other than sRGB.
    """
    height, width = photograph_shape(size)
    photographs = np.empty((len(paths), height, width, 3), np.uint8)
    for i, path in enumerate(paths):
        with Image.open(path) as image:
            if image.size != (720, 360) or image.mode != "RGB":
                raise ConfigError(f"{path}: must be 720×360, in colour")
            photographs[i] = image.resize((width, height), Image.Resampling.LANCZOS)
    return photographs


def write_mosaic(photographs: np.ndarray, path: Path) -> None:
    """Write photographs [P, height, width, 3] row by row into one image, without loss."""
    count, height, width, _ = photographs.shape
    mosaic = np.zeros((-(-count // COLUMNS) * height, COLUMNS * width, 3), np.uint8)
    for i, photograph in enumerate(photographs):
        top, left = i // COLUMNS * height, i % COLUMNS * width
        mosaic[top : top + height, left : left + width] = photograph
    Image.fromarray(mosaic).save(path, lossless=True, quality=90, method=6)


def write_table(names: list[str], stated: list[Paragraph]) -> None:
    """Write the table of photographs.

    Args:
        names: Photographs.
        stated: The paragraph that puts each into the public domain.
    """
    with open(LAND / "photographs.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["photograph", "scene", "subject", "source", "author", "licence"])
        for name, paragraph in zip(names, stated, strict=True):
            kind = re.match("[a-z]+", name)[0]
            source = paragraph.statement.removesuffix(" (Exceptions noted below.)")
            table.writerow([name, *KINDS[kind], source, paragraph.author, paragraph.licence])


def write_copyright(paragraphs: list[Paragraph]) -> None:
    """Write the paragraphs of the copyright file on the photographs of the mosaic."""
    head = """\
photographs32.webp has photographs of endless-sky-data 0.9.8-1.2 (Debian), images/land/*.jpg of
https://github.com/endless-sky/endless-sky, reduced in size. photographs.csv names them. These
paragraphs of the package's copyright file, of which the last that matches counts, put them into the
public domain. Photographs with another licence are left out, also where a pattern below matches
them.
"""
    texts = [paragraph.text for paragraph in paragraphs]
    (LAND / "COPYRIGHT").write_text("\n\n".join([head.rstrip(), *texts]) + "\n")


def nearest_crops(crops: ImageSet, photographs: np.ndarray) -> dict[str, float]:
    """Return how alike crops are: cosine similarity of pixels minus the crop's mean.

    Args:
        crops: N crops.
        photographs: The photograph of each. [N]
    """
    unit = crops.images.reshape(len(crops), -1).astype(np.float32)
    unit -= unit.mean(1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    positions = np.array([list(map(int, re.findall(r"\d+", name)[-2:])) for name in crops.ids])
    # Crops overlap if they are less than two columns and less than two rows apart.
    near = (abs(positions[:, None] - positions) < 2).all(-1)
    same = photographs[:, None] == photographs
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    nearest = cosine.argmax(1)
    apart = np.where(same & near, -2, cosine).argmax(1)
    mirrored = crops.images[..., ::-1].reshape(len(crops), -1).astype(np.float32)
    mirrored -= mirrored.mean(1, keepdims=True)
    mirrored /= np.linalg.norm(mirrored, axis=1, keepdims=True)
    others = np.maximum(cosine, unit @ mirrored.T)[~same]
    return {
        "nearest_is_of_the_same_photograph": (photographs[nearest] == photographs).mean(),
        "nearest_without_overlap_is": (photographs[apart] == photographs).mean(),
        "largest_cosine_between_photographs": others.max(),
    }


def contact_sheet(crops: ImageSet, columns: int = 14, rows: int = 1, scale: int = 2) -> Image.Image:
    """Return crops of every scene, evenly spaced in their order."""
    width, pitch = 32 * scale, 32 * scale + 2
    height = rows * pitch + 14
    sheet = Image.new("RGB", (columns * pitch, len(crops.class_names) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for label, scene in enumerate(crops.class_names):
        members = np.flatnonzero(crops.labels == label)
        shown = members[np.linspace(0, len(members) - 1, columns * rows).round().astype(int)]
        title = f"{scene}: {len(members)} crops. The first: {crops.captions[shown[0]][0]}"
        draw.text((2, label * height), title, fill="black")
        for i, crop in enumerate(crops.images[shown]):
            image = Image.fromarray(crop.transpose(1, 2, 0))
            place = i % columns * pitch, label * height + 14 + i // columns * pitch
            sheet.paste(image.resize((width, width), Image.Resampling.NEAREST), place)
    return sheet


def build(package: Path, size: int) -> None:
    """Write the files of photographs of one size.

    Args:
        package: The unpacked package.
        size: Height and width of a crop, 32 or 64.
    """
    paragraphs = read_copyright((package / COPYRIGHT).read_text())
    paths, stated = [], []
    for path in sorted((package / IMAGES).glob("*.jpg")):
        paragraph = public_domain(f"images/land/{path.name}", paragraphs)
        if paragraph is not None:
            paths.append(path)
            stated.append(paragraph)
    LAND.mkdir(exist_ok=True)
    mosaic = LAND / f"photographs{size}.webp"
    write_mosaic(read_photographs(paths, size), mosaic)
    print(f"{mosaic}: {len(paths)} photographs, {mosaic.stat().st_size:,} bytes")
    if size != 32:
        return
    write_table([path.stem for path in paths], stated)
    write_copyright([paragraph for paragraph in paragraphs if paragraph in stated])

    everything, _ = land_crops(32, spaceflight=True)
    crops, photographs = land_crops(32, spaceflight=False)
    contact_sheet(crops).save(HERE / "contact.png", optimize=True)
    scenes = np.bincount(crops.labels).tolist()
    facts = {
        "photographs": len(paths),
        "bytes": mosaic.stat().st_size,
        "crops": len(everything),
        "crops_without_structure": 24 * len(paths) - len(everything),
        "landscapes": {
            "photographs": len(np.unique(photographs)),
            "crops": len(crops),
            "scenes": dict(zip(crops.class_names, scenes, strict=True)),
        },
    }
    for name, value in nearest_crops(crops, photographs).items():
        facts["landscapes"][name] = round(float(value), 3)
    (HERE / "data.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="directory of the unpacked package")
    parser.add_argument("--size", type=int, default=32, choices=(32, 64), help="of a crop")
    build(**vars(parser.parse_args()))
