"""A user's components, each a script of fewer than forty lines, run through the full pipeline."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, command, succeeds

from journey.evaluation.rows import method_names, select

SCRIPTS = ["user_dataset.py", "user_method.py", "user_evaluation.py"]


@pytest.fixture(autouse=True)
def scripts(tmp_path):
    for script in SCRIPTS:
        shutil.copy(Path(__file__).parent / script, tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_has_fewer_than_forty_lines(script, tmp_path):
    assert len((tmp_path / script).read_text().splitlines()) < 40


def read_result(directory: Path) -> dict:
    return json.loads((directory / "reports/smoke/result.json").read_text())


def change(script: Path, old: str, new: str) -> None:
    text = script.read_text()
    assert text.count(old) == 1
    script.write_text(text.replace(old, new))


def linear_lds(result: dict, method: str) -> list[float]:
    """Return the LDS of untransformed scores."""
    rows = select(result["rows"], quantity="lds", method=method, score_transform="linear")
    return [row["value"] for row in rows]


def test_a_method_is_evaluated_beside_ours_and_its_source_is_part_of_its_cache_key(tmp_path, tiny):
    shutil.copytree(tiny[0] / "artifacts", tmp_path / "artifacts")
    run = ("user_method.py", *TINY, "method=[journey,mine]", "method.mine.power=1")
    succeeds(command(tmp_path, *run))
    first = read_result(tmp_path)
    assert method_names(first["rows"], "lds") == ["journey", "mine"]
    assert first["methods"]["mine"].items() >= {"name": "mine", "power": 1.0}.items()
    assert "mine" in (tmp_path / "reports/smoke/lds.md").read_text()

    change(tmp_path / "user_method.py", "SIGN = -1", "SIGN = 1")
    models = {p: p.stat().st_mtime_ns for p in (tmp_path / "artifacts/models").rglob("*")}
    succeeds(command(tmp_path, *run))
    second = read_result(tmp_path)
    keys = [result["cache_keys"]["scores"] for result in (first, second)]
    assert keys[0]["journey"] == keys[1]["journey"]
    assert keys[0]["mine"] != keys[1]["mine"]
    scores = [np.load(tmp_path / "artifacts" / key["mine"] / "scores.npy") for key in keys]
    np.testing.assert_array_equal(scores[0], -scores[1])
    lds = np.array(linear_lds(first, "mine"))
    assert np.abs(lds).max() > 0
    np.testing.assert_allclose(linear_lds(second, "mine"), -lds, atol=1e-12)
    assert linear_lds(second, "journey") == linear_lds(first, "journey")
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "artifacts/models").rglob("*")}
    assert after == models, "no model is trained again"


def num_to_compute(directory: Path, run: tuple[str, ...], *stages: str) -> list[str]:
    """Return how many artifacts of some stages a plan would compute."""
    plan = succeeds(command(directory, *run, "task=plan"))
    lines = [line.split("│") for line in plan.splitlines() if line.startswith("│")]
    cells = {line[1].strip(): line[4].strip() for line in lines}
    return [cells[stage] for stage in stages]


def test_a_dataset_is_loaded_again_when_its_source_changes(tmp_path):
    run = ("user_dataset.py", *TINY, "dataset=stripes", "dataset.num_held_out=10", "method=[pixel]")
    succeeds(command(tmp_path, *run))
    result = read_result(tmp_path)
    assert (result["dataset"], result["num_train"]) == ("stripes", 60)
    images = tmp_path / "artifacts" / result["cache_keys"]["images"]
    assert np.load(images / "held_out/images.npy").shape == (10, 1, 8, 8)

    with open(tmp_path / "user_dataset.py", "a") as script:
        script.write("\n# the same images\n")
    assert num_to_compute(tmp_path, run, "images", "train", "measure", "score") == ["0"] * 4
    change(tmp_path / "user_dataset.py", "127 * waves", "100 * waves")
    assert num_to_compute(tmp_path, run, "images", "train") == ["1", "9"]


def test_an_evaluation_runs_and_retrains_nothing_that_it_does_not_need(tmp_path):
    run = [word for word in TINY if not word.startswith("evaluation")]
    words = ("evaluation=continuity", "method=[pixel,random]")
    output = succeeds(command(tmp_path, "user_evaluation.py", *run, *words))
    rows = read_result(tmp_path)["rows"]
    assert method_names(rows, "continuity") == ["pixel", "random"]
    assert [row["step"] for row in select(rows, method="pixel")] == [600]
    assert "continuity" in output
    assert not (tmp_path / "artifacts/outputs").exists()


CLASHES = {
    "user_method.py": ('"mine"', '"pixel"', "error: method=pixel=Mine: must be a name other than "),
    "user_dataset.py": (
        '"stripes"',
        '"digits"',
        "error: dataset=digits=Stripes: must be a name other than ",
    ),
    "user_evaluation.py": (
        '= "continuity"',
        '= "lds"',
        "error: evaluation=lds=Continuity: must be a name other than ",
    ),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_name_that_is_used_is_refused_in_a_line(script, tmp_path):
    old, new, message = CLASHES[script]
    change(tmp_path / script, old, new)
    done = command(tmp_path, script, *TINY)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(SCRIPTS)


def test_help_lists_a_users_method(tmp_path):
    output = command(tmp_path, "user_method.py", "--help").stdout
    (methods,) = re.findall(r"^    method (.*(?:\n {16}.*)*)", output, re.MULTILINE)
    assert methods.endswith(", mine")


def test_settings_of_a_users_method_are_checked(tmp_path):
    done = command(tmp_path, "user_method.py", *TINY, "method=[mine]", "method.mine.typo=1")
    assert done.returncode == 1
    assert "typo" in done.stderr
    assert done.stderr.count("\n") == 1
