"""Text from outside (labels, captions, prompts, file names, messages) where it is shown.

Each sink has one function, which everything that is written there goes through: `printable` for
terminals and W&B, `evaluation.rows.markdown_text`, `evaluation.plots.plain_texts` for
figures, and `report.page.page_html`.
"""

from typing import TypeVar

Json = TypeVar("Json")

MOST_LETTERS = 1000  # of a line


def printable(text: str, most: int = MOST_LETTERS) -> str:
    """Return text as one line of characters that can be shown, at most `most` of them.

    Control characters, line ends, marks without width or of direction, and halves of surrogate
    pairs become spaces.

    >>> printable("a\\x1b[31mb\\u202ec\\nd"), printable("abcdef", 4)
    ('a [31mb c d', 'abc…')
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def printable_json(value: Json) -> Json:
    """Return JSON with all its texts and keys as `printable` shows them, at any length."""
    if isinstance(value, str):
        return printable(value, len(value))  # type: ignore[return-value]
    if isinstance(value, dict):
        return {printable_json(k): printable_json(v) for k, v in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return [printable_json(item) for item in value]  # type: ignore[return-value]
    return value
