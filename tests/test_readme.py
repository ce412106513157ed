"""The README and the guides: their code runs, their commands compose, their numbers are results."""

import importlib.util
import json
import re
import shlex
import tarfile
from pathlib import Path

import pytest
from conftest import TINY, command, python, succeeds

from journey.cli import check_command_line
from journey.components import COMPONENTS
from journey.config import compose
from journey.evaluation.rows import format_interval, method_names, select

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs/your-own.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.md"))
_, METHOD = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
_, SCORES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory):
    """Return a folder with nothing but an exported bundle."""
    source, folder = tiny[0], tmp_path_factory.mktemp("folder")
    output = succeeds(command(source, *TINY, "task=export"))
    assert "reports/smoke-bundle.tar.gz" in output
    with tarfile.open(source / "reports/smoke-bundle.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def result_of(directory):
    return json.loads((directory / "reports/smoke/result.json").read_text())


def test_a_users_method_is_evaluated_beside_ours(bundle):
    (bundle / "nearest.py").write_text(METHOD)
    words = ("method=[journey,nearest]", "method.nearest.power=1", "artifacts=smoke-bundle")
    succeeds(python(bundle, "nearest.py", *TINY, *words))
    assert method_names(result_of(bundle)["rows"], "lds") == ["journey", "nearest"]


def test_scores_of_others_are_evaluated_from_a_bundle_without_training(bundle):
    succeeds(python(bundle, "-c", SCORES.replace("methods-bundle", "smoke-bundle")))
    models = sorted((bundle / "smoke-bundle/models").iterdir())
    methods = ["journey", "trak", "pixel", "random", "external"]
    words = (f"method=[{','.join(methods)}]", "method.external.path=mine.npz")
    output = succeeds(command(bundle, *TINY, *words, "artifacts=smoke-bundle"))
    assert method_names(result_of(bundle)["rows"], "lds") == methods
    assert "2 to compute: score x1, evaluate x1" in output
    assert sorted((bundle / "smoke-bundle/models").iterdir()) == models
    assert (bundle / "reports/smoke/lds_by_step.png").exists()


def test_the_card_of_a_bundle_names_its_folders(bundle):
    card = (bundle / "smoke-bundle/README.md").read_text()
    paths = re.findall(r"`((?:images|trajectories|models)/[^`]+?)/?`", card)
    assert len(paths) == 3
    for path in paths:
        assert (bundle / "smoke-bundle" / path.removesuffix("/train")).is_dir(), path


def test_scores_of_others_are_evaluated_on_the_committed_bundle(tmp_path):
    """With the guide's commands: random scores predict nothing; the ceilings are as published."""
    for name in ("methods-bundle", "methods-held-out"):
        with tarfile.open(ROOT / f"experiments/methods/{name}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
    succeeds(python(tmp_path, "-c", SCORES))
    (line,) = re.findall(
        r"^    journey (experiment=methods artifacts=methods-bundle .*\\\n.*)$", GUIDE, re.MULTILINE
    )
    output = succeeds(command(tmp_path, *shlex.split(line.replace("\\\n", ""))))
    assert "2 to compute: score x1, evaluate x1" in output
    assert '"external"' in (tmp_path / "reports/methods/index.html").read_text()
    rows = json.loads((tmp_path / "reports/methods/result.json").read_text())["rows"]
    lds = select(rows, quantity="query_centred", method="external", score_transform="linear")
    (random,) = select(lds, target="paired_steps")
    assert abs(random["value"]) < 0.1
    published = json.loads((ROOT / "experiments/methods/result-24.json").read_text())["rows"]
    values = [[row["value"] for row in select(r, quantity="ceiling")] for r in (rows, published)]
    assert values[0] == pytest.approx(values[1])


def test_every_documented_command_composes():
    """The indented lines that start with `journey`, without placeholders (…)."""
    compose.register_schemas(COMPONENTS)
    commands = []
    for page in [*PAGES, *EXPERIMENTS]:
        for line in re.findall(r"^    journey ((?:.*\\\n)*.*)$", page.read_text(), re.MULTILINE):
            words = shlex.split(line.replace("\\\n", ""), comments=True)
            if words != ["--help"] and not any("…" in word or "<" in word for word in words):
                try:
                    check_command_line(words)
                except Exception as error:
                    pytest.fail(f"{page}: journey {shlex.join(words)}: {error}")
                commands.append(words)
    assert len(commands) >= 20


def test_every_command_in_the_head_of_an_experiment_composes():
    """Their words may be on several lines of the comment."""
    compose.register_schemas(COMPONENTS)
    files = sorted((ROOT / "conf/experiment").glob("*.yaml"))
    for file in files:
        head = re.sub(r"\n# *", " ", file.read_text().partition("\ndefaults:")[0])
        commands = re.findall(r"journey ((?:-m )?experiment=\w+(?: '?[\w./]+=\S+)*)", head)
        assert commands, file
        for command in commands:
            if "…" not in command:
                check_command_line(shlex.split(command))


def test_the_results_table_is_that_of_the_results():
    path = ROOT / "experiments/results_table.py"
    spec = importlib.util.spec_from_file_location("results_table", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shown = README.partition("<!-- results -->\n")[2].partition("<!-- /results -->")[0]
    assert shown == script.table(), "python experiments/results_table.py"


@pytest.mark.parametrize("experiment", ["digits", "methods"])
def test_the_claim_has_the_numbers_of_its_results(experiment):
    result = json.loads((ROOT / f"experiments/{experiment}/result.json").read_text())
    quantity = "query_centred_difference"
    compared = select(result["rows"], quantity=quantity, method="journey", against="trak")
    (row,) = select(compared, target="paired_steps")
    assert f"+{format_interval(row, 1, times=100)} on `{experiment}`" in README


def test_every_link_leads_to_a_file():
    notebooks = (ROOT / "notebooks").rglob("*.md")
    for page in (*PAGES, *EXPERIMENTS, *notebooks):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
