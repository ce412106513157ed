"""Tables and figures of the LDS, from a result written by hand."""

import numpy as np
import pytest
from rich.console import Console

from journey.config import compose
from journey.engine.checks import ConfigError
from journey.engine.spec import describe
from journey.evaluation.lds import LDS, shown_index
from journey.evaluation.lds.datamodeling import PRIMARY
from journey.evaluation.lds.show import lds_by_method, lds_by_step, primary_name, tables, texts
from journey.evaluation.plots import FAMILIES, method_colour, method_marker
from journey.evaluation.rows import (
    in_order,
    method_names,
    negated,
    objective_row,
    select,
    verdict,
)

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


def lds(method, shift):
    """Query-centred linear LDS are `shift` higher than 0.1 at t = 600; plain and others differ."""
    rows = []
    for transform, more in (("linear", 0.0), ("chosen", 0.01), ("shown", 0.02)):
        for quantity, higher in (("query_centred", shift + more), ("lds", shift + more - 0.05)):
            rows += all_targets(method, higher, quantity=quantity, score_transform=transform)
    return rows


def result_of(worse: str, better: str) -> dict:
    """A result of two methods; the first is the better one."""
    choices = [{"damping": damping, "score_transform": "relu"} for damping in (1.0, 0.1)]
    chosen = {"step": choices * 2}
    rows = []
    for name, shift in ((better, 0.0), (worse, -0.1)):
        rows += lds(name, shift)
    for quantity, shift in (("ceiling", 0.3), ("query_centred_ceiling", 0.5)):
        rows += all_targets("noise_samples", shift, quantity=quantity)
        rows += all_targets("training_seeds", shift - 0.1, quantity=quantity)
    for target in TARGETS:
        for quantity in ("difference", "query_centred_difference"):
            conditions = {"quantity": quantity, "method": better, "against": worse}
            ends_90 = {"low_90": 0.06, "high_90": 0.14, "score_transform": "linear"}
            rows.append(row(0.1, 0.05, 0.15, target, **conditions, **ends_90))
    kernels = ("condition_number", "effective_parameters")
    methods = worse, better
    return {
        "experiment": "test", "variants": [], "variant_axes": {}, "num_train": 10,
        "num_subsets": 8, "num_seeds": 1, "num_queries": 4, "steps": [600, 300],
        "paired_steps": [600, 300], "rows": rows, "primary": dict(PRIMARY),
        "shown": {name: {"damping": 1.0} for name in methods},
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
    console.print(*tables(result))
    text = console.export_text()
    values = ("10 ± 10", "20 ± 12", "30 ± 10", "80 ± 10", "25 ± 10", "31 ± 10", "26 ± 10")
    for expected in (*values, "+10.0 [+5.0, +15.0] supported", "600, 300", "query-centred LDS"):
        assert expected in " ".join(text.split())
    result["rows"] = [r for r in result["rows"] if "against" not in r]
    assert len(tables(result)) == 1, "a single method has no differences"


def test_markdown_has_every_interval_choice_and_cost(result):
    lines = texts(result)["lds.md"].splitlines()
    assert {line.count("|") for line in lines[: lines.index("")]} == {12}
    same = " | ".join(["20 [10, 30] 0.25"] * 3)
    plain = " | ".join(["15 [5, 25] 0.25"] * 3)
    seeds = " | ".join(["70 [60, 80]"] * 3)
    difference = " | ".join(["+10.0 [+5.0, +15.0] supported"] * 3)
    choices = "1 relu, 0.1⊣ relu"
    for expected in (
        f"| trak | query-centred, linear | 0 [−10, 10] 0.00 | 10 [0, 25] 0.14 | {same} | "
        f"{choices} | 1 | 7,000 | 5.0 |",
        f"| trak | plain, linear | −5 [−15, 5] −0.13 | 5 [−5, 20] 0.10 | {plain} |  |  |  |  |",
        f"| ceiling, over seeds | query-centred | 50 [40, 60] | 60 [50, 75] | {seeds} "
        "|  |  |  |  |",
        f"| journey − trak | {difference} |",
        "| a − b, query-centred | paired steps | trajectory | final sample |",
        "| a − b, plain | paired steps | trajectory | final sample |",
    ):
        assert expected in lines
    assert len([line for line in lines if "| trak | query-centred, shown |" in line]) == 1
    kernels = ["| trak | 0.1 | 40 | 40 |", "| trak | 1 | 20 | 20 |", "| trak | 10 | 8 | 8 |"]
    assert lines[-3:] == kernels


def test_a_reversed_sign_is_asked_for_where_linear_scores_are_negative(result):
    """As of EK-FAC × −1: linear −43, its square +27."""
    for line in select(result["rows"], method="trak", quantity="query_centred"):
        shift = {"linear": -0.6, "chosen": 0.1, "shown": -0.6}[line["score_transform"]]
        line |= {end: line[end] + shift for end in ("value", "low", "high")}
    markdown = texts(result)["lds.md"].splitlines()
    marked = [line for line in markdown if line.startswith("|") and "sign reversed?" in line]
    assert [line.split("|")[2].strip() for line in marked] == ["query-centred, linear"]
    assert marked[0].count("sign reversed?") == 5
    console = Console(record=True, width=300)
    console.print(*tables(result))
    (line,) = [line for line in console.export_text().splitlines() if "sign reversed?" in line]
    assert "trak" in line
    # A negative LDS that no transform improves is no sign of a reversed sign; nor is one near zero.
    for line in select(result["rows"], method="trak", score_transform="chosen"):
        line["value"] = -0.9
    assert "sign reversed?" not in "".join(texts(result)["lds.md"].splitlines()[:10])


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.01, 0.2, 0.03, 0.18), "supported"),
        ((0.001, 0.04, 0.002, 0.03), "supported"),  # and small, but claims are of a direction
        ((-0.2, -0.01, -0.18, -0.03), "opposite supported"),
        ((-0.05, 0.04, -0.04, 0.03), "equivalent"),
        ((-0.2, 0.2, -0.1, 0.1), "undecided"),
        ((0.0, 0.2, 0.01, 0.19), "undecided"),
        ((-0.06, 0.05, -0.05, 0.04), "undecided"),
    ],
)
def test_there_are_three_verdicts_and_the_first_has_a_direction(ends, expected):
    names = ("low", "high", "low_90", "high_90")
    difference = dict(zip(names, ends, strict=True)) | {"value": 0.0}
    difference |= {"method": "a", "against": "b"}
    assert verdict(difference).value == expected
    other = {"supported": "opposite supported", "opposite supported": "supported"}
    assert verdict(negated(difference)).value == other.get(expected, expected)
    assert negated(negated(difference)) == difference


def test_results_are_in_the_order_of_the_run_whatever_order_they_were_computed_in(result):
    rows = result["rows"]
    for order in (["journey", "trak"], ["trak", "journey"]):
        ordered = in_order(rows[::-1], order)
        (difference,) = select(ordered, quantity="query_centred_difference", target="trajectory")
        assert [difference["method"], difference["against"]] == order
        sign = 1 if order[0] == "journey" else -1
        assert difference["value"] == sign * 0.1
        assert method_names(ordered, "query_centred") == order
        assert in_order(ordered, ["journey", "trak"]) == in_order(rows[::-1], ["journey", "trak"])


def test_an_objective_names_one_row(result):
    rows, headline = result["rows"], LDS().headline(result)
    assert objective_row(rows, headline, {}) is headline[0]
    objective = {"method": "trak", "target": "final_sample", "quantity": "lds"}
    assert objective_row(rows, headline, objective)["value"] == pytest.approx(0.15)
    step = {"target": "step", "step": "300"}
    assert objective_row(rows, headline, step)["value"] == pytest.approx(0.2)
    paired = {"method": "trak", "against": "journey"}
    assert objective_row(rows, headline, paired)["value"] == pytest.approx(-0.1)
    del result["primary"]  # of the former protocol, whose differences name no score transform
    for line in rows:
        if line["quantity"] == "difference":
            del line["score_transform"]
    former = LDS().headline(result)
    assert objective_row(rows, former, {}) is former[0]
    assert objective_row(rows, former, paired)["quantity"] == "difference"
    with pytest.raises(ConfigError, match=r"evaluation.objective=.*'journe'.*0 rows"):
        objective_row(rows, headline, {"method": "journe"})


def test_a_heat_map_of_methods_is_sorted():
    result = result_of("worse", "better")
    result["rows"].sort(key=lambda r: r["method"] == "better")  # not the order of the map
    (centred,) = lds_by_method(result).axes
    expected = [[10, 20, 30, 30], [0, 10, 20, 20], [60, 70, 80, 80], [50, 60, 70, 70]]
    np.testing.assert_allclose(centred.images[0].get_array(), expected, atol=1e-12)


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
    result["rows"] += all_targets("noise_samples", 0.5, quantity="query_centred_ceiling")
    axes = lds_by_step(result).axes[0]
    named = ["first", *(f"method {i}" for i in range(15, 20))]
    assert [c.get_label() for c in axes.containers] == named
    assert "15 other methods" in axes.get_legend_handles_labels()[1]


def test_no_two_methods_look_alike():
    methods = [name for names in FAMILIES.values() for name in names]
    assert sorted(methods) == sorted(path.stem for path in (compose.CONF / "method").glob("*.yaml"))
    assert len({(method_colour(name), method_marker(name)) for name in methods}) == len(methods)


def test_methods_of_others_have_no_colour_of_a_baseline():
    assert not {method_colour(f"my_method_{i}") for i in range(20)} & set(FAMILIES)
    assert method_colour("ekfac-projection-none") == method_colour("ekfac")


def test_points_are_at_their_step(result):
    axes = lds_by_step(result).axes[0]
    for container in axes.containers:
        np.testing.assert_array_equal(container.lines[0].get_xdata(), result["steps"])


def test_a_line_joins_quantities_and_no_indices(result):
    for setting, line in (("num_samples", "-"), ("first_checkpoint", "None")):
        points = {setting: [("0", "trak"), ("1", "journey")]}
        panel = LDS().figures({**result, "variant_axes": points})["ablations.png"].axes[0]
        assert panel.containers[0].lines[0].get_linestyle() == line


def test_the_primary_statistic_is_a_table_in_latex(result):
    latex = texts(result)["lds.tex"]
    assert latex.startswith(f"% {primary_name(result)} × 100")
    assert r"journey & 10 $\pm$ 10 & 20 $\pm$ 12 &" in latex
    assert r"journey $-$ trak & +10.0 [+5.0, +15.0] supported" in latex


@pytest.mark.parametrize(
    ("cells", "expected"), [((0, 1, 1, 2), 1), ((0, 2, 2, 0), 2), ((0, 1, 2, 3), 3), ((1,) * 4, 1)]
)
def test_what_most_cells_chose_is_shown_and_of_ties_the_stronger_damping(cells, expected):
    candidates = [{"damping": damping} for damping in (0.1, 1.0, 10.0, 100.0)]
    assert shown_index(list(cells), candidates) == expected
    assert shown_index([3 - cell for cell in cells], candidates[::-1]) == 3 - expected
    assert shown_index([0, 0, 0, 0], [{}]) == 0


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"method": "ekfac"}, r"\.method=ekfac: must be one of journey, trak"),
        ({"against": "ekfac"}, r"\.against=ekfac: must be one of journey, trak"),
        ({"target": "destination"}, r"\.target=destination: must be one of step, paired_steps"),
        ({"score_transform": "relu"}, r"\.score_transform=relu: must be one of linear, chosen"),
        ({"against": "trak", "quantity": "lds"}, r"\.quantity=lds: must be one of query_centred_d"),
        ({"metric": "x"}, "=metric: must be a key of method, against, quantity"),
        ({"target": "step"}, "=.*: must be with target=step and a step"),
        ({"step": "600"}, "=.*: must be with target=step and a step"),
    ],
)
def test_an_objective_of_no_row_is_refused_before_anything_runs(objective, message):
    with pytest.raises(ConfigError, match=rf"^evaluation\.objective{message}"):
        LDS(objective=objective).check_objective("evaluation.objective", ["journey", "trak"])


def test_an_objective_at_a_step_has_a_step_and_no_objective_is_in_a_cache_key():
    whole = {"target": "step", "step": "600"}
    LDS(objective=whole).check_objective("evaluation.objective", ["journey"])
    assert describe(LDS(objective={"method": "trak"})) == describe(LDS())
