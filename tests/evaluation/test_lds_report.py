import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from journey.config import compose
from journey.evaluation.lds import LDS
from journey.evaluation.lds.show import (
    ablation_figure,
    lds_by_method,
    lds_by_step,
    lds_markdown,
    lds_table,
    paired_table,
)
from journey.evaluation.plots import FAMILIES, method_colour, method_marker

TARGETS = ("paired_steps", "trajectory", "destination")


def row(value, low, high, target, **what):
    return {**what, "target": target, "value": value, "low": low, "high": high}


def lds(method, shift, **what):
    """Steps 600 and 300, then the other targets."""
    what = {"method": method, **what}
    steps = [
        row(0.1 + shift, 0.0 + shift, 0.2 + shift, "step", step=600, **what),
        row(0.2 + shift, 0.1 + shift, 0.35 + shift, "step", step=300, **what),
    ]
    return steps + [
        row(0.3 + shift, 0.2 + shift, 0.4 + shift, target, **what) for target in TARGETS
    ]


def named(worse: str, better: str) -> dict:
    """A result in which `better` is better; the first method is the one that the others are compared with."""
    chosen = {
        "step": [{"damping": 1.0, "readout": "relu"}, {"damping": 0.1, "readout": "relu"}] * 2
    }
    methods = worse, better
    rows = []
    for name, shift in ((better, 0.0), (worse, -0.1)):
        for score_transform in ("best", "linear"):
            rows += lds(name, shift, quantity="lds", score_transform=score_transform)
        rows += lds(name, shift, quantity="specific", score_transform="best")
    rows += lds("draws", 0.5, quantity="ceiling") + lds("seeds", 0.4, quantity="ceiling")
    rows += lds("draws", 0.3, quantity="specific_ceiling") + lds(
        "seeds", 0.2, quantity="specific_ceiling"
    )
    rows += [
        row(0.1, 0.05, 0.15, target, quantity="difference", method=better, against=worse)
        for target in TARGETS
    ]
    return {
        "experiment": "test", "variants": [], "axes": {}, "num_train": 10,
        "num_subsets": 8, "num_seeds": 1, "num_queries": 4, "steps": [600, 300],
        "paired_steps": [600, 300], "rows": rows,
        "chosen": {name: {"best": chosen, "linear": chosen} for name in methods},
        "candidates": {name: [{"damping": d} for d in (0.1, 1.0, 10.0)] for name in methods},
        "how": {better: {}, worse: {of: [[30, 20, 10], [50, 20, 6]] for of in ("condition_number", "effective_parameters")}},
        "cost": {name: {"seconds": 1.0, "gradients": 7000, "bytes": 5e6} for name in methods},
    }  # fmt: skip


@pytest.fixture
def result():
    return named("trak", "journey")


def test_every_curve_is_drawn_where_the_result_has_it(result):
    axes = lds_by_step(result).axes[0]
    drawn = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    containers = {c.get_label(): c.lines[0] for c in axes.containers}
    for name, expected in (("journey", [0.1, 0.2]), ("trak", [0.0, 0.1])):
        np.testing.assert_allclose(containers[name].get_ydata().astype(float), expected, atol=1e-12)
    np.testing.assert_allclose(drawn["ceiling, these models"].get_ydata(), [0.6, 0.7])
    np.testing.assert_allclose(drawn["ceiling, over seeds"].get_ydata(), [0.5, 0.6])
    assert axes.xaxis_inverted()
    plt.close("all")


def test_tables_hold_the_numbers(result):
    console = Console(record=True, width=120)
    console.print(lds_table(result), paired_table(result))
    text = console.export_text()
    for expected in (
        "10 ± 10",
        "20 ± 12",
        "30 ± 10",
        "80 ± 10",
        "+10.0 [+5.0, +15.0]",
        "t=600, 300",
    ):
        assert expected in text


def test_a_single_method_is_compared_with_none(result):
    result["rows"] = [r for r in result["rows"] if r["quantity"] != "difference"]
    assert paired_table(result) is None


def test_markdown_has_every_interval_choice_and_cost(result):
    lines = lds_markdown(result).splitlines()
    judged, kernels = lines[: lines.index("")], lines[-5:]
    assert {line.count("|") for line in judged} == {12}
    same = "20 [10, 30] 0.25 | 20 [10, 30] 0.25 | 20 [10, 30] 0.25"
    assert (
        f"| trak | best | 0 [−10, 10] 0.00 | 10 [0, 25] 0.14 | {same} | 1 relu, 0.1⊣ relu | 1 | 7,000 | 5.0 |"
        in judged
    )
    assert (
        "|  | query-specific | 0 [−10, 10] 0.00 | 10 [0, 25] 0.20 | "
        + "20 [10, 30] 0.33 | " * 3
        + " |  |  |  |"
        in judged
    )
    assert (
        "| ceiling, over seeds |  | 50 [40, 60] | 60 [50, 75] | "
        + "70 [60, 80] | " * 3
        + " |  |  |  |"
        in judged
    )
    assert kernels[-3:] == [
        "| trak | 0.1 | 40 | 40 |",
        "| trak | 1 | 20 | 20 |",
        "| trak | 10 | 8 | 8 |",
    ]


def test_a_map_of_methods_is_sorted_and_holds_both_readouts():
    result = named("worse", "better")
    result["rows"].sort(key=lambda r: r["method"] == "better")  # in another order than the map's
    for axes in lds_by_method(result).axes:
        np.testing.assert_allclose(
            axes.images[0].get_array(),
            [[10, 20, 30, 30], [0, 10, 20, 20], [60, 70, 80, 80], [50, 60, 70, 70]],
            atol=1e-12,
        )
    plt.close("all")


def test_ablations_draw_every_axis(result):
    figure = ablation_figure(result, "journey", {"num_samples": [("8", "trak"), ("32", "journey")]})
    np.testing.assert_allclose(
        figure.axes[0].containers[0].lines[0].get_ydata().astype(float), [0.2, 0.3]
    )
    plt.close("all")


def test_the_pictures_are_those_that_can_be_read(result):
    """Curves; of more methods than these can tell apart, a map too; axes where something was varied."""
    assert list(LDS().figures(result)) == ["lds_by_step.png"]
    varied = LDS().figures({**result, "axes": {"num_samples": [("8", "trak"), ("32", "journey")]}})
    assert list(varied) == ["lds_by_step.png", "ablations.png"]
    for i in range(5):
        result["rows"] += lds(f"method {i}", 0.0, quantity="lds", score_transform="best")
        result["rows"] += lds(f"method {i}", 0.0, quantity="lds", score_transform="linear")
    result["variants"] = [f"method {i}" for i in range(5)]
    assert list(LDS().figures(result)) == ["lds_by_step.png"]
    result["variants"] = []
    assert list(LDS().figures(result)) == ["lds_by_step.png", "lds_by_method.png"]
    plt.close("all")


def test_of_many_methods_the_first_and_the_best_are_named(result):
    result["rows"] = lds("first", -0.1, quantity="lds", score_transform="best")
    for i in range(20):
        result["rows"] += lds(f"method {i}", 0.01 * i, quantity="lds", score_transform="best")
    result["rows"] += lds("draws", 0.5, quantity="ceiling")
    axes = lds_by_step(result).axes[0]
    assert [c.get_label() for c in axes.containers] == [
        "first",
        *(f"method {i}" for i in range(15, 20)),
    ]
    assert "15 other methods" in axes.get_legend_handles_labels()[1]
    plt.close("all")


def test_no_two_methods_of_ours_look_alike():
    """And those that are compared most differ in colour."""
    every = [name for of in FAMILIES.values() for name in of]
    assert sorted(every) == sorted(path.stem for path in (compose.CONF / "method").glob("*.yaml"))
    assert len({(method_colour(name), method_marker(name)) for name in every}) == len(every)


def test_a_method_is_shown_with_what_most_cells_chose(result):
    cells = [
        {"damping": d, "readout": r}
        for d, r in ((0.1, "relu"), (1.0, "square"), (1.0, "linear"), (10.0, "relu"))
    ]
    result["chosen"]["trak"]["best"] = {"step": cells}
    assert LDS().chosen(result, "trak") == {"damping": 1.0}
    assert LDS().chosen(result, "journey") == {"damping": 1.0}
