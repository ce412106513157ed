import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import journey, small_run
from rich.console import Console

from journey import config
from journey.report import figures, tables, write


@pytest.fixture
def result():
    def lds(shift):
        step = {"mean": [0.1 + shift, 0.2 + shift], "ci95": [[0.0 + shift, 0.2 + shift], [0.1 + shift, 0.35 + shift]]}
        whole = {"mean": 0.3 + shift, "ci95": [0.2 + shift, 0.4 + shift]}
        targets = {"step": step, "paired_steps": whole, "trajectory": whole, "destination": whole}
        chosen = {"step": [{"damping": 0.1, "readout": "relu"}] * 4}
        return {
            **targets,
            "chosen": chosen,
            "linear": {**targets, "chosen": chosen},
            "cost": {"seconds": 1.0, "gradients": 7000, "bytes": 5e6},
        }

    return {
        "experiment": "test", "num_train": 10, "num_subsets": 8, "num_seeds": 1, "num_queries": 4, "steps": [600, 300],
        "lds": {"journey": lds(0.0), "trak": lds(-0.1)}, "ceiling": {"kind": "seeds", **lds(0.5)},
        "paired_steps": [600, 300],
        "paired": [{"a": "journey", "b": "trak", **{t: {"mean": 0.1, "ci95": [0.05, 0.15]} for t in tables.COLUMNS}}],
    }  # fmt: skip


def test_every_curve_is_drawn_where_the_result_has_it(result):
    axes = figures.lds_by_step(result).axes[0]
    drawn = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    containers = {c.get_label(): c.lines[0] for c in axes.containers}
    for name, lds in result["lds"].items():
        np.testing.assert_allclose(containers[name].get_ydata().astype(float), lds["step"]["mean"])
    np.testing.assert_allclose(drawn["ceiling (seeds)"].get_ydata(), result["ceiling"]["step"]["mean"])
    assert axes.xaxis_inverted()
    plt.close("all")


def test_proponents_and_opponents_are_under_their_step():
    train = np.arange(0, 250, 25, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(4, 2).repeat(4, 3)
    scores = np.stack([np.arange(10.0), -np.arange(10.0)])[:, None]  # the first step likes the last image best
    guided = figures.Guided([600, 300], np.zeros((2, 1, 1, 4, 4)), train, scores, [str(i) for i in range(10)])
    figure = figures.journeys(guided, "test", num_queries=1, num_shown=2)
    shown = np.array([[a.images[0].get_array()[0, 0] if a.images else np.nan for a in figure.axes]]).reshape(-1, 2)
    index = np.rint(np.nan_to_num(shown[1:5]) * 255 / 25).astype(int)
    np.testing.assert_array_equal(index, [[9, 0], [8, 1], [0, 9], [1, 8]])
    plt.close("all")


def test_tables_hold_the_numbers(result):
    console = Console(record=True, width=120)
    console.print(tables.lds_table(result), tables.paired_table(result))
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


def test_markdown_has_every_interval_choice_and_cost(result):
    lines = tables.markdown(result).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert (
        "| trak | best | 0 [−10, 10] | 10 [0, 25] | 20 [10, 30] | 20 [10, 30] | 20 [10, 30] | 0.1 relu | 1 | 7,000 | 5.0 |"
        in lines
    )


def test_a_map_of_methods_is_sorted_and_holds_both_readouts(result):
    result["lds"] = {"worse": result["lds"]["trak"], "better": result["lds"]["journey"]}
    for axes in figures.lds_by_method(result).axes:
        np.testing.assert_allclose(axes.images[0].get_array(), [[10, 20, 30, 30], [0, 10, 20, 20], [60, 70, 80, 80]])
    plt.close("all")


def test_ablations_draw_every_axis(result):
    figure = figures.ablations(result, "journey", {"num_draws": [("8", "trak"), ("32", "journey")]})
    np.testing.assert_allclose(figure.axes[0].containers[0].lines[0].get_ydata().astype(float), [0.2, 0.3])
    plt.close("all")


def test_axes_find_every_point_once_whatever_it_is_called():
    base = journey(damping=[1.0])
    vary = config.Vary(num_draws=[32, 4, 8], damping=[1.0, 10.0], at=[config.At.trajectory])
    axes = write._axes(small_run(method={"journey": base}, vary=vary))
    draws = [("4", "journey-num_draws-4"), ("8", "journey"), ("32", "journey-num_draws-32")]
    assert axes == {"num_draws": draws, "damping": [("1.0", "journey"), ("10.0", "journey-damping-10.0")]}
