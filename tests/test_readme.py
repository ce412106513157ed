"""What the README and its guides show runs as it stands, on the smallest experiment; its numbers are those of results."""

import json
import re
import shlex
import tarfile
from pathlib import Path

import pytest
from conftest import TINY, command, python, succeeds

from journey.evaluation.rows import format_interval, method_names, select

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs/your-own.md").read_text()
METHOD, SCORES = re.findall(r"```python\n(.*?)```", GUIDE, re.S)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A fresh directory with nothing but a pack, and what was said where it was made."""
    made, fresh = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("fresh")
    succeeds(command(made, *TINY))
    said = succeeds(command(made, *TINY, "task=export"))
    with tarfile.open(made / "reports/smoke-pack.tar.gz") as pack:
        pack.extractall(fresh, filter="data")
    return fresh, said


def result_of(directory):
    return json.loads((directory / "reports/smoke/result.json").read_text())


def test_a_method_of_ones_own_is_judged_beside_ours(packed):
    directory, _ = packed
    assert len(METHOD.splitlines()) <= 30
    (directory / "nearest.py").write_text(METHOD)
    words = ("method=[journey,nearest]", "method.nearest.power=1", "artifacts=smoke-pack")
    succeeds(python(directory, "nearest.py", *TINY, *words))
    assert method_names(result_of(directory)["rows"], "lds") == ["journey", "nearest"]


def test_a_strangers_scores_are_judged_from_a_pack_and_nothing_trains(packed):
    directory, said = packed
    assert "reports/smoke-pack.tar.gz" in said
    script = SCORES.replace("methods-pack", "smoke-pack")
    assert len(script.splitlines()) + 1 <= 10
    succeeds(python(directory, "-c", script))
    models = sorted((directory / "smoke-pack/models").iterdir())
    words = (
        "method=[journey,trak,pixel,random,external]",
        "method.external.path=mine.npz",
        "artifacts=smoke-pack",
    )
    said = succeeds(command(directory, *TINY, *words))
    assert method_names(result_of(directory)["rows"], "lds") == [
        "journey",
        "trak",
        "pixel",
        "random",
        "external",
    ]
    assert "2 to make: score x1, evaluate x1" in said
    assert sorted((directory / "smoke-pack/models").iterdir()) == models, (
        "only checkpoints of everything are packed"
    )
    assert (directory / "reports/smoke/lds_by_step.png").exists()


def test_a_strangers_scores_are_judged_on_the_models_of_this_repository(tmp_path):
    """The guide's own lines: nothing trains, random scores find nothing, and the ceilings are those that were published."""
    with tarfile.open(ROOT / "experiments/methods/methods-pack.tar.gz") as pack:
        pack.extractall(tmp_path, filter="data")
    succeeds(python(tmp_path, "-c", SCORES))
    (line,) = re.findall(
        r"^    journey (experiment=methods artifacts=methods-pack .*\\\n.*)$", GUIDE, re.MULTILINE
    )
    said = succeeds(command(tmp_path, *shlex.split(line.replace("\\\n", ""))))
    assert "2 to make: score x1, evaluate x1" in said
    assert '"external"' in (tmp_path / "reports/methods/index.html").read_text()
    rows = json.loads((tmp_path / "reports/methods/result.json").read_text())["rows"]
    (random,) = select(
        rows, quantity="lds", method="external", score_transform="best", target="paired_steps"
    )
    assert abs(random["value"]) < 0.1
    published = json.loads((ROOT / "experiments/methods/result.json").read_text())["rows"]
    ours, theirs = (
        [row["value"] for row in select(of, quantity="ceiling")] for of in (rows, published)
    )
    assert ours == pytest.approx(theirs)


def test_the_card_of_a_pack_names_what_is_in_it(packed):
    pack = packed[0] / "smoke-pack"
    card = (pack / "README.md").read_text()
    for path in re.findall(r"`((?:images|journeys|models)/[^`]+?)/?`", card):
        assert (pack / path.removesuffix("/train")).is_dir(), path


def test_the_claim_has_the_numbers_of_its_results():
    for experiment, against, sign in (
        ("digits", "trak", "+"),
        ("methods", "trak", "+"),
        ("digits", "ekfac", ""),
    ):
        rows = json.loads((ROOT / f"experiments/{experiment}/result.json").read_text())["rows"]
        (row,) = select(
            rows, quantity="difference", method="journey", against=against, target="paired_steps"
        )
        if not sign:  # the README says by how much the other is better
            row = {"value": -row["value"], "low": -row["high"], "high": -row["low"]}
        assert sign + format_interval(row, 1, times=100) in re.sub(r"\*\*|by ", "", README)


def test_every_link_leads_somewhere():
    folders = ("docs", "notebooks", "experiments")
    for page in (
        ROOT / "README.md",
        *(path for folder in folders for path in (ROOT / folder).rglob("*.md")),
    ):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
