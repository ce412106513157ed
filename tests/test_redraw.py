"""Committed figures and tables are drawn from their result.json alone."""

import json
import sys
from pathlib import Path

import pytest

from journey.evaluation.counterfactual import Counterfactual

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FOLDERS = sorted({path.parent for path in EXPERIMENTS.glob("*/result.json")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_figure_without_images_is_drawn_again(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    from redraw import redraw

    names = redraw(folder, tmp_path)
    sys.modules.pop("redraw")
    committed = {path.name for path in folder.glob("*.png")} - {"trajectories.png", "contact.png"}
    assert set(names) == committed
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == committed | {path.name for path in folder.glob("*.pdf")}
    for path in tmp_path.glob("*.pdf"):
        assert b"/Type3" not in path.read_bytes(), "venues refuse such fonts"


@pytest.mark.parametrize("name", ["counterfactual", "counterfactual_mnist5k"])
def test_every_effect_is_in_the_table(name):
    result = json.loads((EXPERIMENTS / name / "result.json").read_text())
    table = EXPERIMENTS / name / "counterfactual.md"
    assert table.read_text() == Counterfactual().texts(result)["counterfactual.md"]


def test_few_control_models_have_no_interval():
    result = json.loads((EXPERIMENTS / "counterfactual_mnist5k/result.json").read_text())
    controls = {"random removal": result["num_random"], "another seed": result["num_seeds"]}
    assert controls == {"random removal": 3, "another seed": 2}
    for row in result["rows"]:
        assert ("low" in row) == (row["method"] not in controls), row
