"""What pictures share: colours that those who are blind to some can tell apart, and which of them a method has everywhere.

Curves over the steps of a journey, noise on the left: what several pictures draw alike."""

from zlib import crc32

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from journey.evaluation.rows import Row, error_bars

VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY, OLIVE, ROSE = (
    "#d55e00", "#0072b2", "#009e73", "#e69f00", "#aa4499", "#56b4e9", "#999933", "#cc79a7",
)  # fmt: skip
"""Okabe and Ito's (2008) and, for what is too light on white among theirs, Tol's (2021)."""


COLOURS = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY)


GREY = "#8c8c8c"


LIGHT = "#c9c9c9"  # what stands behind


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
"""Methods by their colour; those that share one have marks of their own, in this order. The first are compared most."""


MARKS = ("o", "s", "^")


def method_colour(method: str) -> str:
    """Of a method in every picture; of one that is not ours, or a variant, one that its name decides.

    >>> colour("journey")
    '#d55e00'
    """
    known = [of for of, names in FAMILIES.items() if method in names]
    return known[0] if known else COLOURS[crc32(method.encode()) % len(COLOURS)]


def method_marker(method: str) -> str:
    """With its colour, what tells a method from every other of ours."""
    known = [MARKS[names.index(method)] for names in FAMILIES.values() if method in names]
    return known[0] if known else "D"


matplotlib.use("Agg")


def plot_curve(
    axes: plt.Axes,
    rows: list[Row],
    colour: str,
    label: str | None = None,
    place: float = 0.0,
    line: str = "o-",
) -> None:
    """Rows of steps with their intervals; place: so many of the widths that curves stand apart by."""
    steps = np.array([row["step"] for row in rows], float)
    apart = 0.008 * (steps.max() - steps.min()) if len(steps) > 1 else 0
    style = {"fmt": line, "color": colour, "capsize": 2, "markersize": 3.5, "elinewidth": 1}
    axes.errorbar(
        steps - apart * place,
        [row["value"] for row in rows],
        error_bars(rows),
        label=label,
        **style,
    )


def format_step_axis(axes: plt.Axes) -> None:
    """Noise on the left; and nothing above and to the right."""
    axes.invert_xaxis()
    axes.set_xlabel("step t  (noise → image)")
    axes.spines[["top", "right"]].set_visible(False)
