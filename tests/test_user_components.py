"""A user's own kinds, each a script of less than forty lines, through the whole road."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, python, succeeds

from journey.evaluation.rows import method_names, select

HERE = Path(__file__).parent
SCRIPTS = ["user_dataset.py", "user_method.py", "user_evaluation.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_takes_less_than_forty_lines(script):
    assert len((HERE / script).read_text().splitlines()) < 40


def result_of(directory: Path) -> dict:
    return json.loads((directory / "reports/smoke/result.json").read_text())


def changed(directory: Path, script: str, old: str, new: str) -> None:
    text = (directory / script).read_text()
    assert text.count(old) == 1
    (directory / script).write_text(text.replace(old, new))


def linear(result: dict, method: str) -> list[float]:
    """LDS of the scores as they are."""
    return [
        row["value"]
        for row in select(result["rows"], quantity="lds", method=method, score_transform="linear")
    ]


def test_a_method_is_judged_beside_ours_and_its_source_is_part_of_its_address(tmp_path):
    shutil.copy(HERE / "user_method.py", tmp_path)
    run = (*TINY, "method=[journey,mine]", "method.mine.power=1")
    succeeds(python(tmp_path, "user_method.py", *run))
    first = result_of(tmp_path)
    assert method_names(first["rows"], "lds") == ["journey", "mine"]
    assert first["methods"]["mine"].items() >= {"kind": "mine", "power": 1.0}.items()
    assert "mine" in (tmp_path / "reports/smoke/lds.md").read_text()

    changed(tmp_path, "user_method.py", "SIGN = -1", "SIGN = 1")
    models = {p: p.stat().st_mtime_ns for p in (tmp_path / "artifacts/models").rglob("*")}
    succeeds(python(tmp_path, "user_method.py", *run))
    second = result_of(tmp_path)
    addresses = [result["addresses"]["scores"] for result in (first, second)]
    assert addresses[0]["journey"] == addresses[1]["journey"]
    assert addresses[0]["mine"] != addresses[1]["mine"]
    scores = [np.load(tmp_path / "artifacts" / of["mine"] / "scores.npy") for of in addresses]
    np.testing.assert_array_equal(scores[0], -scores[1])
    assert np.abs(linear(first, "mine")).max() > 0
    np.testing.assert_allclose(linear(second, "mine"), -np.array(linear(first, "mine")), atol=1e-12)
    assert linear(second, "journey") == linear(first, "journey")
    assert {
        p: p.stat().st_mtime_ns for p in (tmp_path / "artifacts/models").rglob("*")
    } == models, "no model is trained again"


def test_a_dataset_goes_the_whole_road_and_its_source_is_not_trusted_blindly(tmp_path):
    shutil.copy(HERE / "user_dataset.py", tmp_path)
    run = (*TINY, "dataset=stripes", "dataset.num_held_out=10", "method=[pixel]")
    succeeds(python(tmp_path, "user_dataset.py", *run))
    first = result_of(tmp_path)
    assert (first["dataset"], first["num_train"]) == ("stripes", 60)
    kept = tmp_path / "artifacts" / first["addresses"]["images"]
    assert np.load(kept / "held_out/images.npy").shape == (10, 1, 8, 8)

    (tmp_path / "user_dataset.py").write_text(
        (tmp_path / "user_dataset.py").read_text() + "\n# the same images\n"
    )
    assert [
        cell
        for stage in ("images", "train", "measure", "score")
        for cell in to_make(tmp_path, run, stage)
    ] == ["0"] * 4
    changed(tmp_path, "user_dataset.py", "127 * waves", "100 * waves")
    assert [cell for stage in ("images", "train") for cell in to_make(tmp_path, run, stage)] == [
        "1",
        "9",
    ]


def to_make(directory: Path, run: tuple[str, ...], stage: str) -> list[str]:
    plan = succeeds(python(directory, "user_dataset.py", *run, "task=plan"))
    return [
        line.split("│")[4].strip()
        for line in plan.splitlines()
        if line.startswith("│") and line.split("│")[1].strip() == stage
    ]


def test_an_evaluation_goes_the_whole_road(tmp_path):
    shutil.copy(HERE / "user_evaluation.py", tmp_path)
    run = [word for word in TINY if not word.startswith("evaluation")]
    said = succeeds(
        python(
            tmp_path, "user_evaluation.py", *run, "evaluation=continuity", "method=[pixel,random]"
        )
    )
    result = result_of(tmp_path)
    assert method_names(result["rows"], "continuity") == ["pixel", "random"]
    assert [row["step"] for row in select(result["rows"], method="pixel")] == [600]
    assert "continuity" in said
    assert not (tmp_path / "artifacts/outputs").exists(), "it asks for no retraining"


CLASHES = {
    "user_method.py": (
        '"mine"',
        '"pixel"',
        "error: method=pixel=Mine: must be named otherwise than unlearning, caption",
    ),
    "user_dataset.py": (
        '"stripes"',
        '"digits"',
        "error: dataset=digits=Stripes: must be named otherwise than cifar10, cifar2",
    ),
    "user_evaluation.py": (
        '= "continuity"',
        '= "lds"',
        "error: evaluation=lds=Continuity: must be named otherwise than ",
    ),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_name_that_is_taken_is_refused_in_a_line(script, tmp_path):
    old, new, message = CLASHES[script]
    shutil.copy(HERE / script, tmp_path)
    changed(tmp_path, script, old, new)
    done = python(tmp_path, script, *TINY)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == [script]


def test_help_lists_it(tmp_path):
    said = python(tmp_path, str(HERE / "user_method.py"), "--help").stdout
    (methods,) = re.findall(r"^    method (.*(?:\n {16}.*)*)", said, re.MULTILINE)
    assert methods.endswith(", mine")


def test_its_settings_are_checked_as_ours_are(tmp_path):
    done = python(
        tmp_path, str(HERE / "user_method.py"), *TINY, "method=[mine]", "method.mine.typo=1"
    )
    assert done.returncode == 1
    assert "typo" in done.stderr
    assert done.stderr.count("\n") == 1
