"""The table of planted images, for the terminal.

The picture of planted images: how many of their copies are found at every step."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from journey.attribution.targets import STEP
from journey.evaluation.plots import GREY, method_colour
from journey.evaluation.rows import error_bars, method_names, select


def recall_table(result: dict) -> Table:
    """At every step: recall, half of its interval, and the median rank."""
    said = "copies among as many first images, % ± half of the 95% interval; median rank"
    found = Table(
        "method",
        *(f"t={t}" for t in result["steps"]),
        title_justify="left",
        title=Text(f"{result['experiment']}: {said}"),
    )
    for method in method_names(result["rows"], "recall_copies"):
        recalls = select(result["rows"], quantity="recall_copies", method=method, target=STEP)
        ranks = select(result["rows"], quantity="median_rank", method=method)
        cells = []
        for recall, rank in zip(recalls, ranks, strict=True):
            cells.append(
                f"{100 * recall['value']:.0f} ± {50 * (recall['high'] - recall['low']):.0f}; {rank['value']:.0f}"
            )
        found.add_row(method, *cells)
    return found


matplotlib.use("Agg")


PANELS = {
    "recall_copies": "copies among as many first images",
    "others_50": "copies of other queries among the first 50",
    "median_rank": "median rank of a copy",
}


def recall_by_step(result: dict) -> Figure:
    """Every method's recalls and median rank against the step that is asked, beside chance."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(12.0, 3.9), layout="constrained")
    spread = 0.01 * (
        max(result["steps"]) - min(result["steps"])
    )  # side by side, so that intervals can be told apart
    for axes, (quantity, title) in zip(panels, PANELS.items(), strict=True):
        methods = method_names(result["rows"], quantity)
        for i, method in enumerate(methods):
            found = select(result["rows"], quantity=quantity, method=method, target=STEP)
            value = np.array([row["value"] for row in found])
            if method == "chance":
                axes.plot(result["steps"], value, "--", color=GREY, label=method)
                continue
            at = np.array(result["steps"]) - spread * (i - (len(methods) - 2) / 2)
            style = {
                "fmt": "o-",
                "color": method_colour(method),
                "capsize": 2,
                "markersize": 4,
                "elinewidth": 1,
            }
            axes.errorbar(at, value, error_bars(found), label=method, **style)
        axes.invert_xaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("step t  (noise → image)")
        axes.set_title(title, fontsize=9)
    panels[0].set_ylim(-0.04, 1.04)
    panels[1].set_ylim(bottom=0)
    panels[2].set_yscale("log")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=7,
        frameon=False,
        fontsize=8,
    )
    noise = f", noise of {result['jitter']:g}" if result["jitter"] else ""
    copies = f"{result['num_queries']} planted images × {result['copies']} copies{noise}"
    figure.suptitle(
        f"{result['experiment']}: {copies} among {result['num_train']}; 95% intervals over queries",
        fontsize=10,
    )
    return figure
