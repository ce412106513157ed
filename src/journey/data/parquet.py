"""Parquet files as the library `datasets` writes them, such as data/train-00000-of-00001.parquet.

A column of images is a struct of `bytes` and `path`; a column of labels is a `ClassLabel`, whose
names are in the metadata of the schema, or has whole numbers or texts.
"""

import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from journey.data.metadata import Row, choose_columns, row_captions
from journey.engine.checks import MOST, ConfigError
from journey.pipeline.images import ImageSet

if TYPE_CHECKING:
    from pyarrow import Schema
    from pyarrow.parquet import ParquetFile

SHARD = re.compile(r"([\w.]+?)-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?\.parquet")
ROWS_AT_ONCE = 16  # whose images are in memory as they are in the file
MOST_IMAGE_BYTES = 2**28  # of one image in a file
Decode = Callable[[io.BytesIO, str], np.ndarray]


@dataclass
class _Columns:
    """The columns that are read, and the names of the labels."""

    image: str
    label: str  # "" if there is none
    caption: str
    names: tuple[str, ...]  # of labels 0, 1, …; () if labels are their own names


def split_files(root: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of each split, in the order of their numbers; {} if there are none.

    They are in the directory, or in one folder below it.

    Raises:
        ConfigError: They are in several folders, or a number is missing.
    """
    shards: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    counts: dict[str, int] = {}
    folders: dict[Path, Path] = {}
    for path in sorted([*root.glob("*.parquet"), *root.glob("*/*.parquet")]):
        match = SHARD.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        split, number, count = match[1], int(match[2]), int(match[3])
        folders.setdefault(path.parent, path)
        if counts.setdefault(split, count) != count or number in shards[split]:
            raise ConfigError(
                f"{path}: another file of {split} has the same number, or other counts"
            )
        shards[split][number] = path
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise ConfigError(
            f"{root}: has Parquet files in the folders {names}; set root to one of them"
        )
    for split, files in shards.items():
        missing = sorted(set(range(counts[split])) - set(files))
        if missing or max(files) >= counts[split]:
            name = f"{split}-{min(missing, default=0):05d}-of-{counts[split]:05d}.parquet"
            raise ConfigError(f"{next(iter(folders))}: {name} is missing")
    return {split: [files[n] for n in sorted(files)] for split, files in shards.items()}


def read_splits(
    splits: dict[str, list[Path]],
    decode: Decode,
    prefix: str = "",
    caption_column: str = "",
    label_column: str = "",
) -> dict[str, ImageSet]:
    """Return the images of splits, each in the order of its files.

    Args:
        splits: The files of each split.
        decode: Returns the pixels of an encoded image, all of one shape; its name is for messages.
        prefix: Of ids, which are prefix + split + row.
        caption_column: The column with captions; "": the one of `CAPTION_COLUMNS` that exists.
        label_column: The column with labels; "": `label`, if it exists.

    Raises:
        ConfigError: A file or a value is not understood. The message names file, row and column.
    """
    tables: dict[str, tuple[list[np.ndarray], list[str | int], list[tuple[str, ...]]]] = {}
    first: _Columns | None = None
    for split, files in splits.items():
        images: list[np.ndarray] = []
        labels: list[str | int] = []
        captions: list[tuple[str, ...]] = []
        for path in files:
            file = _open(path)
            columns = _columns(path, file.schema_arrow, caption_column, label_column)
            if first is None:
                first = columns
            if columns != first:
                raise ConfigError(f"{path}: has other columns or names of labels than other files")
            for row in _rows(path, file, columns):
                images.append(_image(row, columns.image, decode))
                if columns.label:
                    labels.append(_label(row, columns))
                if columns.caption:
                    captions.append(row_captions(row, columns.caption))
        tables[split] = images, labels, captions
    assert first is not None, "there is a file"

    # Labels become rows of the names of all classes, those of all splits.
    names = first.names
    if first.label and not names:
        names = tuple(sorted({str(label) for _, labels, _ in tables.values() for label in labels}))
    sets = {}
    for split, (images, labels, captions) in tables.items():
        if not images:
            raise ConfigError(f"{splits[split][0]}: has no rows")
        rows = np.zeros(len(images), np.int64)
        if first.label:
            position = {name: i for i, name in enumerate(names)}
            rows[:] = [label if first.names else position[str(label)] for label in labels]
        ids = tuple(f"{prefix}{split}/{row:06d}" for row in range(len(images)))
        texts = tuple(captions) if first.caption else None
        sets[split] = ImageSet(np.stack(images), rows, texts, ids, names or (".",))
    return sets


def _open(path: Path) -> "ParquetFile":
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ConfigError(f"{path}: needs pyarrow: pip install 'journey[data]'") from None
    try:
        file = ParquetFile(path)
        num_rows = file.metadata.num_rows
    except Exception as error:  # a damaged file raises many types of errors
        raise _unreadable(path, error) from None
    if not 0 <= num_rows <= MOST:
        raise ConfigError(f"{path}: has {num_rows} rows; at most {MOST} are read")
    return file


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ConfigError(f"{path}: not a readable Parquet file ({reason})")


def _columns(path: Path, schema: "Schema", caption_column: str, label_column: str) -> _Columns:
    """Return the columns of images, labels and captions; refuse none or several of images."""
    import pyarrow.types as types

    names, image_columns = list(schema.names), []
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: has two columns of one name ({', '.join(names)})")
    for name in names:
        kind = schema.field(name).type
        if types.is_struct(kind) and {f.name for f in kind} == {"bytes", "path"}:
            image_columns.append(name)
    if len(image_columns) != 1:
        image_names = ", ".join(image_columns) or "none"
        problem = (
            f"must have one column of images, a struct of bytes and path; it has {image_names}"
        )
        raise ConfigError(f"{path}: {problem} (columns: {', '.join(names)})")
    others = [name for name in names if name not in image_columns]
    caption, label = choose_columns(path, others, caption_column, label_column)
    features = _features(path, schema)
    feature = features.get(label)
    class_names: tuple[str, ...] = ()
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        listed = feature.get("names")
        texts = isinstance(listed, list) and all(isinstance(name, str) for name in listed)
        if not texts or not listed or len(set(listed)) < len(listed):
            raise ConfigError(
                f"{path}: {label}: the names of its ClassLabel must be distinct texts"
            )
        class_names = tuple(listed)
    return _Columns(image_columns[0], label, caption, class_names)


def _features(path: Path, schema: "Schema") -> dict:
    """Return what `datasets` wrote about the columns, or {}."""
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None:
        return {}
    try:
        features = json.loads(content)["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: its metadata of datasets cannot be read ({error})") from None
    return features if isinstance(features, dict) else {}


def _rows(path: Path, file: "ParquetFile", columns: _Columns) -> Iterator[Row]:
    """Yield the rows of a file, few of which are in memory at once."""
    names, number = list(filter(None, (columns.image, columns.label, columns.caption))), 1
    batches = file.iter_batches(ROWS_AT_ONCE, columns=names)
    while True:
        try:
            batch = next(batches)
            batch.validate(full=True)
            rows = batch.to_pylist()
        except StopIteration:
            break
        except Exception as error:  # as above; texts that are not UTF-8, too
            raise _unreadable(path, error) from None
        for values in rows:
            yield Row(f"{path}: row {number}", values)
            number += 1


def _image(row: Row, column: str, decode: Decode) -> np.ndarray:
    value, where = row.values[column], f"{row.where}: {column}"
    content = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(content, bytes) or not content:
        raise ConfigError(f"{where}: has no bytes of an image; files that it names are not read")
    if len(content) > MOST_IMAGE_BYTES:
        raise ConfigError(f"{where}: has {len(content)} bytes; at most {MOST_IMAGE_BYTES} are read")
    return decode(io.BytesIO(content), where)


def _label(row: Row, columns: _Columns) -> str | int:
    """Return a label; a ClassLabel is a whole number that has a name."""
    value, where = row.values[columns.label], f"{row.where}: {columns.label}={{}}: must be"
    if columns.names:
        most = len(columns.names) - 1
        if type(value) is not int or not 0 <= value <= most:
            raise ConfigError(f"{where.format(value)} in 0…{most}, a ClassLabel")
    elif type(value) not in (int, str) or value == "":
        raise ConfigError(f"{where.format(value)} a text or a whole number")
    assert isinstance(value, int | str), "checked above"
    return value
