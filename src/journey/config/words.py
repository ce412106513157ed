"""Overrides as people write them: texts and paths need no quotes of Hydra's grammar.

A text keeps its characters: `name=2024.10` is no number, and `dataset.root=/data/epoch=3 (1)` needs
no quotes. Lists `[…]`, maps `{…}`, `null`, quoted texts, functions such as `choice(a,b)`, and
interpolations `${…}` are Hydra's.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from journey.config.compose import CONF, choices
from journey.config.run import RunConfig
from journey.engine.checks import ConfigError
from journey.engine.spec import Component

SEARCHPATH = "hydra.searchpath"  # a list of directories, as texts
FUNCTION = re.compile(
    r"(choice|range|interval|glob|shuffle|sort|tag|extend_list|int|float|str|bool|json_str)\s*\("
)
PAIRS = {"[": "]", "{": "}", "(": ")"}


def quote_words(
    words: Sequence[str], components: Sequence[type[Component]], sweep: bool = False
) -> list[str]:
    """Return the words of a command with the texts in them quoted where Hydra needs it.

    Args:
        words: Flags and overrides.
        components: The components, whose fields are settings.
        sweep: Whether a comma separates the points of a sweep.
    """
    quoted, previous = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd") and equals:
            quoted.append(f"{name}={os.path.expanduser(value)}")
        elif previous in ("--config-dir", "-cd"):
            quoted.append(os.path.expanduser(word))
        elif equals and not word.startswith(("-", "~")):
            types = setting_types(name.lstrip("+"), components)
            quoted.append(f"{name}={_quote_value(name.lstrip('+'), value, types, sweep)}")
        else:
            quoted.append(word)
        previous = word
    return quoted


def setting_types(key: str, components: Sequence[type[Component]]) -> list[Any]:
    """Return the types that a setting may have, of all choices of its group; [] if there is none.

    Args:
        key: The setting, such as `dataset.root`.
        components: The components that are choices.
    """
    if key == SEARCHPATH:
        return [list[str]]
    owners: list[Any] = [RunConfig]
    for part in key.split("."):
        types = []
        for owner in owners:
            if get_origin(owner) is dict:
                types.append(get_args(owner)[1])
            elif is_dataclass(owner):
                hints = get_type_hints(owner)
                types += [hints[part]] if part in hints else []
        owners = []
        for kind in types:
            is_interface = isinstance(kind, type) and issubclass(kind, Component)
            choices = [c for c in components if issubclass(c, kind)] if is_interface else []
            owners += choices or [kind]
    return owners


def parse_words(words: Sequence[str]) -> list[Override]:
    """Return the overrides.

    Raises:
        ConfigError: A word is none. The message names it.
    """
    parser, overrides = OverridesParser.create(), []
    for word in words:
        try:
            overrides += parser.parse_overrides([word])
        except HydraException:
            key, equals, value = word.partition("=")
            if not equals or not key.strip():
                raise ConfigError(f"{word}: must be setting=value{_as_choice(word)}") from None
            inner = value.replace("\\", "\\\\").replace('"', '\\"')
            advice = f"""a text with such characters needs quotes: '{key}="{inner}"'"""
            raise ConfigError(f"{word}: the value cannot be read; {advice}") from None
    return overrides


def _as_choice(word: str) -> str:
    """Return what a word without a setting may mean: a choice of a group, such as an experiment."""
    for group in ("experiment", *sorted(path.name for path in CONF.iterdir() if path.is_dir())):
        if word in choices(group):
            return f"; did you mean {group}={word}?"
    return " (journey --help)"


def _quote_value(key: str, text: str, types: list[Any], sweep: bool) -> str:
    """Return the value of a setting of one of these types; refuse a text in place of a list."""
    whole = text.strip()
    if (FUNCTION.match(whole) and whole.endswith(")")) or whole.startswith("${"):
        return text
    if str in types:
        enclosed = whole[:1] + whole[-1:]
        if enclosed in ("[]", "{}") and _quote_text(whole) == whole:
            advice = f"""put quotes around a text with brackets: '{key}="{whole}"'"""
            raise ConfigError(f"{key}={text}: must be a text; {advice}")
        points = [point.strip() for point in _split(text)] if sweep else [text]
        return ",".join(_quote_text(point) for point in points)
    texts, by_name = list[str] in types, dict[str, str] in types
    if not (texts or by_name) or whole in ("null", "???", ""):
        return text
    points = []
    for point in [part.strip() for part in _split(whole)] if sweep else [whole]:
        enclosed = point[:1] + point[-1:]
        if texts and enclosed != "[]":
            raise ConfigError(f"{key}={text}: must be a list: '{key}=[{text}]'")
        if by_name and enclosed != "{}":
            points.append(point)
            continue
        items = [item.strip() for item in _split(point[1:-1])]
        quoted = [_quote_item(key, item) if texts else _quote_entry(item) for item in items]
        points.append(f"{enclosed[0]}{','.join(quoted)}{enclosed[1]}")  # "x: ," would keep a space
    return ",".join(points)


def _quote_item(key: str, item: str) -> str:
    if key != SEARCHPATH:
        return _quote_text(item)
    prefix = "file://" if item.startswith("file://") else ""
    return _quote_text(prefix + os.path.expanduser(item.removeprefix("file://")))


def _quote_entry(entry: str) -> str:
    name, colon, value = entry.partition(":")
    quoted = _quote_text(value.strip())
    return entry if not colon or quoted == value.strip() else f"{name}: {quoted}"


def _quote_text(text: str) -> str:
    """Return a text as it is if Hydra's grammar reads it so, or as something that is no text."""
    if FUNCTION.match(text) and text.endswith(")"):
        return text
    try:
        (override,) = OverridesParser.create().parse_overrides([f"x={text}"])
    except HydraException:
        pass
    else:
        value = override.value()
        quoted = text[:1] in ("'", '"')
        scalar = isinstance(value, str | bool | int | float)
        changed = scalar and str(value) != text and "\\" not in text  # \( is an escape of Hydra's
        if not (changed and not quoted) and not override.is_sweep_override():
            return text
    return QuotedString(text, Quote.single).with_quotes()


def _split(text: str, nested: bool = True) -> list[str]:
    """Return the parts between commas that are in no quotes and, if `nested`, in no brackets."""
    parts, start, closing, quote = [], 0, "", ""
    for i, character in enumerate(text):
        begins = not text[start:i].strip() or text[:i].rstrip()[-1:] in (":", "[", "{")
        if quote:
            quote = "" if character == quote and text[i - 1] != "\\" else quote
        elif character in "'\"" and begins:
            quote = character
        elif nested and character in PAIRS:
            closing = PAIRS[character] + closing
        elif closing and character == closing[0]:
            closing = closing[1:]
        elif character == "," and not closing:
            parts.append(text[start:i])
            start = i + 1
    if closing:  # a bracket that belongs to a name
        return _split(text, nested=False)
    if quote:  # an apostrophe that does
        return text.split(",")
    return [*parts, text[start:]]
