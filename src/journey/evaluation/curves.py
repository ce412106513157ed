"""Curves over the steps of a journey, noise on the left: what several pictures draw alike."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from journey.evaluation.rows import Row, errors


def curve(axes: plt.Axes, rows: list[Row], colour: str, label: str | None = None, place: float = 0.0, line: str = "o-") -> None:
    """Rows of steps with their intervals; place: so many of the widths that curves stand apart by."""
    steps = np.array([row["step"] for row in rows], float)
    apart = 0.008 * (steps.max() - steps.min()) if len(steps) > 1 else 0
    style = {"fmt": line, "color": colour, "capsize": 2, "markersize": 3.5, "elinewidth": 1}
    axes.errorbar(steps - apart * place, [row["value"] for row in rows], errors(rows), label=label, **style)


def towards_image(axes: plt.Axes) -> None:
    """Noise on the left; and nothing above and to the right."""
    axes.invert_xaxis()
    axes.set_xlabel("step t  (noise → image)")
    axes.spines[["top", "right"]].set_visible(False)
