"""Notebooks run as they are committed, and agree with their paired files."""

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

SOURCES = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
MOST_BYTES = 400_000  # of a notebook with its outputs


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_runs(source):
    notebook = jupytext.read(source)
    NotebookClient(
        notebook,
        timeout=1800,
        startup_timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_its_pair_has_the_same_cells_and_small_outputs(source):
    pair = source.with_suffix(".ipynb")
    cells, paired = (jupytext.read(path).cells for path in (source, pair))
    assert [(cell.cell_type, cell.source) for cell in cells] == [
        (cell.cell_type, cell.source) for cell in paired
    ]
    assert sum(bool(cell.outputs) for cell in paired if cell.cell_type == "code") >= 3, (
        "executed as it is committed"
    )
    assert pair.stat().st_size < MOST_BYTES
