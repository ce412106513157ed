import json
import re

import numpy as np
import pytest
from conftest import journey_trak, small_run
from rich.console import Console

from journey.config.run import Vary
from journey.engine.workspace import Precision
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.settings import Target, Training
from journey.report import figures, tables, write
from journey.report.write import variant_axes


def test_proponents_and_opponents_are_under_their_step():
    train = np.arange(0, 250, 25, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(4, 2).repeat(4, 3)
    scores = np.stack([np.arange(10.0), -np.arange(10.0)])[:, None]
    names = [str(i) for i in range(10)]
    ids = tuple(f"images/{name}" for name in names)
    trajectories = figures.AttributedTrajectories(
        (600, 300), np.zeros((2, 1, 1, 4, 4)), train, scores, names, ids
    )
    figure = figures.trajectory_figure(trajectories, "test", [0], num_shown=2)
    shown = np.array(
        [[a.images[0].get_array()[0, 0] if a.images else np.nan for a in figure.axes]]
    ).reshape(-1, 2)
    index = np.rint(np.nan_to_num(shown[1:5]) * 255 / 25).astype(int)
    np.testing.assert_array_equal(index, [[9, 0], [8, 1], [0, 9], [1, 8]])
    written = [axes.get_xlabel() for axes in figure.axes[2:10]]
    assert written == [str(i) for i in index.ravel()], "every image is shown with its id"


def row(value, low, high, **conditions):
    return {
        "quantity": "lds",
        "target": "trajectory",
        **conditions,
        "value": value,
        "low": low,
        "high": high,
    }


def cells_of(table) -> dict[str, list[str]]:
    """Return the lines of a table by their first cell."""
    console = Console(record=True, width=200)
    console.print(table)
    lines = [
        re.split("[│┃]", line)[1:-1]
        for line in console.export_text().splitlines()
        if line[0] in "│┃"
    ]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_a_sweep_has_a_line_for_every_point_and_gaps_for_missing_methods():
    points = {
        "seed=0": [row(0.3, 0.2, 0.4, method="journey"), row(0.2, 0.1, 0.3, method="trak")],
        "method=[other]": [row(-0.1, -0.2, 0.1, method="other")],
    }
    assert cells_of(tables.sweep_table(points)) == {
        "point": ["journey, trajectory", "trak, trajectory", "other, trajectory"],
        "seed=0": ["30 ± 10", "20 ± 10", ""],
        "method=[other]": ["", "", "-10 ± 15"],
    }


def test_rows_of_any_evaluation_become_tables():
    rows = [
        row(0.3, 0.2, 0.4, method="a", target="step", step=600),
        row(0.4, 0.2, 0.4, method="a", score_transform="chosen"),
        row(0.5, 0.5, 0.5, method="b", quantity="distance"),
    ]
    first, second = tables.row_tables(rows, "mine")
    assert cells_of(first) == {
        "method": ["t=600", "trajectory"],
        "a": ["30 ± 10", ""],
        "a chosen": ["", "40 ± 10"],
    }
    assert cells_of(second) == {"method": ["trajectory"], "b": ["50 ± 0"]}


def test_every_value_of_an_axis_is_found_once():
    base = journey_trak(damping=[1.0])
    vary = Vary(num_samples=[32, 4, 8], damping=[1.0, 10.0], target=[Target.trajectory])
    axes = variant_axes(small_run(method={"journey": base}, vary=vary))
    samples = [("4", "journey-num_samples-4"), ("8", "journey"), ("32", "journey-num_samples-32")]
    assert axes == {
        "num_samples": samples,
        "damping": [("1.0", "journey"), ("10.0", "journey-damping-10.0")],
    }


def test_values_that_are_not_numbers_are_named():
    run = small_run(vary=Vary(precision=[Precision.bf16]))
    assert variant_axes(run) == {
        "precision": [("bf16", "journey-precision-bf16"), ("fp32", "journey")]
    }


def test_a_report_is_replaced_as_a_whole_and_prints_changed_settings(workspace, tmp_path, capsys):
    directory = tmp_path / "reports" / "small"
    quick = Training(num_steps=20, batch_size=16, warmup_steps=4)
    run = small_run(training=quick)
    first = write.write_report(run, load_experiment(run, workspace.store), workspace, directory)
    (directory / "left over.txt").write_text("from another run")
    capsys.readouterr()
    other = small_run(training=quick, method={"other": journey_trak(damping=[1.0])})
    write.write_report(other, load_experiment(other, workspace.store), workspace, directory)
    output = capsys.readouterr().out
    assert (
        f"{directory}: replaces a report of other settings: method.journey: stored"
        in output.replace("\n", " ")
    )
    result = json.loads((directory / "result.json").read_text())
    assert list(result["methods"]) == ["other"]
    assert select(first["rows"], method="journey")
    pictures = [
        f"{name}.{form}" for name in ("trajectories", "lds_by_step") for form in ("pdf", "png")
    ]
    assert sorted(p.name for p in directory.iterdir()) == sorted(
        [*pictures, "index.html", "lds.md", "result.json"]
    )
    assert [p.name for p in directory.parent.iterdir()] == ["small"], "nothing is left beside it"


def test_a_failure_leaves_the_old_report(tmp_path):
    directory = tmp_path / "report"
    directory.mkdir()
    (directory / "result.json").write_text("{}")

    def fail(partial):
        (partial / "half.txt").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError), write._replaced_directory(directory) as partial:
        fail(partial)
    assert [p.name for p in tmp_path.rglob("*")] == ["report", "result.json"]
