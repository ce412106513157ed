"""Committed figures are drawn from their result.json alone."""

import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FOLDERS = sorted({path.parent for path in EXPERIMENTS.glob("*/result.json")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_figure_without_images_is_drawn_again(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    from redraw import redraw

    names = redraw(folder, tmp_path)
    sys.modules.pop("redraw")
    committed = {path.name for path in folder.glob("*.png")} - {"trajectories.png", "contact.png"}
    assert set(names) == committed == {path.name for path in tmp_path.iterdir()}
