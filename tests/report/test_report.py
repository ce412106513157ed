import errno
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import journey_trak, small_run
from replacements_for_tests import add_foreign, tree
from rich.console import Console

from journey.config.run import Vary
from journey.engine.store import Store, changed_values
from journey.engine.workspace import Precision, Workspace
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.settings import Target, Training
from journey.report import figures, tables, write
from journey.report.directory import LIST
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


QUICK = Training(num_steps=20, batch_size=16, warmup_steps=4)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Workspace:
    run = small_run()
    store = Store(tmp_path_factory.mktemp("store"))
    return Workspace(store, run.compute, run.tracking, "test")


def write_small(workspace: Workspace, directory: Path, **changes) -> dict:
    run = small_run(training=QUICK, **changes)
    return write.write_report(run, load_experiment(run, workspace.store), workspace, directory)


def test_a_report_is_replaced_as_a_whole_and_prints_changed_settings(shared, tmp_path, capsys):
    directory = tmp_path / "reports" / "small"
    first = write_small(shared, directory)
    output = capsys.readouterr().out
    assert f"{directory}/preview.png: training images that influenced each step" in output
    foreign = add_foreign(directory, tmp_path / "elsewhere")
    write_small(shared, directory, method={"other": journey_trak(damping=[1.0])})
    output = capsys.readouterr().out
    line = "method.journey: gradient{…} → (nothing); method.other: (nothing) → gradient{…}"
    assert f"{directory}: replaces a report of other settings: {line}\n" in output
    result = json.loads((directory / "result.json").read_text())
    assert list(result["methods"]) == ["other"]
    assert select(first["rows"], method="journey")
    pictures = [
        f"{name}.{form}" for name in ("trajectories", "lds_by_step") for form in ("pdf", "png")
    ]
    written = tree(directory)
    assert {name: written.pop(name) for name in foreign} == foreign
    pictures += ["samples.png", "training_images.png"]
    assert sorted(written) == sorted(
        [LIST, *pictures, "index.html", "lds.md", "lds.tex", "result.json"]
    )
    assert [p.name for p in directory.parent.iterdir()] == ["small"], "nothing is left beside it"
    assert list(tree(tmp_path / "elsewhere")) == ["thesis.tex"]


def test_changed_settings_are_a_short_line(tmp_path):
    before = {"method": {"a": {"name": "pixel", "x": 1}}, "steps": list(range(300)), "seed": 0}
    before |= {f"setting{i}": i for i in range(7)}
    (tmp_path / "result.json").write_text(json.dumps({"settings": before}))
    after = {"method": {"b": {"name": "trak", **{f"x{i}": i for i in range(99)}}}, "seed": 1}
    text = write._changed_settings(tmp_path, {"settings": after})
    assert text.startswith("method.a: pixel{…} → (nothing); method.b: (nothing) → trak{…}; seed: ")
    assert text.endswith("; and 6 more")
    changes = [*changed_values(before, after)]
    assert max(len(value) for change in changes for value in change) == 60
    assert write._changed_settings(tmp_path, {"settings": before}) == ""


def test_a_failure_leaves_the_old_report(shared, tmp_path, monkeypatch):
    """In the middle of the new one's files."""
    directory = tmp_path / "report"
    write_small(shared, directory)
    foreign = add_foreign(directory, tmp_path / "elsewhere")
    before = tree(directory)
    for name in ("_trajectory_figure", "page_html"):
        with monkeypatch.context() as patched:
            patched.setattr(write, name, partial(fail_with, OSError(errno.ENOSPC, "full")))
            with pytest.raises(OSError, match="full"):
                write_small(shared, directory)
        assert tree(directory) == before
    write_small(shared, directory)
    assert foreign.items() <= tree(directory).items()


def fail_with(error, *_):
    raise error
