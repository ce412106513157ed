"""What the figures of all evaluations share: colours and markers of methods, curves, heat maps.

Figures are `matplotlib.figure.Figure` objects: nothing here imports pyplot or sets a backend. They
show names, labels and titles as they are: `$` begins no formula.
"""

import functools
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from matplotlib import colormaps
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
    ROSE: ("encoder", "external"),
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
                formatter.seq = [plain_text(name, MOST_IN_NAME) for name in formatter.seq]
            elif isinstance(formatter, FuncFormatter):
                names = getattr(formatter.func, "args", [None])[0]  # as set_xticks(…, labels) does
                for place, name in names.items() if isinstance(names, dict) else ():
                    names[place] = plain_text(name, MOST_IN_NAME)
            else:  # numbers, perhaps as powers of ten
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                    tick.label1.set_parse_math(True)
                axis.get_offset_text().set_parse_math(True)


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

    >>> method_colour("journey")
    '#d55e00'
    """
    for colour, names in FAMILIES.items():
        if method in names:
            return colour
    return COLOURS[crc32(method.encode(errors="backslashreplace")) % len(COLOURS)]


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
) -> None:
    """Draw rows with their intervals at positions on the x axis, or on the y axis if horizontal.

    `line` is the marker and the line style, `times` a factor of the values.
    """
    values, bars = times * np.array([row["value"] for row in rows], float), times * error_bars(rows)
    x, y, xerr, yerr = positions, values, None, bars
    if horizontal:
        x, y, xerr, yerr = values, positions, bars, None  # type: ignore[assignment]
    face = "white" if hollow else colour
    style = {"fmt": line, "color": colour, "mfc": face, "capsize": 2, "ms": 4, "elinewidth": 1}
    shown = f" {label}" if (label or "").startswith("_") else label  # else no legend has it
    axes.errorbar(x, y, yerr, xerr, label=shown, **style)  # type: ignore[arg-type]


def plot_curve(
    axes: Axes,
    rows: list[Row],
    colour: str,
    label: str | None = None,
    place: float = 0.0,
    line: str = "o-",
    times: float = 1.0,
) -> None:
    """Draw rows of steps with their intervals against t, as `plot_points` does.

    `place` is a shift in hundredths of the range of t, so that the error bars do not overlap.
    """
    steps = np.array([row["step"] for row in rows], float)
    shift = 0.01 * place * (steps.max() - steps.min()) if len(steps) > 1 else 0.0
    plot_points(axes, steps - shift, rows, colour, label, line, times)


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
    style = {"ncols": num_columns, "frameon": False, "fontsize": 8}
    figure.legend(handles.values(), handles, loc="outside lower center", **style)
