"""Committed figures and tables: drawn from their result.json alone, and listed in FIGURES.md."""

import json
import re
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
    files = {path.name for path in folder.iterdir() if path.suffix in {".png", ".pdf"}}
    files -= {"samples.png", "trajectories.png", "trajectories.pdf"}  # of images: in no result
    assert set(names) == {name for name in files if name.endswith(".png")}
    assert {path.name for path in tmp_path.iterdir()} == files
    for path in tmp_path.glob("*.pdf"):
        assert b"/Type3" not in path.read_bytes(), "venues refuse such fonts"


def test_every_figure_is_listed_with_what_it_shows():
    lines = (EXPERIMENTS / "FIGURES.md").read_text().splitlines()
    listed = [re.fullmatch(r"\| \[[^]]+\]\(([^)]+)\) \| [^|]{20,}\. \|", line) for line in lines]
    paths = [(EXPERIMENTS / row[1]).resolve() for row in listed if row]
    assert len(paths) == len([line for line in lines if ".png" in line]), "a row has another form"
    assert len(paths) == len(set(paths)), "a figure is listed twice"
    assert set(paths) == {*EXPERIMENTS.rglob("*.png"), *EXPERIMENTS.parent.glob("docs/*.png")}


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
