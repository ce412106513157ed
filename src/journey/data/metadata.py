"""Captions and labels of a folder of images, from metadata files or from texts beside images.

Rows are those of Hugging Face's imagefolder. Nothing is converted: a value of another type is
refused with its file and line.
"""

import csv
import io
import json
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from journey.engine.checks import ConfigError, require

FILE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")
LABEL_COLUMN = "label"
ROW = "must be a JSON object with a file_name"

# How pandas, and therefore imagefolder, reads a column of a CSV file.
MISSING = {
    "", " ", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
}  # fmt: skip
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
NUMBER = re.compile(r"\s*[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf(inity)?)\s*", re.I | re.A)
BOOLEANS = {
    "True": True,
    "TRUE": True,
    "true": True,
    "False": False,
    "FALSE": False,
    "false": False,
}

Value = str | int | float | list | dict | None


@dataclass(frozen=True)
class Row:
    """One row of a metadata file, and where it is: file and line."""

    where: str
    values: dict[str, Value]


@dataclass(frozen=True)
class Descriptions:
    """The captions and labels of all images by file name, or none; and the columns not used."""

    captions: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    unused: tuple[str, ...] = ()


def read_metadata(
    root: Path, files: list[str], images: list[str], caption_column: str, label_column: str
) -> Descriptions:
    """Return what the metadata files of a folder say of its images.

    Several rows of one image, or a list in a row, are alternative captions of the image.

    Args:
        root: The folder.
        files: Names of the metadata files below it. Their rows name files relative to their own
            folder.
        images: Names of all images below it.
        caption_column: The column with captions; "": the one of `CAPTION_COLUMNS` that exists.
        label_column: The column with labels; "": `label`, if it exists.

    Raises:
        ConfigError: A file or a value is not understood, an image is described twice or not at
            all, or it has no caption or label where others have one.
    """
    # 1. Read all rows, and choose the columns.
    rows = _read_rows(root, files)
    columns = list(dict.fromkeys(column for _, row in rows for column in row.values))
    captioning, labelling = choose_columns(root / files[0], columns, caption_column, label_column)

    # 2. Collect captions and labels by image.
    names, missing = set(images), []
    captions: dict[str, tuple[str, ...]] = {}
    labels: dict[str, str] = {}
    described: dict[str, Row] = {}
    label_types: dict[type, str] = {}
    for file, row in rows:
        name = posixpath.normpath(posixpath.join(posixpath.dirname(file), _file_name(row)))
        if name not in names:
            missing.append((row.where, name))
            continue
        if labelling:
            label = _label(row, labelling, label_types)
            if labels.setdefault(name, label) != label:
                raise ConfigError(
                    f"{row.where}: {name} has the label {labels[name]} in another row"
                )
        again = name in described
        if captioning:
            texts = captions.get(name, ()) + row_captions(row, captioning)
            captions[name], again = texts, len(set(texts)) < len(texts)
        if again:
            raise ConfigError(f"{row.where}: repeats {described.get(name, row).where} ({name})")
        described[name] = row

    # 3. Compare the images that have a row with those that exist.
    if missing:
        where, name = missing[0]
        such = f"{_similar(name, images)} ({len(missing)} such)"
        raise ConfigError(f"{where}: describes {name}, which does not exist{such}")
    _require_all(images, described, f"described in {', '.join(str(root / name) for name in files)}")
    most = max(map(len, captions.values()), default=0)
    few = [name for name, texts in captions.items() if len(texts) < most]
    if few:
        problem = f"{few[0]} has {len(captions[few[0]])} captions, others have {most}"
        raise ConfigError(f"{described[few[0]].where}: {problem} ({len(few)} such)")
    unused = [name for name in columns if name not in ("file_name", captioning, labelling)]
    return Descriptions(captions, labels, tuple(unused))


def read_texts(root: Path, texts: dict[str, str], images: list[str]) -> dict[str, tuple[str, ...]]:
    """Return captions from the text files beside images, one line each.

    Args:
        root: The folder.
        texts: The text file of each image that has one.
        images: Names of all images.

    Raises:
        ConfigError: An image has no text, or a text is not one line of words.
    """
    captions: dict[str, tuple[str, ...]] = {}
    for image, name in texts.items():
        lines = read_utf8(root / name).split("\n")
        filled = [number for number, line in enumerate(lines, 1) if line.strip()]
        if len(filled) != 1:
            line = filled[1] if filled else 1
            raise ConfigError(f"{root / name}:{line}: must be one line, the caption of {image}")
        caption = lines[filled[0] - 1].strip()
        if re.fullmatch(r"[\d\s.,+-]+", caption):
            problem = f"must be a caption of {image}, not numbers alone"
            raise ConfigError(f"{root / name}:{filled[0]}: {problem}")
        captions[image] = (caption,)
    _require_all(images, captions, "captioned by a text file beside it, as others are")
    return captions


def read_utf8(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        ConfigError: It is not UTF-8.
    """
    raw = path.read_bytes()
    advice = "save the file as UTF-8"
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{path}:1: is UTF-16; {advice}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        line = raw[:bad].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 (byte {raw[bad]:#04x}); {advice}") from None


def _read_rows(root: Path, files: list[str]) -> list[tuple[str, Row]]:
    """Return the rows of all metadata files, each with its file; refuse several formats."""
    formats = {posixpath.splitext(name)[1] for name in files}
    if len(formats) > 1:
        raise ConfigError(f"{root}: has metadata in several formats ({', '.join(files)}); keep one")
    read_file = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}[formats.pop()]
    rows = []
    for name in files:
        for row in read_file(root / name):
            rows.append((name, row))
    return rows


def _json_rows(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line, object_pairs_hook=_distinct_keys)
        except RecursionError:
            raise ConfigError(f"{where}: is nested too deeply") from None
        except ValueError as error:
            raise ConfigError(f"{where}: {ROW} ({error})") from None
        if not isinstance(row, dict) or "file_name" not in row:
            raise ConfigError(f"{where}: {ROW}")
        rows.append(Row(where, row))
    return rows


def _distinct_keys(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {repeated!r} twice")
    return values


def _csv_rows(path: Path) -> list[Row]:
    """Return the rows, each column of which has one type, by pandas' rules."""
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), strict=True)
    lines: list[tuple[int, list[str]]] = []
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise ConfigError(f"{path}:{number}: not CSV ({error})") from None
        if values:
            lines.append((number, values))
    number, columns = lines.pop(0) if lines else (1, [])
    distinct = len(set(columns)) == len(columns)
    if "file_name" not in columns or not distinct or list(map(str.strip, columns)) != columns:
        problem = f"must name distinct columns, one of them file_name, not {', '.join(columns)}"
        raise ConfigError(f"{path}:{number}: {problem}")
    for number, values in lines:
        if len(values) != len(columns):
            problem = f"has {len(values)} values, not {len(columns)} ({', '.join(columns)})"
            raise ConfigError(f"{path}:{number}: {problem}")
    typed = map(_typed, zip(*(values for _, values in lines), strict=True))  # by column
    rows = []
    for (number, _), row in zip(lines, zip(*typed, strict=True), strict=True):
        rows.append(Row(f"{path}:{number}", dict(zip(columns, row, strict=True))))
    return rows


def _typed(column: Sequence[str]) -> list[Value]:
    """Return the values of a column of a CSV file: all integers, all numbers, booleans or texts.

    >>> _typed(["1", "2"]), _typed(["1", "2.5"]), _typed(["1", "NA", "a"])
    ([1, 2], [1.0, 2.5], ['1', None, 'a'])
    """
    values = [value for value in column if value not in MISSING]
    convert: Callable[[str], Value] = str
    if all(map(INTEGER.fullmatch, values)):
        convert = int
    elif all(map(NUMBER.fullmatch, values)):
        convert = float
    elif BOOLEANS.keys() >= set(values):
        convert = BOOLEANS.__getitem__
    return [None if value in MISSING else convert(value) for value in column]


def _parquet_rows(path: Path) -> list[Row]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        advice = "needs pyarrow: pip install 'journey[data]', or save metadata.jsonl instead"
        raise ConfigError(f"{path}: {advice}") from None
    try:
        table = ParquetFile(path).read()
        columns, rows = table.column_names, table.to_pylist()
    except Exception as error:  # a damaged file raises many types of errors
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: not a readable Parquet file ({reason})") from None
    if "file_name" not in columns or len(set(columns)) < len(columns):
        problem = f"must have distinct columns, one of them file_name, not {', '.join(columns)}"
        raise ConfigError(f"{path}: {problem}")
    return [Row(f"{path}: row {number}", row) for number, row in enumerate(rows, 1)]


def choose_columns(
    path: Path, columns: list[str], caption_column: str, label_column: str
) -> tuple[str, str]:
    """Return the columns with captions and with labels; "" where there is none.

    Args:
        path: The file, for messages.
        columns: Its columns.
        caption_column: The column with captions; "": the one of `CAPTION_COLUMNS` that exists.
        label_column: The column with labels; "": `label`, if it exists.

    Raises:
        ConfigError: There is no such column, or several have captions.
    """
    present = [column for column in CAPTION_COLUMNS if column in columns]
    if len(present) > 1 and not caption_column:
        problem = f"has captions in several columns ({', '.join(present)})"
        raise ConfigError(f"{path}: {problem}; set dataset.caption_column to one of them")
    allowed = f"one of the columns of {path}: {', '.join(columns)}"
    for setting, column in (("caption_column", caption_column), ("label_column", label_column)):
        require(not column or column in columns, f"dataset.{setting}", column, allowed)
    captioning = caption_column or next(iter(present), "")
    return captioning, label_column or (LABEL_COLUMN if LABEL_COLUMN in columns else "")


def _file_name(row: Row) -> str:
    """Return the relative path of a row's image, with slashes; it must be inside the folder."""
    name = row.values["file_name"]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{row.where}: file_name={_json(name)}: must be a text")
    path = _valid(row, "file_name", name).replace("\\", "/")
    if path.startswith("/") or "://" in path or ".." in path.split("/"):
        problem = f"must be a path inside the folder of the metadata file, without '..': {name}"
        raise ConfigError(f"{row.where}: file_name {problem}")
    return path


def row_captions(row: Row, column: str) -> tuple[str, ...]:
    """Return the captions of a row.

    Raises:
        ConfigError: They are not texts.
    """
    value = row.values.get(column)
    texts = tuple(value) if isinstance(value, list) else (value,)
    if not texts or not all(isinstance(text, str) for text in texts):
        problem = f"{column}={_json(value)}: must be a text, or a list of texts"
        raise ConfigError(f"{row.where}: {problem}")
    return tuple(_valid(row, column, str(text)) for text in texts)


def _label(row: Row, column: str, types: dict[type, str]) -> str:
    """Return the class of a row: a text or an integer, the same type in all rows.

    Args:
        row: The row.
        column: The column with labels.
        types: The types of the labels before this one, and where the first of each is; changed.

    Raises:
        ConfigError: It is of another type, or missing.
    """
    value = row.values.get(column)
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        problem = f"{column}={_json(value)}: must be a text or a whole number"
        raise ConfigError(f"{row.where}: {problem}")
    types.setdefault(type(value), row.where)
    if len(types) > 1:
        first = next(iter(types.values()))
        problem = f"{column}={_json(value)}: texts and numbers are mixed (see {first})"
        raise ConfigError(f"{row.where}: {problem}")
    return _valid(row, column, value) if isinstance(value, str) else str(value)


def is_unicode(text: str) -> bool:
    """Return whether a text has no halves of characters (lone surrogates)."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _valid(row: Row, column: str, text: str) -> str:
    if not is_unicode(text):
        problem = f"{column} has half of a character (a lone surrogate)"
        raise ConfigError(f"{row.where}: {problem}")
    return text


def _require_all(images: list[str], described: Iterable[str], how: str) -> None:
    absent = sorted(set(images) - set(described))
    if absent:
        advice = "describe it, or move it out of the folder"
        raise ConfigError(f"{absent[0]} is not {how} ({len(absent)} such); {advice}")


def _similar(name: str, images: list[str]) -> str:
    """Return a hint if an image has nearly that name: in case, Unicode form or % escapes."""

    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", unquote(text)).casefold()

    similar = [image for image in images if plain(image) == plain(name)]
    if not similar:
        return ""
    return f", but {similar[0]} does: names must be the same in case, Unicode form and escapes"


def _json(value: Value) -> str:
    """Return a value for an error message, in one line and not long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:60] + "…"
