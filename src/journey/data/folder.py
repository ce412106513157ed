"""A folder of images: what is read, as Hugging Face's imagefolder reads it, or refused.

Classes are subfolders, or labels in a metadata file; captions are in a metadata file, or in a text
file beside each image. Folders named after a split, such as `train/` and `test/`, are splits.
"""

import functools
import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import ClassVar, TypeVar

import numpy as np

from journey.data import metadata, parquet
from journey.data.images import decode_image, read_image, split_images
from journey.engine.checks import ConfigError, require, require_count, require_seed
from journey.engine.spec import omitted_default
from journey.engine.workspace import Workspace
from journey.pipeline.images import ImageSet, content_hash, write_images
from journey.pipeline.interfaces import Dataset, QueryImages
from journey.pipeline.subsets import balanced_order

SUFFIXES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
# Pictures that are not read. Ignoring them would lose images that other readers or viewers show.
OTHER_PICTURES = (
    ".arw", ".blp", ".bufr", ".bw", ".cr2", ".cr3", ".cur", ".dcx", ".dds", ".dng", ".emf", ".eps",
    ".exr", ".fit", ".fits", ".flc", ".fli", ".ftc", ".ftu", ".gbr", ".grib", ".hdr", ".heic",
    ".heif", ".icb", ".icns", ".ico", ".iim", ".im", ".j2c", ".jpc", ".jpf", ".jpx", ".jxl",
    ".mpeg", ".mpg", ".mpo", ".msp", ".nef", ".orf", ".pcd", ".pcx", ".ps", ".psd", ".pxr", ".raf",
    ".ras", ".rgb", ".rgba", ".rw2", ".sgi", ".svg", ".vda", ".vst", ".wmf", ".xbm", ".xpm", ".zip",
)  # fmt: skip
TEXT_SUFFIXES = (".txt", ".caption")
UNREAD_METADATA = ("metadata.json", "metadata.tsv", "metadata.txt", "metadata.xls", "metadata.xlsx")
SPLITS = {  # the words that name a split, as in imagefolder
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("testing", "test", "evaluation", "eval"),
}
QUERIES = "queries"  # folder of an artifact
DELIMITER = r"[-._ 0-9]"  # between such a word and the rest of a name


T = TypeVar("T")


class HeldOut(Enum):
    """Which images of a folder are held out."""

    auto = "auto"  # the split beside `train`; random images where there is none
    random = "random"  # random images of the whole folder, also of folders named after splits
    validation = "validation"
    test = "test"


def query_files(folder: str) -> list[Path]:
    """Return the image files of a folder whose images are queries, in the order of their names.

    Raises:
        ConfigError: There are none.
    """
    path = Path(folder)
    files = []
    if folder and path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
    allowed = "a folder with images, such as .png or .jpg, with sampling.start=images"
    require(len(files) > 0, "sampling.images", folder, allowed)
    return files


def read_query_images(folder: str, shape: tuple[int, int, int]) -> ImageSet:
    """Return the images of a folder as queries for training images of a shape [C, H, W].

    Raises:
        ConfigError: There are none, one cannot be read, or training images are not square.
    """
    channels, height, width = shape
    allowed = f"left out: the training images are not square, {height}×{width}"
    require(height == width, "sampling.images", folder, allowed)
    files = query_files(folder)
    pixels = np.stack([read_image(file, height, channels) for file in files])
    names = tuple(file.name for file in files)
    return ImageSet(pixels, np.zeros(len(files), np.int64), None, names, ("query",))


def make_query_images(spec: QueryImages, partial: Path, workspace: Workspace) -> None:
    """Write the images that are queries. Payload: queries/, as `journey.data.images` has images.

    Raises:
        ValueError: The folder no longer has the content that the cache key names.
    """
    images = read_query_images(spec.root, spec.shape)
    if content_hash(images) != spec.content:
        raise ValueError(f"the images in {spec.root} have changed")
    for _ in write_images(images, partial / QUERIES):
        pass


@dataclass(frozen=True)
class Listing:
    """The files below a directory, by what they are, in the order of their paths.

    Attributes:
        images: Their names, relative to the directory.
        metadata: The metadata files.
        texts: The text file beside an image, by image.
        passed_over: What was not read, by reason.
    """

    images: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    passed_over: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Contents:
    """The images of a folder with their classes and captions.

    Attributes:
        train: Names of the training images, or of all images if there is no other split.
        held_out: Names of the images of the held-out split; may be empty.
        classes: The class of each image.
        captions: The captions of each image; may be empty.
        passed_over: What was not read, by reason.
    """

    train: list[str]
    held_out: list[str]
    classes: dict[str, str]
    captions: dict[str, tuple[str, ...]]
    passed_over: dict[str, list[str]]


@dataclass
class Folder(Dataset):
    """All images below a directory, each resized, and its central square taken.

    Without a held-out split, the images that are not for training are held out.
    """

    name: ClassVar[str] = "folder"
    reads_all_below: ClassVar[bool] = True
    root: str = field(default="images", metadata={"path": True})  # the directory
    size: int = 32  # height and width of the images: central squares, resized
    channels: int = 3  # 3: colour, 1: grey
    num_train: int = 0  # training images, class-balanced; 0: nine tenths, or the whole split
    seed: int = 0  # of the split
    held_out: HeldOut = omitted_default(HeldOut.auto)
    caption_column: str = omitted_default("")  # of metadata; "": text, caption, captions or prompt
    label_column: str = omitted_default("")  # of metadata; "": label

    @property
    def label(self) -> str:
        return f"folder{self.size}px"

    def check(self, where: str) -> None:
        require_count(f"{where}.size", self.size, least=8, most=1024)
        require(self.channels in (1, 3), f"{where}.channels", self.channels, "1 (grey) or 3")
        require_count(f"{where}.num_train", self.num_train, least=0)
        require_seed(f"{where}.seed", self.seed)

    def sources(self) -> list[Path]:
        if splits := parquet.split_files(Path(self.root)):
            return list(itertools.chain.from_iterable(splits.values()))
        listing = _list_files(Path(self.root))
        names = [*listing.images, *listing.metadata, *listing.texts.values()]
        return [Path(self.root, name) for name in names]

    def notes(self) -> list[str]:
        if not Path(self.root).is_dir():
            return []
        if splits := self._parquet_splits():
            counts = [f"{len(files)} files of {split}" for split, files in splits.items()]
            return [f"{self.root}: Parquet, {', '.join(counts)}"]
        contents = self._contents()
        parts = ""
        if contents.held_out:
            train, held_out = len(contents.train), len(contents.held_out)
            parts = f", {train:,} for training and {held_out:,} held out"
        lines = [f"{self.root}: {len(contents.classes):,} images found{parts}"]
        for reason, names in contents.passed_over.items():
            example = names[0] if names[0].isprintable() else ascii(names[0])
            lines.append(f"{self.root}: passed over {len(names):,} {reason}, such as {example}")
        return lines

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return training and held-out images, in the order of their paths.

        Raises:
            ConfigError: Something in the directory is not understood.
        """
        if splits := self._parquet_splits():
            return self._split(*self._read_parquet(splits))
        contents = self._contents()
        names = [*contents.train, *contents.held_out]
        class_names = sorted(set(contents.classes.values()))
        captions = None
        if contents.captions:
            captions = tuple(contents.captions[name] for name in names)
        pixels = []
        for name in names:
            pixels.append(read_image(Path(self.root, name), self.size, self.channels))
        everything = ImageSet(
            images=np.stack(pixels),
            labels=np.array([class_names.index(contents.classes[name]) for name in names]),
            captions=captions,
            ids=tuple(names),
            class_names=tuple(class_names),
        )
        return self._split(everything, len(contents.train))

    def _parquet_splits(self) -> dict[str, list[Path]]:
        """Return the Parquet files of train and of the held-out split; {} if there are none.

        Raises:
            ConfigError: There are pictures, too, or no split of that name.
        """
        root, files = Path(self.root), parquet.split_files(Path(self.root))
        if not files:
            return {}
        if pictures := _list_files(root).images:
            raise ConfigError(f"{root}: has Parquet files and {pictures[0]}; move one of them away")
        splits: dict[str, list[Path]] = {}
        for name, paths in files.items():
            named = [split for split, keywords in SPLITS.items() if name in keywords]
            if named:
                splits[named[0]] = paths
            else:
                problem = f"the split {name} of {paths[0].name} is not train, validation or test"
                raise ConfigError(f"{root}: {problem}; move it away")
        if self.held_out is HeldOut.random:
            return splits
        used = ("train", self._held_out_split(set(splits)))
        return {name: splits[name] for name in used if name in splits}

    def _read_parquet(self, splits: dict[str, list[Path]]) -> tuple[ImageSet, int]:
        """Return all images, those for training first, and how many these are."""
        decode = functools.partial(decode_image, size=self.size, channels=self.channels)
        columns = {"caption_column": self.caption_column, "label_column": self.label_column}
        parts = parquet.read_splits(splits, decode, **columns)
        sets = list(parts.values())
        everything = ImageSet(
            images=np.concatenate([part.images[:] for part in sets]),
            labels=np.concatenate([part.labels for part in sets]),
            captions=None if sets[0].captions is None else _joined(p.captions or () for p in sets),
            ids=_joined(part.ids for part in sets),
            class_names=sets[0].class_names,
        )
        if self.held_out is HeldOut.random:
            return everything, len(everything)
        untrained = sorted(set(everything.labels.tolist()) - set(sets[0].labels.tolist()))
        if untrained:
            name = everything.class_names[untrained[0]]
            raise ConfigError(f"{self.root}: no training image has the held-out class {name}")
        return everything, len(sets[0])

    def _split(self, everything: ImageSet, num_images: int) -> tuple[ImageSet, ImageSet]:
        """Return training and held-out images, given how many of the first are for training."""
        if num_images == len(everything):
            count = self.num_train or num_images - max(1, num_images // 10)
            allowed = f"fewer than the {num_images} images there are"
            require(count < num_images, "dataset.num_train", count, allowed)
            return split_images(everything, count, balanced_order(everything.labels, self.seed))
        train, held_out = split_images(everything, num_images, np.arange(len(everything)))
        allowed = f"0 (all) or at most the {num_images} images for training"
        require(self.num_train <= num_images, "dataset.num_train", self.num_train, allowed)
        if self.num_train:
            order = balanced_order(train.labels, self.seed)
            train = train.take(np.sort(order[: self.num_train]))
        return train, held_out

    def _contents(self) -> Contents:
        """Return what is read of the directory, or refuse it. No image is decoded."""
        root, listing = Path(self.root), _list_files(Path(self.root))
        allowed = f"a directory with two images or more ({', '.join(SUFFIXES)})"
        require(len(listing.images) >= 2, "dataset.root", self.root, allowed)
        passed_over = listing.passed_over

        # Choose the images of the splits.
        ignored = self.held_out is HeldOut.random
        splits = {} if ignored else _find_splits(root, listing.images, listing.metadata)
        held_out_split = self._held_out_split(set(splits.values()))
        train: list[str] = []
        held_out: list[str] = []
        for name in listing.images:
            split = splits.get(name, "train")
            if split not in ("train", held_out_split):
                passed_over[f"images of the {split} split"].append(name)
                continue
            (train if split == "train" else held_out).append(name)
        images = sorted(train + held_out, key=_path_parts)
        require(len(images) >= 2, "dataset.root", self.root, allowed)

        # Read labels and captions.
        used = ("train", held_out_split)
        files = [name for name in listing.metadata if splits.get(name, "train") in used]
        texts = {name: listing.texts[name] for name in images if name in listing.texts}
        labels: dict[str, str] = {}
        captions: dict[str, tuple[str, ...]] = {}
        if files:
            columns = (self.caption_column, self.label_column)
            rows = metadata.read_metadata(root, files, images, *columns)
            labels, captions = rows.labels, rows.captions
            for column in rows.unused:
                passed_over["columns of metadata"].append(column)
        else:
            for setting in ("caption_column", "label_column"):
                value = getattr(self, setting)
                require(not value, f"dataset.{setting}", value, f"empty: {root} has no metadata")
        if texts and captions:
            problem = f"has captions in {files[0]} and in {next(iter(texts.values()))}"
            raise ConfigError(f"{root}: {problem}; move one of them out of the folder")
        if texts:
            captions = metadata.read_texts(root, texts, images)
        if not labels:
            labels = _folder_classes(root, images, splits, bool(files), passed_over)
        _require_distinct(root, labels)
        untrained = sorted({labels[name] for name in held_out} - {labels[name] for name in train})
        if untrained:
            raise ConfigError(f"{root}: no training image has the held-out class {untrained[0]}")
        return Contents(train, held_out, labels, captions, passed_over)

    def _held_out_split(self, splits: set[str]) -> str:
        """Return the split that is held out, or "" for a part of all images."""
        others = sorted(splits - {"train"})
        random = "random, which splits all images and ignores the names of splits"
        name, value = "dataset.held_out", self.held_out.value
        if self.held_out in (HeldOut.validation, HeldOut.test):
            there = ", ".join(sorted(splits)) or "none"
            allowed = f"a split of {self.root} beside train (there are: {there}), auto or random"
            require({"train", value} <= splits, name, value, allowed)
            return value
        if others and "train" not in splits:
            problem = f"{self.root} has the split {others[0]} and no split train"
            raise ConfigError(f"{problem}: set {name}={random}, or set dataset.root to that folder")
        require(len(others) < 2, name, value, f"{' or '.join(others)}, or {random}")
        return others[0] if others else ""


def _joined(parts: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(itertools.chain.from_iterable(parts))


def _path_parts(name: str) -> list[str]:
    return name.split("/")


def _list_files(root: Path) -> Listing:
    """Return the files below a directory. Links are followed.

    Raises:
        ConfigError: A folder cannot be listed or is reached twice, or a picture is not read.
    """
    listing, others = Listing(), []
    visited: dict[str, str] = {}  # folders: real path and name
    pending = [""]
    while pending:
        folder = pending.pop()
        real = os.path.realpath(root / folder)
        if real in visited:
            problem = f"{root / folder}: is the same folder as {root / visited[real]}"
            raise ConfigError(f"{problem}, and its images would be read twice; remove the link")
        visited[real] = folder
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            if not folder and isinstance(error, FileNotFoundError):
                break
            raise ConfigError(f"{root / folder}: cannot be listed ({error.strerror})") from None
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            suffix, is_folder = os.path.splitext(name)[1].lower(), os.path.isdir(entry.path)
            if not metadata.is_unicode(entry.name):
                raise ConfigError(f"{root}: {name!a}: the name of a file must be UTF-8")
            if entry.name.startswith("."):
                listing.passed_over["hidden files and folders"].append(name)
            elif is_folder and entry.name.startswith("__"):
                listing.passed_over["folders that begin with __"].append(name)
            elif is_folder:
                pending.append(name)
            elif suffix in (*SUFFIXES, *OTHER_PICTURES) and not os.path.isfile(entry.path):
                raise ConfigError(f"{root / name}: is not a file, or a link to none")
            elif suffix in SUFFIXES:
                listing.images.append(name)
            elif suffix in OTHER_PICTURES:
                advice = "unpack it" if suffix == ".zip" else "convert it, for example to PNG"
                raise ConfigError(f"{root / name}: {suffix} is not read; {advice}, or move it away")
            elif entry.name in metadata.FILE_NAMES:
                listing.metadata.append(name)
            elif entry.name.lower() in (*metadata.FILE_NAMES, *UNREAD_METADATA):
                allowed = ", ".join(metadata.FILE_NAMES)
                raise ConfigError(f"{root / name}: metadata must be named {allowed}")
            else:
                others.append(name)
    listing.images.sort(key=_path_parts)
    listing.metadata.sort()
    _find_texts(root, listing, others)
    empty = set(visited.values()) - {""}
    for name in listing.images:
        empty.difference_update(map(str, PurePosixPath(name).parents))
    for folder in sorted(empty):
        listing.passed_over["folders without images"].append(folder)
    return listing


def _find_texts(root: Path, listing: Listing, others: list[str]) -> None:
    """Tell the text files beside images from others; refuse two of one image, and a wrong name."""
    by_stem: dict[str, list[str]] = {}
    for name in listing.images:
        by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    images = set(listing.images)
    for name in others:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in TEXT_SUFFIXES or stem not in {*by_stem, *images}:
            listing.passed_over["files of other types"].append(name)
            continue
        if stem in images:
            expected = os.path.splitext(stem)[0] + suffix
            raise ConfigError(f"{root / name}: the caption of {stem} must be named {expected}")
        for image in by_stem[stem]:
            if listing.texts.setdefault(image, name) != name:
                raise ConfigError(f"{root / name}: {image} also has {listing.texts[image]}")


def _find_splits(root: Path, images: list[str], metadata_files: list[str]) -> dict[str, str]:
    """Return the split of each image and metadata file; nothing if there are no splits.

    They are named by folders, or else by the names of image files, as in imagefolder.

    Raises:
        ConfigError: A file is in no split while others are in one, or it is in two.
    """
    names = [*images, *metadata_files]
    words_by_name = {name: _split_words(_path_parts(name)[:-1], re.I) for name in names}
    advice = "set dataset.held_out=random if the names are not those of splits"
    for words in words_by_name.values():
        for word in words:
            if word != word.lower():
                problem = f"the folder name {word} is that of a split, but not in lower case"
                raise ConfigError(f"{root}: {problem}; rename it, or {advice}")
    if not any(words_by_name.values()):
        words_by_name = {name: _split_words(_path_parts(name)[-1:]) for name in names}
    if not any(words_by_name.values()):
        return {}
    splits: dict[str, str] = {}
    example = next(name for name, words in words_by_name.items() if words)
    for name, words in words_by_name.items():
        named = [split for split, keywords in SPLITS.items() if words & set(keywords)]
        if not named:
            problem = f"{name} is in no split, but {example} is in one by its name"
            raise ConfigError(f"{root}: {problem}; {advice}")
        if len(named) > 1:
            raise ConfigError(f"{root}: {name} is in two splits ({', '.join(named)}); {advice}")
        splits[name] = named[0]
    return splits


def _split_words(parts: list[str], flags: int = 0) -> set[str]:
    """Return the words in names that name a split.

    >>> _split_words(["my-train_2", "tests", "training"]) == {"train", "training"}
    True
    """
    keywords = "|".join(keyword for words in SPLITS.values() for keyword in words)
    pattern = re.compile(rf"(?:^|{DELIMITER})({keywords})(?=$|{DELIMITER})", flags)
    return {word for part in parts for word in pattern.findall(part)}


def _folder_classes(
    root: Path,
    images: list[str],
    splits: dict[str, str],
    described: bool,
    passed_over: defaultdict[str, list[str]],
) -> dict[str, str]:
    """Return the class of each image by its folder.

    Args:
        root: The directory.
        images: The images.
        splits: The split of each image, or nothing.
        described: Whether metadata describe the images. Then folders are not classes.
        passed_over: What is not read; folders that are not classes are added.

    Raises:
        ConfigError: Images lie at several depths, or in nested folders.
    """
    by_folder = bool(splits) and any(_split_words(n.split("/")[:-1]) for n in images)
    outer, folders = {}, {}
    for name in images:
        parts = name.split("/")[:-1]
        start = 0
        if by_folder:  # classes are below the folder of the split
            start = next(i for i, part in enumerate(parts, 1) if _split_words([part]))
        outer[name], folders[name] = parts[: start - 1] if start else [], parts[start:]
    distinct = sorted(set(map("/".join, folders.values())))
    if not described:
        _check_split_folders(root, outer, splits if by_folder and distinct == [""] else {})
    if len(distinct) == 1:
        return dict.fromkeys(images, distinct[0] or ".")
    if described:
        passed_over["folders as classes, since metadata has no labels"] += distinct
        return dict.fromkeys(images, ".")
    nested = next((name for name in images if len(folders[name]) != 1), None)
    if nested is not None:
        other = next(name for name in images if folders[name] != folders[nested])
        place = "directly in dataset.root, or in the folder of a split"
        problem = f"{nested} and {other} are not both in a class folder, which must be {place}"
        advice = "move images, or write labels into metadata.jsonl"
        raise ConfigError(f"{root}: {problem}; {advice}")
    return {name: parts[0] for name, parts in folders.items()}


def _check_split_folders(root: Path, outer: dict[str, list[str]], splits: dict[str, str]) -> None:
    """Check that the folders of splits lie side by side, and that a flat split is one folder.

    Args:
        root: The directory.
        outer: The folders above that of the split, of each image.
        splits: The split of each image if images lie directly in the folders of splits.

    Raises:
        ConfigError: They lie in different folders, or two folders are of one split.
    """
    first = next(iter(outer))
    for name, parts in outer.items():
        if parts != outer[first]:
            problem = f"{first} and {name} are in splits inside of different folders"
            advice = "the folder of a split must be above those of classes"
            raise ConfigError(f"{root}: {problem}; {advice}")
    folders: dict[str, str] = {}  # of each split
    for name in outer if splits else ():
        split, folder = splits[name], name.rpartition("/")[0]
        if folders.setdefault(split, folder) != folder:
            problem = f"{folders[split]} and {folder} are both named after the split {split}"
            raise ConfigError(f"{root}: {problem}; put their images into one folder")


def _require_distinct(root: Path, classes: dict[str, str]) -> None:
    """Refuse classes that differ in spaces or in Unicode forms alone, which one does not see."""
    seen: dict[str, str] = {}
    for name in sorted(set(classes.values())):
        plain = unicodedata.normalize("NFC", name).strip()
        if seen.setdefault(plain, name) != name:
            problem = f"the classes {seen[plain]!a} and {name!a} differ in spaces or Unicode forms"
            raise ConfigError(f"{root}: {problem} alone; rename one of them")
