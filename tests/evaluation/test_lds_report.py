"""Tables and figures of the LDS, from a result written by hand."""

import numpy as np
import pytest
from rich.console import Console

from journey.config import compose
from journey.evaluation.lds import LDS
from journey.evaluation.lds.show import lds_by_method, lds_by_step, lds_markdown, lds_tables
from journey.evaluation.plots import FAMILIES, method_colour, method_marker

TARGETS = ("paired_steps", "trajectory", "final_sample")


def row(value, low, high, target, **conditions):
    return {**conditions, "target": target, "value": value, "low": low, "high": high}


def all_targets(method, shift, **conditions):
    """Steps 600 and 300, then the other targets."""
    conditions = {"method": method, **conditions}
    steps = [
        row(0.1 + shift, 0.0 + shift, 0.2 + shift, "step", step=600, **conditions),
        row(0.2 + shift, 0.1 + shift, 0.35 + shift, "step", step=300, **conditions),
    ]
    ends = 0.3 + shift, 0.2 + shift, 0.4 + shift
    return steps + [row(*ends, target, **conditions) for target in TARGETS]


def lds(method, shift, transforms=("chosen", "linear")):
    rows = []
    for transform in transforms:
        rows += all_targets(method, shift, quantity="lds", score_transform=transform)
    return rows


def result_of(worse: str, better: str) -> dict:
    """A result of two methods; the first is the better one."""
    choices = [{"damping": damping, "score_transform": "relu"} for damping in (1.0, 0.1)]
    chosen = {"step": choices * 2}
    rows = []
    for name, shift in ((better, 0.0), (worse, -0.1)):
        rows += lds(name, shift)
        rows += all_targets(name, shift, quantity="query_centred", score_transform="chosen")
    for quantity, shift in (("ceiling", 0.5), ("query_centred_ceiling", 0.3)):
        rows += all_targets("noise_samples", shift, quantity=quantity)
        rows += all_targets("training_seeds", shift - 0.1, quantity=quantity)
    for target in TARGETS:
        conditions = {"quantity": "difference", "method": better, "against": worse}
        rows.append(row(0.1, 0.05, 0.15, target, **conditions))
    kernels = ("condition_number", "effective_parameters")
    methods = worse, better
    return {
        "experiment": "test", "variants": [], "variant_axes": {}, "num_train": 10,
        "num_subsets": 8, "num_seeds": 1, "num_queries": 4, "steps": [600, 300],
        "paired_steps": [600, 300], "rows": rows,
        "chosen": {name: {"chosen": chosen, "linear": chosen} for name in methods},
        "candidates": {name: [{"damping": d} for d in (0.1, 1.0, 10.0)] for name in methods},
        "diagnostics": {better: {}, worse: {key: [[30, 20, 10], [50, 20, 6]] for key in kernels}},
        "cost": {name: {"seconds": 1.0, "gradients": 7000, "bytes": 5e6} for name in methods},
    }  # fmt: skip


@pytest.fixture
def result():
    return result_of("trak", "journey")


def heights(line) -> np.ndarray:
    return line.get_ydata().astype(float)


def test_lds_by_step_draws_every_method_and_ceiling(result):
    axes = lds_by_step(result).axes[0]
    methods = {c.get_label(): c.lines[0] for c in axes.containers}
    np.testing.assert_allclose(heights(methods["journey"]), [0.1, 0.2], atol=1e-12)
    np.testing.assert_allclose(heights(methods["trak"]), [0.0, 0.1], atol=1e-12)
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(heights(lines["ceiling, these models"]), [0.6, 0.7])
    np.testing.assert_allclose(heights(lines["ceiling, over seeds"]), [0.5, 0.6])
    assert axes.xaxis_inverted()


def test_the_terminal_tables_hold_the_numbers(result):
    console = Console(record=True, width=120)
    console.print(*lds_tables(result))
    text = console.export_text()
    for expected in ("10 ± 10", "20 ± 12", "30 ± 10", "80 ± 10", "+10.0 [+5.0, +15.0]", "600, 300"):
        assert expected in text
    result["rows"] = [r for r in result["rows"] if r["quantity"] != "difference"]
    assert len(lds_tables(result)) == 1, "a single method has no differences"


def test_markdown_has_every_interval_choice_and_cost(result):
    lines = lds_markdown(result).splitlines()
    assert {line.count("|") for line in lines[: lines.index("")]} == {12}
    same = " | ".join(["20 [10, 30] 0.25"] * 3)
    centred = " | ".join(["20 [10, 30] 0.33"] * 3)
    seeds = " | ".join(["70 [60, 80]"] * 3)
    choice_and_cost = "1 relu, 0.1⊣ relu | 1 | 7,000 | 5.0"
    for expected in (
        f"| trak | chosen | 0 [−10, 10] 0.00 | 10 [0, 25] 0.14 | {same} | {choice_and_cost} |",
        f"| trak | query-centred | 0 [−10, 10] 0.00 | 10 [0, 25] 0.20 | {centred} |  |  |  |  |",
        f"| ceiling, over seeds |  | 50 [40, 60] | 60 [50, 75] | {seeds} |  |  |  |  |",
    ):
        assert expected in lines
    kernels = ["| trak | 0.1 | 40 | 40 |", "| trak | 1 | 20 | 20 |", "| trak | 10 | 8 | 8 |"]
    assert lines[-3:] == kernels


def test_a_heat_map_of_methods_is_sorted_and_has_both_score_transforms():
    result = result_of("worse", "better")
    result["rows"].sort(key=lambda r: r["method"] == "better")  # not the order of the map
    expected = [[10, 20, 30, 30], [0, 10, 20, 20], [60, 70, 80, 80], [50, 60, 70, 70]]
    for axes in lds_by_method(result).axes:
        np.testing.assert_allclose(axes.images[0].get_array(), expected, atol=1e-12)


def test_figures_are_those_that_the_result_can_fill(result):
    """Curves always; a heat map of more methods than curves can tell apart; axes of variants."""
    assert list(LDS().figures(result)) == ["lds_by_step.png"]
    points = {"num_samples": [("8", "trak"), ("32", "journey")]}
    figures = LDS().figures({**result, "variant_axes": points})
    assert list(figures) == ["lds_by_step.png", "ablations.png"]
    panel = figures["ablations.png"].axes[0]
    np.testing.assert_allclose(heights(panel.containers[0].lines[0]), [0.2, 0.3])
    for i in range(5):
        result["rows"] += lds(f"method {i}", 0.0)
    result["variants"] = [f"method {i}" for i in range(5)]
    assert list(LDS().figures(result)) == ["lds_by_step.png"]
    result["variants"] = []
    assert list(LDS().figures(result)) == ["lds_by_step.png", "lds_by_method.png"]


def test_of_many_methods_the_first_and_the_best_are_named(result):
    result["rows"] = lds("first", -0.1)
    for i in range(20):
        result["rows"] += lds(f"method {i}", 0.01 * i)
    result["rows"] += all_targets("noise_samples", 0.5, quantity="ceiling")
    axes = lds_by_step(result).axes[0]
    named = ["first", *(f"method {i}" for i in range(15, 20))]
    assert [c.get_label() for c in axes.containers] == named
    assert "15 other methods" in axes.get_legend_handles_labels()[1]


def test_no_two_methods_look_alike():
    methods = [name for names in FAMILIES.values() for name in names]
    assert sorted(methods) == sorted(path.stem for path in (compose.CONF / "method").glob("*.yaml"))
    assert len({(method_colour(name), method_marker(name)) for name in methods}) == len(methods)


def test_a_method_is_shown_with_the_choice_of_most_cells(result):
    choices = ((0.1, "relu"), (1.0, "square"), (1.0, "linear"), (10.0, "relu"))
    cells = [{"damping": d, "score_transform": transform} for d, transform in choices]
    result["chosen"]["trak"]["chosen"] = {"step": cells}
    assert LDS().chosen(result, "trak") == {"damping": 1.0}
    assert LDS().chosen(result, "journey") == {"damping": 1.0}
