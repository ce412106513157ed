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
    """Return a figure of width and height `size`, in inches, and its axes [rows, columns]."""
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
    """Draw rows with their intervals at positions on the x axis, or on the y axis if horizontal.

    `line` is the marker and the line style, `times` a factor of the values.
    """
    values, bars = times * np.array([row["value"] for row in rows], float), times * error_bars(rows)
    x, y, xerr, yerr = positions, values, None, bars
    if horizontal:
        x, y, xerr, yerr = values, positions, bars, None  # type: ignore[assignment]
    face = "white" if hollow else colour
    style = {"fmt": line, "color": colour, "mfc": face, "capsize": 2, "ms": 4, "elinewidth": 1}
    axes.errorbar(x, y, yerr, xerr, label=label, **style)  # type: ignore[arg-type]


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
