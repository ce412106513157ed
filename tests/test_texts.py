"""Text from outside (labels, captions, prompts, file names, class names) in everything we write."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from journey.cli import one_line_errors
from journey.engine.checks import ConfigError
from journey.engine.store import differences
from journey.engine.text import printable, printable_json
from journey.evaluation import plots
from journey.evaluation.rows import markdown_table, pivot, rich_table
from journey.launch.jobs import JobsFailedError
from journey.pipeline.images import ImageSet
from journey.report.figures import AttributedTrajectories, trajectory_figure
from journey.report.page import (
    PageFigure,
    PageMethod,
    PageTrajectories,
    page_contents,
    page_html,
    rank_images,
)
from journey.report.tables import row_tables, sweep_table

# Text, and what must be recognised of it.
TEXTS = {
    "0 $x^$.png": "0 $x^$.png",
    r"$\frac{$ \alpha": r"$\frac{$ \alpha",
    "[red]a[/red] :smile: [link=x]b[/]": "[red]a[/red] :smile: [link=x]b[/]",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07": "[31mred",
    "one\ntwo\r\nthree\tfour\x0bfive\x85six": "one two  three four five six",
    "\u202eleft\u202c \u2066isolate\u2069 \u200fmark": "left",
    "zero\u200bwidth\ufeff\u00ad": "zero width",
    "line\u2028paragraph\u2029end": "line paragraph end",
    "😀 👩‍👩‍👧 🇺🇳": "😀",
    "猫 शब्द": "猫",
    "שלום مرحبا": "שלום",
    "half \udc80\ud800 of a pair": "half",
    "nul\x00bell\x07back\x08": "nul bell back",
    "|`*_~&amp;<b>%#{}^\\\"'": "|`*_~&amp;<b>%#{}^\\\"'",
    "</script><script>alert(1)</script><!--": "</script><script>alert(1)</script><!--",
    "[a](javascript:x) ![i](y)": "[a](javascript:x) ![i](y)",
    "_hidden": "_hidden",
    "": "",
    " ": "",
    "x" * 5000: "x" * 30,
    "many words " * 400: "many words many words",
    "z" + "\u0301" * 200: "z",
    "=cmd|' /C calc'!A0": "=cmd|' /C calc'!A0",
    "%s {0} {x!r} %(a)s": "%s {0} {x!r} %(a)s",
    "__proto__": "__proto__",
}
texts = pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:20])


@texts
def test_printable_text_is_one_line_and_recognisable(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 1000
    assert TEXTS[text] in shown
    assert printable(shown) == shown
    shown.encode()


def rows_of(text: str) -> list[dict]:
    base = {"method": text, "quantity": text, "value": 0.1, "low": 0.0, "high": 0.2}
    return [{**base, "target": "step", "step": t} for t in (600, 300)]


@texts
def test_terminal_tables_show_text_and_nothing_controls_the_terminal(text):
    frame = pivot(
        [{"method": text, "column": text or "x"}], "method", "column", lambda _: printable(text)
    )
    tables = [rich_table(frame, text), *row_tables(rows_of(text), text)]
    tables.append(sweep_table({text: rows_of(text)}))
    for table in tables:
        output = io.StringIO()
        Console(file=output, width=100_000, force_terminal=True).print(table)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())  # rich's own bold letters
        assert all(line.isprintable() for line in plain.splitlines())
        assert TEXTS[text] in plain
        assert len(plain.splitlines()) <= 8, "a cell is one line"


@texts
def test_markdown_tables_keep_their_cells(text):
    frame = pivot([{"method": text, "column": "x"}], "method", "column", lambda _: "end")
    lines = markdown_table(frame).splitlines()
    assert len(lines) == 3
    unescaped = re.sub(r"\\(.)", "", lines[2])
    assert unescaped.count("|") == 3
    for character in "`*~$<":
        assert character not in unescaped, "no code, emphasis, formula or tag"
    assert not re.search(r"\]\(|&\w+;(?<!&amp;)(?<!&lt;)", unescaped)
    shown = re.sub(r"\\(.)", r"\1", lines[2]).replace("&lt;", "<").replace("&amp;", "&")
    assert TEXTS[text] in shown


def saved(figure: Figure) -> None:
    """Draw a figure as png and pdf. pytest makes any warning an error."""
    for suffix in ("png", "pdf"):
        figure.savefig(io.BytesIO(), format=suffix, dpi=40)


def test_figures_show_texts_as_they_are():
    figure, grid = plots.new_figure(1, 2, (24, 20))
    for i, text in enumerate(TEXTS):
        plots.plot_curve(grid[0, 0], rows_of(text), plots.COLOURS[i % 6], text)
    names = list(TEXTS)
    plots.heatmap(grid[0, 1], np.eye(len(names)), names, names, (0, 1))
    grid[0, 0].set_title("\n".join(text for text in names if len(text) < 50))
    figure.suptitle("$x^$")
    grid[0, 0].legend(title="$a$")
    saved(figure)
    legend = [text.get_text() for text in grid[0, 0].get_legend().get_texts()]
    expected = [TEXTS[text][:40] for text in names if text]
    assert len(legend) == len(expected)
    for shown, text in zip(legend, expected, strict=True):
        assert text.replace("猫", "U+732B").strip() in shown
    assert figure.get_suptitle() == "$x^$"


def test_a_saved_figure_has_its_title_as_metadata(tmp_path):
    figure, _ = plots.new_figure(1, 1, (2, 2))
    plots.save_figure(figure, tmp_path / "untitled.png")
    figure.suptitle("caption")
    plots.save_figure(figure, tmp_path / "titled.png")
    with Image.open(tmp_path / "titled.png") as one, Image.open(tmp_path / "untitled.png") as other:
        assert one.info["Title"] == "caption"
        assert one.tobytes() == other.tobytes()
    assert figure.get_suptitle() == "caption"
    assert figure.texts[0].get_visible()


def test_long_names_leave_room_for_the_axes():
    figure, grid = plots.new_figure(1, 2, (9.5, 4.2), sharey=True)
    for axes in grid[0]:
        for i in range(10):
            plots.plot_curve(axes, rows_of(f"{i}{'W' * 99}"), "red", f"{i}{'W' * 99}")
        axes.legend(fontsize=7, title="class", ncols=2)
        axes.set_title("W" * 300)
        axes.set_ylabel("W" * 300)
    plots.legend_below(figure, 9)
    figure.suptitle("W" * 300)
    saved(figure)
    assert min(axes.get_position().width for axes in figure.axes) > 0.2


def test_a_figure_that_was_not_made_here_is_saved_plainly():
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 10], [1, 100], label="$x^$")
    axes.set_title("$\\frac{$\t猫")
    axes.set_xscale("log")
    axes.legend()
    plots.plain_texts(figure)
    saved(figure)
    assert axes.get_title() == "$\\frac{$ U+732B"
    assert all(tick.label1.get_parse_math() for tick in axes.xaxis.get_major_ticks()), "10²"


def test_the_figure_of_trajectories_shows_labels_ids_and_prompts():
    names = list(TEXTS)
    random = np.random.default_rng(0)
    for first in range(0, len(names), 6):
        part = names[first : first + 6]
        trajectories = AttributedTrajectories(
            steps=(600,),
            x0_hat=np.zeros((1, 1, 1, 4, 4)),
            train=np.zeros((len(part), 1, 4, 4), np.uint8),
            scores=random.standard_normal((1, 1, len(part))),
            labels=part,
            ids=tuple(f"{i}/{text}" for i, text in enumerate(part)),
            prompts=(part[-1],),
        )
        saved(trajectory_figure(trajectories, part[0], [0]))


class Reader(HTMLParser):
    """The tags of a page, and the text of its data element."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.data, self.inside = [], "", False

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = ("id", "data") in attributes

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.data += data if self.inside else ""


def page(texts: list[str], picture: Path) -> Reader:
    """Return the page whose every text is one of these."""
    count = len(texts)
    x = np.zeros((2, 1, count, 1, 2, 2), np.float32)
    images = ImageSet(
        np.zeros((count, 1, 2, 2), np.uint8),
        np.zeros(count, np.int64),
        tuple((text,) for text in texts),
        tuple(f"{i}{text}" for i, text in enumerate(texts)),
        ("class",),
    )
    ranked = {}
    for text in texts:
        ranked[text] = PageMethod([rank_images(np.zeros((1, count, count)), text)])
    curves = {text: rows_of(text) for text in texts}
    trajectories = PageTrajectories((600,), *x, x[1, 0], tuple(texts))
    contents = page_contents(trajectories, ranked, images, curves)
    html = page_html(
        texts[-1], texts[-1], contents, [PageFigure(picture, texts[-1], 10, is_plot=True)]
    )
    html.encode()
    reader = Reader()
    reader.feed(html)
    return reader


def test_the_page_shows_texts_as_they_are(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    plain = page([f"text {i}" for i in range(len(TEXTS))], picture)
    hostile = page(list(TEXTS), picture)
    assert hostile.tags == plain.tags, "no text is a tag"
    data = json.loads(hostile.data)
    for query, text in zip(data["queries"], TEXTS, strict=True):
        assert query["name"].isprintable()
        assert TEXTS[text] in query["name"]
    assert all(label.isprintable() for label in data["train"]["labels"] + data["train"]["ids"])
    assert {printable(text, 10**4) for text in TEXTS} == set(data["methods"])
    assert data["methods"].keys() == data["colours"].keys(), "names of methods stay the same name"


@texts
def test_errors_are_one_line(text):
    for error in (ConfigError(f"dataset.root={text}: must be x"), OSError(13, "Denied", text)):
        with pytest.raises(SystemExit) as exit_, one_line_errors():
            raise error
        assert str(exit_.value).isprintable()
        assert TEXTS[text][:30] in str(exit_.value)
    lines = f"first {text}\nsecond"
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        raise JobsFailedError(lines)
    assert all(line.isprintable() for line in str(exit_.value).split("\n"))
    (line,) = differences({"prompt": text}, {"prompt": "y"})
    assert line.isprintable()


def test_keys_and_texts_of_settings_are_printable():
    value = {"a\n": ["\udc80", ("\x1b",)], "n": 1.5, "none": None}
    assert printable_json(value) == {"a ": [" ", [" "]], "n": 1.5, "none": None}
