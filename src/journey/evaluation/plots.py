"""What the figures of all evaluations share: colours and markers of methods, curves, heat maps.

Figures are `matplotlib.figure.Figure` objects: nothing here imports pyplot or sets a backend. They
show names, labels and titles as they are: `$` begins no formula. They are as wide as a column or a
page of a paper, and their title is their caption, which is not drawn in a saved file.
"""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter

from journey.engine.text import printable
from journey.evaluation.rows import Row, error_bars

VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY, OLIVE, ROSE = (
    "#d55e00", "#0072b2", "#009e73", "#e69f00", "#aa4499", "#56b4e9", "#999933", "#cc79a7",
)  # fmt: skip
"""Colours for the colour-blind, by Okabe and Ito (2008) and, darker on white, by Tol (2021)."""

COLOURS = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY)

OTHERS = ("#882255", "#44aa99", "#661100", "#6699cc", "#888800", "#222222")
"""Colours of methods that are not of this package: no baseline has them."""

COLUMN_WIDTH, PAGE_WIDTH = 3.25, 6.75  # inches

PICTURES = "pictures"  # the gid of a figure of images, whose colours a dark page keeps

rcParams.update({"pdf.fonttype": 42, "ps.fonttype": 42})  # TrueType: venues refuse Type 3

logging.getLogger("fontTools").setLevel(logging.WARNING)  # which reports every glyph it embeds

GREY = "#8c8c8c"

LIGHT = "#c9c9c9"  # of what is in the background

FAMILIES = {
    VERMILION: ("journey", "traker", "trak_store"),
    BLUE: ("trak", "dtrak", "das"),
    GREEN: ("ekfac", "gradient_dot", "gradient_cosine"),
    ORANGE: ("pixel", "latent", "caption"),
    PURPLE: ("nda", "datamodel", "empirical_influence"),
    SKY: ("unlearning", "tracin", "magic"),
    OLIVE: ("retrac", "relative_influence", "renormalized_influence"),
    ROSE: ("encoder", "external", "features"),
    "#332288": ("adjoint", "adjoint_ekfac"),
    "#5f5f5f": ("random",),
}
"""Methods by colour. Those that share a colour have different markers, in this order."""

MARKERS = ("o", "s", "^")

MOST_IN_LINE = 200  # letters of a line of text
MOST_IN_NAME = 48  # letters of a name in a legend or at a tick


class PlainFigure(Figure):
    """A figure all of whose texts are shown as they are, however it is drawn."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure."""
        plain_texts(self)
        super().draw(renderer)


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure without its title, which is in the file's metadata: it belongs to a caption."""
    title = figure.get_suptitle()
    drawn = [text for text in figure.texts if title and text.get_text() == title]
    for text in drawn:
        text.set(visible=False, in_layout=False)
    dates = {"CreationDate": None} if path.suffix == ".pdf" else {}
    figure.savefig(path, dpi=200, metadata={"Title": title, **dates})
    for text in drawn:
        text.set(visible=True, in_layout=True)


def plain_texts(figure: Figure) -> None:
    """Make all texts of a figure plain: no formulas, no characters that its fonts do not have."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        lines = text.get_text().split("\n")
        shown = [plain_text(line, MOST_IN_LINE, text.get_fontproperties()) for line in lines]
        text.set_text("\n".join(shown))
    for legend in figure.findobj(Legend):
        assert isinstance(legend, Legend)
        for text in [*legend.get_texts(), legend.get_title()]:
            text.set_text(plain_text(text.get_text(), MOST_IN_NAME, text.get_fontproperties()))
        inside = isinstance(legend.parent, Axes) and (
            legend.get_bbox_to_anchor() is legend.parent.bbox
        )
        legend.set_in_layout(not inside)  # a wide one would leave no room for the axes

    # Names at ticks become texts each time the figure is drawn.
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter):
                formatter.seq = [_plain_lines(name) for name in formatter.seq]
            elif isinstance(formatter, FuncFormatter):
                names = getattr(formatter.func, "args", [None])[0]  # as set_xticks(…, labels) does
                for place, name in names.items() if isinstance(names, dict) else ():
                    names[place] = _plain_lines(name)
            else:  # numbers, perhaps as powers of ten
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                    tick.label1.set_parse_math(True)
                axis.get_offset_text().set_parse_math(True)


def _plain_lines(name: str) -> str:
    return "\n".join(plain_text(line, MOST_IN_NAME) for line in name.split("\n"))


def plain_text(text: str, most: int, font: FontProperties | None = None) -> str:
    """Return a line of at most `most` characters, with codes for those that a font does not have.

    >>> plain_text("a\\tb 猫", 10)
    'a b U+732B'
    """
    shown = printable(text, most)
    if shown.isascii():
        return shown
    glyphs = _glyphs(findfont(font or FontProperties()))
    return "".join(c if ord(c) in glyphs else f"U+{ord(c):04X}" for c in shown)


@functools.cache
def _glyphs(font_file: str) -> frozenset[int]:
    return frozenset(get_font(font_file).get_charmap())


def method_colour(method: str) -> str:
    """Return the colour of a method in every figure; the name of an unknown method determines one.

    A variant, `<method>-<setting>-<value>`, has its method's colour.

    >>> method_colour("journey"), method_colour("journey-num_samples-8")
    ('#d55e00', '#d55e00')
    """
    for colour, names in FAMILIES.items():
        if method.partition("-")[0] in names:
            return colour
    return OTHERS[crc32(method.encode(errors="backslashreplace")) % len(OTHERS)]


def method_marker(method: str) -> str:
    """Return the marker that, with its colour, tells a method of this package from all others."""
    for names in FAMILIES.values():
        if method in names:
            return MARKERS[names.index(method)]
    return "D"


def new_figure(
    rows: int,
    columns: int,
    size: tuple[float, float],
    sharey: bool = False,
    width_ratios: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:
    """Return a figure of width and height `size`, in inches, and its axes [rows, columns]."""
    figure = PlainFigure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=sharey, width_ratios=width_ratios, squeeze=False)
    for axes in grid.flat:
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
    return figure, grid


def plot_points(
    axes: Axes,
    positions: Sequence[float] | np.ndarray,
    rows: list[Row],
    colour: str,
    label: str | None = None,
    line: str = "o",
    times: float = 1.0,
    hollow: bool = False,
    horizontal: bool = False,
    band: bool = False,
) -> None:
    """Draw rows with their intervals at positions on the x axis, or on the y axis if horizontal.

    `line` is the marker and the line style, `times` a factor of the values. Intervals are bars, or
    a band behind the line.
    """
    values, bars = times * np.array([row["value"] for row in rows], float), times * error_bars(rows)
    filled = band and len(rows) > 1
    x, y, xerr, yerr = positions, values, None, None if filled else bars
    if filled:
        ends = {"color": colour, "alpha": 0.15, "linewidth": 0}
        axes.fill_between(positions, values - bars[0], values + bars[1], **ends)  # type: ignore[arg-type]
    if horizontal:
        x, y, xerr, yerr = values, positions, bars, None  # type: ignore[assignment]
    face = "white" if hollow else colour
    style = {"fmt": line, "color": colour, "mfc": face, "ms": 3.5, "capsize": 2, "elinewidth": 1}
    style["linewidth"] = 1.2
    shown = f" {label}" if (label or "").startswith("_") else label  # else no legend has it
    axes.errorbar(x, y, yerr, xerr, label=shown, **style)  # type: ignore[arg-type]


def plot_curve(
    axes: Axes,
    rows: list[Row],
    colour: str,
    label: str | None = None,
    line: str = "o-",
    times: float = 1.0,
) -> None:
    """Draw rows of steps against t, each at its t, with a band of their intervals."""
    steps = [float(row["step"]) for row in rows]
    plot_points(axes, steps, rows, colour, label, line, times, band=True)


def format_step_axis(axes: Axes) -> None:
    """Make t the horizontal axis with noise on the left; hide the frame above and on the right."""
    axes.invert_xaxis()
    axes.set_xlabel("step t  (noise → image)")
    axes.spines[["top", "right"]].set_visible(False)


def heatmap(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[object],
    columns: Sequence[object],
    limits: tuple[float, float],
    colours: str = "RdBu_r",
    fontsize: float = 6.5,
) -> None:
    """Draw values [rows, columns] as colours with the rounded numbers on them.

    `rows` and `columns` are their names; `limits` are the values at both ends of the colours.
    """
    axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    shares = (values - limits[0]) / (limits[1] - limits[0])
    luminances = colormaps[colours](shares)[..., :3] @ (0.299, 0.587, 0.114)
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:z.0f}".replace("-", "−")
        colour = "white" if luminances[i, j] < 0.5 else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=fontsize, color=colour)
    axes.set_xticks(range(len(columns)), [str(name) for name in columns], fontsize=7)
    axes.set_yticks(range(len(rows)), [str(name) for name in rows], fontsize=7)
    axes.tick_params(length=0)


def legend_below(figure: Figure, num_columns: int) -> None:
    """Draw one legend below all axes, with each label once."""
    handles: dict = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    style = {"ncols": num_columns, "frameon": False, "fontsize": 7}
    figure.legend(handles.values(), handles, loc="outside lower center", **style)
