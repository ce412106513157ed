import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from journey.components import COMPONENTS, METHODS
from journey.config import compose

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import methods_table as methods

GUIDE = Path(__file__).parents[2] / "docs/methods.md"
NAMES = sorted(path.stem for path in (compose.CONF / "method").glob("*.yaml"))


def rows_of(table: str) -> dict[str, dict[str, str]]:
    """Return the cells of a table by heading, its rows by method."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


@pytest.fixture(scope="module")
def table() -> str:
    return methods.table()


@pytest.fixture(scope="module")
def rows(table) -> dict[str, dict[str, str]]:
    return rows_of(table)


def composed(*overrides: str) -> dict:
    compose.register_schemas(COMPONENTS)
    with initialize_config_dir(str(compose.CONF), version_base="1.3"):
        return compose.parse(hydra_compose("config", list(overrides))).method


def test_the_guide_has_this_table(table):
    between = GUIDE.read_text().partition("<!-- methods -->")[2].partition("<!-- /methods -->")[0]
    assert between.strip() == table.strip(), "python benchmarks/methods_table.py"


def test_every_method_has_one_aligned_row(table):
    lines = table.splitlines()
    assert sorted(line.split()[1] for line in lines[2:]) == NAMES
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("external", "features", "trak_store")]
)  # refused without files
def test_a_row_has_all_settings_of_the_method(name, rows):
    """The component's defaults with the row's settings are the method that the command composes."""
    component = {method.name: method for method in METHODS}[rows[name]["component"]]
    settings = [f"{field}={rows[name][field]}" for field in methods.FIELDS if rows[name][field]]
    if rows[name]["other settings"]:
        settings.append(rows[name]["other settings"])  # of no method more than one
    rebuilt = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(component), OmegaConf.from_dotlist(settings))
    )
    model = "ldm_tiny" if component.needs_latents or component.needs_text else "ddpm_tiny"
    assert rebuilt == composed(f"method=[{name}]", f"model={model}")[name]


def test_a_row_has_no_defaults(rows):
    journey = rows["journey"]
    assert {heading for heading, cell in journey.items() if cell} == {
        "method",
        "component",
        "what it is",
    }
    assert rows["das"] == {
        **journey,
        "method": "das",
        "output": "mean",
        "normalize": "true",
        "score_transform": "square",
        "what it is": "Diffusion attribution score (Lin et al. 2025): squared scores, as in its "
        "released code",
    }


def test_a_shared_setting_is_a_difference_of_the_methods_that_have_it():
    settings = composed(
        "method=[tracin,pixel]", "attribution.num_samples=8", "method.tracin.damping=[0.001,10]"
    )
    assert methods.differences(settings["tracin"]) == {
        "num_samples": "8",
        "damping": "[0.001, 10]",
        "kernel": "identity",
        "ensemble": "run",
    }
    assert methods.differences(settings["pixel"]) == {}


def test_the_table_is_printed_without_torch(table):
    code = (
        f"import runpy, sys; runpy.run_path({methods.__file__!r}, run_name='__main__'); "
        "assert 'torch' not in sys.modules"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600
    )
    assert (process.returncode, process.stdout) == (0, table), process.stderr
