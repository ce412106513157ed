"""What the figures of all evaluations share: colours and markers of methods, curves, heat maps.

Figures are `matplotlib.figure.Figure` objects: nothing here imports pyplot or sets a backend.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    "#5f5f5f": ("random",),
}
"""Methods by colour. Those that share a colour have different markers, in this order."""

MARKERS = ("o", "s", "^")


def method_colour(method: str) -> str:
    """Return the colour of a method in every figure; the name of an unknown method determines one.

    >>> method_colour("journey")
    '#d55e00'
    """
    for colour, names in FAMILIES.items():
        if method in names:
            return colour
    return COLOURS[crc32(method.encode()) % len(COLOURS)]


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
    sharex: bool = False,
    sharey: bool = False,
    width_ratios: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:
    """Return a figure and the grid of its axes. [rows, columns]

    Args:
        rows: Rows of the grid.
        columns: Columns of the grid.
        size: Width and height in inches.
        sharex: Whether all axes have one horizontal scale.
        sharey: Whether all axes have one vertical scale.
        width_ratios: Relative width of each column.
    """
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        rows, columns, sharex=sharex, sharey=sharey, width_ratios=width_ratios, squeeze=False
    )
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
    """Draw rows with their intervals.

    Args:
        axes: Where to draw.
        positions: Position of each row on the other axis.
        rows: The rows; their values are the heights.
        colour: Colour of markers, lines and error bars.
        label: Text in the legend.
        line: Marker and line style, such as "o-".
        times: A factor of the values, such as 100 for percent.
        hollow: Whether the markers are white inside.
        horizontal: Whether the values go to the right and the positions up.
    """
    values, bars = times * np.array([row["value"] for row in rows], float), times * error_bars(rows)
    x, y = (values, positions) if horizontal else (positions, values)
    axes.errorbar(
        x,
        y,
        xerr=bars if horizontal else None,
        yerr=None if horizontal else bars,
        fmt=line,
        color=colour,
        markerfacecolor="white" if hollow else colour,
        label=label,
        capsize=2,
        markersize=4,
        elinewidth=1,
    )


def plot_curve(
    axes: Axes,
    rows: list[Row],
    colour: str,
    label: str | None = None,
    place: float = 0.0,
    line: str = "o-",
    times: float = 1.0,
) -> None:
    """Draw rows of steps with their intervals against t.

    Args:
        axes: Where to draw.
        rows: One row for each step.
        colour: Colour of the curve.
        label: Text in the legend.
        place: Shift to smaller t, in hundredths of its range, so that error bars do not overlap.
        line: Marker and line style.
        times: A factor of the values.
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
    """Draw a matrix as colours with the rounded numbers on them.

    Args:
        axes: Where to draw.
        values: The numbers. [rows, columns]
        rows: Name of each row.
        columns: Name of each column.
        limits: The values at both ends of the colours.
        colours: A colour map of matplotlib.
        fontsize: Size of the numbers in points.
    """
    axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    shares = (values - limits[0]) / (limits[1] - limits[0])
    luminances = colormaps[colours](shares)[..., :3] @ (0.299, 0.587, 0.114)
    for (i, j), value in np.ndenumerate(values):
        text, colour = (
            f"{value:z.0f}".replace("-", "−"),
            "white" if luminances[i, j] < 0.5 else "black",
        )
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
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        ncols=num_columns,
        frameon=False,
        fontsize=8,
    )
